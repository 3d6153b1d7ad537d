"""The request path. Production, evaluation, training's candidates and replay all call this one function."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from headwater.features.assemble import Context, anchor_user, forget_idle, stranger
from headwater.features.attributes import surface_code
from headwater.features.layout import (
    MAX_ITEMS,
    U_RECENT_LENGTH,
    U_SEGMENT,
    U_ZONE,
)
from headwater.features.plan import Plan
from headwater.features.recent import highest_item
from headwater.features.rows import User
from headwater.features.zones import Zones, zone_offset_of
from headwater.policy.exploration import seed_of
from headwater.retrieval.cause import co_visit_cause
from headwater.retrieval.index import NOTHING, Ranked
from headwater.retrieval.merge import Candidates, Merger
from headwater.retrieval.sources import Asked, Catalogue, Source, configured_sources
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.schema.requests import Address
from headwater.serving.assembly import Assembly, modelled
from headwater.serving.eligibility import Eligibility
from headwater.serving.given import GIVEN, given_candidates
from headwater.serving.lists import OWN_LIST, SNAPSHOT, LastLists, Origin, PopularSnapshot, by_popularity
from headwater.serving.model import Model
from headwater.serving.new_items import NEW
from headwater.serving.observer import Observer
from headwater.serving.pace import Pace
from headwater.serving.rank import Moment, Order, RankStage, merged_order
from headwater.serving.region import nowhere
from headwater.serving.request import NO_MODEL, Answer, Query
from headwater.serving.results import Key, ResultLists, given_again, named_items, row_version
from headwater.serving.rules import Rules
from headwater.serving.run import Deadline, Run
from headwater.serving.scorer import DirectScorer, Scorer
from headwater.serving.stages import TIER_FULL, TIER_LAST, TIER_POPULAR
from headwater.serving.view import View
from headwater.serving.walk import drawn_tier


@dataclass(slots=True)
class Conditions:
    """What a pipeline runs under. The defaults are those of evaluation and training: the ranker is called directly, widths
    are full, nothing is remembered, and no request walks a lower tier. ``walk``: the share of requests that walk each.
    ``results`` are answers that may be given again, ``lists`` what is there for when there is nothing better.
    """

    scorer: Scorer = field(default_factory=DirectScorer)
    pace: Pace = field(default_factory=Pace)
    lists: LastLists | None = None
    results: ResultLists | None = None
    walk: float = 0.0


class Pipeline:
    """Turns a query into an answer. Holds the reused memory of one worker, so it is not thread-safe.

    ``stored_region`` gives the region of a user row, for queries that name none; ``zones`` the time zones that rows
    name (None: local time is UTC). ``rules`` are those of the configuration; training and evaluation go without.
    """

    def __init__(
        self, config: Config, plan: Plan, *, sources: tuple[Source, ...] | None = None,
        stored_region: Callable[[User, int], int] = nowhere, zones: Zones | None = None, timer: Callable[[], float] = time.perf_counter,
        conditions: Conditions | None = None, rules: Rules | None = None,
    ) -> None:  # fmt: skip
        self.config, self.plan, self.timer = config, plan, timer
        self.conditions = conditions if conditions is not None else Conditions()
        self.stored_region = stored_region
        self.zones = zones
        self.rules = rules
        self.sources = configured_sources(config, plan) if sources is None else sources
        self.by_surface = {s.name: s.sources for s in config.surfaces}
        self._about_latest = frozenset(s.name for s in config.surfaces if s.about == "latest")
        self.user: User = stranger(plan)
        self.limit = config.ranker.candidates
        self.asked = Asked(self.user, (0, 0), 0)
        self._assembly = Assembly(plan, max(self.limit, 256))
        self._ranking = RankStage(config, self._assembly, self.conditions.scorer, self.conditions.pace)
        self.popular = PopularSnapshot(plan)
        self._merger = Merger()
        self._row_version = b""
        self._eligibility = Eligibility(plan)

    def recommend(
        self, query: Query, view: View, model: Model | None, now_ms: int, observer: Observer | None = None
    ) -> Answer:  # fmt: skip
        """Answer ``query`` at ``now_ms``. Always answers: what fails lowers the tier and is named.

        An ``observer`` is told what each stage had before it and what it left.
        """
        pace = self.conditions.pace
        self._eligibility.observer = observer
        run = Run(
            Deadline(self.timer, query.deadline_ms),
            quality=pace.quality,
            drawn=drawn_tier(query.request_id, self.conditions.walk),
        )
        if observer is not None and observer.tier:
            run.degrade(observer.tier, "as it was served")
        if query.tier_floor:
            run.degrade(query.tier_floor, f"controls: answers come from tier {query.tier_floor} or a lower one")
        user_offset, query = self._hydrate(query, view, now_ms, run)
        segments = self._segments(query)
        context = Context(segments, self._offset_ms(query, now_ms), surface_code(query.surface))
        key = None if user_offset < query.since else self._result_key(query, view, model, context, now_ms, run)
        if key is not None and (again := self._again(key, query, view, user_offset, now_ms, run)) is not None:
            pace.took(run.deadline.spent_ms(), query.deadline_ms)
            return again
        if run.tier < TIER_LAST and run.deadline.left_for_ms("fetch") <= 0.0:
            run.degrade(TIER_LAST, "deadline: no time to fetch candidates")
        if run.tier < TIER_LAST:
            candidates, used = self._fetch(query, view, model, segments, now_ms, run)
            moment = Moment(self.asked, view, model and model.on(query.surface), context, now_ms, query.k)
            order = self._ranking.rank(moment, candidates, run)
        else:
            candidates, used, order = self._stored(query, view, segments, now_ms, run)
        if observer is not None:
            observer.ranked(candidates, [source.name for source in used], order)
        order = self._policy(candidates, order, query.k, run)
        if observer is not None:
            observer.chosen(order)
            self._eligibility.observer = None
        address = Address(
            user_offset, view.item_offset, now_ms, self.plan.hash, model.version if model is not None else NO_MODEL
        )
        logged = [*segments, query.anchor, context.offset_ms, *query.before]
        answer = self._respond(view, candidates, used, order, logged, address, run)
        run.lap("respond")
        pace.took(run.deadline.spent_ms(), query.deadline_ms)
        lists = self.conditions.lists
        if (
            lists is not None
            and run.as_ranked
            and not answer.explored
            and not answer.promised
            and query.again
            and len(answer.items)
        ):
            lists.keep(query, segments, answer.items, self._eligibility.region, now_ms, user_offset)
        results = self.conditions.results
        if results is not None and key is not None and run.whole and len(answer.items) == query.k:
            results.keep(key, answer, now_ms)
        return answer

    def fallback(self, query: Query, view: View, model: Model | None, now_ms: int, why: str) -> Answer:
        """An answer of tier 3 or 4, when :meth:`recommend` could not give one: it reads no state and asks no model."""
        run = Run(Deadline(self.timer, query.deadline_ms))
        run.degrade(TIER_LAST, why)
        for part in self.user:
            part[:] = 0
        self._eligibility.region = query.region or 0
        self._make_room(query, view)
        candidates, used, order = self._stored(query, view, query.segments, now_ms, run)
        version = model.version if model is not None else NO_MODEL
        address = Address(0, view.item_offset, now_ms, self.plan.hash, version)
        order = self._policy(candidates, order, query.k, run)
        return self._respond(view, candidates, used, order, [*query.segments, query.anchor, 0], address, run)

    def candidates(self, query: Query, view: View, now_ms: int, model: Model | None = None) -> Candidates:
        """What the sources offer for ``query``: the first half of :meth:`recommend`, for training."""
        run = Run(Deadline(self.timer, float("inf")))
        _, query = self._hydrate(query, view, now_ms, run)
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

    def _hydrate(self, query: Query, view: View, now_ms: int, run: Run) -> tuple[int, Query]:
        """The user row (zeros for a stranger), where the user is, and what must not be shown to them.

        Returns the offset of the row, and the query with what its surface is about.
        """
        try:
            offset = view.read_user(query.user, self.user)
        except HeadwaterError as error:
            for part in self.user:
                part[:] = 0
            run.mark("failed")
            run.degrade(TIER_LAST, f"state unavailable: {error}")
            offset = 0
        if self.conditions.results is not None:
            self._row_version = row_version(self.user)
        forget_idle(self.user, now_ms, self.plan)
        self._eligibility.region = (
            self.stored_region(self.user, view.item_offset) if query.region is None else query.region
        )
        if not query.anchor and query.surface in self._about_latest:
            query = replace(query, anchor=self._latest())
            if not query.anchor:
                run.notes.append("about nothing: this user has turned to no item yet")
        self._make_room(query, view)
        if query.anchor:
            anchor_user(self.user, query.anchor, self.plan.layout, query.before)
        run.lap("hydrate")
        return offset, query

    def _result_key(
        self, query: Query, view: View, model: Model | None, context: Context, now_ms: int, run: Run
    ) -> Key | None:
        """What the answer depends on; None: it may not be one that was given before, nor be given again."""
        if self.conditions.results is None or run.tier != TIER_FULL or query.paged or not query.reuse:
            return None
        self._begin_rules(query, view, context.segments, now_ms)
        if self.rules is not None and self.rules.explores:
            return None
        return Key(
            query.user, self._row_version, query.surface, query.k, context.segments, self._eligibility.region, context.offset_ms,
            named_items(query), NO_MODEL if model is None else model.version,
            () if self.rules is None else self.rules.acting, query.arm,
        )  # fmt: skip

    def _again(self, key: Key, query: Query, view: View, user_offset: int, now_ms: int, run: Run) -> Answer | None:
        """The answer that was given to the same question a moment ago, if all of it may still be shown."""
        assert self.conditions.results is not None  # noqa: S101  (else there is no key)
        with self._eligibility.barring(query, self.user, self.rules):
            found = self.conditions.results.find(
                key, now_ms, lambda items: bool(self._may_show(items, view, now_ms).all())
            )
        if found is None:
            return None
        run.lap("eligibility", len(found.answer.items))
        return given_again(found, user_offset, now_ms, run)

    def _fetch(
        self, query: Query, view: View, model: Model | None, segments: tuple[int, int], now_ms: int, run: Run
    ) -> tuple[Candidates, Sequence[Source | Origin]]:
        """Offers of all sources of the surface, merged; ineligible items are dropped before widths count.

        Returns the candidates and the sources that their positions refer to.
        """
        self._begin_rules(query, view, segments, now_ms)
        if query.candidates is not None:
            return self._given(query, query.candidates, view, segments, now_ms, run)

        def may_show(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
            return self._may_show(ids, view, now_ms)

        with self._eligibility.barring(query, self.user, self.rules):
            wanted = self.by_surface.get(query.surface)
            fitted = model.sources if model is not None else ()
            offering = (*self.sources, *(s for s in fitted if getattr(self.config.sources, s.name).enabled))
            used: list[Source] = [s for s in offering if wanted is None or s.name in wanted]
            asked = self.asked = Asked(
                self.user, segments, now_ms, view.item_offset, seed_of(query.request_id, b"sources")
            )
            offers: list[tuple[float, int, Ranked]] = []
            run.mark("shortened" if run.quality < 1.0 else "ok")
            for source in used:
                ranked = NOTHING
                if offers and run.deadline.left_for_ms("fetch") <= 0.0:
                    run.notes.append(f"{source.name} skipped: deadline")
                    run.missed[source.name] = "skipped"
                    run.mark("shortened")
                else:
                    ranked = self._offer(source, asked, view, run)
                run.widths[source.name] = len(ranked)
                width = run.width(getattr(self.config.sources, source.name).width, query.k)
                offers.append((source.weight, width, ranked))
            run.lap("fetch", sum(run.widths.values()))
            limit = max(run.width(self.limit, query.k), query.k)
            if (observer := self._eligibility.observer) is not None:
                observer.offered([source.name for source in used], offers, limit, run.notes, may_show)
            candidates = self._merger.merge(offers, limit, may_show)
            if len(candidates) < query.k:
                candidates = self._fill(candidates, used, query, view, now_ms)
            candidates = self._with_pinned(candidates, len(used), view, now_ms)
            if self.rules is not None:
                candidates = self.rules.with_promised(candidates, len(used) + 1, self.user, view, may_show, now_ms)
        run.lap("eligibility", len(candidates))
        return candidates, [*used, Catalogue(), NEW]

    def _given(
        self, query: Query, items: npt.NDArray[np.int64], view: View, segments: tuple[int, int], now_ms: int, run: Run
    ) -> tuple[Candidates, Sequence[Source | Origin]]:
        """The caller's own candidates."""
        self.asked = Asked(self.user, segments, now_ms)
        with self._eligibility.barring(query, self.user, self.rules):
            candidates = given_candidates(items, lambda ids: self._may_show(ids, view, now_ms))
        run.widths[GIVEN.name] = len(items)
        run.skip("fetch")
        run.lap("eligibility", len(candidates))
        return candidates, [GIVEN]

    def _offer(self, source: Source, asked: Asked, view: View, run: Run) -> Ranked:
        try:
            offer = source.fetch(asked, view.index)
        except HeadwaterError as error:
            run.notes.append(f"{source.name} failed: {error}")
            run.missed[source.name] = "failed"
            run.whole = False
            return NOTHING
        if offer.why_empty:
            run.notes.append(f"{source.name}: {offer.why_empty}")
        return offer.ranked

    def _stored(
        self, query: Query, view: View, segments: tuple[int, int], now_ms: int, run: Run
    ) -> tuple[Candidates, Sequence[Source | Origin], Order]:
        """Tiers 3 and 4: the last good list, what is popular; what may be shown of them, filled up to ``k`` items.

        Of the caller's own candidates: these, in the caller's order.
        """
        self._begin_rules(query, view, segments, now_ms)
        if query.candidates is not None:
            candidates, used = self._given(query, query.candidates, view, segments, now_ms, run)
            for stage in ("assemble", "deep_rank"):
                run.skip(stage)
            return candidates, used, merged_order(candidates)
        lists = self.conditions.lists
        kept = lists.find(query, segments, now_ms) if lists is not None and run.tier == TIER_LAST else None
        if kept is not None and kept.origin is OWN_LIST and query.region is None and self._eligibility.region == 0:
            self._eligibility.region = kept.region  # where this user was when their row could be read
        with self._eligibility.barring(query, self.user, self.rules):
            own = kept.items[self._may_show(kept.items, view, now_ms)] if kept is not None else np.zeros(0, np.int64)
            if not len(own) and run.tier == TIER_LAST:
                run.degrade(TIER_POPULAR, "no last good list that may be shown")
            items = own[: query.k]
            for more in (self.popular.items, self._everything):
                if len(items) < query.k:
                    rest = more(view, now_ms)
                    rest = rest[self._may_show(rest, view, now_ms)]
                    items = np.concatenate([items, rest[~np.isin(rest, items)][: query.k - len(items)]])
            source = np.ones(len(items), np.int64)
            source[: len(own)] = 0
            candidates = self._with_pinned(Candidates(items, np.zeros(len(items), np.float32), source), 2, view, now_ms)
        for stage in ("fetch", "assemble", "deep_rank"):
            run.skip(stage)
        run.lap("eligibility", len(candidates))
        used = [kept.origin if kept is not None else SNAPSHOT, SNAPSHOT, Catalogue()]
        return candidates, used, merged_order(candidates)

    def _policy(self, candidates: Candidates, order: Order, k: int, run: Run) -> Order:
        """The ``k`` best; where there are rules, as they want it."""
        rules = self.rules
        if rules is None:
            order = order.first(np.arange(min(k, len(order.positions))))
        else:
            if len(left_out := rules.left_out(candidates.items, order.positions)):
                order = order.behind(left_out)
            ties = np.arange(len(order.positions))  # equal scores stay in the order that they have
            items = candidates.items[order.positions]
            order = order.first(rules.order(items, order.scores, ties, k, explore=run.as_ranked))
            run.notes += rules.close(len(order.positions), k)
        run.lap("policy", len(order.positions))
        return order

    def _respond(
        self, view: View, candidates: Candidates, used: Sequence[Source | Origin], order: Order, context: list[int],
        address: Address, run: Run,
    ) -> Answer:  # fmt: skip
        chosen = order.positions
        items = candidates.items[chosen]
        names = [used[s] for s in candidates.source[chosen].tolist()]
        causes = np.zeros(len(items), np.int64)
        co_visit_cause(self.user, view.table.rows, self.plan.layout, items, causes)
        if latest := self._latest():
            for i, source in enumerate(names):
                if source.name == "content" or (source.name == "covisit" and causes[i] == 0):
                    causes[i] = latest
        if not len(items):
            why = "the catalogue is empty" if view.table.count <= 1 else "nothing that may be shown is left"
            run.notes.append(why)
        return Answer(
            items=items,
            scores=order.scores,
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
            missed=run.missed,
            rules={} if self.rules is None else self.rules.counts,
            walked=run.drawn,
            quality=run.quality,
            rules_version="" if self.rules is None else self.rules.version,
            explored=None if self.rules is None else self.rules.explored,
            promised=None if self.rules is None else self.rules.promised,
        )

    # -- parts of stages -------------------------------------------------------------------------------

    def _segments(self, query: Query) -> tuple[int, int]:
        """The request's segments, else the user's last known ones."""
        own = self.user.u4
        return (
            query.segments[0] or int(own[U_SEGMENT]),
            query.segments[1] or int(own[U_SEGMENT + 1]),
        )

    def _latest(self) -> int:
        """The item that the user turned to last, 0: none."""
        length = int(self.user.u4[U_RECENT_LENGTH])
        return int(self.user.u4[self.plan.layout.recent_keys + length - 1]) & MAX_ITEMS if length else 0

    def _offset_ms(self, query: Query, now_ms: int) -> int:
        """Local time less UTC: of the zone that the request names, else of the user's own."""
        if query.zone is not None:
            return zone_offset_of(query.zone, now_ms)
        return 0 if self.zones is None else self.zones.offset_ms(int(self.user.u4[U_ZONE]), now_ms)

    def _make_room(self, query: Query, view: View) -> None:
        """Rows for every item that the request can mention: a user row may know items newer than the epoch."""
        highest = max(highest_item(self.user.u4, self.plan.layout), query.anchor, *query.before)
        for named in (query.exclude, query.candidates):
            if named is not None and len(named):
                highest = max(highest, int(named.max()))
        view.table.reserve(highest + 1)
        capacity = len(view.table.dirty)
        if len(view.index.has_content) < capacity:
            view.index.update(np.zeros(0, np.int64))
        if self._eligibility.make_room(capacity):
            self._assembly.make_room(capacity)

    def _may_show(self, ids: npt.NDArray[np.int64], view: View, now_ms: int) -> npt.NDArray[np.bool_]:
        return self._eligibility.may_show(ids, view, now_ms, self.rules)

    def _begin_rules(self, query: Query, view: View, segments: tuple[int, int], now_ms: int) -> None:
        if self.rules is not None:
            self.rules.begin(query, self.user, view, segments, self._offset_ms(query, now_ms), now_ms)

    def _with_pinned(self, candidates: Candidates, source: int, view: View, now_ms: int) -> Candidates:
        if self.rules is None:
            return candidates
        return self.rules.with_pinned(
            candidates, source, lambda ids: self._may_show(ids, view, now_ms), view.table.count
        )

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
