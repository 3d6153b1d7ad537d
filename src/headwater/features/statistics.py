"""What the columns of a set of rows look like: the reference that later rows are compared with.

Rows come in batches, ``update / merge / read`` as everywhere. The same batches in the same order give the same bytes
on the same machine (sums of floats may differ in the last place on another processor).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Self

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from headwater.features.plan import Plan
from headwater.features.quantiles import Quantiles
from headwater.schema.errors import HeadwaterError

if TYPE_CHECKING:
    from datasketches import kll_floats_sketch

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

FORMAT = 1
STATISTICS_FILE = "statistics.json"
TOP = 256  # values counted a column: a value with more than 1/257 of the finite cells is never missed

_AT_ONCE = 131_072  # rows: a column of them is sorted inside the processor's cache


class StatisticsError(HeadwaterError):
    """Statistics cannot be read, or do not belong together."""


class Described(NamedTuple):
    """A column: its name, its version (empty: not known) and what stands where a value is missing."""

    name: str
    version: str
    default: float


class FeatureStatistics(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One column. Cells are finite, infinite or NaN; everything from ``mean`` on is about the finite ones.

    ``defaults`` are finite cells equal to ``default``: missing ones, and those whose value happens to be the same.
    ``squares`` is the sum of squared deviations from the mean. ``quantiles`` are the bytes of a KLL sketch.
    ``top`` are values and counts, most frequent first; the true count is at least that and at most ``top_error``
    more, and ``top_error`` 0 says that they are all the values there are. ``None``: there is no finite cell.
    """

    name: str
    version: str
    default: float
    count: int
    nan: int
    infinite: int
    defaults: int
    mean: float | None
    squares: float
    smallest: float | None
    largest: float | None
    quantiles: bytes
    top: tuple[tuple[float, int], ...]
    top_error: int

    @property
    def finite(self) -> int:
        """Cells that have a number."""
        return self.count - self.nan - self.infinite

    @property
    def standard_deviation(self) -> float | None:
        """``sqrt(squares / finite)``."""
        return math.sqrt(self.squares / self.finite) if self.finite else None

    @property
    def distinct(self) -> int | None:
        """How many finite values there are; ``None`` when they were too many to count."""
        return len(self.top) if self.top_error == 0 else None

    def sketch(self) -> kll_floats_sketch:
        """The distribution of the finite cells, to ask for quantiles and ranks."""
        return Quantiles.decode(self.quantiles).read()


class _File(Struct, frozen=True, kw_only=True):
    format: int
    plan: str
    features: tuple[FeatureStatistics, ...]


class _Format(Struct, frozen=True):
    format: int


class _Frequent:
    """Misra-Gries counts of at most ``TOP`` values, mergeable: P. Agarwal et al., "Mergeable Summaries", PODS 2012."""

    def __init__(self) -> None:
        self.values, self.counts, self.error = np.zeros(0, np.float32), np.zeros(0, np.int64), 0

    def add(self, values: Float32, counts: Int64, error: int) -> None:
        """Add counts of distinct ``values``; what is over ``TOP`` values is taken off all counts alike."""
        values, counts, lost = _reduced(values, counts)
        error += lost
        if len(self.values):
            values, where = np.unique(np.concatenate([self.values, values]), return_inverse=True)
            summed = np.zeros(len(values), np.int64)
            np.add.at(summed, where, np.concatenate([self.counts, counts]))
            values, counts, lost = _reduced(values, summed)
            error += lost
        self.values, self.counts, self.error = values, counts, self.error + error

    def top(self) -> tuple[tuple[float, int], ...]:
        order = np.lexsort((self.values, -self.counts))
        return tuple(zip(self.values[order].tolist(), self.counts[order].tolist(), strict=True))


def _reduced(values: Float32, counts: Int64) -> tuple[Float32, Int64, int]:
    """At most ``TOP`` of the counts, and what was taken off each."""
    if len(values) <= TOP:
        return values, counts, 0
    # the (TOP + 1)-th largest count, which cannot be more than that share of all: so one histogram finds it
    most = int(counts.sum()) // (TOP + 1)
    at_least = np.bincount(np.minimum(counts, most + 1))[::-1].cumsum()[::-1]
    lost = int(np.flatnonzero(at_least > TOP)[-1])
    kept = counts > lost
    return values[kept], counts[kept] - lost, lost


