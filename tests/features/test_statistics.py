"""Statistics against numpy on generated columns: exact where they are exact, inside the bound where they are not."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from datasketches import kll_floats_sketch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.features.plan import compile_plan
from headwater.features.quantiles import K, Quantiles
from headwater.features.statistics import TOP, Described, FeatureStatistics, Statistics, StatisticsError
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError

Float32 = npt.NDArray[np.float32]

BOUND = kll_floats_sketch.get_normalized_rank_error(K, False)
RANKS = np.linspace(0.0, 1.0, 101)[1:-1]


def columns(names: int) -> list[Described]:
    return [Described(f"c{n}", f"v{n}", float(n)) for n in range(names)]


def of(rows: Float32, batch: int | None = None) -> Statistics:
    made = Statistics("plan", columns(rows.shape[1]))
    for start in range(0, len(rows), batch or max(len(rows), 1)):
        made.update(rows[start : start + (batch or len(rows))])
    return made


def rank_error(sketch: kll_floats_sketch, values: Float32) -> float:
    """How far the answers at ``RANKS`` are from where they stand in the sorted values; ties count as a stretch."""
    ordered = np.sort(values)
    answers = np.array(sketch.get_quantiles(RANKS.tolist()), np.float32)
    low = np.searchsorted(ordered, answers, "left") / len(ordered)
    high = np.searchsorted(ordered, answers, "right") / len(ordered)
    return float(np.maximum(0.0, np.maximum(low - RANKS, RANKS - high)).max())


def shapes(count: int, seed: int) -> Float32:
    """``float32[count, 6]``: bell, heavy tail, whole numbers, mostly zero, ascending, constant."""
    random = np.random.default_rng(seed)
    zero = np.where(random.random(count) < 0.9, 0.0, random.random(count))
    ascending = np.arange(count, dtype=np.float64)
    return np.column_stack(
        [
            random.normal(5.0, 3.0, count), random.pareto(1.2, count), random.integers(0, 20, count), zero, ascending,
            np.full(count, 5.0),
        ]
    ).astype(np.float32)  # fmt: skip


@pytest.mark.parametrize("batch", [None, 16_384, 777])
@pytest.mark.parametrize("count", [1, 2, 199, 800, 801, 40_001])
def test_moments_are_exact_and_quantiles_inside_the_bound(count: int, batch: int | None) -> None:
    rows = shapes(count, seed=count)
    for feature, cells in zip(of(rows, batch).read(), rows.T, strict=True):
        exact = cells.astype(np.float64)
        assert (feature.count, feature.finite, feature.nan, feature.infinite) == (count, count, 0, 0)
        assert feature.defaults == int((cells == np.float32(feature.default)).sum())
        assert (feature.smallest, feature.largest) == (cells.min(), cells.max())
        assert feature.mean == pytest.approx(exact.mean(), rel=1e-12)
        assert feature.standard_deviation == pytest.approx(exact.std(), rel=1e-9, abs=1e-12)
        sketch = feature.sketch()
        assert (sketch.n, sketch.get_min_value(), sketch.get_max_value()) == (count, cells.min(), cells.max())
        assert rank_error(sketch, cells) <= BOUND + 1.0 / count


def test_merged_parts_say_what_one_pass_says() -> None:
    rows = shapes(60_000, seed=3)
    parts = np.split(rows, [1, 500, 9_000, 9_001, 40_000])
    merged = Statistics("plan", columns(6))
    for part in parts:
        merged.merge(of(part))
    for together, whole, cells in zip(merged.read(), of(rows).read(), rows.T, strict=True):
        exact = ("count", "nan", "infinite", "defaults", "smallest", "largest")
        assert all(getattr(together, name) == getattr(whole, name) for name in exact)
        assert together.mean == pytest.approx(whole.mean, rel=1e-9)
        assert together.squares == pytest.approx(whole.squares, rel=1e-9, abs=1e-6)
        assert rank_error(together.sketch(), cells) <= BOUND
        if whole.top_error == 0:
            assert together.top == whole.top


def test_many_small_merges_stay_inside_the_bound() -> None:
    random = np.random.default_rng(11)
    merged, everything = Quantiles(), []
    for n in range(300):
        values = np.sort(random.normal(n / 100, 1.0, int(random.integers(1, 400))).astype(np.float32))
        part = Quantiles()
        part.update(values)
        merged.merge(part)
        everything.append(values)
    assert rank_error(merged.read(), np.concatenate(everything)) <= BOUND


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.floats(width=32), max_size=40), min_size=1, max_size=6),
    st.sampled_from([0.0, 1.0, -1.5]),
)
def test_cells_of_every_kind_are_counted_apart(batches: list[list[float]], default: float) -> None:
    statistics = Statistics("plan", [Described("c", "", default)])
    for batch in batches:
        statistics.update(np.array(batch, np.float32).reshape(-1, 1))
    cells = np.array([cell for batch in batches for cell in batch], np.float32)
    finite = cells[np.isfinite(cells)]
    (feature,) = statistics.read()
    assert feature.count == len(cells)
    assert feature.nan == int(np.isnan(cells).sum())
    assert feature.infinite == int(np.isinf(cells).sum())
    assert feature.defaults == int((finite == np.float32(default)).sum())
    values, counts = np.unique(finite, return_counts=True)
    assert feature.top_error == 0
    assert feature.distinct == len(values)
    assert sorted(feature.top) == [(float(v), int(c)) for v, c in zip(values, counts, strict=True)]
    assert (feature.smallest, feature.largest) == ((finite.min(), finite.max()) if len(finite) else (None, None))
    assert Statistics.decode(statistics.encode()).encode() == statistics.encode()


def test_frequent_values_are_found_among_many() -> None:
    random = np.random.default_rng(5)
    often = random.choice(np.array([3.0, 7.0, 11.0]), 30_000, p=[0.6, 0.3, 0.1])
    cells = random.permutation(np.concatenate([often, random.random(70_000)])).astype(np.float32)
    for batch in (None, 5_000):
        (feature,) = of(cells.reshape(-1, 1), batch).read()
        assert feature.distinct is None
        assert feature.top_error <= len(cells) / (TOP + 1)
        counts = dict(feature.top)
        assert [value for value, _ in feature.top[:3]] == [3.0, 7.0, 11.0]
        for value in (3.0, 7.0, 11.0):
            assert counts[value] <= int((cells == value).sum()) <= counts[value] + feature.top_error


def test_no_rows_and_no_finite_cell() -> None:
    empty = Statistics("plan", columns(2))
    empty.update(np.zeros((0, 2), np.float32))
    holes = Statistics("plan", columns(2))
    holes.update(np.array([[np.nan, np.inf], [np.nan, -np.inf]], np.float32))
    for statistics, count in ((empty, 0), (holes, 2)):
        for feature in statistics.read():
            assert (feature.count, feature.finite) == (count, 0)
            assert (feature.mean, feature.standard_deviation, feature.smallest, feature.largest) == (None,) * 4
            assert feature.sketch().is_empty()
            assert feature.top == ()
        assert Statistics.decode(statistics.encode()).read() == statistics.read()
    holes.merge(of(shapes(10, 1)[:, :2]))
    assert [feature.finite for feature in holes.read()] == [10, 10]


def test_what_was_read_back_goes_on() -> None:
    rows = shapes(30_000, seed=8)
    straight = of(rows, batch=10_000)
    resumed = of(rows[:10_000])
    for start in (10_000, 20_000):
        resumed = Statistics.decode(resumed.encode())
        resumed.update(rows[start : start + 10_000])
    assert resumed.encode() == straight.encode()


SAME_ROWS = """
import hashlib, numpy, headwater.features.statistics as s
rows = numpy.random.default_rng(1).normal(size=(20_000, 3)).astype(numpy.float32)
made = s.Statistics("plan", [s.Described(str(n), "", 0.0) for n in range(3)])
for start in range(0, 20_000, 6_000):
    made.update(rows[start : start + 6_000])
