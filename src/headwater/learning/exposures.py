"""What training rows are about, read from the log: exposures, and the events that can label them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash
from msgspec import Struct

from headwater.learning.labels import Exposed, Outcomes, retractions
from headwater.learning.negatives import draw_negatives
from headwater.log.protocol import EventLog
from headwater.log.record import FLAG_RETRACT, Kind, Namespace, RecordBlock, of_people
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.schema.requests import ServedList

Int64 = npt.NDArray[np.int64]
Columns = dict[str, npt.NDArray[np.generic]]

IMPRESSIONS, SERVED, POSITIVES = "impressions", "served", "positives"

_decode_served = msgspec.msgpack.Decoder(ServedList).decode


class _Detail(Struct, frozen=True, array_like=True):
    """The front of an event's payload: :class:`~headwater.schema.events.EventDetail` as far as it is needed."""

    event_id: str | None = None
    request_id: str | None = None
    position: int | None = None


_decode_detail = msgspec.msgpack.Decoder(_Detail).decode


@dataclass(frozen=True, slots=True)
class Asked:
    """Which exposures: ``rows`` is "served", "positives", "impressions" or the name of an event type.

    Positives come with ``negatives`` items each, drawn by ``seed`` from what the log had named by then.
    """

    rows: str = IMPRESSIONS
    negatives: int = 20
    seed: int = 7


@dataclass(frozen=True, slots=True)
class Stretch:
    """Spans of offsets, both ends included, empty where the first is behind the last: ``rows`` are about the exposures
    of its records, those of ``open`` are only counted, and reading ``read_from`` to ``read_to`` meets everything that
    can touch a label of the rows.
    """

    rows: tuple[int, int]
    open: tuple[int, int]
    read_from: int
    read_to: int


@dataclass(frozen=True, slots=True)
class Exposures:
    """``n`` exposures in the order of ``offset``, then of their records, then of their place in the list.

    ``columns`` (one array of n each): record, user, item, time_ms, received_ms, offset, item_offset, now_ms,
    segments (n, 2), position (-1: none), score (NaN: none), request (hash), request_at (position in
    ``requests``, -1: none), surface (position in ``surfaces``, 0: none), tier (-1: no served list).
    ``competing`` holds them and all others that an outcome may belong to, in log order; ``place[i]`` is the position
    of exposure i among them.
    """

    columns: Columns
    requests: pa.ChunkedArray
    surfaces: tuple[str, ...]
    competing: Exposed
    place: Int64
    outcomes: Outcomes
    open: int  # exposures whose labels are not closed yet
    served: npt.NDArray[np.uint64]  # requests of all served lists that were read, those that can be no rows too
    skipped: dict[str, int]  # and those that can be no row, by reason

    def __len__(self) -> int:
        return len(self.place)


def read_exposures(
    log: EventLog, config: Config, asked: Asked, stretch: Stretch, watermark_ms: int, labelled: Sequence[str],
    progress: Callable[[int, int], None] | None = None,
) -> Exposures:  # fmt: skip
    """Read the exposures of a stretch, and the events of the types ``labelled`` around them.

    Raises:
        HeadwaterError: ``asked.rows`` is no event type that the log knows.
    """
    reader = _Exposed(log, config, asked, watermark_ms)
    outcomes = _Outcomes(log, labelled)
    for block in _blocks(log, 0 if asked.rows == POSITIVES else stretch.read_from - 1, stretch.read_to):
        reader.note_terms(block)
        start = max(stretch.read_from - block.first_offset, 0)
        if start < len(block):
            reader.take(block.tail(start))
            outcomes.take(block.tail(start))
        if progress is not None:
            progress(block.last_offset, stretch.read_to)
    return reader.finish(stretch, outcomes)


def _blocks(log: EventLog, after: int, until: int) -> Iterator[RecordBlock]:
    while after < until and (block := log.read(after)) is not None:
        yield block if block.last_offset <= until else block.head(until - block.first_offset + 1)
        after = block.last_offset


