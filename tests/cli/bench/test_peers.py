"""Peers against the slow reference, the comparison on columns whose verdict is known, and the two workloads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headwater.cli.bench import peers
from headwater.cli.bench.peers import PEERS, Peer, PeerError, answers, compare, handed_over, measure
from headwater.cli.bench.peers.reference import answer, reference
from headwater.cli.bench.peers.workload import (
    DAY_MS,
    HOUR_MS,
    Asked,
    Events,
    Feature,
    Workload,
    WorkloadError,
    feature_table,
    globo,
    synthetic,
)

NOON = 1_772_409_600_000
MINUTE = 60_000


def crowded() -> Workload:
    """Few users and items, many events at one moment, three days of gaps, users and items without positive events."""
    rng = np.random.default_rng(4)
    count = 600
    # all moments are multiples of five minutes: on the edges of tiles, and many events share one
    gaps = rng.choice([0, 0, 0, 5, 30, 300, 2_880], count, p=(0.3, 0.2, 0.2, 0.15, 0.1, 0.045, 0.005))
    events = Events(
        NOON + np.cumsum(gaps).astype(np.int64) * MINUTE,
        rng.integers(0, 9, count),
        rng.integers(0, 7, count),
        rng.integers(0, 3, count).astype(np.uint8),
        (rng.random(count) * 5 - 1).astype(np.float32),
    )
    events.type[events.user == 8] = 0  # nothing positive
    events.type[events.item == 6] = 0
    position = np.sort(np.append(rng.integers(0, count, 300), [0, count - 1]))
    item = rng.integers(0, 7, len(position))
    return Workload("crowded", events, Asked(events.user[position], item, events.time_ms[position], position), (1, 2))


@pytest.fixture(scope="module")
def world() -> Workload:
    return crowded()


@pytest.fixture(scope="module")
def truth(world: Workload) -> dict[str, np.ndarray]:
    return dict(reference(world))


@pytest.fixture(scope="module")
def folder(world: Workload) -> Iterator[Path]:
    with handed_over(world) as folder:
        yield folder


def installed(peer: Peer) -> Peer:
    if peer.interpreter is None:
        pytest.skip(f"{peer.name} is not installed: {peer.install}")
    return peer


@pytest.mark.parametrize("peer", PEERS, ids=[peer.name for peer in PEERS])
def test_a_peer_answers_what_the_reference_answers(
    peer: Peer, world: Workload, folder: Path, truth: dict[str, np.ndarray]
) -> None:
    found = measure(installed(peer), world, folder, truth, repeats=2)
    assert found["unequal"] == []
    assert found["equal"] is True
    assert found["max_relative_difference"] < 1e-9
    assert found["compared"] == len(found["features"])
    assert found["rows"] == len(world.questions.position)
    assert found["rows_per_s"] == round(found["rows"] / found["seconds"], 1)


@pytest.mark.parametrize("name", ["duckdb", "polars"])
def test_duckdb_and_polars_have_every_feature(name: str, world: Workload, folder: Path) -> None:
    peer = next(peer for peer in PEERS if peer.name == name)
    columns, result, rows = answers(peer, world, folder, repeats=1, questions=50)
    assert set(columns) == {feature.name for feature in feature_table()}
    assert len(rows) == 50 == result["rows"]
    assert all(len(column) == 50 for column in columns.values())


def test_the_reference_on_a_log_counted_by_hand() -> None:
    time = np.array([0, 0, 9, 61, 61, 62, 26 * 60], np.int64) * MINUTE + NOON
    events = Events(
        time,
        np.array([0, 0, 1, 0, 0, 0, 0]),
        np.array([0, 1, 0, 1, 0, 0, 2]),
        np.array([1, 1, 1, 1, 0, 1, 1], np.uint8),
        np.array([2, 3, 7, 5, 11, 1, 1], np.float32),
    )
    position = np.array([0, 4, 6])
    world = Workload("hand", events, Asked(np.array([0, 0, 0]), np.array([0, 0, 2]), time[position], position), (1,))
    found = reference(world)
    expected: dict[str, list[float]] = {
        "user_count": [0, 3, 4],
        "user_since_s": [-1, 0, (26 * 60 - 62) * 60],
        "user_last_item": [-1, 1, 0],
        "user_count_1h": [0, 1, 0],  # at 61 minutes the tile of minutes 0 to 5 has just left
        "user_sum_1h": [0, 5, 0],
        "user_count_1d": [0, 3, 0],
        "user_count_7d": [0, 3, 4],
        "user_mean_7d": [0, 10 / 3, 11 / 4],
        "user_min": [0, 2, 1],
        "user_max": [0, 5, 5],
        "item_count": [0, 2, 0],
        "item_since_s": [-1, 52 * 60, -1],
        "item_sum_7d": [0, 9, 0],
        "item_decayed_30m": [0, 2 ** (-61 / 30) + 2 ** (-52 / 30), 0],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-12, err_msg=name)


def test_an_unknown_kind_is_no_zero(world: Workload) -> None:
    with pytest.raises(ValueError, match="no rule for median"):
        answer(world, Feature("x", "user", "median"), 0)  # type: ignore[arg-type]


def test_counts_must_be_the_same_and_sums_close() -> None:
    ours = {"user_count": np.array([1, 2]), "user_sum_1h": np.array([1.0, 1e-9]), "item_max": np.array([1.0, 2.0])}
    theirs = {"user_count": np.array([1.0, 2.0]), "user_sum_1h": np.array([1.000001, 0.0])}
    close = compare(ours, theirs)
    assert close.equal
    assert set(close.differences) == {"user_count", "user_sum_1h"}
    assert close.max_relative_difference == pytest.approx(1e-6, rel=1e-3)
    assert compare(ours, {"user_count": np.array([1.0, 2.000001])}).unequal == ("user_count",)
    assert compare(ours, {"user_sum_1h": np.array([1.0001, 0.0])}).unequal == ("user_sum_1h",)
    assert compare(ours, {"item_max": np.array([1.0, np.nan])}).unequal == ("item_max",)


def test_nothing_in_common_is_not_equal() -> None:
    nothing = compare({"user_count": np.zeros(1)}, {"item_count": np.zeros(1)})
    assert not nothing.equal
    assert nothing.max_relative_difference is None


def test_columns_of_other_questions_cannot_be_compared() -> None:
    with pytest.raises(PeerError, match="3 rows against 2"):
        compare({"user_count": np.zeros(3)}, {"user_count": np.zeros(2)})


def test_a_peer_that_is_not_there_says_how_to_get_it(world: Workload, folder: Path) -> None:
    absent = Peer("absent", "no_such_package", "pip install it")
    assert measure(absent, world, folder, {}) == {"installed": False, "install": "pip install it"}
    with pytest.raises(PeerError, match="pip install it"):
        answers(absent, world, folder)


def test_a_peer_that_fails_says_what_it_said(world: Workload, folder: Path) -> None:
    with pytest.raises(PeerError, match="no_such_peer"):
        answers(Peer("no_such_peer", "json", ""), world, folder)


def test_a_variable_that_names_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(peers.FEAST_VARIABLE, str(tmp_path / "python"))
    with pytest.raises(PeerError, match=peers.FEAST_VARIABLE):
        _ = PEERS[-1].interpreter


def test_the_synthetic_workload_is_the_same_for_a_seed_and_has_what_it_promises() -> None:
    made, again, other = (synthetic(40_000, 3_000, 500, seed, questions=1_000) for seed in (1, 1, 2))
    for a, b in zip([*made.events, *made.questions], [*again.events, *again.questions], strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(made.events.user, other.events.user)
    events, asked = made.events, made.questions
    assert len(events.time_ms) == 40_000
    assert len(asked.position) == 1_000
    assert len(np.unique(asked.position)) == 100
    assert np.isin(events.type[asked.position], made.positive).all()
    np.testing.assert_array_equal(asked.item[::10], events.item[asked.position[::10]])
    assert set(np.unique(events.type)) == {0, 1, 2, 3, 4}
    popular = np.sort(np.bincount(events.item))[::-1]
    assert popular[:50].sum() > 0.5 * popular.sum()
    by_user = np.lexsort((events.time_ms, events.user))
    gaps = np.diff(events.time_ms[by_user])[np.diff(events.user[by_user]) == 0]
    assert np.median(gaps) < 60_000 < np.quantile(gaps, 0.95)  # bursts, and long absences between them


def test_globo_reads_clicks_in_order_of_time(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    count = 500
    time = NOON + rng.integers(0, 2 * DAY_MS, count)
    clicks = {
        "click_timestamp": pa.array(time),
        "user_id": pa.array(rng.integers(100, 140, count), pa.int32()),
        "click_article_id": pa.array(rng.integers(9_000, 9_050, count), pa.int32()),
        "session_size": pa.array(rng.integers(2, 9, count), pa.int16()),
    }
    pq.write_table(pa.table(clicks), tmp_path / "clicks.parquet")
    made = globo(tmp_path / "clicks.parquet", 400, 100, 4, 1)
    np.testing.assert_array_equal(made.events.time_ms, np.sort(time, kind="stable")[:400])
    assert made.events.user.max() + 1 == len(np.unique(made.events.user))
    assert made.events.item.max() + 1 == len(np.unique(made.events.item))
    assert len(made.questions.position) == 100
    assert made.positive == (0,)


def test_globo_without_the_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="no clicks at"):
        globo(tmp_path / "clicks.parquet", 1, 1, 1, 1)


@pytest.mark.parametrize("wrong", ["none", "times", "positions", "moment", "long"])
def test_a_workload_that_cannot_be_answered_exactly_is_refused(wrong: str) -> None:
    time = np.arange(4, dtype=np.int64) * HOUR_MS
    position = np.array([1, 3])
    if wrong == "times":
        time[2] = 0
    elif wrong == "positions":
        position = np.array([3, 1])
    elif wrong == "long":
        time[3] = 40 * DAY_MS
    elif wrong == "none":
        time, position = time[:0], position[:0]
    zeros = np.zeros(len(time), np.int64)
    events = Events(time, zeros, zeros, zeros.astype(np.uint8), zeros.astype(np.float32))
    now = time[position] + (wrong == "moment")
    asked = Asked(zeros[: len(position)], zeros[: len(position)], now, position)
    with pytest.raises(WorkloadError, match="workload bad"):
        Workload("bad", events, asked, (0,))
