"""The request path. Production, evaluation, training's candidates and replay all call this one function."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from headwater.features.assemble import Context, anchor_user, forget_idle, stranger
from headwater.features.attributes import surface_code
from headwater.features.layout import (
    FLAG_HIDDEN,
    I_EXPIRES,
    I_FLAGS,
    I_PUBLISHED,
    I_REGIONS,
    MAX_ITEMS,
    U_RECENT_LENGTH,
    U_SEEN_LENGTH,
    U_SEGMENT,
    U_ZONE,
)
from headwater.features.plan import Plan
from headwater.features.rows import User
from headwater.features.zones import Zones, zone_offset_of
from headwater.policy.eligibility import eligible
from headwater.retrieval.cause import co_visit_cause
from headwater.retrieval.index import NOTHING, Ranked
from headwater.retrieval.merge import Candidates, merge
from headwater.retrieval.sources import Asked, Catalogue, Source, configured_sources
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.schema.items import MAX_REGIONS
from headwater.schema.requests import Address
from headwater.serving.assembly import Assembly, modelled
from headwater.serving.lists import OWN_LIST, SNAPSHOT, LastLists, Origin, PopularSnapshot, by_popularity
from headwater.serving.model import Model
from headwater.serving.pace import Pace
from headwater.serving.rank import Moment, Order, RankStage
from headwater.serving.region import nowhere
from headwater.serving.request import NO_MODEL, Answer, Query
from headwater.serving.run import Deadline, Run
from headwater.serving.scorer import DirectScorer, Scorer
from headwater.serving.stages import TIER_LAST, TIER_POPULAR, TIER_RETRIEVAL
from headwater.serving.view import View
from headwater.serving.walk import drawn_tier


@dataclass(slots=True)
class Conditions:
    """What a pipeline runs under. The defaults are those of evaluation and training: the ranker is called directly, widths
    are full, nothing is remembered, and no request walks a lower tier. ``walk``: the share of requests that walk each.
    """

    scorer: Scorer = field(default_factory=DirectScorer)
    pace: Pace = field(default_factory=Pace)
    lists: LastLists | None = None
    walk: float = 0.0


class Pipeline:
    """Turns a query into an answer. Holds the reused memory of one worker, so it is not thread-safe.

    ``stored_region`` gives the region of a user row, for queries that name none; ``zones`` the time zones that rows
    name (None: local time is UTC).
    """

    def __init__(
        self, config: Config, plan: Plan, *, sources: tuple[Source, ...] | None = None,
        stored_region: Callable[[User], int] = nowhere, zones: Zones | None = None, timer: Callable[[], float] = time.perf_counter,
        conditions: Conditions | None = None,
    ) -> None:  # fmt: skip
        self.config, self.plan, self.timer = config, plan, timer
        self.conditions = conditions if conditions is not None else Conditions()
        self.stored_region = stored_region
        self.zones = zones
        self.sources = configured_sources(config, plan) if sources is None else sources
        self.by_surface = {s.name: s.sources for s in config.surfaces}
        self.user: User = stranger(plan)
        self.limit = config.ranker.candidates
        self.asked = Asked(self.user, (0, 0), 0)
        self._region = 0
        self._assembly = Assembly(plan, max(self.limit, 256))
        self._ranking = RankStage(config, self._assembly, self.conditions.scorer, self.conditions.pace)
        self._popular = PopularSnapshot(plan)
        self._barred = np.zeros(1024, np.uint8)
        self._eligible = np.zeros(8192, np.uint8)

    def recommend(self, query: Query, view: View, model: Model | None, now_ms: int) -> Answer:
        """Answer ``query`` at ``now_ms``. Always answers: what fails lowers the tier and is named."""
        pace = self.conditions.pace
        run = Run(
            Deadline(self.timer, query.deadline_ms),
            quality=pace.quality,
            drawn=drawn_tier(query.request_id, self.conditions.walk),
        )
        user_offset = self._hydrate(query, view, now_ms, run)
        segments = self._segments(query)
        context = Context(segments, self._offset_ms(query, now_ms), surface_code(query.surface))
        if run.tier < TIER_LAST and run.deadline.left_for_ms("fetch") <= 0.0:
            run.degrade(TIER_LAST, "deadline: no time to fetch candidates")
        if run.tier < TIER_LAST:
            candidates, used = self._fetch(query, view, model, segments, now_ms, run)
            moment = Moment(self.asked, view, model, context, now_ms, query.k)
            order = self._ranking.rank(moment, candidates, run)
        else:
            candidates, used, order = self._stored(query, view, segments, now_ms, run)
        chosen = order.positions[: query.k]
        run.lap("policy", len(chosen))
        address = Address(
            user_offset, view.item_offset, now_ms, self.plan.hash, model.version if model is not None else NO_MODEL
        )
        logged = [*segments, query.anchor, context.offset_ms]
        answer = self._respond(view, candidates, used, chosen, order, logged, address, run)
        run.lap("respond")
        pace.took(run.deadline.spent_ms(), query.deadline_ms)
        lists = self.conditions.lists
        if lists is not None and run.tier <= TIER_RETRIEVAL and not run.drawn and len(answer.items):
            lists.keep(query, segments, answer.items, self._region, now_ms)
        return answer

    def fallback(self, query: Query, view: View, model: Model | None, now_ms: int, why: str) -> Answer:
        """An answer of tier 3 or 4, when :meth:`recommend` could not give one: it reads no state and asks no model."""
        run = Run(Deadline(self.timer, query.deadline_ms))
        run.degrade(TIER_LAST, why)
        for part in self.user:
            part[:] = 0
        self._region = query.region or 0
        self._make_room(query, view)
        candidates, used, order = self._stored(query, view, query.segments, now_ms, run)
        version = model.version if model is not None else NO_MODEL
        address = Address(0, view.item_offset, now_ms, self.plan.hash, version)
        chosen = order.positions[: query.k]
        return self._respond(
            view, candidates, used, chosen, order, [*query.segments, query.anchor, 0], address, run
        )  # fmt: skip

    def candidates(self, query: Query, view: View, now_ms: int, model: Model | None = None) -> Candidates:
        """What the sources offer for ``query``: the first half of :meth:`recommend`, for training."""
        run = Run(Deadline(self.timer, float("inf")))
        self._hydrate(query, view, now_ms, run)
        return self._fetch(query, view, model, self._segments(query), now_ms, run)[0]

    def features(
        self, query: Query, view: View, items: npt.NDArray[np.int64], now_ms: int, out: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Assembled rows of ``items`` for the user row at hand: that of the last :meth:`candidates` or of this request."""
        context = Context(self._segments(query), self._offset_ms(query, now_ms), surface_code(query.surface))
        return self._assembly.features(self.user, view, items, context, now_ms, out)

    def modelled(self, model: Model, view: View, items: npt.NDArray[np.int64], out: npt.NDArray[np.float32]) -> None:
        """What each fitted source of ``model`` thinks of ``items``, for the request at hand, into ``out`` float32[n, sources]."""
        modelled(self.asked, model, view, items, out)

    # -- stages ----------------------------------------------------------------------------------------

    def _hydrate(self, query: Query, view: View, now_ms: int, run: Run) -> int:
        """The user row (zeros for a stranger), where the user is, and what must not be shown to them."""
        try:
            offset = view.read_user(query.user, self.user)
        except HeadwaterError as error:
            for part in self.user:
                part[:] = 0
            run.mark("failed")
            run.degrade(TIER_LAST, f"state unavailable: {error}")
            offset = 0
        forget_idle(self.user, now_ms, self.plan)
        self._region = self.stored_region(self.user) if query.region is None else query.region
        self._make_room(query, view)
        if query.anchor:
            anchor_user(self.user, query.anchor, self.plan.layout)
        run.lap("hydrate")
        return offset

    def _fetch(
        self, query: Query, view: View, model: Model | None, segments: tuple[int, int], now_ms: int, run: Run
    ) -> tuple[Candidates, list[Source | Origin]]:
        """Offers of all sources of the surface, merged; ineligible items are dropped before widths count.

        Returns the candidates and the sources that their positions refer to.
        """
        barred = self._bar(query)
        try:
            wanted = self.by_surface.get(query.surface)
            fitted = model.sources if model is not None else ()
            offering = (*self.sources, *(s for s in fitted if getattr(self.config.sources, s.name).enabled))
            used: list[Source] = [s for s in offering if wanted is None or s.name in wanted]
            asked = self.asked = Asked(self.user, segments, now_ms)
            offers: list[tuple[float, int, Ranked]] = []
            run.mark("shortened" if run.quality < 1.0 else "ok")
            for source in used:
                ranked = NOTHING
                if offers and run.deadline.left_for_ms("fetch") <= 0.0:
                    run.notes.append(f"{source.name} skipped: deadline")
                    run.mark("shortened")
                else:
                    ranked = self._offer(source, asked, view, run)
                run.widths[source.name] = len(ranked)
                width = run.width(getattr(self.config.sources, source.name).width, query.k)
                offers.append((source.weight, width, ranked))
            run.lap("fetch", sum(run.widths.values()))
            limit = max(run.width(self.limit, query.k), query.k)
            candidates = merge(offers, limit, lambda ids: self._may_show(ids, view, now_ms))
            if len(candidates) < query.k:
                candidates = self._fill(candidates, used, query, view, now_ms)
        finally:
            self._barred[barred] = 0
        run.lap("eligibility", len(candidates))
        return candidates, [*used, Catalogue()]

    def _offer(self, source: Source, asked: Asked, view: View, run: Run) -> Ranked:
        try:
            offer = source.fetch(asked, view.index)
        except HeadwaterError as error:
            run.notes.append(f"{source.name} failed: {error}")
            return NOTHING
        if offer.why_empty:
            run.notes.append(f"{source.name}: {offer.why_empty}")
        return offer.ranked

    def _stored(
        self, query: Query, view: View, segments: tuple[int, int], now_ms: int, run: Run
    ) -> tuple[Candidates, list[Source | Origin], Order]:
        """Tiers 3 and 4: the last good list, what is popular; what may be shown of them, filled up to ``k`` items."""
        lists = self.conditions.lists
        kept = lists.find(query, segments, now_ms) if lists is not None and run.tier == TIER_LAST else None
        if kept is not None and kept.origin is OWN_LIST and query.region is None and self._region == 0:
            self._region = kept.region  # where this user was when their row could be read
        barred = self._bar(query)
        try:
            own = kept.items[self._may_show(kept.items, view, now_ms)] if kept is not None else np.zeros(0, np.int64)
            if not len(own) and run.tier == TIER_LAST:
                run.degrade(TIER_POPULAR, "no last good list that may be shown")
            items = own[: query.k]
            for more in (self._popular.items, self._everything):
                if len(items) < query.k:
                    rest = more(view, now_ms)
                    rest = rest[self._may_show(rest, view, now_ms)]
                    items = np.concatenate([items, rest[~np.isin(rest, items)][: query.k - len(items)]])
        finally:
            self._barred[barred] = 0
        for stage in ("fetch", "assemble", "deep_rank"):
            run.skip(stage)
        run.lap("eligibility", len(items))
        source = np.ones(len(items), np.int64)
        source[: len(own)] = 0
        scores = np.zeros(len(items), np.float32)
        order = Order(np.arange(len(items)), scores, scores[:, None][:0], scores[:, None][:0])
        return Candidates(items, scores, source), [kept.origin if kept is not None else SNAPSHOT, SNAPSHOT], order

    def _respond(
        self, view: View, candidates: Candidates, used: list[Source | Origin], chosen: npt.NDArray[np.int64],
        order: Order, context: list[int], address: Address, run: Run,
    ) -> Answer:  # fmt: skip
        items = candidates.items[chosen]
        names = [used[s] for s in candidates.source[chosen].tolist()]
        causes = np.zeros(len(items), np.int64)
        co_visit_cause(self.user, view.table.rows, self.plan.layout, items, causes)
        if self.user.u4[U_RECENT_LENGTH] > 0:
            latest = int(self.user.u4[self.plan.layout.recent_keys + int(self.user.u4[U_RECENT_LENGTH]) - 1])
            for i, source in enumerate(names):
                if source.name == "content" or (source.name == "covisit" and causes[i] == 0):
                    causes[i] = latest & MAX_ITEMS
        if not len(items):
            why = "the catalogue is empty" if view.table.count <= 1 else "nothing that may be shown is left"
            run.notes.append(why)
        return Answer(
            items=items,
            scores=order.scores[: len(items)],
            sources=[s.name for s in names],
            reasons=[s.reason for s in names],
            causes=causes,
            tier=run.tier,
            degraded=run.notes,
            address=address,
            features=order.features[chosen if len(order.features) else []],
            modelled=order.modelled[chosen if len(order.modelled) else []],
            context=context,
            trace=run.trace,
            widths=run.widths,
            walked=run.drawn,
        )

    # -- parts of stages -------------------------------------------------------------------------------

    def _segments(self, query: Query) -> tuple[int, int]:
        """The request's segments, else the user's last known ones."""
        own = self.user.u4
        return (
            query.segments[0] or int(own[U_SEGMENT]),
            query.segments[1] or int(own[U_SEGMENT + 1]),
        )

    def _offset_ms(self, query: Query, now_ms: int) -> int:
        """Local time less UTC: of the zone that the request names, else of the user's own."""
        if query.zone is not None:
            return zone_offset_of(query.zone, now_ms)
        return 0 if self.zones is None else self.zones.offset_ms(int(self.user.u4[U_ZONE]), now_ms)

    def _make_room(self, query: Query, view: View) -> None:
        """Rows for every item that the request can mention: a user row may know items newer than the epoch."""
        layout, u4 = self.plan.layout, self.user.u4
        recent, seen = int(u4[U_RECENT_LENGTH]), min(int(u4[U_SEEN_LENGTH]), layout.seen_size)
        highest = max(
            int((u4[layout.recent_keys : layout.recent_keys + recent] & np.uint32(MAX_ITEMS)).max(initial=0)),
            int(u4[layout.seen : layout.seen + seen].max(initial=0)),
            int(query.exclude.max(initial=0)),
            query.anchor,
        )
        view.table.reserve(highest + 1)
        capacity = len(view.table.dirty)
        if len(view.index.has_content) < capacity:
            view.index.update(np.zeros(0, np.int64))
        if len(self._barred) < capacity:
            self._barred = np.zeros(capacity, np.uint8)
            self._assembly.make_room(capacity)

    def _bar(self, query: Query) -> npt.NDArray[np.int64]:
        """Mark what this user must not get; the caller clears the returned items."""
        layout, u4 = self.plan.layout, self.user.u4
        seen = u4[layout.seen : layout.seen + min(int(u4[U_SEEN_LENGTH]), layout.seen_size)].astype(np.int64)
        barred = np.concatenate([seen, query.exclude, [query.anchor]])
        self._barred[barred] = 1
        return barred

    def _may_show(self, ids: npt.NDArray[np.int64], view: View, now_ms: int) -> npt.NDArray[np.bool_]:
        if len(self._eligible) < len(ids):
            self._eligible = np.zeros(2 * len(ids), np.uint8)
        rows = view.table.rows
        eligible(
            ids, rows.u4[:, I_FLAGS], FLAG_HIDDEN, rows.i8[:, I_PUBLISHED], rows.i8[:, I_EXPIRES],
            rows.u4[:, I_REGIONS : I_REGIONS + MAX_REGIONS], self._region, now_ms, self._barred, self._eligible,
        )  # fmt: skip
        return self._eligible[: len(ids)].astype(np.bool_)

    def _everything(self, view: View, now_ms: int) -> npt.NDArray[np.int64]:
        return by_popularity(self.plan, view, now_ms)

    def _fill(self, candidates: Candidates, used: list[Source], query: Query, view: View, now_ms: int) -> Candidates:
        """Too few: go through the whole catalogue, most popular first, then by number, so that no user starves."""
        liked = view.table.rows.f4[: view.table.count, self.plan.popular_cells[-1]] > 0.0
        order = self._everything(view, now_ms)
        order = order[self._may_show(order, view, now_ms)]
        missing = order[~np.isin(order, candidates.items)][: query.k - len(candidates)]
        names = [s.name for s in used]
        popular = names.index("popular") if "popular" in names else len(used)
        source = np.where(liked[missing], popular, len(used))  # "popular" is said only of what somebody liked
        return Candidates(
            np.concatenate([candidates.items, missing]),
            np.concatenate([candidates.scores, np.zeros(len(missing), np.float32)]),
            np.concatenate([candidates.source, source.astype(np.int64)]),
        )
