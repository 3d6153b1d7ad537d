"""Imports from end to end: files in, records of the log out, once each."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headwater.log.lmdb import LmdbLog
from headwater.log.record import Kind, Namespace
from headwater.log.socket import serve_writer
from headwater.log.writer import LogWriter, WriterRunningError, open_writer
from headwater.offline.importing import (
    FileOptions,
    ImportFailedError,
    ImportReport,
    Mapping,
    Target,
    import_events,
    import_items,
    import_movielens,
    sources,
)
from headwater.schema.config import Config, EventType

from .import_samples import START_MS, records_of, texts_of, write_csv, write_lines

HEADER = ("who", "what", "when", "country")
MAPPING = Mapping(
    columns={"who": "user", "what": "item", "when": "time", "country": "attributes.country"},
    constants={"type": "click"},
)


def rows(count: int) -> list[tuple[str, str, int, str]]:
    return [(f"u{i % 7}", f"a{i % 5}", START_MS + 1_000 * i, "de" if i % 2 else "fr") for i in range(count)]


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return Target(tmp_path / "data", Config())


def test_events_from_csv(tmp_path: Path, target: Target) -> None:
    report = import_events(write_csv(tmp_path / "e.csv", HEADER, rows(20)), MAPPING, target)
    assert (report.rows, report.accepted, report.rejected, report.late) == (20, 20, {}, 0)
    found = records_of(target.data, Kind.EVENT)
    assert found["time_ms"].tolist() == [START_MS + 1_000 * i for i in range(20)]
    assert found["received_ms"].tolist() == found["time_ms"].tolist()
    assert set(texts_of(target.data, Namespace.ITEM)) == {f"a{i}" for i in range(5)}
    assert set(texts_of(target.data, Namespace.SEGMENT)) == {"country=de", "country=fr"}
    assert (found["segments"][:, 0] > 0).all()


def test_the_same_rows_in_four_formats_give_the_same_records(tmp_path: Path) -> None:
    records = [dict(zip(HEADER, row, strict=True)) for row in rows(30)]
    plain = write_csv(tmp_path / "e.csv", HEADER, rows(30))
    packed = tmp_path / "e.csv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    parquet = tmp_path / "e.parquet"
    pq.write_table(pa.Table.from_pylist(records), parquet)
    lines = write_lines(tmp_path / "e.jsonl", records)
    seen = []
    for path in (plain, packed, parquet, lines):
        target = Target(tmp_path / f"data-{path.name}", Config())
        assert import_events(path, MAPPING, target).accepted == 30
        found = records_of(target.data, Kind.EVENT)
        seen.append(found[["offset", "received_ms", "time_ms", "user", "item", "type", "segments", "payload_size"]])
    for other in seen[1:]:
        assert np.array_equal(seen[0], other)


def test_a_second_import_adds_nothing(tmp_path: Path, target: Target) -> None:
    path = write_csv(tmp_path / "e.csv", HEADER, rows(20))
    first = import_events(path, MAPPING, target)
    second = import_events(path, MAPPING, target)
    assert (second.accepted, second.already_imported, second.rows) == (0, 20, 20)
    assert second.offset == first.offset
    # under another name it is the same file; with another mapping it is not the same import
    assert import_events(path.rename(tmp_path / "f.csv"), MAPPING, target).already_imported == 20
    other = Mapping(columns=MAPPING.columns, constants={"type": "view"})
    assert import_events(tmp_path / "f.csv", other, target).accepted == 20


def test_an_import_that_was_killed_goes_on(tmp_path: Path, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_csv(tmp_path / "e.csv", HEADER, rows(50))
    small = Target(target.data, Config(log=type(Config().log)(max_batch=10)))
    ranges = sources.table_ranges

    def of_ten(*args: object, **options: object) -> object:
        return ranges(*args, **{**options, "rows": 10})  # type: ignore[arg-type]

    monkeypatch.setattr("headwater.offline.importing.jobs.table_ranges", of_ten)
    commit, left = LogWriter.commit_group, iter([True, True, False])

    def dies(self: LogWriter, commands: Sequence[object]) -> object:
        if not next(left):
            raise OSError("no space left")
        return commit(self, commands)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(LogWriter, "commit_group", dies)
        with pytest.raises(OSError, match="no space"):
            import_events(path, MAPPING, small)
    assert len(records_of(target.data, Kind.EVENT)) == 20
    again = import_events(path, MAPPING, small)
    assert (again.accepted, again.already_imported) == (30, 20)
    assert records_of(target.data, Kind.EVENT)["time_ms"].tolist() == [START_MS + 1_000 * i for i in range(50)]


def test_refused_rows_are_counted_and_written(tmp_path: Path, target: Target) -> None:
    path = tmp_path / "e.csv"
    path.write_text(
        f"who,what,when,country\nu,a,{START_MS},de\n,a,{START_MS},de\nu,a,later,de\nu,a\nu,b,{START_MS},fr\n"
    )
    report = import_events(path, MAPPING, target)
    assert report.accepted == 2
    assert report.rejected == {"row: Wrong number of columns": 1, "time: Expected a time": 1, "user: missing": 1}
    assert report.rows == 5
    assert report.rejects_file is not None
    written = [json.loads(line) for line in Path(report.rejects_file).read_text().splitlines()]
    assert {"row": None, "reason": "row: Wrong number of columns", "record": "u,a"} in written
    assert {
        "row": 2,
        "reason": "user: missing",
        "record": {"who": "", "what": "a", "when": str(START_MS), "country": "de"},
    } in written
    assert Path(report.rejects_file).stat().st_mode & 0o077 == 0


def test_broken_json_lines_are_refused_one_by_one(tmp_path: Path, target: Target) -> None:
    good = {"user": "u", "item": "a", "type": "click", "time": START_MS}
    path = tmp_path / "e.jsonl"
    lines = [json.dumps(good), "{broken", "[1]", json.dumps({**good, "user": 1.5}), "", json.dumps({**good, "x": 1})]
    path.write_text("\n".join(lines))
    report = import_events(path, Mapping(), target)
    assert report.accepted == 2
    assert set(report.rejected) == {
        "line: Not valid JSON",
        "line: Expected `object`, got `array`",
        "user: Expected `str`, got `float`",
    }
    assert report.ignored_columns == ["x"]


def test_late_events_are_counted_and_sorting_mends_them(tmp_path: Path) -> None:
    shuffled = [rows(10)[i] for i in (3, 1, 0, 2, 9, 5, 4, 7, 8, 6)]
    for path in (
        write_csv(tmp_path / "e.csv", HEADER, shuffled),
        write_lines(tmp_path / "e.jsonl", [dict(zip(HEADER, row, strict=True)) for row in shuffled]),
    ):
        plain, ordered = (
            Target(tmp_path / f"plain{path.suffix}", Config()),
            Target(tmp_path / f"o{path.suffix}", Config()),
        )
        assert import_events(path, MAPPING, plain).late == 8
        found = records_of(plain.data, Kind.EVENT)
        assert found["received_ms"].tolist() == np.maximum.accumulate(found["time_ms"]).tolist()
        assert import_events(path, MAPPING, ordered, sort=True).late == 0
        assert records_of(ordered.data, Kind.EVENT)["time_ms"].tolist() == [START_MS + 1_000 * i for i in range(10)]


def test_event_types_are_mapped_and_checked(tmp_path: Path, target: Target) -> None:
    path = write_csv(tmp_path / "e.csv", ("user", "item", "type", "time"), [("u", "a", "read", START_MS)])
    assert import_events(path, Mapping(), target).rejected == {"type: Not an event type of the configuration": 1}
    assert import_events(path, Mapping(event_types={"read": "view"}), target).accepted == 1
    with pytest.raises(ImportFailedError, match="no event type `vew`; did you mean `view`"):
        import_events(path, Mapping(event_types={"read": "vew"}), target)


def test_a_repeated_event_id_is_a_duplicate(tmp_path: Path, target: Target) -> None:
    events = [("u", "a", "click", START_MS, "e1"), ("u", "a", "click", START_MS, "e1")]
    path = write_csv(tmp_path / "e.csv", ("user", "item", "type", "time", "event_id"), events)
    report = import_events(path, Mapping(), target)
    assert (report.rows, report.accepted, report.duplicates) == (2, 1, 1)


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("absent.csv", None, FileOptions(), "no such file"),
        ("x.bin", b"", FileOptions(), "Cannot tell the format"),
        ("x.bin", b"", FileOptions(format="xml"), "Expected csv, parquet or jsonl"),
        ("x.csv", b"", FileOptions(), "the file is empty"),
        ("x.csv", b"user,user\n", FileOptions(), "stands twice"),
        ("x.parquet", b"nothing", FileOptions(), "Not a Parquet file"),
        ("x.csv", b"user,item,type,time\n\xff\xfe,a,click,1506816000000\n", FileOptions(), "--encoding"),
    ],
)
def test_what_cannot_be_read_is_explained(
    tmp_path: Path, target: Target, name: str, content: bytes | None, options: FileOptions, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ImportFailedError, match=message):
        import_events(tmp_path / name, Mapping(), target, options=options)


def test_an_empty_table_imports_nothing(tmp_path: Path, target: Target) -> None:
    report = import_events(write_csv(tmp_path / "e.csv", HEADER, []), MAPPING, target)
    assert (report.rows, report.accepted) == (0, 0)


def test_an_import_waits_for_no_other_writer(tmp_path: Path, target: Target) -> None:
    path = write_csv(tmp_path / "e.csv", HEADER, rows(3))
    socket = target.data / "run" / "writer.sock"
    socket.parent.mkdir(parents=True)
    socket.touch()  # left over by a crash: nobody answers
    with open_writer(target.data), pytest.raises(WriterRunningError):
        import_events(path, MAPPING, target)
    assert import_events(path, MAPPING, target).accepted == 3


def test_an_import_goes_through_a_running_writer(tmp_path: Path, target: Target) -> None:
    path = write_csv(tmp_path / "e.csv", HEADER, rows(3))

    async def serve_while_importing() -> ImportReport:
        stop, ready = asyncio.Event(), asyncio.Event()
        with open_writer(target.data) as writer:
            serving = serve_writer(writer, target.data / "run" / "writer.sock", stop=stop, on_ready=ready.set)
            task = asyncio.create_task(serving)
            await ready.wait()
            try:
                return await asyncio.to_thread(import_events, path, MAPPING, target)
            finally:
                stop.set()
                await task

    report = asyncio.run(serve_while_importing())
    assert report.accepted == 3
    assert len(records_of(target.data, Kind.EVENT)) == 3
    assert import_events(path, MAPPING, target).already_imported == 3


def items_of(data: Path) -> list[str]:
    log = LmdbLog(data / "log", readonly=True)
    try:
        block = log.read(0)
        assert block is not None
        return [block.payload(int(row)).hex() for row in np.flatnonzero(block.records["kind"] == Kind.ITEM)]
    finally:
        log.close()


def test_items_from_csv_and_json_lines_are_the_same(tmp_path: Path) -> None:
    table = write_csv(
        tmp_path / "i.csv",
        ("article_id", "title", "categories", "price", "available", "published", "vector", "attributes.brand"),
        [("007", "Bond", "film|spy", "9.5", "false", "2017-10-01", "1|0.5", "mgm"), ("8", "", "", "", "", "", "", "")],
    )
    lines = write_lines(
        tmp_path / "i.jsonl",
        [
            {
                "article_id": "007",
                "title": "Bond",
                "categories": ["film", "spy"],
                "price": 9.5,
                "available": False,
                "published": START_MS,
                "vector": [1, 0.5],
                "attributes": {"brand": "mgm"},
            },
            {"article_id": 8},
        ],
    )
    mapping = Mapping(columns={"article_id": "id"})
    seen = []
    for path in (table, lines):
        target = Target(tmp_path / path.suffix, Config())
        assert import_items(path, mapping, target, at_ms=START_MS).accepted == 2
        assert import_items(path, mapping, target).already_imported == 2
        assert records_of(target.data, Kind.ITEM)["received_ms"].tolist() == [START_MS] * 2
        seen.append(items_of(target.data))
    assert seen[0] == seen[1]


def test_wrong_items_are_refused(tmp_path: Path, target: Target) -> None:
    header = ("id", "price", "available", "published", "expires", "colour")
    path = write_csv(
        tmp_path / "i.csv",
        header,
        [
            ("a", "1", "true", "", "", "red"),
            ("", "1", "", "", "", ""),
            ("b", "cheap", "", "", "", ""),
            ("c", "-1", "", "", "", ""),
            ("d", "", "maybe", "", "", ""),
            ("e", "", "", "2017-10-02", "2017-10-01", ""),
        ],
    )
    report = import_items(path, Mapping(), target)
    assert report.accepted == 1
    assert report.rejected == {
        "available: Expected true or false": 1,
        "expires: Expected `expires` at or after `published`": 1,
        "id: missing": 1,
        "price: Expected `float` >= 0.0": 1,
        "price: Expected a number": 1,
    }
    assert report.ignored_columns == ["colour"]


def movielens_folder(folder: Path, *, old: bool) -> Path:
    folder.mkdir()
    ratings = [(1, 10, "4.0", 978_300_760), (2, 10, "3.5", 978_300_000), (1, 20, "5", 978_301_000)]
    movies = [(10, "Léon, or (1994)", "Action|Drama"), (20, "Old (1930)", "(no genres listed)")]
    if not old:
        write_csv(folder / "ratings.csv", ("userId", "movieId", "rating", "timestamp"), ratings)
        write_csv(folder / "movies.csv", ("movieId", "title", "genres"), movies)
        return folder
    for name, table in (
        ("ratings.dat", ratings),
        ("movies.dat", movies),
        ("users.dat", [(1, "F", 25, 3, "06520"), (2, "M", 56, 1, "1"), (3, "M", 999, 1, "1")]),
    ):
        text = "".join("::".join(map(str, row)) + "\n" for row in table)
        (folder / name).write_bytes(text.encode("latin-1"))
    return folder


@pytest.mark.parametrize("old", [False, True])
def test_movielens_in_both_layouts(tmp_path: Path, target: Target, old: bool) -> None:
    folder = movielens_folder(tmp_path / "ml", old=old)
    report = import_movielens(folder, target)
    assert (report.accepted, report.rejected) == ((7, {"age: Not an age band of MovieLens": 1}) if old else (5, {}))
    events = records_of(target.data, Kind.EVENT)
    assert events["time_ms"].tolist() == [978_300_000_000, 978_300_760_000, 978_301_000_000]
    assert events["value"].tolist() == [3.5, 4.0, 5.0]
    kinds = texts_of(target.data, Namespace.EVENT_TYPE)
    assert [kinds[index - 1] for index in events["type"]] == ["view", "like", "like"]
    assert texts_of(target.data, Namespace.CATEGORY) == ["Action", "Drama"]
    assert records_of(target.data, Kind.ITEM)["received_ms"].tolist() == [978_300_000_000] * 2
    assert len(records_of(target.data, Kind.PROFILE)) == (2 if old else 0)
    again: ImportReport = import_movielens(folder, target)
    assert (again.accepted, again.offset) == (0, report.offset)


def test_movielens_needs_its_event_types_and_files(tmp_path: Path) -> None:
    with pytest.raises(ImportFailedError, match=r"Expected ratings\.csv and movies\.csv"):
        import_movielens(tmp_path, Target(tmp_path / "data", Config()))
    folder = movielens_folder(tmp_path / "ml", old=False)
    bare = Config(events=(EventType(name="buy", positive=True),))
    with pytest.raises(ImportFailedError, match="no event type `like`"):
        import_movielens(folder, Target(tmp_path / "data", bare))


def test_movielens_as_downloaded(tmp_path: Path, data_sets: Path) -> None:
    target = Target(tmp_path / "data", Config())
    report = import_movielens(data_sets / "movielens-small", target)
    assert (report.rows, report.accepted, report.rejected, report.late) == (110_578, 110_578, {}, 0)