@dataclass(slots=True)
class _Outcomes:
    """Events that can fulfil a label, and retractions of them."""

    log: EventLog
    labelled: Sequence[str]
    pieces: list[Columns] = field(default_factory=list)
    requests: list[npt.NDArray[np.uint64]] = field(default_factory=list)

    def take(self, block: RecordBlock) -> None:
        records = block.records
        at = np.flatnonzero(_events(block, dense_types(self.log, self.labelled)))
        chosen = records[at]
        self.pieces.append({name: chosen[name] for name in ("user", "item", "type", "time_ms", "received_ms", "value")})
        self.pieces[-1]["retract"] = (chosen["flags"] & FLAG_RETRACT) != 0
        self.requests.append(hashes([detail.request_id for detail in _details(block, at)]))

    def finish(self) -> tuple[Outcomes, int]:
        columns = _joined(self.pieces, ("user", "item", "type", "time_ms", "received_ms", "value", "retract"))
        user, item, type_, time_ms, received_ms = (
            columns[name].astype(np.int64) for name in ("user", "item", "type", "time_ms", "received_ms")
        )
        retract = columns["retract"].astype(np.bool_)
        retracted_ms, lost = retractions(user, item, type_, time_ms, received_ms, retract)
        keep = ~retract
        request = np.concatenate([np.zeros(0, np.uint64), *self.requests])
        return Outcomes(
            user[keep], item[keep], type_[keep], np.minimum(time_ms, received_ms)[keep], received_ms[keep],
            request[keep], columns["value"].astype(np.float32)[keep], retracted_ms[keep],
        ), lost  # fmt: skip


_EMPTY: dict[str, npt.DTypeLike] = {
    "record": np.int64, "user": np.int64, "item": np.int64, "time_ms": np.int64, "received_ms": np.int64,
    "offset": np.int64, "item_offset": np.int64, "now_ms": np.int64, "segments": (np.uint16, (2,)),
    "position": np.int32, "score": np.float32, "request": np.uint64, "request_at": np.int64, "surface": np.int32,
    "tier": np.int8, "type": np.int64, "value": np.float32, "retract": np.bool_,
}  # fmt: skip
_COLUMNS = tuple(_EMPTY)[:15]


def _joined(pieces: list[Columns], names: Sequence[str]) -> Columns:
    return {name: np.concatenate([np.zeros(0, _EMPTY[name]), *(piece[name] for piece in pieces)]) for name in names}


