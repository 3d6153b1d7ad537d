"""Training rows as Arrow tables: where a row comes from, its features, its labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from msgspec import Struct

from headwater.features.plan import Plan
from headwater.learning.exposures import Exposures
from headwater.learning.labels import NO_DELAY, LabelRule, Labels
from headwater.log.protocol import Vocabulary
from headwater.log.record import Namespace
from headwater.schema.errors import ConfigurationError

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

TEXT = pa.dictionary(pa.int32(), pa.string())  # few different texts
ADDRESS = ("record", "offset", "item_offset", "now_ms")


class Definition(Struct, frozen=True, kw_only=True):
    """What rows that stand together have in common: only rows of one definition may be put into one place."""

    plan: str
    log_id: str
    rows: str
    negatives: int | None  # of positives only, as is the seed
    seed: int | None
    watermark_ms: int
    labels: tuple[LabelRule, ...]


class Piece(NamedTuple):
    """Rows ``start`` to ``stop`` and their features, ``float32[stop - start, d]``."""

    start: int
    stop: int
    features: Float32


def pieces(answers: Iterable[tuple[int, int, Float32]], total: int, width: int, size: int) -> Iterator[Piece]:
    """Put answers (in order, of any length) together to pieces of ``size`` rows each; the last one has the rest."""
    at, piece = 0, _empty(0, total, width, size)
    for start, stop, rows in answers:
        taken = 0
        while at < stop:
            count = min(stop, piece.stop) - at
            piece.features[at - piece.start : at - piece.start + count] = rows[taken : taken + count]
            taken += count
            at += count
            if at == piece.stop:
                yield piece
                piece = _empty(at, total, width, size)
        if at != stop or taken != stop - start:
            raise ValueError(f"Answers {start} to {stop} do not follow those up to {at - taken}")
    if at != total:
        raise ValueError(f"Expected answers to {total} questions, got {at}")


def _empty(start: int, total: int, width: int, size: int) -> Piece:
    stop = min(start + size, total)
    return Piece(start, stop, np.empty((stop - start, width), np.float32))


class RowTables:
    """Builds the table of a piece; the same bytes for the same rows, whatever was built before."""

    def __init__(
        self, plan: Plan, vocabulary: Vocabulary, exposures: Exposures, labels: dict[str, Labels]
    ) -> None:  # fmt: skip
        self.plan, self.exposures, self.labels = plan, exposures, labels
        self.requests = exposures.requests.combine_chunks()
        self.items = pa.array(vocabulary.texts(Namespace.ITEM), pa.string())
        self.segments = vocabulary.texts(Namespace.SEGMENT)
        self.schema = row_schema(plan, labels)

    def table(self, piece: Piece) -> pa.Table:
        rows = slice(piece.start, piece.stop)
        columns = {name: column[rows] for name, column in self.exposures.columns.items()}
        n = piece.stop - piece.start
        surface = columns["surface"].astype(np.int64)
        arrays = {
            "request_id": self.requests.take(_nullable(columns["request_at"].astype(np.int64), -1)).cast(pa.string()),
            "surface": _texts(surface, self.exposures.surfaces),
            "position": _nullable(columns["position"], -1),
            "user": pa.array(columns["user"]),
            "item": pa.array(columns["item"]),
            "item_id": self.items.take(pa.array(columns["item"])),
            "time_ms": pa.array(columns["time_ms"]),
            **{name: pa.array(columns[name]) for name in ADDRESS},
            "plan": _texts(np.ones(n, np.int64), ("", self.plan.hash)),
            "score": pa.array(columns["score"], from_pandas=True),  # NaN: null
        }
        for k, key in enumerate(self.plan.segment_keys):
            found = columns["segments"][:, k].astype(np.int64)
            arrays[f"segment_{key}"] = _texts(found, self.segments, prefix=f"{key}=")
        features = np.ascontiguousarray(piece.features.T)
        arrays.update({name: pa.array(features[j]) for j, name in enumerate(self.plan.columns)})
        for name, labels in self.labels.items():
            arrays[f"label_{name}"] = pa.array(labels.label[rows])
            arrays[f"label_{name}_delay_ms"] = _nullable(labels.delay_ms[rows], NO_DELAY)
            arrays[f"label_{name}_value"] = pa.array(labels.value[rows], from_pandas=True)
        return pa.table(arrays, schema=self.schema)


def row_schema(plan: Plan, labels: Iterable[str]) -> pa.Schema:
    """Names and types of the columns, in order.

    Raises:
        ConfigurationError: a label, a segment key or a feature has the name of another column.
    """
    fields = [
        ("request_id", pa.string()), ("surface", TEXT), ("position", pa.int32()), ("user", pa.int64()),
        ("item", pa.int64()), ("item_id", pa.string()), ("time_ms", pa.int64()),
        *((name, pa.int64()) for name in ADDRESS), ("plan", TEXT), ("score", pa.float32()),
        *((f"segment_{key}", TEXT) for key in plan.segment_keys),
        *((name, pa.float32()) for name in plan.columns),
    ]  # fmt: skip
    for name in labels:
        fields += [
            (f"label_{name}", pa.uint8()), (f"label_{name}_delay_ms", pa.int64()), (f"label_{name}_value", pa.float32()),
        ]  # fmt: skip
    names = [name for name, _ in fields]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(
                f"two columns of the training rows are called `{name}`: rename the feature or label"
            )
    return pa.schema(fields)


def _nullable(values: npt.NDArray[np.generic], none: int) -> pa.Array:
    return pa.array(values, mask=values == none)


def _texts(codes: Int64, texts: tuple[str, ...] | list[str], prefix: str = "") -> pa.Array:
    """Texts of ``codes`` (0: null) as a dictionary of those that occur, without ``prefix``."""
    used, at = np.unique(codes, return_inverse=True)
    names = pa.array([texts[code].removeprefix(prefix) for code in used.tolist() if code], pa.string())
    shift = 1 if len(used) and used[0] == 0 else 0
    indices = pa.array((at - shift).astype(np.int32), mask=codes == 0)
    return pa.DictionaryArray.from_arrays(indices, names)
