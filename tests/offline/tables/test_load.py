"""Tables into the log: each row once, when it is due, in the order of time; what is wrong is counted or named."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from deltalake import write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from typer.testing import CliRunner

from headwater.cli.main import build_app
from headwater.offline.tables import load
from headwater.offline.tables.load import TableLoader, TableReport, load_tables
from headwater.offline.tables.parts import TableError
from headwater.offline.tables.read import read_table
from headwater.offline.tables.standing import Standing, read_standing
from headwater.schema.config import Config
from tests.offline.tables.worlds import DAY_MS, HOUR_MS, START_MS, configured, loaded, plain, table, with_items


def once(config: Config, data: Path, now_ms: int, **more: Any) -> TableReport:
    (report,) = load_tables(TableLoader(config, data), now_ms, **more)
    assert report.rows == report.written + report.already + report.held + sum(report.refused.values())
    return report


def brief(data: Path) -> list[tuple[int, int, float | None]]:
    return [(item, at, values["score"]) for _, item, at, _, _, values in loaded(data)]


def test_rows_are_loaded_once_and_when_they_are_due(tmp_path: Path) -> None:
    config = configured(tmp_path)
    data = tmp_path / "data"
    with_items(data, ["a", "b"])
    table(tmp_path, [("b", START_MS + 5, 0.5), ("a", START_MS + 1, 0.25), ("a", START_MS + 9, None)])
    first = once(config, data, START_MS + 5)
    assert (first.written, first.held, first.next_due_ms) == (2, 1, START_MS + 9)
    assert (first.newest_valid_from_ms, first.staleness_ms, first.stale) == (START_MS + 5, 0, False)
    assert first.max_age_ms == 7 * DAY_MS
    assert first.columns == ["score", "reviews"]
    assert loaded(data) == [
        (0, 1, START_MS + 1, START_MS + 5, "quality", {"score": 0.25, "reviews": 2.0}),
        (0, 2, START_MS + 5, START_MS + 5, "quality", {"score": 0.5, "reviews": 5.0}),
    ]
    again = once(config, data, START_MS + 8)
    assert (again.written, again.already, again.held) == (0, 2, 1)
    last = once(config, data, START_MS + 9)
    assert (last.written, last.already, last.held, last.next_due_ms) == (1, 2, 0, None)
    assert loaded(data)[-1] == (0, 1, START_MS + 9, START_MS + 9, "quality", {"score": None, "reviews": None})
    late = once(config, data, START_MS + 100)
    assert (late.written, late.already, late.staleness_ms) == (0, 3, 91)


def test_publication_takes_its_time(tmp_path: Path) -> None:
    config = plain(tmp_path, available_after="2h")
    data = tmp_path / "data"
    with_items(data, ["a"])
    table(tmp_path, [("a", START_MS, 1.0)])
    early = once(config, data, START_MS + 2 * HOUR_MS - 1)
    assert (early.written, early.held, early.next_due_ms) == (0, 1, START_MS + 2 * HOUR_MS)
    assert early.newest_valid_from_ms is None
    assert once(config, data, START_MS + 2 * HOUR_MS).written == 1
    assert brief(data) == [(1, START_MS, 1.0)]


def test_two_files_are_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of time over all files, in batches; equal times in the order of the files."""
    monkeypatch.setattr(load, "BATCH", 2)
    config, data = plain(tmp_path), tmp_path / "data"
    with_items(data, ["a"])
    table(tmp_path, [("a", START_MS + t, t) for t in (7, 1, 2, 3, 5)], "quality-2.parquet")
    table(tmp_path, [("a", START_MS + t, 10 + t) for t in (3, 4, 7)], "quality-1.parquet")
    report = once(config, data, START_MS + 9)
    assert (report.files, report.written) == (2, 8)
    assert [score for *_, score in brief(data)] == [1, 2, 13, 3, 14, 5, 17, 7]
    table(tmp_path, [("a", START_MS + 6, 6.5)], "quality-3.parquet")
    assert once(config, data, START_MS + 9).already == 8
    assert brief(data)[-1] == (1, START_MS + 6, 6.5)


def test_a_file_under_another_name_is_the_same_file(tmp_path: Path) -> None:
    config, data = plain(tmp_path), tmp_path / "data"
    with_items(data, ["a"])
    path = table(tmp_path, [("a", START_MS, 1.0)])
    assert once(config, data, START_MS).written == 1
    path.rename(tmp_path / "quality-old.parquet")
    assert once(config, data, START_MS).already == 1


def test_a_file_that_stands_there_twice_is_one(tmp_path: Path) -> None:
    config, data = plain(tmp_path), tmp_path / "data"
    with_items(data, ["a"])
    path = table(tmp_path, [("a", START_MS, 1.0)])
    (tmp_path / "quality-copy.parquet").write_bytes(path.read_bytes())
    report = once(config, data, START_MS)
    assert (report.rows, report.written, report.already) == (2, 1, 1)
    assert brief(data) == [(1, START_MS, 1.0)]