class _Exposed:
    """Collects exposures, block by block."""

    def __init__(self, log: EventLog, config: Config, asked: Asked, watermark_ms: int) -> None:
        self.log, self.asked, self.watermark_ms = log, asked, watermark_ms
        self.pieces: list[Columns] = []
        self.requests: list[pa.Array] = [pa.array([], pa.large_string())]
        self.request_count = 0
        self.surfaces: dict[str, int] = {"": 0}
        self.seen: set[int] = set()  # served lists, by the hash of their request: one may be recorded twice
        self.skipped: dict[str, list[Int64]] = {}
        self.known, self.known_first, self.known_items = np.zeros(0, np.int64), 0, 0
        self.type_names: tuple[str, ...] = ()
        if asked.rows == POSITIVES:
            self.type_names = tuple(t.name for t in config.events if t.positive)
        elif asked.rows != SERVED:
            self.type_names = ("impression" if asked.rows == IMPRESSIONS else asked.rows,)
            if not dense_types(log, self.type_names).size:
                known = ", ".join(log.vocabulary().texts(Namespace.EVENT_TYPE)[1:]) or "none"
                raise HeadwaterError(
                    f'the log holds no event of type "{self.type_names[0]}" (it holds {known}): name one of these as '
                    "the rows, or ask for served or positives"
                )

    def note_terms(self, block: RecordBlock) -> None:
        """Remember where items got their numbers (for the negatives of positives)."""
        records = block.records
        named = (records["kind"] == Kind.TERM) & (records["type"] == Namespace.ITEM)
        counts = np.maximum.accumulate(np.where(named, records["item"], 0).astype(np.int64))
        self.known = np.maximum(counts, self.known_items)
        self.known_first = block.first_offset
        self.known_items = int(self.known[-1])

    def take(self, block: RecordBlock) -> None:
        if self.asked.rows == SERVED:
            self._take_served(block)
        else:
            self._take_events(block)

    def _take_events(self, block: RecordBlock) -> None:
        records = block.records
        wanted = _events(block, dense_types(self.log, self.type_names)) & ((records["flags"] & FLAG_RETRACT) == 0)
        wanted &= ~self._too_late(records, np.minimum(records["time_ms"], records["received_ms"]), wanted)
        at = np.flatnonzero(wanted)
        chosen = records[at]
        n = len(chosen)
        details = _details(block, at)
        texts = [detail.request_id for detail in details]
        named = np.array([text is not None for text in texts], np.bool_)
        request_at = np.where(named, np.cumsum(named) - 1 + self.request_count, -1).astype(np.int64)
        self._add_requests([text for text in texts if text is not None])
        names = self.log.vocabulary().texts(Namespace.SURFACE)
        surface_of = {s: self._surface(names[s]) for s in np.unique(chosen["surface"]).tolist()}
        record = chosen["offset"].astype(np.int64)
        received_ms = chosen["received_ms"].astype(np.int64)
        columns: Columns = {
            "record": record,
            "user": chosen["user"].astype(np.int64),
            "item": chosen["item"].astype(np.int64),
            "time_ms": np.minimum(chosen["time_ms"], received_ms),
            "received_ms": received_ms,
            "offset": record - 1,
            "item_offset": record - 1,
            "now_ms": received_ms,
            "segments": np.ascontiguousarray(chosen["segments"]),
            "position": np.array([-1 if d.position is None else d.position for d in details], np.int32),
            "score": np.full(n, np.nan, np.float32),
            "request": hashes(texts),
            "request_at": request_at,
            "surface": np.array([surface_of[s] for s in chosen["surface"].tolist()], np.int32),
            "tier": np.full(n, -1, np.int8),
        }
        if self.asked.rows == POSITIVES and n:
            known = self.known[record - self.known_first]
            columns = _with_negatives(columns, known, self.asked)
        self.pieces.append(columns)

    def _take_served(self, block: RecordBlock) -> None:
        records = block.records
        for i in np.flatnonzero(of_people(records, Kind.SERVED)).tolist():
            served = _decode_served(block.payload(i))
            count = len(served.items)
            record, received_ms = int(records["offset"][i]), int(records["received_ms"][i])
            request = int(hashes([served.request_id])[0])
            now_ms = min(served.address.now_ms, received_ms)
            if request in self.seen:
                self._skip("recorded twice", record, count)
                continue
            self.seen.add(request)
            if len(served.context) > 2 and served.context[2]:
                self._skip("about an item", record, count)
                continue
            if received_ms - now_ms > self.watermark_ms:
                self._skip("late", record, count)
                continue

            def all_(value: float, dtype: npt.DTypeLike = np.int64, n: int = count) -> npt.NDArray[np.generic]:
                return np.full(n, value, dtype)

            self.pieces.append({
                "record": all_(record),
                "user": all_(int(records["user"][i])),
                "item": np.array(served.items, np.int64),
                "time_ms": all_(now_ms),
                "received_ms": all_(received_ms),
                "offset": all_(served.address.user_offset),
                "item_offset": all_(served.address.item_offset),
                "now_ms": all_(served.address.now_ms),
                "segments": np.tile(np.array([*served.context, 0, 0][:2], np.uint16), (count, 1)),
                "position": np.arange(count, dtype=np.int32),
                "score": np.array(served.scores, np.float32),
                "request": np.full(count, request, np.uint64),
                "request_at": all_(self.request_count),
                "surface": all_(self._surface(served.surface), np.int32),
                "tier": all_(served.tier, np.int8),
            })  # fmt: skip
            self._add_requests([served.request_id])

    def finish(self, stretch: Stretch, outcomes: _Outcomes) -> Exposures:
        columns = _joined(self.pieces, _COLUMNS)
        record = columns["record"].astype(np.int64)
        mine = np.flatnonzero(_within(record, stretch.rows))
        order = mine[np.argsort(columns["offset"][mine], kind="stable")]
        joined, lost = outcomes.finish()
        skipped = {
            reason: sum(int(_within(piece, stretch.rows).sum()) for piece in offsets)
            for reason, offsets in self.skipped.items()
        }
        skipped["retractions of nothing"] = lost
        return Exposures(
            columns={name: column[order] for name, column in columns.items()},
            requests=pa.chunked_array(self.requests),
            surfaces=tuple(self.surfaces),
            competing=Exposed(
                columns["user"].astype(np.int64), columns["item"].astype(np.int64),
                columns["time_ms"].astype(np.int64), columns["received_ms"].astype(np.int64),
                columns["request"].astype(np.uint64),
            ),
            place=order,
            outcomes=joined,
            open=int(_within(record, stretch.open).sum()),
            served=np.array(sorted(self.seen), np.uint64),
            skipped={reason: count for reason, count in skipped.items() if count},
        )  # fmt: skip

    def _too_late(
        self, records: npt.NDArray[np.void], time_ms: Int64, wanted: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.bool_]:
        """Exposures that came later than the watermark: the state they were shown from is not that of their record."""
        late: npt.NDArray[np.bool_] = wanted & (records["received_ms"] - time_ms > self.watermark_ms)
        self.skipped.setdefault("late", []).append(records["offset"][late].astype(np.int64))
        return late

    def _skip(self, reason: str, record: int, count: int) -> None:
        self.skipped.setdefault(reason, []).append(np.full(count, record, np.int64))

    def _surface(self, name: str) -> int:
        return self.surfaces.setdefault(name, len(self.surfaces))

    def _add_requests(self, texts: list[str]) -> None:
        self.requests.append(pa.array(texts, pa.large_string()))
        self.request_count += len(texts)


