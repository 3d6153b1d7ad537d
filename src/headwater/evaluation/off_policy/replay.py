"""Logged lists asked again of another bundle: how likely it would have drawn each of them, place by place.

One pipeline answers, the one that serves, at the address of each list. It is asked up to three times:

- the evaluated bundle ranks the candidates that the list was drawn from, and the list is followed through its lottery (:class:`Lottery`): its conditional
  probabilities, exact under the rules of today;
- the evaluated bundle ranks what its own sources find: the share of its first draw that lies on the logged candidates is how much of it the log covers;
- the logging bundle, where it is still there, ranks what its sources find: it has to give the logged propensities again, and then says how likely each item was at
  its place whatever stood above it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import numpy.typing as npt

from headwater.evaluation.addresses import Addresses
from headwater.evaluation.off_policy.logged import drawn
from headwater.evaluation.off_policy.marginals import place_probabilities
from headwater.features.fold import Fold, Unseal
from headwater.features.plan import Plan
from headwater.features.rows import User, unpack_user
from headwater.features.zones import Zones
from headwater.log.protocol import EventLog, Vocabulary
from headwater.retrieval.index import ItemIndex
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.schema.surfaces import Exploration, Surface
from headwater.serving.explain import query_of
from headwater.serving.model import Model
from headwater.serving.observer import Observer
from headwater.serving.pace import Pace
from headwater.serving.pipeline import Conditions, Pipeline
from headwater.serving.region import StoredRegion
from headwater.serving.request import Query
from headwater.serving.rules import Rules, open_rules
from headwater.serving.served import Served

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]

EVEN = 1e9  # a temperature at which all candidates are alike
_SAME = 1e-6  # log-propensities: scores are float32


class UnrankedError(HeadwaterError):
    """A bundle that was asked again gave a list of a lower tier than the one that was logged."""


@dataclass(slots=True)
class Replayed:
    """What the replay of n lists of at most k places said. ``evaluated`` float64[n, k] as in ``ListFeedback``; ``uncovered`` float64[n].

    ``features`` and ``expected`` float64[n, k, 2k] as there: the place, and there the relevance of the item to the evaluated bundle; zeros where caps, pins, quotas or promises act.
    ``marginal`` float64[n, k], where ``reproduced`` bool[n] (the logging bundle gave the logged propensities again); ``why_not`` says why the
    first that is not was not.
    """

    evaluated: Float64
    uncovered: Float64
    marginal: Float64
    features: Float64
    expected: Float64
    reproduced: npt.NDArray[np.bool_]
    why_not: str = ""

    @staticmethod
    def of(n: int, k: int) -> Replayed:
        """Nothing is said yet."""
        of_places = np.zeros((n, k, 2 * k))
        return Replayed(
            np.zeros((n, k)), np.zeros(n), np.ones((n, k)), of_places, of_places.copy(), np.zeros(n, np.bool_)
        )  # fmt: skip


def replay_lists(
    event_log: EventLog, plan: Plan, config: Config, lists: list[Served], places: int, policy: Model,
    logging: Callable[[str], Model | None], exploration: Exploration, *, unseal: Unseal | None = None,
    progress: Progress | None = None,
) -> Replayed:  # fmt: skip
    """Ask ``policy``, drawing as ``exploration`` says, about ``lists`` of one surface. ``logging`` opens the bundle of a version (None: it is gone).

    Raises:
        UnrankedError: ``policy`` could not rank a list.
        HeadwaterError: the log does not read as it was written.
    """
    surface = lists[0].answer.surface
    user, user_offset, item_offset = (
        np.array(column, np.int64)
        for column in zip(
            *((one.user, one.answer.address.user_offset, one.answer.address.item_offset) for one in lists), strict=True
        )
    )
    addresses = Addresses(event_log, plan, user, user_offset, item_offset, unseal)
    view = _View(plan, addresses.items)
    asking = _Asking(config, plan, event_log.vocabulary(), surface, view.index)
    found = Replayed.of(len(lists), places)
    for done, (n, row) in enumerate(addresses):
        view.stand(int(user[n]), row, int(user_offset[n]), int(item_offset[n]))
        one = _One(lists[n], view, asking)
        k = len(lists[n].answer.items)
        draw = one.evaluated(policy, exploration)
        found.evaluated[n, :k], found.uncovered[n] = draw.logs, one.uncovered(policy, exploration)
        for place, (shown, mean) in enumerate(draw.relevance):
            found.features[n, place, [2 * place, 2 * place + 1]] = 1.0, shown
            found.expected[n, place, [2 * place, 2 * place + 1]] = 1.0, mean
        why, before = one.logged(logging)
        if before is None or draw.at_places is None or before.at_places is None:
            found.why_not = (
                found.why_not or why or "caps, pins, quotas or promises act on it, so that places depend on one another"
            )
        else:
            found.reproduced[n] = True
            found.marginal[n, :k] = draw.at_places / before.at_places
        if progress is not None and done % 50 == 49:
            progress(done + 1, len(lists))
    return found


@dataclass(frozen=True, slots=True)
class _Draw:
    """``logs`` float64[k] of the list place by place. Where no cap, pin, quota or promise acts: ``at_places`` float64[k], how likely each item stands at its place;
    ``relevance`` of each item, and of what is drawn for its place in the mean.
    """

    logs: Float64
    at_places: Float64 | None
    relevance: list[tuple[float, float]]


class _One:
    """One list, asked about at its address."""

    def __init__(self, served: Served, view: _View, asking: _Asking) -> None:
        self._served, self._view, self._asking = served, view, asking
        self._items = np.array(served.answer.items, np.int64)
        self._query = replace(query_of(served), k=len(self._items))
        self._candidates = np.array(drawn(served).candidates, np.int64)

    def evaluated(self, policy: Model, exploration: Exploration) -> _Draw:
        # what was pinned need not be among those that are drawn from
        missing = self._items[~np.isin(self._items, self._candidates)]
        query = replace(self._query, candidates=np.concatenate([self._candidates, missing]))
        rules = self._ask(policy, exploration, query, follow=self._items)
        return _draw(rules, self._items)

    def uncovered(self, policy: Model, exploration: Exploration) -> float:
        rules = self._ask(policy, exploration, self._query)
        assert rules.explored is not None  # noqa: S101  (:meth:`_ask` has seen to it)
        own = np.isin(np.array(rules.explored.candidates, np.int64), self._candidates)
        return float(rules.lot_weights[~own].sum() / rules.lot_weights.sum())

    def logged(self, logging: Callable[[str], Model | None]) -> tuple[str, _Draw | None]:
        """Why the logging policy cannot be asked again, or how likely it drew the list."""
        answer, said = self._served.answer, drawn(self._served)
        model = logging(answer.address.bundle)
        if model is None:
            return f"bundle {answer.address.bundle} is not there any more", None
        temperature = EVEN if said.uniform else said.temperature
        exploration = Exploration(share=1.0, temperature=temperature, candidates=max(len(said.candidates), 2))
        quality = 1.0 if answer.query is None else answer.query.quality
        try:
            rules = self._ask(model, exploration, self._query, follow=self._items, quality=quality, tier=answer.tier)
        except UnrankedError as error:
            return str(error), None
        draw = _draw(rules, self._items)
        again = rules.explored is not None and rules.explored.candidates == said.candidates
        if not again or not np.allclose(draw.logs, said.log_propensities, rtol=0.0, atol=_SAME):
            return f"request {answer.request_id}: other candidates or propensities than were logged", None
        return "", draw

    def _ask(
        self, model: Model, exploration: Exploration, query: Query, *, follow: Int64 | None = None, quality: float = 1.0,
        tier: int = 0,
    ) -> Rules:  # fmt: skip
        pipeline, rules = self._asking.pipeline(exploration, model)
        self._asking.pace.quality = quality
        rules.follow = follow
        now_ms = self._served.answer.address.now_ms
        answer = pipeline.recommend(query, self._view, model, now_ms, Observer(tier=tier) if tier else None)
        if answer.tier > tier or answer.explored is None:
            raise UnrankedError(
                f"request {query.request_id}: bundle {model.version} did not rank it ({'; '.join(answer.degraded) or 'nothing may be shown'}), so "
                "nobody knows what it would have shown"
            )
        return rules


class _Asking:
    """Pipelines that draw every list of ``surface``, one for each way of drawing and each model."""

    def __init__(self, config: Config, plan: Plan, vocabulary: Vocabulary, surface: str, index: ItemIndex) -> None:
        self._config, self._plan, self._vocabulary, self._surface = config, plan, vocabulary, surface
        self._index = index
        self._made: dict[tuple[Exploration, str], tuple[Pipeline, Rules]] = {}
        self.pace = Pace()

    def pipeline(self, exploration: Exploration, model: Model) -> tuple[Pipeline, Rules]:
        key = (msgspec.structs.replace(exploration, share=1.0), model.version)
        if key not in self._made:
            for source in model.sources:
                source.prepare(self._index)
            config = drawing(self._config, self._surface, key[0])
            rules = open_rules(config, self._plan, self._vocabulary)
            assert rules is not None  # noqa: S101  (a surface that explores has them)
            conditions = Conditions(pace=self.pace)
            pipeline = Pipeline(
                config, self._plan, stored_region=StoredRegion(self._vocabulary), zones=Zones(self._vocabulary),
                conditions=conditions, rules=rules,
            )  # fmt: skip
            self._made[key] = pipeline, rules
        return self._made[key]


class _View:
    """What a request at an address saw: the items as a fold stands, the row of one user (whoever else is asked for is a stranger)."""

    def __init__(self, plan: Plan, fold: Fold) -> None:
        self._plan, self._fold = plan, fold
        self.table, self.item_offset = fold.items, 0
        self.index = ItemIndex(plan, fold.items)
        self._user, self._packed, self._user_offset = 0, b"", 0

    def stand(self, user: int, packed: bytes, user_offset: int, item_offset: int) -> None:
        """Go on to the next address, where the fold stands already."""
        changed = np.flatnonzero(self.table.dirty)
        self.index.update(changed)
        self.table.dirty[changed] = 0
        self._user, self._packed, self._user_offset, self.item_offset = user, packed, user_offset, item_offset

    def read_user(self, user: int, into: User) -> int:
        if user == self._user:
            unpack_user(self._packed, into, self._plan.layout)
        else:
            for part in into:
                part[:] = 0
        return self._user_offset


def drawing(config: Config, surface: str, exploration: Exploration) -> Config:
    """``config`` with lists of ``surface`` drawn as ``exploration`` says."""
    named = {each.name: each for each in config.surfaces}
    named[surface] = msgspec.structs.replace(named.get(surface, Surface(name=surface)), exploration=exploration)
    return msgspec.structs.replace(config, surfaces=tuple(named.values()))


def _draw(rules: Rules, items: Int64) -> _Draw:
    explored = rules.explored
    assert explored is not None  # noqa: S101  (:meth:`_One._ask` has seen to it)
    logs = np.full(len(items), -np.inf)
    said = explored.log_propensities[: len(items)]
    logs[: len(said)] = said
    if rules.constrains:
        return _Draw(logs, None, [])
    where: Mapping[int, int] = {item: position for position, item in enumerate(explored.candidates)}
    positions = np.array([where.get(item, -1) for item in items.tolist()], np.int64)
    return _Draw(
        logs, place_probabilities(rules.lot_weights, positions), _relevance(rules.lot_weights, explored.temperature, positions)
    )  # fmt: skip


def _relevance(weights: Float64, temperature: float, positions: Int64) -> list[tuple[float, float]]:
    """Of the item at each of ``positions`` (-1: 0), and in the mean of what is drawn there once those above are gone."""
    relevance, left, found = 1.0 + temperature * np.log(weights), weights.copy(), []
    for position in positions.tolist():
        total = float(left.sum())
        mean = float(left @ relevance) / total if total > 0.0 else 0.0
        found.append((float(relevance[position]) if position >= 0 else 0.0, mean))
        if position >= 0:
            left[position] = 0.0
    return found
