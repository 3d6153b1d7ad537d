"""Tables and time: rows from before the first load are joined, rows from after it are the state's; served rows verify."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from structlog.testing import capture_logs

from headwater.evaluation.verify import verify
from headwater.features.assemble import Context, assemble, new_scratch
from headwater.features.fold import Fold
from headwater.features.module import configured_columns
from headwater.features.plan import compile_plan
from headwater.features.replay import fold_to
from headwater.features.state import LmdbState
from headwater.features.statistics import STATISTICS_FILE, Statistics
from headwater.learning.exposures import Asked
from headwater.learning.rowstore import load_rows
from headwater.learning.tables import join_tables, table_features
from headwater.learning.trainingset import build_training_set
from headwater.log.commands import PutTable
from headwater.log.record import Kind
from headwater.offline.materialize import MaterializeReport, materialize
from headwater.offline.tables.history import TableOrigins
from headwater.offline.tables.read import read_table
from headwater.offline.train import train
from headwater.registry.audit import Author
from headwater.registry.registry import Registry
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.schema.models import Gate
from headwater.schema.requests import Address
from headwater.testing.events import START_MS, Step, Written
from tests.evaluation.served import entry
from tests.offline.exposed import CONFIG, ITEMS, site
from tests.offline.tables.worlds import HOUR_MS, configured, table

MODULE = """
from headwater.features.declare import product, table

features = [
    table("item_score", "item", "quality", "score", max_age="90m", default=-1.0),
    table("item_reviews", "item", "quality", "reviews"),
    table("user_risk", "user", "risk", "score", max_age="3h", default=0.5),
]
"""
TABLES = """
[[tables]]
name = "quality"
path = "quality*.parquet"
entity = "item"
key = "id"
valid_from = "at"
available_after = "20m"