def test_a_further_column_is_loaded_for_all_rows_again(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with_items(data, ["a"])
    table(tmp_path, [("a", START_MS, 1.0)])
    config = plain(tmp_path)
    once(config, data, START_MS)
    more = msgspec.structs.replace(config.tables[0], columns=("score", "reviews"))
    assert once(msgspec.structs.replace(config, tables=(more,)), data, START_MS + 1).written == 1
    assert [values for *_, values in loaded(data)] == [{"score": 1.0}, {"score": 1.0, "reviews": 10.0}]


def test_what_is_wrong_with_single_rows_is_counted_once(tmp_path: Path) -> None:
    config, data = plain(tmp_path), tmp_path / "data"
    with_items(data, ["a"])
    frame = pl.DataFrame(
        {
            "id": ["a", None, "", "x" * 129, "a", "a", "stranger", "a", "a"],
            "at": [START_MS, START_MS, START_MS, START_MS, None, 0, START_MS, START_MS, START_MS + 1],
            "score": [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, float("inf"), float("nan")],
        }
    )
    frame.write_parquet(tmp_path / "quality.parquet")
    report = once(config, data, START_MS + 1)
    assert report.refused == {
        "id: missing": 2,
        "id: Expected `str` of length <= 128": 1,
        "at: missing": 1,
        "at: Expected a time after 1970": 1,
        "score: Expected `float` from -1e12 to 1e12": 1,
        "unknown item": 1,
    }
    assert brief(data) == [(1, START_MS, 1.0), (1, START_MS + 1, None)]
    again = once(config, data, START_MS + 1)
    assert (again.already, again.refused) == (9, {})


def test_users_are_assigned_numbers(tmp_path: Path) -> None:
    config, data = plain(tmp_path, entity="user"), tmp_path / "data"
    table(tmp_path, [("ada", START_MS, 1.0), ("ben", START_MS + 1, 2.0)])
    assert once(config, data, START_MS + 1).written == 2  # the first that is ever written to this log
    assert [user for user, *_ in loaded(data)] == [1, 2]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([True, None], [1.0, None]),
        ([3, 4], [3.0, 4.0]),
        (pl.Series([1.5, 2.5], dtype=pl.Decimal(8, 2)), [1.5, 2.5]),
        (pl.Series([0.1, 0.2], dtype=pl.Float32), [0.10000000149011612, 0.20000000298023224]),
    ],
)
@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_numbers_and_times_of_every_kind(tmp_path: Path, values: Any, expected: list[Any], unit: Any) -> None:
    config, data = plain(tmp_path), tmp_path / "data"
    with_items(data, ["7", "8"])
    moment = datetime.fromtimestamp(START_MS / 1000, UTC)
    at = pl.Series([moment, moment], dtype=pl.Datetime(unit, "UTC"))
    pl.DataFrame({"id": [7, 8], "at": at, "score": values}).write_parquet(tmp_path / "quality.parquet")
    once(config, data, START_MS)
    assert brief(data) == [(1, START_MS, expected[0]), (2, START_MS, expected[1])]


