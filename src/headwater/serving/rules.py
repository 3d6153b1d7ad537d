"""The rules of the configuration at work on one request: filters before ranking, everything else, and the lot, behind it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from headwater.features.bounded import tired_of
from headwater.features.plan import Plan
from headwater.features.rows import User
from headwater.log.protocol import Vocabulary
from headwater.policy.diversity import Method, window
from headwater.policy.exploration import NOTHING, Lot, Lottery, drawn_lot
from headwater.policy.expression import Among, Node, fields_of, holds, holds_for_request
from headwater.policy.fields import Field
from headwater.policy.order import Capped, Diverse, Pinned, Policy, Required, Weighed, apply_policy
from headwater.policy.rules import CompiledRule, compile_rules
from headwater.retrieval.merge import Candidates
from headwater.schema.config import Config
from headwater.schema.requests import Explored, Promised
from headwater.schema.rules import rules_version
from headwater.schema.surfaces import Fatigue, Shaping, Surface
from headwater.serving.new_items import NewItemBudget, promised_record
from headwater.serving.request import NO_ITEMS, Query
from headwater.serving.rule_fields import Codes, Columns, ItemColumns, RequestValues, rule_fields
from headwater.serving.view import View

Int64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Float32 = npt.NDArray[np.float32]

PLAIN: Mapping[str, Surface] = MappingProxyType({})
NO_FATIGUE = Fatigue()
_PLAIN = Surface(name="plain")
PLAIN_SHAPING = Shaping()


def shaping_of(surfaces: Iterable[Surface]) -> dict[str, Shaping]:
    """What ``surfaces`` do with a ranked list, by name; those that do something."""
    return {surface.name: surface.shaping for surface in surfaces if surface.shaping != PLAIN_SHAPING}


def open_rules(config: Config, plan: Plan, vocabulary: Vocabulary) -> Rules | None:
    """The rules of ``config``, its fatigue, its promises to new items, and the diversity and exploration of its surfaces; None when it has
    none of them.

    Raises:
        ConfigurationError: some rules do not compile; the message names each.
    """
    surfaces = {surface.name: surface for surface in config.surfaces}
    budget = NewItemBudget(config, plan) if config.new_items.impressions else None
    if not config.rules and not shaping_of(config.surfaces) and not config.fatigue.impressions and budget is None:
        return None
    compiled = compile_rules(config.rules, rule_fields(config, plan))
    return Rules(compiled, plan, vocabulary, surfaces, config.fatigue, budget)


class Rules:
    """Compiled rules and what they did to the request at hand: :meth:`begin` it, then the stages in their order.

    Belongs to one pipeline. ``surfaces`` by name say how lists are diversified and drawn by lot; ``fatigue`` is that of all of them,
    ``budget`` what new items are promised (None: nothing). ``version`` is a hash of all that. ``explored`` says how the list at hand was
    drawn, None: it was not; ``lot_weights`` float64[m] what each of its candidates weighed; ``promised`` which of its places could go to
    promised items. ``dropped`` int64[n] are the items that the user was shown too often to see them once more. ``follow`` int64[k] are
    items: a list that would be drawn is this one instead, and ``explored`` says how likely it was (see :class:`Lottery`); None: lists are
    drawn. ``counts`` says of each rule that acted on the
    request what it did: of a filter how many candidates it removed, of a boost or a bury how many shown items it holds for,
    of a pin whether it was placed, of a cap how many better ranked candidates it kept out, of a quota how many it brought in.
    """

    def __init__(
        self, compiled: tuple[CompiledRule, ...], plan: Plan, vocabulary: Vocabulary, surfaces: Mapping[str, Surface] = PLAIN,
        fatigue: Fatigue = NO_FATIGUE, budget: NewItemBudget | None = None,
    ) -> None:  # fmt: skip
        self.compiled = compiled
        self.version = rules_version([one.rule for one in compiled], shaping_of(surfaces.values()))
        self.counts: dict[str, int] = {}
        self.explored: Explored | None = None
        self.promised: Promised | None = None
        self.budget = budget
        self.lot_weights = NOTHING
        self.follow: Int64 | None = None
        self.dropped = self._buried = NO_ITEMS
        self._columns = ItemColumns(plan)
        self._values = RequestValues(plan, vocabulary)
        self._codes = Codes(vocabulary)
        self._kept = {
            rule.name: _Kept(rule.where)
            for rule in compiled
            if rule.where is not None and all(field.per_item and not field.moves for field in fields_of(rule.where))
        }
        self._surfaces, self._surface = surfaces, _PLAIN
        self._fatigue, self._layout = fatigue, plan.layout
        self._rates = (0.0, 0.0)
        self._lot: Lot | None = None  # what the request draws its list with
        self._request_id = ""
        self._promising = False
        self._acting: list[CompiledRule] = []
        self._removed: dict[str, list[Int64]] = {}
        self._scope: _Scope | None = None
        self._view: View | None = None

    @staticmethod
    def warm_up() -> None:
        """Order one candidate under one rule of each kind, so that no request waits for a kernel."""
        one = np.ones(1, np.bool_)
        policy = Policy(
            [Weighed(one, 2.0)],
            [Pinned(one, 1)],
            [Capped(np.ones((1, 1), np.uint32), 1)],
            [Required(one, 1, 1)],
            lottery=Lottery(1, 1.0, 0),
        )
        for method in get_args(Method):
            policy = replace(policy, diverse=_one_alone(method))
            apply_policy(np.zeros(1, np.float32), np.zeros(1, np.int64), 1, policy)

    def begin(
        self, query: Query, user: User, view: View, segments: tuple[int, int], offset_ms: int, now_ms: int
    ) -> None:  # fmt: skip
        """Another request: which rules act on it. ``offset_ms`` is local time less UTC."""
        if self._codes.moved_to(view.item_offset):
            for kept in self._kept.values():
                kept.forget(view.table.count)
        self._scope = _Scope(self, view, user, query.surface, segments, now_ms, now_ms + offset_ms)
        self._view, self._surface = view, self._surfaces.get(query.surface, _PLAIN)
        self._rates = self._surface.exploration.rates(query.exploration)
        lot = drawn_lot(query.request_id, *self._rates) if query.lots else None
        self._lot, self._request_id = lot, query.request_id
        self.explored, self.promised = None, None
        # a uniform list is to be nothing else, and who names candidates wants these and no others
        plain = query.lots and (lot is None or not lot.uniform) and query.candidates is None
        self._promising = plain and self.budget is not None and self.budget.begin(view, query.surface, now_ms)
        self.dropped = self._buried = NO_ITEMS
        if self._fatigue.impressions:
            self._tire(user, view, now_ms)
        self._acting = [
            rule for rule in self.compiled
            if rule.acts_at(query.surface, now_ms, now_ms + offset_ms)
            and (rule.when is None or holds_for_request(rule.when, self._scope))
        ]  # fmt: skip
        self.counts = {rule.name: 0 for rule in self._acting}
        self._removed = {rule.name: [] for rule in self._acting if rule.rule.filter is not None}

    @property
    def acting(self) -> tuple[str, ...]:
        """The version, and the names of the rules that act on the request at hand."""
        return self.version, *(rule.name for rule in self._acting)

    @property
    def constrains(self) -> bool:
        """Whether a cap, a pin, a quota or a promise acts on the request at hand: then there is more to a place than what its items weigh."""
        return self._promising or any(rule.rule.action in ("cap", "pin", "quota") for rule in self._acting)

    @property
    def explores(self) -> bool:
        """Whether something of the list at hand is drawn by lot, if nothing else is wrong with it."""
        return self._lot is not None or self._promising

    def _tire(self, user: User, view: View, now_ms: int) -> None:
        impressions, action = self._fatigue.on(self._surface)
        tired = tired_of(user.u4, impressions, now_ms, self._layout)
        if action == "drop":  # a row may know items newer than the columns; nobody offers those
            self.dropped = tired[tired < view.table.count]
        elif action == "bury":
            self._buried = tired

    def filter(self, items: Int64, shown: Bools) -> Bools:
        """``shown`` (``bool[n]``: may be shown otherwise) less what filters remove; the first that does not hold counts it."""
        for rule in self._acting:
            if rule.rule.filter is not None and rule.where is not None:
                kept = self._holds(rule, items)
                removed = items[shown & ~kept]
                if len(removed):
                    self._removed[rule.name].append(removed)
                shown = shown & kept
        return shown

    def with_pinned(
        self, candidates: Candidates, source: int, may_show: Callable[[Int64], Bools], count: int
    ) -> Candidates:  # fmt: skip
        """``candidates`` and, in front, where no narrower width cuts them off, the pinned items that no source offered; their score is
        0, ``source`` their position among the sources.

        ``count``: so many items there are; a pin of an item that the columns do not hold yet waits.
        """
        wanted = [
            self._codes.code(rule.where.field, rule.rule.pin.item)
            for rule in self._acting
            if rule.rule.pin is not None and rule.rule.pin.item is not None and isinstance(rule.where, Among)
        ]
        numbers = np.array([int(number) for number in wanted if 0 < int(number) < count], np.int64)
        missing = np.unique(numbers[~np.isin(numbers, candidates.items)])
        missing = missing[may_show(missing)]
        if not len(missing):
            return candidates
        return Candidates(
            np.concatenate([missing, candidates.items]),
            np.concatenate([np.zeros(len(missing), np.float32), candidates.scores]),
            np.concatenate([np.full(len(missing), source, np.int64), candidates.source]),
        )

    def with_promised(
        self, candidates: Candidates, source: int, user: User, view: View, may_show: Callable[[Int64], Bools], now_ms: int
    ) -> Candidates:  # fmt: skip
        """``candidates`` and the promised items that no source offered (see :class:`NewItemBudget`)."""
        if not self._promising or self.budget is None:
            return candidates
        return self.budget.with_promised(candidates, source, user, view, may_show, now_ms)

    def left_out(self, items: Int64, positions: Int64) -> Int64:
        """Positions of the promised ones among ``items`` that are not among ``positions``: a ranker let them not through."""
        if not self._promising or self.budget is None:
            return NO_ITEMS
        chosen = self.budget.chosen(items)
        return chosen[~np.isin(chosen, positions)]

    def order(self, items: Int64, scores: Float32, ties: Int64, k: int, *, explore: bool = False) -> Int64:
        """Positions of the at most ``k`` candidates to show, in their order (see :func:`apply_policy`).

        ``explore``: the list may be drawn by lot, where its surface says so.
        """
        weighed, pinned, capped, required = [], [], [], []
        names: tuple[list[str], ...] = ([], [], [], [])
        for rule in self._acting:
            said = rule.rule
            if rule.by is not None and said.cap is not None:
                codes = self._read(rule.by, items)[0]
                capped.append(Capped(codes.reshape(len(items), -1), said.cap.at_most))
                names[2].append(rule.name)
            elif rule.where is None or said.filter is not None:
                continue
            elif (weight := said.boost or said.bury) is not None:
                weighed.append(Weighed(self._holds(rule, items), weight.factor))
                names[0].append(rule.name)
            elif said.pin is not None:
                pinned.append(Pinned(self._holds(rule, items), said.pin.position))
                names[1].append(rule.name)
            elif said.quota is not None:
                required.append(Required(self._holds(rule, items), said.quota.at_least, said.quota.within))
                names[3].append(rule.name)
        if len(self._buried):
            weighed.append(Weighed(np.isin(items, self._buried), self._fatigue.factor))
        diverse = (lambda order: self._diverse(items, order, k)) if self._surface.diversity else None
        lottery = self._lottery(items) if explore else None
        promise = None
        if explore and self._promising and self.budget is not None:
            promise = self.budget.promise(items, k, self._request_id)
        done = apply_policy(scores, ties, k, Policy(weighed, pinned, capped, required, diverse, lottery, promise))
        if lottery is not None and self._lot is not None:
            (share, uniform_share), uniform = self._rates, self._lot.uniform
            self.lot_weights = done.weights
            self.explored = Explored(
                done.log_propensities.tolist(), items[done.drawn_from].tolist(), 0.0 if uniform else self._surface.exploration.temperature,
                uniform_share if uniform else share, uniform,
            )  # fmt: skip
        self.promised = promised_record(done)
        for group, counted in zip(
            names, (done.weighed[: len(names[0])], done.pinned, done.capped, done.required), strict=True
        ):
            self.counts.update(zip(group, counted, strict=True))
        return done.positions

    def _diverse(self, items: Int64, order: Int64, k: int) -> Diverse:
        assert self._view is not None  # noqa: S101  (begin comes first: a mistake of the caller, not of data)
        surface = self._surface
        vectors = self._view.index.content[items[order[: window(len(order), k)]]]
        return Diverse(vectors, surface.diversity, surface.diversity_by)

    def _lottery(self, items: Int64) -> Lottery | None:
        said, lot = self._surface.exploration, self._lot
        if lot is None:
            return None
        if self.follow is not None:  # how likely it is for the surface, whatever it was drawn by
            positions = {item: position for position, item in enumerate(items.tolist())}
            follow = np.array([positions.get(item, -1) for item in self.follow.tolist()], np.int64)
            return Lottery(said.candidates, said.temperature, lot.seed, follow)
        if lot.uniform:
            return Lottery(len(items), math.inf, lot.seed)
        return Lottery(said.candidates, said.temperature, lot.seed)

    def removed(self) -> dict[str, Int64]:
        """The items that each filter removed from the request at hand, ``int64[n]``, each once."""
        none = np.zeros(0, np.int64)
        return {name: np.unique(np.concatenate([none, *parts])) for name, parts in self._removed.items()}

    def concerning(self, item: int, shown: Int64) -> list[str]:
        """The rules that have a say in where ``item`` stands in the request at hand: boosts, buries, pins and quotas that hold for
        it, caps of which the items ``shown`` have one of its values as often as is allowed.
        """
        one, names = np.array([item], np.int64), []
        for rule in self._acting:
            said = rule.rule
            if rule.by is not None and said.cap is not None:
                own, taken = (self._read(rule.by, items)[0].reshape(len(items), -1) for items in (one, shown))
                values = np.unique(own[own != 0])
                concerned = bool(((taken[:, :, None] == values).any(axis=1).sum(axis=0) >= said.cap.at_most).any())
            else:
                concerned = said.filter is None and rule.where is not None and bool(self._holds(rule, one)[0])
            if concerned:
                names.append(rule.name)
        return names

    def close(self, shown: int, k: int) -> list[str]:
        """Count what filters removed; a note for each rule that is a reason why ``shown`` of ``k`` items came together."""
        self.counts.update((name, len(items)) for name, items in self.removed().items())
        if shown >= k:
            return []
        notes = []
        if len(self.dropped):
            notes.append(f"{shown} of {k} items: {len(self.dropped)} were shown often enough and not touched")
        for rule in self._acting:
            count = self.counts[rule.name]
            if count and rule.rule.action in ("filter", "cap"):
                did = "removed" if rule.rule.filter is not None else "kept out"
                notes.append(f'{shown} of {k} items: rule "{rule.name}" {did} {count} candidates')
        return notes

    def _holds(self, rule: CompiledRule, items: Int64) -> Bools:
        assert self._scope is not None  # noqa: S101  (begin comes first: a mistake of the caller, not of data)
        assert rule.where is not None  # noqa: S101
        kept = self._kept.get(rule.name)
        if kept is not None:
            return kept.holds(items, self._scope)
        return holds(rule.where, self._scope.of(items), len(items))

    def _read(self, field: Field, items: Int64) -> Columns:
        assert self._scope is not None, "begin comes first"  # noqa: S101
        return self._scope.of(items).values(field)

    def read_items(self, field: Field, view: View, items: Int64, now_ms: int) -> Columns:
        """A field of ``items``."""
        return self._columns.read(field, view.table.rows, items, now_ms)

    def read_request(
        self, field: Field, user: User, surface: str, segments: tuple[int, int], local_ms: int
    ) -> Columns:  # fmt: skip
        """A fact of the request."""
        return self._values.read(field, user, surface, segments, local_ms)

    def code(self, field: Field, text: str) -> int | str:
        """What columns of ``field`` hold for ``text``."""
        return self._codes.code(field, text)


def _one_alone(method: Method) -> Callable[[Int64], Diverse]:
    """The diversity of a single candidate."""
    return lambda _: Diverse(np.ones((1, 1), np.float32), 0.5, method)


class _Kept:
    """For which items an expression over items alone holds: asked once for each until item columns move on."""

    _UNKNOWN = 2

    def __init__(self, node: Node) -> None:
        self._node = node
        self._known = np.zeros(0, np.uint8)

    def forget(self, count: int) -> None:
        """Item columns have moved on, and there are ``count`` items."""
        if len(self._known) < count:
            self._known = np.empty(2 * count, np.uint8)
        self._known[:] = self._UNKNOWN

    def holds(self, items: Int64, scope: _Scope) -> Bools:
        if len(items) and items.max() >= len(self._known):  # a user row may know items newer than the columns
            return holds(self._node, scope.of(items), len(items))
        found = self._known[items]
        unknown = found == self._UNKNOWN
        if unknown.any():
            new = items[unknown]
            found[unknown] = self._known[new] = holds(self._node, scope.of(new), len(new))
        return found.astype(np.bool_)


class _Scope:
    """One request, and the list of items that is being asked about; what was read of them is kept until the next list."""

    def __init__(
        self, rules: Rules, view: View, user: User, surface: str, segments: tuple[int, int], now_ms: int, local_ms: int
    ) -> None:  # fmt: skip
        self._rules, self._view, self._user = rules, view, user
        self._surface, self._segments, self._now_ms, self._local_ms = surface, segments, now_ms, local_ms
        self._items: Int64 = np.zeros(0, np.int64)
        self._read: dict[str, Columns] = {}
        self._facts: dict[str, Columns] = {}

    def of(self, items: Int64) -> _Scope:
        """The same request, asked about ``items``."""
        if items is not self._items:
            self._items = items
            self._read = {}
        return self

    def values(self, field: Field) -> Columns:
        kept = self._read if field.per_item else self._facts
        found = kept.get(field.name)
        if found is None:
            if field.per_item:
                found = self._rules.read_items(field, self._view, self._items, self._now_ms)
            else:
                found = self._rules.read_request(
                    field, self._user, self._surface, self._segments, self._local_ms
                )  # fmt: skip
            kept[field.name] = found
        return found

    def code(self, field: Field, text: str) -> Any:
        return self._rules.code(field, text)