[[tables]]
name = "risk"
path = "risk.parquet"
entity = "user"
key = "id"
valid_from = "at"
"""


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with capture_logs():
        yield


def hours(log: Written) -> int:
    return (log.now_ms - START_MS) // HOUR_MS + 1


def tables_of(folder: Path, log: Written, seed: int = 1) -> None:
    """Hourly scores of most items, and of some users and strangers, over all the time of the log."""
    rng = np.random.default_rng(seed)
    rows = [
        (f"i{i}", START_MS + hour * HOUR_MS + int(rng.integers(0, 60_000)), float(rng.normal()))
        for hour in range(-2, hours(log))
        for i in range(ITEMS + 2)
        if rng.random() < 0.7
    ]
    table(folder, [(key, at, None if rng.random() < 0.1 else score) for key, at, score in rows])
    people = [(f"u{n}", START_MS + hour * HOUR_MS, float(rng.random())) for hour in range(hours(log)) for n in range(9)]
    table(folder, people, "risk.parquet")


def settled(folder: Path, module: str = MODULE) -> Config:
    config = configured(folder, module, TABLES)
    return msgspec.structs.replace(config, training=CONFIG.training)


def load_all(config: Config, log: Written, name: str, *, until_ms: int) -> None:
    """What the loader would do at ``until_ms``: every due row of a table, in order."""
    (source,) = [one for one in config.tables if one.name == name]
    columns = ["score", "reviews"] if name == "quality" else ["score"]
    rows, _ = read_table(source, columns)
    delay = 20 * 60_000 if name == "quality" else 0
    for key, valid_ms, *values in rows.filter(pl.col("valid_ms") + delay <= until_ms).iter_rows():
        log.add([Step(until_ms, PutTable(name, source.entity, columns, [key], [valid_ms], [values]))])


def run(config: Config, log: Written, out: Path, **more: Any) -> MaterializeReport:
    return materialize(config, log.log, out, asked=Asked(), lookup=log.identity.lookup, **more)


def expected(config: Config, log: Written, rows: pl.DataFrame) -> pl.DataFrame:
    """The as-of join of all rows, from the public pieces."""
    from headwater.learning.tables import TableRows

    names = {log.user(f"u{n}"): f"u{n}" for n in range(9) if log.user(f"u{n}")}
    frame = rows.select("now_ms", item=pl.col("item_id"), user=pl.col("user").replace_strict(names, default=None))
    tables = []
    for source, delay, columns in zip(config.tables, (20 * 60_000, 0), (["score", "reviews"], ["score"]), strict=True):
        tables.append(TableRows(source.name, source.entity, delay, read_table(source, columns)[0]))
    return join_tables(frame, tables, table_features(configured_columns(config)))


NAMES = ("item_score", "item_reviews", "user_risk")


@pytest.mark.parametrize(("threads", "file_rows"), [(1, 1000), (2, 37)])
def test_rows_from_before_a_table_was_loaded_are_joined(tmp_path: Path, threads: int, file_rows: int) -> None:
    log = site(3, 120)
    tables_of(tmp_path, log)
    config = settled(tmp_path)
    report = run(config, log, tmp_path / "rows", threads=threads, slices=3 * threads, file_rows=file_rows)
    assert report.rows > 100
    assert report.tables == {name: TableOrigins(0, report.rows) for name in ("quality", "risk")}
    rows = load_rows(tmp_path / "rows").collect()
    joined = expected(config, log, rows)
    for name in NAMES:
        assert rows[name].to_numpy().tobytes() == joined[name].to_numpy().tobytes()
        assert rows[name].n_unique() > 10


def test_rows_from_after_the_first_load_are_the_state(tmp_path: Path) -> None:
    """Loaded in the middle, once: rows in front are joined, rows behind keep what was loaded, as served."""
    log = site(3, 60)
    middle_ms, middle = log.now_ms, log.log.last_offset
    config = settled(tmp_path)
    tables_of(tmp_path, log)
    load_all(config, log, "quality", until_ms=middle_ms)
    later = site(4, 240)
    for block in later.blocks():  # a second half: the same site, going on where the first one stood
        for i, record in enumerate(block.records):
            if record["kind"] == Kind.EVENT:
                log.add([Step(middle_ms + int(record["received_ms"]) - START_MS, [_event(later, block, i)])])
    report = run(config, log, tmp_path / "rows", file_rows=50)
    rows = load_rows(tmp_path / "rows").collect()
    before = rows.filter(pl.col("offset") <= middle)
    after = rows.filter(pl.col("offset") > middle)
    assert report.tables["quality"] == TableOrigins(len(after), len(before))
    assert report.tables["risk"] == TableOrigins(0, len(rows))
    assert len(before) > 50
    assert len(after) > 20
    joined = expected(config, log, rows)
    for name in NAMES[:2]:
        assert before[name].equals(joined[name][: len(before)])
    assert rows["user_risk"].equals(joined["user_risk"])
    plan = compile_plan(config)
    for row in after.head(20).iter_rows(named=True):
        fold = Fold(plan)
        fold_to(log.log, fold, row["offset"])
        out = np.zeros((1, len(plan.columns)), np.float32)
        scratch = new_scratch(len(fold.items.dirty), 1, plan)
        user = fold.users.user(row["user"])
        assemble(plan, user, fold.items.rows, np.array([row["item"]]), Context((0, 0)), row["now_ms"], scratch, out)
        for name in NAMES[:2]:
            assert np.float32(row[name]) == out[0, plan.columns.index(name)]
    late = after.filter(pl.col("now_ms") > middle_ms + 3 * HOUR_MS)
    assert set(late["item_score"]) <= {-1.0}  # nothing was loaded since: it is too old
    assert late["item_reviews"].n_unique() > 3


def _event(log: Written, block: Any, i: int) -> Any:
    from headwater.log.record import Namespace
    from headwater.schema.events import Event

    record, texts = block.records[i], log.log.vocabulary().texts
    names = {log.user(f"u{n}"): f"u{n}" for n in range(9)}
    return Event(
        user=names[int(record["user"])],
        item=texts(Namespace.ITEM)[int(record["item"])],
        type=texts(Namespace.EVENT_TYPE)[int(record["type"])],
    )


def test_a_formula_over_a_table_is_refused_for_rows_that_cannot_have_it(tmp_path: Path) -> None:
    log = site(3, 120)
    tables_of(tmp_path, log)
    config = settled(tmp_path, MODULE.replace("features = [", 'x = table("x", "item", "quality", "score")\nfeatures = [product("both", x, x),'))  # fmt: skip
    with pytest.raises(HeadwaterError, match='both computes with table "quality", which was never loaded'):
        run(config, log, tmp_path / "rows")


def test_users_of_a_table_need_their_numbers(tmp_path: Path) -> None:
    log = site(3, 120)
    tables_of(tmp_path, log)
    with pytest.raises(HeadwaterError, match="identity store"):
        materialize(settled(tmp_path), log.log, tmp_path / "rows", asked=Asked())


def test_training_joins_what_was_loaded_later(tmp_path: Path) -> None:
    log = site(7, 260)
    tables_of(tmp_path, log)
    config = msgspec.structs.replace(settled(tmp_path), gate=Gate(enabled=False))  # all of the log is trained on
    plan = compile_plan(config)
    rows = build_training_set(
        log.log, plan, config, until=log.log.last_offset, start_ms=0, groups=1_000, seed=config.ranker.seed
    )
    asked = rows.addresses
    at = [plan.columns.index(name) for name in NAMES]
    assert np.unique(rows.features[:, at], axis=0).tolist() == [[-1.0, 0.0, 0.5]]  # nothing is loaded
    names = {log.item(f"i{n}"): f"i{n}" for n in range(ITEMS)}
    frame = pl.DataFrame({"user": asked.user, "now_ms": asked.now_ms, "item_id": [names[int(i)] for i in asked.item]})
    joined = expected(config, log, frame)
    report = train(
        config, log.log, tmp_path / "models", promote=Author("cli", lambda: START_MS), created_ms=START_MS, checks=tmp_path / "checks",
        lookup=log.identity.lookup,
    )  # fmt: skip
    assert report.tables == {name: TableOrigins(0, len(rows.features)) for name in ("quality", "risk")}
    bundle = Registry(tmp_path / "models").load(report.bundle, plan_hash=plan.hash)
    kept = Statistics.decode(bundle.files[STATISTICS_FILE])
    alone = Statistics.of_plan(plan)  # of rows with the joined values
    rows.features[:, at] = joined.select(NAMES).to_numpy()
    alone.update(rows.features)
    assert kept.encode() == alone.encode()
    assert len(np.unique(rows.features[:, at[0]])) > 20


def test_served_rows_with_values_of_tables_verify(tmp_path: Path) -> None:
    """A fold with a store serves, tables are loaded in between, and a replay finds every byte as it was served."""
    config = settled(tmp_path)
    plan = compile_plan(config)
    log = site(3, 40)
    tables_of(tmp_path, log)
    state = LmdbState(tmp_path / "state", plan, writable=True)
    fold = Fold(plan, state, cache_users=2)
    rng = np.random.default_rng(5)
    seen: set[bytes] = set()
    began = log.now_ms
    try:
        for step in range(60):
            now_ms = began + step * 4 * 60_000
            log.now_ms = max(log.now_ms, now_ms)
            if step in (5, 30):
                load_all(config, log, "quality", until_ms=now_ms)
            if step in (9, 40):
                load_all(config, log, "risk", until_ms=now_ms)
            fold_to(log.log, fold, log.log.last_offset)
            fold.commit(epoch=True)
            user, items = int(rng.integers(1, 7)), rng.choice(np.arange(1, ITEMS + 1), 5, replace=False)
            row = fold.users.user(user)
            scratch = new_scratch(len(fold.items.dirty), 5, plan)
            out = np.zeros((5, len(plan.columns)), np.float32)
            assemble(plan, row, fold.items.rows, items, Context((0, 0)), now_ms, scratch, out)
            address = Address(fold.offset, fold.offset, now_ms, plan.hash, "none")
            served = entry(user, items.tolist(), address, [0, 0, 0, 0], out.tobytes(), request=f"own-{step}")
            log.writer.append_served([served])
            seen.update(out[k, plan.columns.index("item_score")].tobytes() for k in range(5))
    finally:
        state.close()
    report = verify(log.log, plan)
    assert (report.requests, report.mismatched_bytes) == (60, 0)
    assert len(seen) > 10
    assert {name: report.by_feature[name] for name in NAMES} == dict.fromkeys(NAMES, 0)
