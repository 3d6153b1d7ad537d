"""The request path. Production, evaluation, training's candidates and replay all call this one function."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import structlog

from headwater.features.assemble import Context, Scratch, anchor_user, assemble, forget_idle, new_scratch, stranger
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
from headwater.ranking.ranker import Ranker, RankerError
from headwater.retrieval.cause import co_visit_cause
from headwater.retrieval.fitted import Attended, SourceError
from headwater.retrieval.index import NOTHING, Ranked
from headwater.retrieval.merge import Candidates, merge
from headwater.retrieval.sources import Asked, Catalogue, Source, configured_sources
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.schema.items import MAX_REGIONS
from headwater.schema.requests import Address
from headwater.serving.model import Model
from headwater.serving.region import nowhere
from headwater.serving.request import NO_MODEL, Answer, Query
from headwater.serving.rules import Rules
from headwater.serving.view import View

log = structlog.get_logger()

TIER_FULL, TIER_RETRIEVAL, TIER_POPULAR = 0, 2, 4
RANK_RESERVE_MS = 3.0  # what assembling, ranking and answering still take once the candidates are there


class Pipeline:
    """Turns a query into an answer. Holds the reused memory of one worker, so it is not thread-safe.

    ``stored_region`` gives the region of a user row, for queries that name none; ``zones`` the time zones that rows
    name (None: local time is UTC). ``rules`` are those of the configuration; training and evaluation go without.
    """

    def __init__(
        self, config: Config, plan: Plan, *, sources: tuple[Source, ...] | None = None,
        stored_region: Callable[[User], int] = nowhere, zones: Zones | None = None, timer: Callable[[], float] = time.perf_counter,
        rules: Rules | None = None,
    ) -> None:  # fmt: skip
        self.config, self.plan, self.timer = config, plan, timer
        self.stored_region = stored_region
        self.zones = zones
        self.rules = rules
        self.sources = configured_sources(config, plan) if sources is None else sources
        self.by_surface = {s.name: s.sources for s in config.surfaces}
        self.user: User = stranger(plan)
        self.limit = config.ranker.candidates
        self.ranks = config.ranker.kind != "none"
        self._region = 0
        self._scratch: Scratch = new_scratch(1024, max(self.limit, 256), plan)
        self._rows = np.zeros((max(self.limit, 256), len(plan.columns)), np.float32)
        self._wide = np.zeros((0, 0), np.float32)
        self.asked = Asked(self.user, (0, 0), 0)
        self._barred = np.zeros(1024, np.uint8)
        self._eligible = np.zeros(8192, np.uint8)

    def recommend(self, query: Query, view: View, model: Model | None, now_ms: int) -> Answer:
        """Answer ``query`` at ``now_ms``. Always answers: what fails lowers the tier and is named."""
        run = _Run(self.timer, query.deadline_ms)
        user_offset = self._hydrate(query, view, now_ms, run)
        segments = self._segments(query)
        candidates, used = self._fetch(query, view, model, segments, now_ms, run)
        chosen, scores, features, modelled = self._rank(query, view, model, candidates, now_ms, run)
        if self.rules is not None:
            run.notes += self.rules.close(len(chosen), query.k)
        address = Address(
            user_offset, view.item_offset, now_ms, self.plan.hash, model.version if model is not None else NO_MODEL
        )
        answer = self._respond(
            view,
            candidates,
            used,
            chosen,
            scores,
            features,
            modelled,
            [*segments, query.anchor, self._offset_ms(query, now_ms)],
            address,
            run,
        )
        run.lap("respond")
        return answer

    def candidates(self, query: Query, view: View, now_ms: int, model: Model | None = None) -> Candidates:
        """What the sources offer for ``query``: the first half of :meth:`recommend`, for training."""
        run = _Run(self.timer, float("inf"))
        self._hydrate(query, view, now_ms, run)
        return self._fetch(query, view, model, self._segments(query), now_ms, run)[0]

    def features(
        self, query: Query, view: View, items: npt.NDArray[np.int64], now_ms: int, out: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Assembled rows of ``items`` for the user row at hand: that of the last :meth:`candidates` or of this request."""
        context = Context(self._segments(query), self._offset_ms(query, now_ms), surface_code(query.surface))
        return assemble(self.plan, self.user, view.table.rows, items, context, now_ms, self._scratch, out)

    def modelled(self, model: Model, view: View, items: npt.NDArray[np.int64], out: npt.NDArray[np.float32]) -> None:
        """What each fitted source of ``model`` thinks of ``items``, for the request at hand, into ``out`` float32[n, sources]."""
        scores = np.empty(len(items), np.float32)
        for column, source in enumerate(model.sources):
            source.score(self.asked, view.index, items, scores)
            out[: len(items), column] = scores

    # -- stages ----------------------------------------------------------------------------------------

    def _hydrate(self, query: Query, view: View, now_ms: int, run: _Run) -> int:
        """The user row (zeros for a stranger), where the user is, and what must not be shown to them."""
        try:
            offset = view.read_user(query.user, self.user)
        except HeadwaterError as error:
            for part in self.user:
                part[:] = 0
            run.degrade(TIER_POPULAR, f"state unavailable: {error}")
            offset = 0
        forget_idle(self.user, now_ms, self.plan)
        self._region = self.stored_region(self.user) if query.region is None else query.region
        self._make_room(query, view)
        if query.anchor:
            anchor_user(self.user, query.anchor, self.plan.layout)
        run.lap("hydrate")
        return offset

    def _fetch(
        self, query: Query, view: View, model: Model | None, segments: tuple[int, int], now_ms: int, run: _Run
    ) -> tuple[Candidates, list[Source]]:
        """Offers of all sources of the surface, merged; ineligible items are dropped before widths count.

        Returns the candidates and the sources that their positions refer to.
        """
        barred = self._bar(query)
        try:
            if self.rules is not None:
                self.rules.begin(query, self.user, view, segments, self._offset_ms(query, now_ms), now_ms)
            wanted = self.by_surface.get(query.surface)
            fitted = model.sources if model is not None else ()
            offering = (*self.sources, *(s for s in fitted if getattr(self.config.sources, s.name).enabled))
            used: list[Source] = [s for s in offering if wanted is None or s.name in wanted]
            asked = self.asked = Asked(self.user, segments, now_ms)
            offers: list[tuple[float, int, Ranked]] = []
            for source in used:
                ranked = NOTHING
                try:
                    offer = source.fetch(asked, view.index)
                    ranked = offer.ranked
                    if offer.why_empty:
                        run.notes.append(f"{source.name}: {offer.why_empty}")
                except HeadwaterError as error:
                    run.notes.append(f"{source.name} failed: {error}")
                run.widths[source.name] = len(ranked)
                offers.append((source.weight, getattr(self.config.sources, source.name).width, ranked))
            run.lap("fetch")
            limit = max(self.limit, query.k)
            candidates = merge(offers, limit, lambda ids: self._may_show(ids, view, now_ms))
            if len(candidates) < query.k:
                candidates = self._fill(candidates, used, query, view, now_ms)
            if self.rules is not None:
                candidates = self.rules.with_pinned(
                    candidates, len(used), lambda ids: self._may_show(ids, view, now_ms), view.table.count
                )
        finally:
            self._barred[barred] = 0
        run.lap("merge")
        return candidates, [*used, Catalogue()]

    def _rank(
        self, query: Query, view: View, model: Model | None, candidates: Candidates, now_ms: int, run: _Run
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:  # fmt: skip
        """Positions of the best candidates, their scores, feature rows and what the fitted sources think of them;
        retrieval order when ranking can't.
        """
        features = self._rows[:0]
        modelled = features[:, :0]
        ranker: Ranker | None = model.ranker if model is not None and self.ranks else None
        if ranker is None and self.ranks:  # else the merged order is what was asked for: nothing is missing
            run.degrade(TIER_RETRIEVAL, "no ranker in service")
        elif ranker is not None and run.left_ms() < RANK_RESERVE_MS:
            run.degrade(TIER_RETRIEVAL, "deadline: ranking skipped")
        if ranker is not None and run.tier == TIER_FULL and len(candidates):
            self._reserve_candidates(len(candidates))
            features = self.features(query, view, candidates.items, now_ms, self._rows)
            run.lap("assemble")
            try:
                rows, modelled = self._widened(model, view, candidates.items, features)
                scores = ranker.score(rows, self._attention(model, view, candidates.items) if ranker.attends else None)
                if not np.isfinite(scores).all():
                    raise RankerError(f"version {model.version if model else NO_MODEL} gave a score that is not finite")
                order = self._ordered(candidates, scores, candidates.items, query.k)
                run.lap("rank")
                return order, scores[order], features[order], modelled[order]
            except (RankerError, SourceError) as error:
                log.error("ranker_failed", error=str(error))
                run.degrade(TIER_RETRIEVAL, f"ranker failed: {error}")
        order = self._ordered(candidates, candidates.scores, np.arange(len(candidates)), query.k)
        run.lap("rank")
        return order, candidates.scores[order], features[order[: len(features)]], modelled[order[: len(modelled)]]

    def _respond(
        self, view: View, candidates: Candidates, used: list[Source],
        chosen: npt.NDArray[np.int64], scores: npt.NDArray[np.float32], features: npt.NDArray[np.float32],
        modelled: npt.NDArray[np.float32], context: list[int], address: Address, run: _Run,
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
            scores=scores,
            sources=[s.name for s in names],
            reasons=[s.reason for s in names],
            causes=causes,
            tier=run.tier,
            degraded=run.notes,
            address=address,
            features=features,
            modelled=modelled,
            context=context,
            trace=run.laps,
            widths=run.widths,
            rules={} if self.rules is None else self.rules.counts,
        )

    def _widened(
        self, model: Model | None, view: View, items: npt.NDArray[np.int64], features: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """The rows that the ranker gets (plan columns, then a score of each fitted source), and these scores alone."""
        if model is None or not model.sources:
            return features, features[:, :0]
        plain, wide = features.shape[1], features.shape[1] + len(model.sources)
        if len(self._wide) < len(items) or self._wide.shape[1] != wide:
            self._wide = np.zeros((len(self._rows), wide), np.float32)
        rows = self._wide[: len(items)]
        rows[:, :plain] = features
        self.modelled(model, view, items, rows[:, plain:])
        return rows, rows[:, plain:]

    def _attention(self, model: Model | None, view: View, items: npt.NDArray[np.int64]) -> Attended:
        source = None if model is None else model.attended
        if source is None:
            raise RankerError("the ranker attends to the recent sequence, its bundle has no source with vectors")
        return source.attend(self.asked, view.index, items)

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
            self._scratch = new_scratch(capacity, len(self._rows), self.plan)

    def _reserve_candidates(self, count: int) -> None:
        if count > len(self._rows):
            self._rows = np.zeros((2 * count, len(self.plan.columns)), np.float32)
            self._scratch = new_scratch(len(self._barred), len(self._rows), self.plan)

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
        shown = self._eligible[: len(ids)].astype(np.bool_)
        return shown if self.rules is None else self.rules.filter(ids, shown)

    def _ordered(
        self, candidates: Candidates, scores: npt.NDArray[np.float32], ties: npt.NDArray[np.int64], k: int
    ) -> npt.NDArray[np.int64]:
        """Positions of the ``k`` best by score, then by the lower of ``ties``; where there are rules, as they want it."""
        if self.rules is not None:
            return self.rules.order(candidates.items, scores, ties, k)
        return np.lexsort((ties, -scores))[:k]

    def _fill(self, candidates: Candidates, used: list[Source], query: Query, view: View, now_ms: int) -> Candidates:
        """Too few: go through the whole catalogue, most popular first, then by number, so that no user starves."""
        everything = np.arange(1, view.table.count, dtype=np.int64)
        cell = self.plan.popular_cells[-1]
        weight = view.index.weights(cell, self.plan.popular_lives[-1], now_ms)
        liked = view.table.rows.f4[: view.table.count, cell] > 0.0
        known = everything[(view.table.rows.u4[1 : view.table.count, I_FLAGS] != 0) | liked[1:]]
        order = known[np.argsort(-weight[known], kind="stable")]
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


class _Run:
    """Clock, tier and notes of one request."""

    def __init__(self, timer: Callable[[], float], deadline_ms: float) -> None:
        self._timer, self._start = timer, timer()
        self._last, self._deadline_ms = self._start, deadline_ms
        self.tier = TIER_FULL
        self.notes: list[str] = []
        self.laps: dict[str, float] = {}
        self.widths: dict[str, int] = {}

    def lap(self, stage: str) -> None:
        now = self._timer()
        self.laps[stage] = 1e3 * (now - self._last)
        self._last = now

    def left_ms(self) -> float:
        return self._deadline_ms - 1e3 * (self._timer() - self._start)

    def degrade(self, tier: int, why: str) -> None:
        self.tier = max(self.tier, tier)
        self.notes.append(why)