class _Running:
    """The accumulators of one column."""

    def __init__(self, described: Described) -> None:
        self.described = described
        self.count = self.nan = self.infinite = self.defaults = 0
        self.mean = self.squares = 0.0
        self.quantiles = Quantiles()
        self.frequent = _Frequent()

    @property
    def finite(self) -> int:
        return self.count - self.nan - self.infinite

    def update(self, cells: Float32) -> None:
        ordered = np.sort(cells)  # -inf … finite … inf, NaN
        numbers = len(ordered) - int(np.isnan(ordered).sum())
        infinity = np.float32(np.inf)
        low, high = np.searchsorted(ordered, -infinity, "right"), np.searchsorted(ordered, infinity, "left")
        finite = ordered[low:high]
        before = self.finite
        self.count += len(cells)
        self.nan += len(ordered) - numbers
        self.infinite += numbers - len(finite)
        if len(finite) == 0:
            return
        mean = float(finite.mean(dtype=np.float64))
        self._moments(before, len(finite), mean, float(np.square(finite.astype(np.float64) - mean).sum()))
        self.quantiles.update(finite)
        starts = np.flatnonzero(np.concatenate(([True], finite[1:] != finite[:-1])))
        counts = np.diff(starts, append=len(finite))
        values = finite[starts] + np.float32(0.0)  # -0 equals 0 and is counted with it
        self.defaults += int(counts[values == np.float32(self.described.default)].sum())
        self.frequent.add(values, counts, 0)

    def merge(self, other: _Running) -> None:
        before, more = self.finite, other.finite
        self.count += other.count
        self.nan += other.nan
        self.infinite += other.infinite
        self.defaults += other.defaults
        if more:
            self._moments(before, more, other.mean, other.squares)
        self.quantiles.merge(other.quantiles)
        self.frequent.add(other.frequent.values, other.frequent.counts, other.frequent.error)

    def read(self) -> FeatureStatistics:
        some = self.finite > 0
        name, version, default = self.described
        return FeatureStatistics(
            name=name,
            version=version,
            default=default,
            count=self.count,
            nan=self.nan,
            infinite=self.infinite,
            defaults=self.defaults,
            mean=self.mean if some else None,
            squares=self.squares,
            smallest=float(self.quantiles.smallest) if some else None,
            largest=float(self.quantiles.largest) if some else None,
            quantiles=self.quantiles.encode(),
            top=self.frequent.top(),
            top_error=self.frequent.error,
        )

    @classmethod
    def of(cls, read: FeatureStatistics) -> Self:
        made = cls(Described(read.name, read.version, read.default))
        made.count, made.nan, made.infinite, made.defaults = read.count, read.nan, read.infinite, read.defaults
        made.mean, made.squares = read.mean or 0.0, read.squares
        made.quantiles = Quantiles.decode(read.quantiles)
        if made.quantiles.n != read.finite:
            raise StatisticsError(f"{read.name!r}: the sketch has seen {made.quantiles.n} cells, not {read.finite}")
        made.frequent.values = np.array([value for value, _ in read.top], np.float32)
        made.frequent.counts = np.array([count for _, count in read.top], np.int64)
        made.frequent.error = read.top_error
        return made

    def _moments(self, before: int, more: int, mean: float, squares: float) -> None:
        """Chan, Golub, LeVeque: the mean and the squared deviations of two parts together."""
        apart, both = mean - self.mean, before + more
        self.squares += squares + apart * apart * (before * more / both)
        self.mean += apart * (more / both)


class Statistics:
    """The statistics of all columns of ``plan`` (a plan's hash)."""

    def __init__(self, plan: str, columns: Sequence[Described]) -> None:
        self.plan = plan
        self._columns = [_Running(described) for described in columns]

    @classmethod
    def of_plan(cls, plan: Plan) -> Self:
        """Empty statistics of the plan's columns."""
        defaults = [column.default for column in plan.declared]
        return cls(plan.hash, list(map(Described, plan.columns, plan.versions, defaults)))

    def update(self, rows: Float32) -> None:
        """Take in ``float32[n, d]``.

        Raises:
            StatisticsError: another number of columns, or another type.
        """
        if rows.dtype != np.float32 or rows.ndim != 2 or rows.shape[1] != len(self._columns):
            raise StatisticsError(f"Expected rows float32[n, {len(self._columns)}], got {rows.dtype}{list(rows.shape)}")
        for start in range(0, len(rows), _AT_ONCE):
            for c, column in enumerate(self._columns):
                column.update(rows[start : start + _AT_ONCE, c])

    def merge(self, other: Statistics) -> None:
        """Take in everything that ``other`` has seen.

        Raises:
            StatisticsError: its columns are others.
        """
        ours, theirs = ([column.described for column in s._columns] for s in (self, other))
        if ours != theirs:
            differ = sorted({d.name for d in set(ours) ^ set(theirs)}) or ["their order"]
            raise StatisticsError(
                f"statistics of plan {other.plan} cannot be added to those of plan {self.plan}: the columns differ in "
                f"{', '.join(differ)}"
            )
        for column, more in zip(self._columns, other._columns, strict=True):
            column.merge(more)

    def read(self) -> tuple[FeatureStatistics, ...]:
        """One entry a column, in the plan's order."""
        return tuple(column.read() for column in self._columns)

    def encode(self) -> bytes:
        """JSON (sketches in base64): the file ``statistics.json`` of a bundle."""
        return msgspec.json.encode(_File(format=FORMAT, plan=self.plan, features=self.read())) + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """What :meth:`encode` wrote; it can be updated and merged further.

        Raises:
            StatisticsError: damaged, or of a later format.
        """
        try:
            later = msgspec.json.decode(data, type=_Format).format
            if later != FORMAT:
                raise StatisticsError(f"statistics have format {later}, this version reads {FORMAT}. Update Headwater.")
            file = msgspec.json.decode(data, type=_File)
            made = cls(file.plan, [])
            made._columns = [_Running.of(feature) for feature in file.features]
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StatisticsError(f"statistics cannot be read: {error}. Train again to write them.") from error
        return made