WRONG: dict[str, dict[str, Any]] = {
    'has no column "score", did you mean "scores"?': {"scores": [1.0]},
    "has no column \"score\"; it has id, at, x": {"x": [1.0]},
    'the column "score" holds large_string; expected numbers': {"score": ["high"]},
    'the column "at" holds large_string; expected datetime': {"score": [1.0], "at": ["2026-01-01"]},
    "multiply seconds by 1000": {"score": [1.0], "at": [1_760_000_000]},
    "The column of `id` holds bool": {"score": [1.0], "id": [True]},
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_a_file_that_is_no_such_table_is_named(tmp_path: Path, message: str) -> None:
    columns = {"id": ["a"], "at": [START_MS], **WRONG[message]}
    pl.DataFrame(columns).write_parquet(tmp_path / "quality.parquet")
    with pytest.raises(TableError, match=f'table "quality": .*{re.escape(message)}'):
        once(plain(tmp_path), tmp_path / "data", START_MS)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    config, data = plain(tmp_path), tmp_path / "data"
    with pytest.raises(TableError, match="There is no file"):
        once(config, data, START_MS)
    (tmp_path / "quality.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(TableError, match="Not a Parquet file"):
        once(config, data, START_MS)
    with pytest.raises(TableError, match='no table "qualty": \\[\\[tables\\]\\] has quality'):
        once(config, data, START_MS, names=["qualty"])
    folder = msgspec.structs.replace(config.tables[0], path=str(tmp_path))
    with pytest.raises(TableError, match="a folder without a Delta log"):
        once(msgspec.structs.replace(config, tables=(folder,)), data, START_MS)
    unread = msgspec.structs.replace(config.tables[0], columns=())
    with pytest.raises(TableError, match="no feature reads it"):
        once(msgspec.structs.replace(config, tables=(unread,)), data, START_MS)
    assert not (data / "log").exists()


def test_a_delta_table_brings_its_new_files(tmp_path: Path) -> None:
    data, folder = tmp_path / "data", tmp_path / "delta"
    with_items(data, ["a", "b"])
    config = plain(tmp_path)
    source = msgspec.structs.replace(config.tables[0], path=str(folder))
    config = msgspec.structs.replace(config, tables=(source,))
    write_deltalake(folder, pl.DataFrame({"id": ["a"], "at": [START_MS], "score": [1.0]}).to_arrow())
    first = once(config, data, START_MS + 1)
    assert (first.version, first.written) == (0, 1)
    write_deltalake(folder, pl.DataFrame({"id": ["b"], "at": [START_MS + 1], "score": [2.0]}).to_arrow(), mode="append")
    second = once(config, data, START_MS + 1)
    assert (second.version, second.files, second.written, second.already) == (1, 2, 1, 1)
    assert brief(data) == [(1, START_MS, 1.0), (2, START_MS + 1, 2.0)]
    frame, refused = read_table(source, ["score"])
    assert frame.rows() == [("a", START_MS, 1.0), ("b", START_MS + 1, 2.0)]
    assert not refused


def test_a_partition_column_is_not_in_the_files(tmp_path: Path) -> None:
    folder = tmp_path / "delta"
    rows = pl.DataFrame({"id": ["a"], "at": [START_MS], "score": [1.0]}).to_arrow()
    write_deltalake(folder, rows, partition_by=["at"])
    source = msgspec.structs.replace(plain(tmp_path).tables[0], path=str(folder))
    config = msgspec.structs.replace(plain(tmp_path), tables=(source,))
    with pytest.raises(TableError, match='"at" partitions'):
        once(config, tmp_path / "data", START_MS)


def test_a_stale_table_is_said_to_be(tmp_path: Path) -> None:
    config, data = configured(tmp_path), tmp_path / "data"
    with_items(data, ["a"])
    table(tmp_path, [("a", START_MS, 1.0)])
    once(config, data, START_MS)
    with capture_logs() as logs:
        assert not once(config, data, START_MS + 7 * DAY_MS).stale
        assert not logs
        assert once(config, data, START_MS + 7 * DAY_MS + 1).stale
    assert [line["event"] for line in logs] == ["table_is_stale"]
    standing = read_standing(data)["quality"]
    assert standing == Standing(START_MS, START_MS + 7 * DAY_MS + 1, 7 * DAY_MS, 0)
    (data / "run" / "tables.json").write_text("{")
    assert once(config, data, START_MS + 5).newest_valid_from_ms == START_MS  # from the files


def test_doctor_says_how_old_a_table_is(tmp_path: Path) -> None:
    configured(tmp_path, more='clock = "log"')
    data = tmp_path / "data"
    arguments = ["doctor", "--config", str(tmp_path / "headwater.toml"), "--json"]

    def said() -> tuple[str, str]:
        report = json.loads(CliRunner().invoke(build_app(), arguments).stdout.splitlines()[-1])
        (check,) = [one for one in report["checks"] if one["name"] == "table quality"]
        return check["level"], check["detail"]

    with_items(data, ["a"])
    assert said() == ("warn", "nothing is loaded")
    table(tmp_path, [("a", START_MS - HOUR_MS, 1.0)])
    once(configured(tmp_path, more='clock = "log"'), data, START_MS)
    assert said() == ("ok", "newest row valid from 1.0 h ago")
    with_items(data, ["b"], START_MS + 7 * DAY_MS)
    assert said() == ("warn", "newest row valid from 169.0 h ago")


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 40), st.integers(0, 9)), max_size=30, unique=True),
    cuts=st.lists(st.integers(0, 2), max_size=30),
    looks=st.lists(st.integers(0, 45), max_size=6),
)
def test_however_often_it_looks_the_log_has_every_row_once(
    rows: list[tuple[str, int, int]], cuts: list[int], looks: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("looks")
    config, data = plain(folder), folder / "data"
    with_items(data, ["a", "b", "c"])
    for number in range(3):
        mine = [row for k, row in enumerate(rows) if (cuts[k] if k < len(cuts) else 0) == number]
        table(folder, [(key, START_MS + at, float(score)) for key, at, score in mine], f"quality-{number}.parquet")
    loader = TableLoader(config, data)
    for look in [*sorted(looks), 45]:
        load_tables(loader, START_MS + look)
        due = sorted(START_MS + at for _, at, _ in rows if at <= look)
        assert sorted(at for _, at, _ in brief(data)) == due
    names = {"a": 1, "b": 2, "c": 3}
    expected = sorted((names[key], START_MS + at, float(score)) for key, at, score in rows)
    assert sorted(brief(data)) == expected