def _within(offsets: Int64, span: tuple[int, int]) -> npt.NDArray[np.bool_]:
    inside: npt.NDArray[np.bool_] = (offsets >= span[0]) & (offsets <= span[1])
    return inside


def dense_types(log: EventLog, names: Sequence[str]) -> Int64:
    """Dense numbers of the named event types, as far as the log knows them."""
    vocabulary = log.vocabulary()
    return np.array([i for name in names if (i := vocabulary.index(Namespace.EVENT_TYPE, name))], np.int64)


def hashes(texts: Sequence[str | None]) -> npt.NDArray[np.uint64]:
    """64-bit hashes of request ids; 0 stands for none and for nothing else."""
    return np.array([0 if text is None else xxhash.xxh64_intdigest(text.encode()) or 1 for text in texts], np.uint64)


def _events(block: RecordBlock, types: Int64) -> npt.NDArray[np.bool_]:
    records = block.records
    chosen: npt.NDArray[np.bool_] = of_people(records, Kind.EVENT) & np.isin(records["type"], types)
    return chosen & (records["user"] > 0) & (records["item"] > 0)


def _details(block: RecordBlock, at: Int64) -> list[_Detail]:
    """The details of the records at these positions."""
    nothing = _Detail()
    heap = block.heap.data
    starts, sizes = block.records["payload_at"][at].tolist(), block.records["payload_size"][at].tolist()
    return [
        _decode_detail(heap[start : start + size]) if size else nothing
        for start, size in zip(starts, sizes, strict=True)
    ]


def _with_negatives(columns: Columns, known: Int64, asked: Asked) -> Columns:
    """Every positive, followed by its negatives."""
    item = columns["item"].astype(np.int64)
    record = columns["record"].astype(np.int64)
    drawn = np.zeros((len(item), 1 + asked.negatives), np.int64)
    draw_negatives(record, item, known, asked.seed, drawn)
    rows, place = np.nonzero(drawn)  # a small catalogue has fewer
    out = {name: column[rows] for name, column in columns.items()}
    out["item"] = drawn[rows, place]
    negative = place > 0
    out["position"] = np.where(negative, -1, out["position"]).astype(np.int32)
    return out
