"""Looking for rows again and again: held ones are written when their time comes; one bad table stops no other."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from headwater.log.socket import serve_writer
from headwater.log.writer import open_writer
from headwater.offline.tables import follow
from headwater.offline.tables.follow import LoadingStoppedError, ServedPace, follow_tables
from headwater.offline.tables.load import TableReport
from headwater.schema.items import Item
from tests.offline.tables.worlds import START_MS, loaded, plain, table


def test_rows_go_to_the_running_writer_when_they_are_due(tmp_path: Path) -> None:
    data, now = tmp_path / "data", [START_MS]
    table(tmp_path, [("a", START_MS - 1, 1.0), ("a", START_MS + 50, 2.0), ("a", START_MS + 700, 3.0)])
    config = plain(tmp_path, refresh="1s")
    other = msgspec.structs.replace(config.tables[0], name="absent", path=str(tmp_path / "absent.parquet"))
    config = msgspec.structs.replace(config, tables=(other, *config.tables))
    looks: list[TableReport] = []

    async def go() -> None:
        stop, ready, closing = asyncio.Event(), asyncio.Event(), asyncio.Event()
        writer = open_writer(data, clock=lambda: now[0], map_size=1 << 27)
        writer.put_items([Item(id="a")])
        server = asyncio.create_task(
            serve_writer(writer, data / "run" / "writer.sock", stop=closing, on_ready=ready.set)
        )
        (data / "run").mkdir(exist_ok=True)
        await ready.wait()

        def told(report: TableReport) -> None:
            looks.append(report)
            if report.next_due_ms is None:
                stop.set()
            else:
                now[0] = report.next_due_ms

        await asyncio.wait_for(follow_tables(config, data, clock=lambda: now[0], stop=stop, served=True, told=told), 30)
        closing.set()
        await server
        writer.close()

    with capture_logs() as logs:
        asyncio.run(go())
    assert [(at, received) for _, _, at, received, *_ in loaded(data)] == [
        (START_MS - 1, START_MS),
        (START_MS + 50, START_MS + 50),
        (START_MS + 700, START_MS + 700),
    ]
    assert [(report.written, report.held) for report in looks] == [(1, 2), (1, 1), (1, 0)]
    bad = [line for line in logs if line["event"] == "table_not_loaded"]
    assert len(bad) == 1  # and not again before its refresh
    assert "There is no file" in bad[0]["reason"]


def test_a_writer_that_is_away_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is taken over from a server that is being started."""
    monkeypatch.setattr(follow, "RETRY_MS", 1)
    data, now = tmp_path / "data", START_MS
    table(tmp_path, [("a", START_MS - 1, 1.0)])
    config = plain(tmp_path, entity="user")

    async def go() -> None:
        stop = asyncio.Event()
        (data / "run").mkdir(parents=True)
        looking = asyncio.create_task(follow_tables(config, data, clock=lambda: now, stop=stop, served=True))
        writer = open_writer(data, clock=lambda: now, map_size=1 << 27)  # its place is free
        closing = asyncio.Event()
        server = asyncio.create_task(serve_writer(writer, data / "run" / "writer.sock", stop=closing))
        while writer.last_offset < 2:
            await asyncio.sleep(0.01)
        stop.set()
        await looking
        closing.set()
        await server
        writer.close()

    with capture_logs():
        asyncio.run(asyncio.wait_for(go(), 60))
    assert len(loaded(data)) == 1


def test_the_pace_leaves_time_and_ends_when_it_is_told() -> None:
    slept: list[float] = []
    pace = ServedPace(slept.append)
    pace(2_000)
    assert slept == [0.5]
    pace.stop.set()
    with pytest.raises(LoadingStoppedError):
        pace(1)