print(hashlib.sha256(made.encode()).hexdigest())
"""


def test_the_same_rows_give_the_same_bytes_in_every_process() -> None:
    said = {
        subprocess.run([sys.executable, "-c", SAME_ROWS], check=True, capture_output=True, text=True).stdout
        for _ in range(2)
    }
    assert len(said) == 1


def test_sketches_of_the_package_can_be_taken_over() -> None:
    values = np.random.default_rng(2).random(50_000).astype(np.float32)
    foreign = kll_floats_sketch(K)
    foreign.update(values)
    made = Quantiles.decode(foreign.serialize())
    assert made.read().get_quantiles(RANKS.tolist()) == foreign.get_quantiles(RANKS.tolist())
    made.update(np.sort(values))
    assert rank_error(made.read(), values) <= BOUND


def test_the_statistics_of_a_plan_name_its_columns() -> None:
    plan = compile_plan(Config())
    read = Statistics.of_plan(plan).read()
    assert tuple(feature.name for feature in read) == plan.columns
    assert tuple(feature.version for feature in read) == plan.versions
    assert [feature.default for feature in read] == [column.default for column in plan.declared]


def test_what_does_not_belong_together_is_refused() -> None:
    ours, theirs = Statistics("a", columns(2)), Statistics("b", [*columns(1), Described("other", "v1", 1.0)])
    with pytest.raises(StatisticsError, match=r"plan b cannot be added to those of plan a.*c1, other"):
        ours.merge(theirs)
    with pytest.raises(StatisticsError, match=r"float32\[n, 2\], got float32\[4, 3\]"):
        ours.update(np.zeros((4, 3), np.float32))
    with pytest.raises(StatisticsError, match="got float64"):
        ours.update(np.zeros((4, 2)))  # type: ignore[arg-type]


def test_damage_is_named() -> None:
    good = of(shapes(5_000, seed=1)).encode()
    with pytest.raises(StatisticsError, match="Train again"):
        Statistics.decode(good[:-20])
    with pytest.raises(StatisticsError, match="format 2"):
        Statistics.decode(good.replace(b'"format":1', b'"format":2', 1))
    with pytest.raises(StatisticsError, match="has seen"):
        Statistics.decode(good.replace(b'"count":5000', b'"count":4000', 1))
    sketch = msgspec.json.decode(good, type=_First).features[0].quantiles
    for broken in (b"", sketch[:7], sketch[:40], sketch[:-1], b"\xff" * 8, bytes(40)):
        with pytest.raises(HeadwaterError, match="no KLL sketch"):
            Quantiles.decode(broken)


class _First(msgspec.Struct):
    features: list[FeatureStatistics]
