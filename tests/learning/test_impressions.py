"""Impressions in groups of a person and a day, with what was known when the day began; and what follows the days."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from headwater.features.plan import compile_plan
from headwater.learning.follow import HOUR_MS, fit_shift, follow
from headwater.learning.impressions import DAY_MS, histories, impressions, of_user_alone
from headwater.learning.sequences import by_user
from headwater.learning.vectors import item_vectors
from headwater.ranking.calibration import sigmoid
from headwater.schema.config import Config

SPLIT = 10 * DAY_MS


def rows(seed: int = 1, n: int = 200) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    now_ms = np.sort(rng.integers(SPLIT - 2 * DAY_MS, SPLIT + DAY_MS, n))
    label = rng.integers(0, 2, n)
    return pl.DataFrame(
        {
            "record": np.arange(n) + 5, "offset": np.arange(n) + 4, "now_ms": now_ms, "user": rng.integers(1, 12, n),
            "item": rng.integers(1, 9, n), "position": pl.Series([None if k % 3 else k for k in range(n)], dtype=pl.Int32),
            "mine": rng.random(n).astype(np.float32), "its": rng.random(n).astype(np.float32),
            "label_click": label.astype(np.uint8), "label_click_delay_ms": pl.Series([5 if y else None for y in label]),
        }
    )  # fmt: skip


def test_groups_are_people_and_days_in_time_and_hold_what_was_known_first() -> None:
    frame = rows()
    found = impressions(frame, ("its", "mine"), ("click",), day_start_ms=SPLIT, hold=("mine",))
    assert sorted(found.offset.tolist()) == frame["offset"].to_list()
    wanted: dict[tuple[int, int], list[dict[str, object]]] = {}
    for row in frame.iter_rows(named=True):  # in the order of time: so are the groups by their first row
        wanted.setdefault((row["user"], (row["now_ms"] - SPLIT) // DAY_MS), []).append(row)
    assert found.groups.tolist() == [len(group) for group in wanted.values()]
    flat = [(row, group[0]) for group in wanted.values() for row in group]
    assert found.offset.tolist() == [row["offset"] for row, _ in flat]
    assert found.features[:, 0].tolist() == [row["its"] for row, _ in flat]
    assert found.features[:, 1].tolist() == [first["mine"] for _, first in flat]
    assert found.labels[:, 0].tolist() == [row["label_click"] for row, _ in flat]
    assert found.delay_ms[:, 0].tolist() == [5 if row["label_click"] else -1 for row, _ in flat]
    assert found.position.tolist() == [-1 if row["position"] is None else row["position"] for row, _ in flat]
    assert found.ranking().position is not None


def test_columns_of_the_user_alone_are_told_from_the_rest() -> None:
    names = set(of_user_alone(compile_plan(Config())))
    assert {"user_click_1d", "user_since", "user_count", "user_length"} <= names
    assert not names & {
        "item_age",
        "affinity",
        "co_last",
        "hour",
        "segment_country_share",
        "item_click_rate",
        "same_category",
    }


def test_histories_end_where_the_group_begins() -> None:
    found = impressions(rows(), ("its",), ("click",), day_start_ms=SPLIT)
    rng = np.random.default_rng(2)
    n = 300
    sequences = by_user(
        rng.integers(1, 9, n), rng.integers(1, 9, n), rng.integers(1, 5, n).astype(np.uint8),
        np.sort(rng.integers(SPLIT - 2 * DAY_MS, SPLIT + DAY_MS, n)), np.arange(n), np.ones(n, np.bool_),
    )  # fmt: skip
    vectors = np.ones((8, 3), np.float32)  # the last item has none
    told = histories(found, sequences, vectors, length=6)
    for g, first in enumerate(found.first.tolist()):
        mine = [
            k for k in range(n)
            if sequences.users[sequences.owner[k]] == found.user[first] and sequences.offset[k] <= found.offset[first]
        ][-6:]  # fmt: skip
        items = [int(sequences.items[k]) if sequences.items[k] < 8 else 0 for k in mine]
        assert told.recent[g].tolist() == [0] * (6 - len(mine)) + items
        assert told.types[g].tolist() == [0] * (6 - len(mine)) + sequences.types[mine].tolist()
        assert (told.age_s[g] >= 0.0).all()
    assert told.item.max() <= 7


def test_items_that_the_same_people_saw_are_near() -> None:
    rng = np.random.default_rng(3)
    user = np.repeat(np.arange(1, 201), 6)
    item = np.where(user % 2 == 0, rng.integers(1, 11, len(user)), rng.integers(11, 21, len(user)))
    n = len(user)
    sequences = by_user(user, item, np.ones(n, np.uint8), np.arange(n), np.arange(n), np.ones(n, np.bool_))
    vectors = item_vectors(sequences, 25, 4, seed=1)
    assert vectors.shape == (26, 4)
    assert not vectors[0].any()
    assert not vectors[21:].any()
    near = vectors @ vectors.T
    assert near[1:11, 1:11].mean() > near[1:11, 11:21].mean() + 0.3
    assert np.array_equal(vectors, item_vectors(sequences, 25, 4, seed=1))


def test_the_calibration_follows_a_drift_and_knows_no_later_label() -> None:
    rng = np.random.default_rng(4)
    n = 20_000
    now_ms = np.sort(rng.integers(0, 2 * DAY_MS, n))
    logits = rng.standard_normal(n)
    drift = np.where(now_ms < DAY_MS, 0.0, 0.8)
    labels = (rng.random(n) < sigmoid(logits + drift)).astype(np.float64)
    shift = follow(logits, labels, now_ms, 600_000, window_ms=6 * HOUR_MS)
    assert np.abs(shift[(now_ms > DAY_MS // 2) & (now_ms < DAY_MS)]).mean() < 0.15
    assert shift[now_ms > 1.5 * DAY_MS].mean() == pytest.approx(0.8, abs=0.12)
    later = labels.copy()
    later[now_ms >= DAY_MS - 600_000] = 1.0
    assert np.array_equal(
        follow(logits, later, now_ms, 600_000)[now_ms < DAY_MS],
        follow(logits, labels, now_ms, 600_000)[now_ms < DAY_MS],
    )


def test_a_shift_makes_the_sum_right() -> None:
    rng = np.random.default_rng(5)
    logits = rng.standard_normal(5_000) * 2.0
    labels = (rng.random(5_000) < sigmoid(logits - 1.0)).astype(np.float64)
    shift = fit_shift(logits, labels)
    assert sigmoid(logits + shift).sum() == pytest.approx(labels.sum(), rel=0.05)
    assert shift == pytest.approx(-1.0, abs=0.12)
