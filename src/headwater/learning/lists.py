"""Training rows of lists as they were shown: what was taken against what stood beside it, assembled at the list's address.

Unlike a question just before a click (:mod:`headwater.learning.trainingset`), a list has no row that knows of its own impressions, and what was shown and not
taken is learnt from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headwater.features.plan import Plan
from headwater.learning.row_buffer import RowBuffer
from headwater.learning.shown import ShownLists, read_shown
from headwater.learning.trainingset import LISTS, TrainingSet
from headwater.log.protocol import EventLog
from headwater.log.record import RecordBlock
from headwater.registry.bundle import DataRange
from headwater.schema.config import Config
from headwater.schema.requests import MAX_K
from headwater.serving.model import Model
from headwater.serving.pipeline import Pipeline
from headwater.serving.request import Query
from headwater.serving.view import FoldView

Int64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A list that is to be assembled, or was."""

    record: int
    query: Query
    items: Int64
    now_ms: int


class ListCollector:
    """Rows of lists as the state comes by their addresses: :meth:`expect` lists, stop where they are :meth:`wanted`, and :meth:`add` them.

    Room is for ``rows``; a model has to have the fitted sources that ``model`` has. ``share`` of the lists are drawn. Lists are known up to the offset
    ``known`` (-1: none were expected yet). ``passed`` counts those that came too late: the state had gone past their address.
    """

    def __init__(
        self, log: EventLog, plan: Plan, config: Config, model: Model | None, *, rows: int, share: float = 1.0,
        drawing: np.random.Generator,
    ) -> None:  # fmt: skip
        self._log, self._config, self._share, self._drawing = log, config, share, drawing
        self._plan, self._model, self._most = plan, model, rows
        self._rows = self._room()
        self._expected: dict[int, list[_Asked]] = {}  # by the offset of their address
        self._stops = np.zeros(0, np.int64)
        self._added: list[_Asked] = []
        self.asked = self.missed = self.passed = 0
        self.known = -1

    def _room(self) -> RowBuffer:
        # what one list of the largest size may lack is added; a list of one item teaches nothing, so there are no more groups than that
        return RowBuffer(self._plan, self._model, rows=self._most + MAX_K, groups=max(self._most // 2, 1), most=MAX_K)

    def expect(self, lists: ShownLists, *, known: int, from_offset: int, still_open: bool) -> None:
        """Be ready for those of ``lists``, which are all behind the last ones and up to the offset ``known``, that can be assembled by a state that
        stands at ``from_offset``.

        Of lists that are closed only those are, of which something was taken. ``still_open``: the others may be by the time of :meth:`take`.
        """
        closed, taken = lists.closed, lists.taken
        useful = (closed & taken) | (still_open & ~closed)
        passed = useful & (lists.offset < from_offset)
        ready = useful & ~passed & (self._drawing.random(len(lists)) < self._share)
        self.asked += int((closed & ~ready).sum())
        self.missed += int((closed & ~ready & (~taken | passed)).sum())
        self.passed += int(passed.sum())
        self.known = known
        for which in np.flatnonzero(ready).tolist():
            rows = lists.rows(which)
            segments = (int(lists.segments[which, 0]), int(lists.segments[which, 1]))
            items = lists.item[rows]
            query = Query(
                "", user=int(lists.user[which]), surface=lists.surface[which] or "home", segments=segments, candidates=items
            )  # fmt: skip
            asked = _Asked(int(lists.record[which]), query, items[:MAX_K], int(lists.now_ms[which]))
            self._expected.setdefault(int(lists.offset[which]), []).append(asked)
        self._stops = np.array(sorted(self._expected), np.int64) + 1

    def wanted(self, block: RecordBlock) -> Bools:
        """Before which records the state has to stop."""
        stops: Bools = np.isin(block.records["offset"].astype(np.int64), self._stops)
        return stops

    def due(self, view: FoldView) -> bool:
        """Whether lists have the address at which ``view`` stands."""
        return view.fold.offset in self._expected

    def add(self, pipeline: Pipeline, view: FoldView, model: Model | None) -> bool:
        """Assemble the lists whose address is where ``view`` stands, refreshed; false when there is no room for all."""
        for asked in self._expected.pop(view.fold.offset, ()):
            if self._rows.full:
                return False
            pipeline.candidates(asked.query, view, asked.now_ms, model)  # so that it is this user's row that is at hand
            self._rows.put(pipeline, view, asked.query, asked.items, asked.now_ms, model)
            self._added.append(asked)
        return True

    def take(self, view: FoldView, until: int) -> TrainingSet:
        """The rows of the lists whose labels are closed at the offset ``until``, and of which something was taken. Open ones stay for later."""
        buffer, added = self._rows, self._added
        begins = np.cumsum(buffer.sizes) - buffer.sizes
        found = read_shown(
            self._log, self._config, since=min((a.record for a in added), default=until + 1) - 1, until=until
        )
        place_of = {record: which for which, record in enumerate(found.record.tolist())}
        groups: list[int] = []
        later: list[int] = []
        rows: list[Int64] = []  # in the buffer
        known: list[Int64] = []  # the same in ``found``
        for g, asked in enumerate(added):
            which = place_of.get(asked.record)
            if asked.record > until or (which is not None and not found.closed[which]):
                later.append(g)
                continue
            if which is None:  # known by its impressions then, and by a record of its own now
                continue
            now = found.rows(which)
            # what was assembled is what was known of the list then: that may be less than is known now
            there = np.flatnonzero(np.isin(found.item[now], asked.items) & found.seen[now])
            order = np.argsort(asked.items, kind="stable")
            here = order[np.searchsorted(asked.items[order], found.item[now][there])]
            taken = bool(found.outcomes[now][there].any())
            self.asked += 1
            self.missed += not taken
            if taken:
                groups.append(g)
                rows.append(here + int(begins[g]))
                known.append(there + now.start)
        made = self._set(found, view, until, groups, rows, known)
        self._rows, self._added = self._room(), [added[g] for g in later]
        buffer.move(later, self._rows)
        self._expected = {offset: lists for offset, lists in self._expected.items() if offset >= view.fold.offset}
        self.asked = self.missed = 0
        return made

    def _set(
        self, found: ShownLists, view: FoldView, until: int, groups: list[int], rows: list[Int64], known: list[Int64]
    ) -> TrainingSet:
        buffer = self._rows
        at, there = (np.concatenate([np.zeros(0, np.int64), *parts]) for parts in (rows, known))
        sizes = np.array([len(part) for part in rows], np.int32)
        outcomes = found.outcomes[there]
        addresses = buffer.addresses(at)
        times = addresses.now_ms if len(at) else np.zeros(1, np.int64)
        return TrainingSet(
            buffer.features[at], (outcomes > 0).astype(np.int32), np.ones(len(at), np.float32), sizes, outcomes,
            found.position[there], self.asked, self.missed,
            DataRange(
                first_offset=int(addresses.offset[0]) + 1 if len(at) else 0, last_offset=until, first_ms=int(times.min()),
                last_ms=int(times.max()),
            ),
            addresses, buffer.attending(np.array(groups, np.int64), view), LISTS,
        )  # fmt: skip
