"""The playground: lists for whoever is asked about, what an event does to them, and the same list by another way.

Comparisons run in a pipeline of their own, which shares the view of state and the ranker's thread with the worker's; nothing they do is kept,
recorded or counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from headwater.features.assemble import stranger
from headwater.features.layout import ITEM_BITS, MAX_ITEMS, U_FIRST, U_RECENT_LENGTH
from headwater.log.batch import events_to_batch
from headwater.log.protocol import RefusedError
from headwater.log.record import Namespace
from headwater.online.arms import branched
from headwater.online.bodies import event_check
from headwater.online.console_cards import Cards
from headwater.online.errors import RefusalError
from headwater.online.recommender import Asked
from headwater.online.service import Service
from headwater.registry.errors import BundleError
from headwater.registry.registry import Registry
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.schema.events import Event
from headwater.schema.request_ids import new_request_id
from headwater.schema.requests import RecommendRequest, RecommendResponse
from headwater.schema.seen import Card, FeatureMove, PastEvent, Person, ShownItem, ShownList, Step, Whom
from headwater.schema.surfaces import Exploration
from headwater.serving.model import Model, open_model
from headwater.serving.pipeline import Pipeline
from headwater.serving.request import Answer
from headwater.serving.rules import open_rules

DEADLINE_MS = (
    200.0  # of lists that nobody waits for but who looks at the page; the worker answers nobody else meanwhile
)
MOVES = 8
_LEAST = 1e-6  # a smaller change is rounding

_decode = msgspec.json.Decoder(RecommendResponse).decode


@dataclass(frozen=True, slots=True)
class _Branch:
    """A pipeline, and the configuration that was in force when it was made."""

    of: Config
    pipeline: Pipeline


class ConsolePlay:
    """Lists of a worker's ``service``."""

    def __init__(self, service: Service, data: Path, cards: Cards) -> None:
        self._service, self._cards, self._models = service, cards, Registry(data / "models")
        self._branches: dict[str, _Branch] = {}
        self._other: Model | None = None
        self._loading = asyncio.Lock()
        self._check = event_check([kind.name for kind in service.config.events])

    def cards(self, items: Sequence[str]) -> dict[str, Card]:
        """What the catalogue says of ``items``, by id."""
        return self._cards.of(items)

    def person(self, whom: Whom) -> Person:
        """What the state says of a user."""
        service, number = self._service, self._number(whom)
        row, layout = stranger(service.plan), service.plan.layout
        service.recommender.view.read_user(number, row)
        length, text = int(row.u4[U_RECENT_LENGTH]), service.stores.log.vocabulary().text
        keys = row.u4[layout.recent_keys : layout.recent_keys + length].tolist()
        times = row.u4[layout.recent_times : layout.recent_times + length].tolist()
        items = [text(Namespace.ITEM, key & MAX_ITEMS) or "" for key in keys]
        cards, types = self._cards.of(items), ("", *service.plan.event_types)
        recent = [
            PastEvent(cards[item], types[key >> ITEM_BITS] if key >> ITEM_BITS < len(types) else "", 1_000 * second)
            for item, key, second in zip(items, keys, times, strict=True)
        ]
        return Person(int(row.i8[U_FIRST]) > 0, recent[::-1])

    def look(self, request: RecommendRequest, whom: Whom) -> ShownList:
        """A list that is neither recorded nor counted.

        Raises:
            HeadwaterError: the request is wrong.
        """
        recommender, now_ms = self._service.recommender, self._service.clock()
        asked = self._asked(request, whom, new_request_id(now_ms))
        answer = recommender.answer(asked, now_ms)
        return self._shown(asked, answer)

    async def ask(self, request: RecommendRequest) -> ShownList:
        """A list as clients get it, with the user's experiments; recorded as a trial: what is learnt and measured leaves it out.

        Raises:
            HeadwaterError: the request is wrong.
        """
        try:
            response = _decode(await self._service.recommend_trial(request))
        except RefusalError as error:
            raise HeadwaterError(str(error)) from error
        took_ms = 0.0 if response.trace is msgspec.UNSET else sum(stage.ms for stage in response.trace)
        return self._listed(response, self._service.config.serving.log_served, took_ms)

    async def act(self, event: Event, request: RecommendRequest, shown: Sequence[str]) -> Step:
        """Take ``event`` in as a trial, then ask for the list that reflects it. ``shown`` are the items of the list before.

        Raises:
            HeadwaterError: the event is wrong, or the writer is away.
        """
        if (wrong := self._check(event)) is not None:
            raise HeadwaterError(wrong[1])
        service, whom = self._service, Whom(request.user or "")
        await self._branch("", self._plain)  # before anything is timed
        now_ms = service.clock()
        before = self._rows(request, whom, shown, now_ms)
        began = time.perf_counter()
        try:
            batch = events_to_batch([event], service.config.segments.keys, trial=True)
            appended = await service.writer.append_events(batch)
        except RefusedError as error:
            raise HeadwaterError(str(error)) from error
        durable_ms = 1e3 * (time.perf_counter() - began)
        service.metrics.ingested.labels("event", "accepted").inc(appended.accepted)
        listed = await self.ask(msgspec.structs.replace(request, token=str(appended.offset)))
        reflected_ms = 1e3 * (time.perf_counter() - began)
        after = self._rows(request, whom, shown, now_ms)
        reflected = not any(reason.startswith("token not reached") for reason in listed.reasons)
        return Step(durable_ms, reflected_ms, reflected, listed, self._moves(before, after))

    async def compare(self, request: RecommendRequest, whom: Whom, way: str) -> tuple[ShownList, ShownList]:
        """The list of the configuration and bundle in service, and that of another ``way``; both without experiments.

        Raises:
            HeadwaterError: there is no such way, or the bundle cannot be used.
        """
        current = await self._branch("", self._plain)
        other, model = current, None
        if (version := way.removeprefix("bundle:")) != way:
            model = await self._bundle(version)
        elif way in _WITHOUT:
            other = await self._branch(way, lambda: _WITHOUT[way](self._service.recommender.config))
        else:
            raise HeadwaterError(
                f'There is no way "{way}"; there are {", ".join(_WITHOUT)} and the bundles of the registry'
            )
        request_id = new_request_id(self._service.clock())  # one for both: what is drawn by lot is drawn alike
        asked = self._asked(request, whom, request_id)
        in_service, now_ms, view = (
            self._service.recommender.model,
            self._service.clock(),
            self._service.recommender.view,
        )
        lists = []
        for pipeline, ranked_by in ((current, in_service), (other, model or in_service)):
            answer = pipeline.recommend(asked.query, view, ranked_by, now_ms)
            lists.append(self._shown(asked, answer))
        return lists[0], lists[1]

    async def forget(self, user: str) -> None:
        """Erase a visitor that was made up here.

        Raises:
            HeadwaterError: the writer is away.
        """
        await self._service.writer.erase_users([user])

    # -- parts -----------------------------------------------------------------------------------------

    def _number(self, whom: Whom) -> int:
        if not whom.id:
            return whom.number
        found = self._service.stores.identity.lookup(whom.id)
        return 0 if found is None else found.user

    def _asked(self, request: RecommendRequest, whom: Whom, request_id: str) -> Asked:
        """``request`` without experiments, of whoever it is about, not to be given again."""
        try:
            named = msgspec.structs.replace(request, user=whom.id or None)
            asked = self._service.recommender.asked(named, request_id, DEADLINE_MS, self._service.clock())
        except RefusalError as error:
            raise HeadwaterError(str(error)) from error
        query = replace(asked.query, user=self._number(whom), reuse=False, arm="", lots=True)
        return replace(asked, query=query, choices=(), arm=None, challenger=None)

    def _shown(self, asked: Asked, answer: Answer) -> ShownList:
        response = self._service.recommender.response(asked, answer, [])
        return self._listed(response, False, answer.took_ms)

    def _listed(self, response: RecommendResponse, recorded: bool, took_ms: float) -> ShownList:
        reasons = {item.id: item.reason for item in response.items}
        cards = self._cards.of([item.id for item in response.items])
        return ShownList(
            request_id=response.request_id,
            items=[ShownItem(cards[item.id], item.score, item.source, reasons[item.id]) for item in response.items],
            tier=response.tier,
            reasons=response.reasons,
            model=response.model,
            recorded=recorded,
            after=response.address.user_offset,
            took_ms=took_ms,
        )

    def _rows(
        self, request: RecommendRequest, whom: Whom, shown: Sequence[str], now_ms: int
    ) -> npt.NDArray[np.float32]:
        """The feature rows of the items that were ``shown``, ``float32[n, columns]``, for the user's row as it is now."""
        service = self._service
        pipeline, view = self._branches[""].pipeline, service.recommender.view
        known = [service.stores.log.vocabulary().index(Namespace.ITEM, item) for item in shown]
        items = np.array([item for item in known if 0 < item < view.table.count], np.int64)
        out = np.zeros((len(items), len(service.plan.columns)), np.float32)
        if len(items):
            query = self._asked(request, whom, "0" * 32).query
            pipeline.candidates(query, view, now_ms)  # reads the user's row
            out = pipeline.features(query, view, items, now_ms, out).copy()
        return out

    def _moves(self, before: npt.NDArray[np.float32], after: npt.NDArray[np.float32]) -> list[FeatureMove]:
        """The features that changed most: by how much, in proportion to what they were, and of how many items of the list."""
        if before.shape != after.shape or not len(before):
            return []
        changed = np.abs(after - before) > _LEAST
        size = np.abs(before).mean(axis=0) + np.abs(after).mean(axis=0)
        by_how_much = np.abs(after - before).mean(axis=0) / np.maximum(size, _LEAST) * changed.mean(axis=0)
        order = np.lexsort((np.arange(len(size)), -by_how_much))
        columns = self._service.plan.declared
        return [
            FeatureMove(
                columns[at].name, columns[at].unit, columns[at].description, float(before[:, at].mean()),
                float(after[:, at].mean()), int(changed[:, at].sum()), len(before),
            )
            for at in order[:MOVES].tolist() if changed[:, at].any()
        ]  # fmt: skip

    def _plain(self) -> Config:
        return self._service.recommender.config

    async def _branch(self, name: str, config: Callable[[], Config]) -> Pipeline:
        """The pipeline of a way, made anew when the configuration in force is another one."""
        service = self._service
        async with self._loading:
            found = self._branches.get(name)
            if found is None or found.of is not service.recommender.config:
                made_of, control = service.recommender.config, service.recommender.pipeline
                changed, vocabulary = config(), service.stores.log.vocabulary()
                pipeline = await asyncio.to_thread(
                    lambda: branched(control, changed, open_rules(changed, service.plan, vocabulary), shadow=True)
                )
                found = self._branches[name] = _Branch(made_of, pipeline)
        return found.pipeline

    async def _bundle(self, version: str) -> Model:
        """The model of a bundle. One is kept."""
        async with self._loading:
            if self._other is None or self._other.version != version:
                model = await asyncio.to_thread(self._opened, version)
                if self._other is not None:
                    self._other.close()
                self._other = model
            return self._other

    def _opened(self, version: str) -> Model:
        service = self._service
        try:
            bundle = self._models.load(version, plan_hash=service.plan.hash)
        except (BundleError, OSError) as error:
            raise HeadwaterError(f"Bundle {version} cannot be used: {error}") from error
        model = open_model(bundle, service.recommender.config, service.plan)
        for source in model.sources:
            source.prepare(service.recommender.view.index)
        return model


def _without_rules(config: Config) -> Config:
    return msgspec.structs.replace(config, rules=())


def _without_exploration(config: Config) -> Config:
    surfaces = tuple(msgspec.structs.replace(surface, exploration=Exploration()) for surface in config.surfaces)
    return msgspec.structs.replace(config, surfaces=surfaces)


def _without_diversity(config: Config) -> Config:
    surfaces = tuple(msgspec.structs.replace(surface, diversity=0.0) for surface in config.surfaces)
    return msgspec.structs.replace(config, surfaces=surfaces)


_WITHOUT: Mapping[str, Callable[[Config], Config]] = {
    "no rules": _without_rules, "no exploration": _without_exploration, "no diversity": _without_diversity,
}  # fmt: skip
