"""Lists as they were shown, read from the log: what stood where, and what became of it.

A list is a served one, at its address. Impressions that name the same request make one too where no list of that request was served from here (another
system made it, and its events were imported): its address is the record before its first impression. What people did belongs to the list that it
names, else to the latest one that showed them the item (:mod:`headwater.learning.labels`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headwater.learning.exposures import (
    IMPRESSIONS,
    SERVED,
    Asked,
    Columns,
    Exposures,
    Stretch,
    dense_types,
    read_exposures,
)
from headwater.learning.labels import Exposed, join_labels
from headwater.learning.trainingset import windows_ms
from headwater.log.protocol import EventLog
from headwater.log.record import Kind, of_people
from headwater.log.seek import last_before
from headwater.schema.config import Config
from headwater.schema.durations import parse_duration

Int64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

LAST_TIER = 2  # lists of lower tiers are of an earlier moment, or of nobody's state
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class ShownLists:
    """``l`` lists in the order of their addresses, ``n`` rows in the order of the lists, then of place.

    Of each list: ``record`` (the offset of its own record, or of its first impression), ``offset`` and ``now_ms`` (its address), ``user``, ``begin`` (its
    first row) and ``sizes``, int64[l]; ``segments`` uint16[l, 2]; ``surface`` names; ``closed`` bool[l]: nothing can change its labels any more.
    Of each row: ``item`` and ``outcomes`` int64[n] (bit t for the t-th of the configuration's ``events``), ``position`` int16[n], ``seen`` bool[n]: it
    was shown, as far as can be known. ``skipped`` counts items that can be no row, by reason.
    """

    record: Int64
    offset: Int64
    now_ms: Int64
    user: Int64
    begin: Int64
    sizes: Int64
    segments: npt.NDArray[np.uint16]
    surface: list[str]
    closed: Bools
    item: Int64
    outcomes: Int64
    position: npt.NDArray[np.int16]
    seen: Bools
    skipped: dict[str, int]

    def __len__(self) -> int:
        return len(self.record)

    @property
    def taken(self) -> Bools:
        """``bool[l]``: something was done with an item of the list."""
        return np.add.reduceat(self.outcomes > 0, self.begin) > 0 if len(self) else np.zeros(0, np.bool_)

    def rows(self, which: int) -> slice:
        """The rows of one list."""
        return slice(int(self.begin[which]), int(self.begin[which] + self.sizes[which]))


def read_shown(log: EventLog, config: Config, *, since: int, until: int) -> ShownLists:
    """The lists that were recorded behind the offset ``since``, as they are known at ``until``.

    A list is closed when its longest label is: ``training.watermark`` and the window after it was received. Lists about an item, of
    tiers 3 and 4, and those that were recorded later than the watermark are left out.
    """
    windows = {place: ms for place, ms in windows_ms(config).items() if config.events[place].positive}
    watermark_ms = parse_duration(config.training.watermark)
    closes_after_ms = max(windows.values(), default=0) + watermark_ms
    impressions = dense_types(log, ("impression",))
    read_from, read_to = 1, 0
    if _any(log, impressions, since, until):
        # lists from before count too: their events are still to come
        read_from = last_before(log, _received(log, since + 1) - closes_after_ms)[0] + 1
        read_to = until
    stretch = Stretch((read_from, read_to), (1, 0), read_from, read_to)
    served = read_exposures(
        log, config, Asked(rows=SERVED), stretch, watermark_ms, [config.events[place].name for place in windows]
    )
    skipped = Counter(served.skipped)
    rows, surfaces = _served_rows(served), served.surfaces
    if len(impressions) and read_to:
        shown = read_exposures(log, config, Asked(rows=IMPRESSIONS), stretch, watermark_ms, ())
        rows["seen"] = _seen(rows, shown.columns)
        surfaces = tuple(dict.fromkeys((*served.surfaces, *shown.surfaces)))
        alone = _impression_rows(shown, served.served, surfaces)
        rows = {name: np.concatenate([column, alone[name]]) for name, column in rows.items()}
    order = np.argsort(rows["record"], kind="stable")  # as labels are joined
    rows = {name: column[order] for name, column in rows.items()}
    exposed = Exposed(
        rows["user"].astype(np.int64), rows["item"].astype(np.int64), rows["time_ms"].astype(np.int64),
        rows["received_ms"].astype(np.int64), rows["request"].astype(np.uint64),
    )  # fmt: skip
    outcomes = np.zeros(len(order), np.int64)
    for place, window_ms in windows.items():
        types = dense_types(log, (config.events[place].name,))
        label = join_labels(exposed, served.outcomes, types, window_ms, watermark_ms).label
        outcomes |= label.astype(np.int64) << place
    low = rows["tier"].astype(np.int64) > LAST_TIER
    wanted = rows["list"].astype(np.int64) > since
    skipped["of tier 3 or 4"] += int((low & wanted).sum())
    closed_ms = _received(log, until) - closes_after_ms
    return _lists(rows, outcomes, surfaces, wanted & ~low, closed_ms, +skipped)


def _any(log: EventLog, impressions: Int64, since: int, until: int) -> bool:
    """Whether there is anything to read at all, without looking into it."""
    after = since
    while after < until and (block := log.read(after)) is not None:
        records = block.records
        if np.any(of_people(records, Kind.SERVED)) or np.any(np.isin(records["type"], impressions)):
            return True
        after = block.last_offset
    return False


def _received(log: EventLog, offset: int) -> int:
    block = log.read(offset - 1, 1)
    return 0 if block is None else int(block.records["received_ms"][0])


_OF_ROWS = (
    "record", "user", "item", "time_ms", "received_ms", "offset", "now_ms", "segments", "position", "request", "surface",
    "tier",
)  # fmt: skip


def _served_rows(served: Exposures) -> Columns:
    """Rows of served lists; ``list`` is the record that a list is known by."""
    rows: Columns = {name: served.columns[name] for name in _OF_ROWS}
    return rows | {"list": rows["record"], "seen": np.ones(len(served), np.bool_)}


def _seen(rows: Columns, shown: Columns) -> Bools:
    """Which rows of served lists had an impression: all those of lists that had none, for then nobody reports them."""
    reported = np.isin(rows["request"], shown["request"])
    seen: Bools = ~reported | np.isin(_pair(rows), _pair(shown))
    return seen


def _pair(of: Columns) -> npt.NDArray[np.uint64]:
    """One number for request and item."""
    pair: npt.NDArray[np.uint64] = of["request"].astype(np.uint64) ^ (of["item"].astype(np.uint64) * _SPREAD)
    return pair


def _impression_rows(shown: Exposures, served: npt.NDArray[np.uint64], surfaces: tuple[str, ...]) -> Columns:
    """Rows of lists that are known by their impressions alone: an item stands where it was shown first, all have the address of the first one."""
    request = shown.columns["request"].astype(np.uint64)
    wanted = (request > 0) & ~np.isin(request, served)
    rows: Columns = {name: shown.columns[name][wanted] for name in _OF_ROWS}
    rows["surface"] = np.array([surfaces.index(name) for name in shown.surfaces], np.int32)[rows["surface"]]
    order = np.lexsort((rows["record"], rows["item"], rows["user"], rows["request"]))
    first = np.logical_or.reduce([_changes(rows[name][order]) for name in ("request", "user", "item")])
    order = order[first]
    order = order[np.lexsort((rows["record"][order], rows["user"][order], rows["request"][order]))]
    rows = {name: column[order] for name, column in rows.items()}
    starts = np.flatnonzero(_changes(rows["request"]) | _changes(rows["user"]))
    sizes = np.diff(np.append(starts, len(order)))
    for name in ("offset", "now_ms", "segments", "surface"):
        rows[name] = np.repeat(rows[name][starts], sizes, axis=0)
    place = np.arange(len(order)) - np.repeat(starts, sizes)
    named = rows["position"].astype(np.int64)
    rows["position"] = np.where(named >= 0, named, place).astype(np.int32)
    return rows | {"list": np.repeat(rows["record"][starts], sizes), "seen": np.ones(len(order), np.bool_)}


def _changes(column: npt.NDArray[np.generic]) -> Bools:
    """Where a column differs from the row before; true in the first row."""
    changes = np.ones(len(column), np.bool_)
    changes[1:] = column[1:] != column[:-1]
    return changes


def _lists(
    rows: Columns, outcomes: Int64, surfaces: tuple[str, ...], wanted: Bools, closed_ms: int, skipped: dict[str, int]
) -> ShownLists:
    """The ``wanted`` rows, list by list; what was received before ``closed_ms`` is closed."""
    at = np.flatnonzero(wanted)
    at = at[np.lexsort((rows["position"][at], rows["list"][at], rows["offset"][at]))]
    rows = {name: column[at] for name, column in rows.items()}
    begin = np.flatnonzero(_changes(rows["list"]))
    return ShownLists(
        record=rows["list"][begin].astype(np.int64), offset=rows["offset"][begin].astype(np.int64),
        now_ms=rows["now_ms"][begin].astype(np.int64), user=rows["user"][begin].astype(np.int64), begin=begin.astype(np.int64),
        sizes=np.diff(np.append(begin, len(at))).astype(np.int64), segments=rows["segments"][begin].astype(np.uint16),
        surface=[surfaces[code] for code in rows["surface"][begin].astype(np.int64).tolist()],
        closed=rows["received_ms"][begin].astype(np.int64) < closed_ms, item=rows["item"].astype(np.int64),
        outcomes=outcomes[at], position=rows["position"].astype(np.int16),
        seen=rows["seen"].astype(np.bool_) | (outcomes[at] > 0), skipped=skipped,
    )  # fmt: skip
