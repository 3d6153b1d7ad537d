"""Bytes a user: the figures of small states add up, and a table stands for the clicks that it was taken from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from headwater.cli.bench import memory
from headwater.cli.bench.activity import (
    DAY_MS,
    DAYS,
    QUANTILES,
    ActivityError,
    activity,
    blocks,
    clicks_per_user,
    drawn_counts,
)
from headwater.cli.main import build_app
from headwater.features.fold import Fold
from headwater.features.plan import compile_plan
from headwater.features.state import LmdbState
from headwater.log.identity import LmdbIdentity
from headwater.log.record import Kind
from headwater.schema.config import Config

ITEMS = 400
PLAN = compile_plan(Config())


def counts_of(users: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return drawn_counts(users, np.random.default_rng(3))


def test_drawn_counts_follow_the_table() -> None:
    counts = counts_of(200_000)
    assert counts.min() == 1
    assert counts.max() <= 961
    assert counts.mean() == pytest.approx(8.24, rel=0.01)  # the mean of the clicks themselves
    for most, share in QUANTILES:
        assert (counts <= most).mean() == pytest.approx(share, abs=0.004)


def test_users_are_numbered_by_their_first_event_and_have_the_events_that_were_asked_for() -> None:
    counts = counts_of(2_000)
    made = activity(counts, 5, items=ITEMS)
    assert made.users == 2_000
    assert len(made) == counts.sum()
    assert sorted(np.bincount(made.user)[1:].tolist()) == sorted(counts.tolist())
    _, first = np.unique(made.user, return_index=True)
    assert (np.diff(first) > 0).all()
    assert (np.diff(made.time_ms) >= 0).all()
    assert made.time_ms[-1] - made.time_ms[0] < (DAYS + 2) * DAY_MS
    assert 1 <= made.item.min() <= made.item.max() <= ITEMS


def test_the_log_is_one_that_folds() -> None:
    made = activity(counts_of(300), 5, items=ITEMS)
    fold, kinds = Fold(PLAN), []
    for block in blocks(made, memory.EVENT_TYPES, 5, 256):
        assert len(block) <= 256
        kinds += block.records["kind"].tolist()
        fold.apply(block)
    assert kinds.count(Kind.ITEM) == ITEMS
    assert fold.counts.events == len(made)
    assert not fold.counts.skipped
    assert fold.users.known() == list(range(1, 301))
    assert len(fold.catalogue) == ITEMS
    assert all(len(record.categories) == 1 for record in fold.catalogue.values())


def test_the_figures_add_up_and_replicated_rows_are_rows(tmp_path: Path) -> None:
    figures, events, items = memory.measure(tmp_path, counts_of(1_200), 3_000, 200, 7, small=500, items=ITEMS)
    assert items == ITEMS
    assert events == pytest.approx(1_200 * figures["events_per_user"], rel=0.01)
    assert (figures["folded"], figures["replicated"]) == (1_200, 1_800)
    state, identity = figures["tables"]["state"], figures["tables"]["identity"]
    assert state["users"]["entries"] == 1_200
    assert state["items"]["entries"] == ITEMS + 1
    assert figures["tables"]["state_after_replication"]["users"]["entries"] == 3_000
    assert {identity[name]["entries"] for name in ("users", "keys", "surrogates")} == {3_000}
    per_user = state["users"]["bytes"] / 1_200 + sum(table["bytes"] for table in identity.values()) / 3_000
    assert figures["bytes_per_user"] == pytest.approx(per_user, abs=0.1)
    assert figures["gib_per_million_users"] == pytest.approx(per_user * 1e6 / 2**30, abs=1e-3)
    assert figures["packed_row_bytes"]["mean"] < figures["state_bytes_per_user"]
    assert set(figures["read_us"]) == {"500", "3000"}
    assert all(0 < read["memory_p50"] <= read["memory_p99"] for read in figures["read_us"].values())
    assert set(figures["variants"]) == {"news", "every_event_type"}

    store = LmdbState(tmp_path / "state", PLAN, writable=False)
    try:
        assert all(store.user(user) == store.user(user + 1_200) for user in range(1, 1_201))
        fold = Fold(PLAN)
        made = activity(counts_of(1_200), 7, items=ITEMS)
        for block in blocks(made, {"click": 1.0}, 7, memory.BLOCK):
            fold.apply(block)
        fold.users.pack_away()
        assert store.meta().offset == fold.offset
    finally:
        store.close()
    known = LmdbIdentity(tmp_path / "identity", readonly=True)
    try:
        found = known.lookup("reader-000002999")
        assert found is not None
        assert found.user == 3_000
    finally:
        known.close()


def test_pages_counts_what_every_table_holds(tmp_path: Path) -> None:
    memory.assign(tmp_path / "ids", 5_000, 5_000)
    tables = memory.pages(tmp_path / "ids")
    assert {"users", "keys", "surrogates", "erasing", "meta"} <= set(tables)
    for table in tables.values():
        count = table["leaf_pages"] + table["branch_pages"] + table["overflow_pages"]
        assert table["bytes"] == count * 4_096
    assert tables["keys"]["bytes"] >= 5_000 * 52
    assert sum(table["bytes"] for table in tables.values()) <= (tmp_path / "ids" / "data.mdb").stat().st_size


def test_clicks_of_a_file_give_the_activity(tmp_path: Path) -> None:
    file = tmp_path / "clicks.parquet"
    pq.write_table(pa.table({"user_id": [7, 7, 7, 9, 9]}), file)
    assert sorted(clicks_per_user(file).tolist()) == [2, 3]
    with pytest.raises(ActivityError, match="leave --globo out"):
        clicks_per_user(tmp_path / "nothing.parquet")
    pq.write_table(pa.table({"user": [1]}), file)
    with pytest.raises(ActivityError, match="user_id"):
        clicks_per_user(file)


def test_the_command_prints_one_object(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("headwater.cli.bench.activity.ITEMS", ITEMS)
    done = CliRunner().invoke(
        build_app(), ["bench", "memory", "--users", "1000", "--reads", "100", "--in", str(tmp_path), "--json"]
    )
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)
    assert {"users", "bytes_per_user", "gib_per_million_users", "seed", "machine", "versions"} <= set(figures)
    assert figures["activity"] == "table"
    assert not list(tmp_path.iterdir())
