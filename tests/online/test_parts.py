"""Parts of a worker and the supervisor, each alone."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from headwater.log.commands import Appended, ServedEntry
from headwater.log.protocol import RefusedError
from headwater.nearline.feed import FeedServer
from headwater.online.app import route_of
from headwater.online.errors import ErrorReply
from headwater.online.feed import FoldFeed
from headwater.online.metrics import Metrics
from headwater.online.openapi import document, operations
from headwater.online.served import ServedLog
from headwater.online.supervisor import LONGEST_PAUSE_S, QUICK_RESTARTS, Child, Supervisor, listen, pause_after
from headwater.schema.config import Config
from headwater.schema.errors import ConfigurationError, UnavailableError
from headwater.schema.events import IngestReply
from headwater.schema.feed import Announcement, Position
from headwater.schema.requests import RecommendResponse

API_PAGE = Path(__file__).parent.parent.parent / "docs" / "api.md"


# -- the OpenAPI document and the docs ---------------------------------------------------------------------


def test_every_example_is_what_it_says_it_is() -> None:
    for operation in operations(Config()):
        for example in operation.examples.values():
            assert operation.takes is not None
            kind = list[operation.takes] if isinstance(example, list) else operation.takes  # type: ignore[name-defined]
            msgspec.json.decode(msgspec.json.encode(example), type=kind)
        if operation.gives is not None:
            answer = list[operation.gives] if operation.most else operation.gives  # type: ignore[name-defined]
            msgspec.convert(msgspec.to_builtins(operation.answer), answer)


def test_the_document_is_complete() -> None:
    described = document(Config())
    text = json.dumps(described)
    for name in re.findall(r'"#/components/schemas/(\w+)"', text):
        assert name in described["components"]["schemas"]
    for path, methods in described["paths"].items():
        assert route_of(path) == path
        for operation in methods.values():
            assert operation["summary"]
            assert "200" in operation["responses"]
            for body in [operation["requestBody"]] if "requestBody" in operation else []:
                assert body["content"]["application/json"]["examples"]
    for kind in (IngestReply, RecommendResponse, ErrorReply):
        assert kind.__name__ in described["components"]["schemas"]


def test_every_route_is_in_the_docs() -> None:
    page = API_PAGE.read_text(encoding="utf-8")
    for operation in operations(Config()):
        assert f"`{operation.method.upper()} {operation.path}`" in page, operation.path


def test_ids_never_become_labels() -> None:
    assert route_of("/v1/items/anything/at/all") == "/v1/items/{item_id}"
    assert route_of("/v1/similar/x") == "/v1/similar/{item_id}"
    assert route_of("/wp-admin") == "other"


# -- served lists ------------------------------------------------------------------------------------------


class FakeWriter:
    """Takes served lists unless it is ``away``; ``refuses`` them when told to."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.calls = 0
        self.away = False
        self.refuses = False

    async def append_served(self, entries: Sequence[ServedEntry]) -> Appended:
        self.calls += 1
        if self.away:
            raise UnavailableError("away")
        if self.refuses:
            raise RefusedError("no")
        self.taken += [entry.user for entry in entries]
        return Appended(len(entries), 0, 1)


def entry(number: int) -> ServedEntry:
    return ServedEntry(number, number, b"payload")


def count(metrics: Metrics, name: str) -> float:
    value = metrics.registry.get_sample_value(name)
    assert value is not None
    return value


def test_served_lists_go_out_in_batches() -> None:
    async def check() -> None:
        writer, metrics = FakeWriter(), Metrics()
        served = ServedLog(writer, metrics)
        running = asyncio.create_task(served.run())
        for number in range(100):
            served.add(entry(number))
        await asyncio.sleep(0.15)
        running.cancel()
        assert writer.taken == list(range(100))
        assert writer.calls == 1
        assert count(metrics, "headwater_served_logged_total") == 100

    asyncio.run(check())


def test_served_lists_wait_for_the_writer_and_what_does_not_fit_is_counted() -> None:
    async def check() -> None:
        writer, metrics = FakeWriter(), Metrics()
        writer.away = True
        served = ServedLog(writer, metrics, max_entries=10)
        running = asyncio.create_task(served.run())
        served.add(entry(0))
        await asyncio.sleep(0.1)
        for number in range(1, 15):
            served.add(entry(number))
        writer.away = False
        await asyncio.sleep(0.4)
        running.cancel()
        assert writer.taken == list(range(5, 15)), "the oldest ones go"
        assert count(metrics, "headwater_served_lost_total") == 5

    asyncio.run(check())


def test_at_shutdown_served_lists_are_flushed_or_counted() -> None:
    async def check() -> None:
        writer, metrics = FakeWriter(), Metrics()
        served = ServedLog(writer, metrics)
        served.add(entry(1))
        await served.flush(1.0)
        assert writer.taken == [1]
        writer.away = True
        served.add(entry(2))
        await served.flush(0.1)
        assert count(metrics, "headwater_served_lost_total") == 1
        writer.away, writer.refuses = False, True
        served.add(entry(3))
        await served.flush(0.1)
        assert count(metrics, "headwater_served_lost_total") == 2

    asyncio.run(check())


# -- following the fold ------------------------------------------------------------------------------------


def test_waiting_for_a_token(tmp_path: Path) -> None:
    async def check() -> None:
        epochs: list[int] = []
        connects: list[int] = []
        path = tmp_path / "fold.sock"
        feed = FoldFeed(path, on_epoch=lambda: epochs.append(1), on_connect=lambda: connects.append(1))
        following = asyncio.create_task(feed.follow())
        assert not await feed.reached(1, 0.02), "there is no fold yet"

        server = FeedServer(path, Position(5, 1, 4))
        await server.start()
        assert await feed.reached(5, 2.0)
        assert (len(epochs), len(connects), feed.connected) == (1, 1, True)

        waiting = [asyncio.create_task(feed.reached(offset, 2.0)) for offset in (9, 7, 8)]
        never = asyncio.create_task(feed.reached(100, 0.1))
        await asyncio.sleep(0.01)
        server.publish(Position(8, 1, 4))
        await asyncio.sleep(0.05)
        assert [task.done() for task in waiting] == [False, True, True]
        server.publish(Position(9, 2, 9))
        assert all(await asyncio.gather(*waiting))
        assert not await never
        assert len(epochs) == 2

        await server.stop()
        await asyncio.sleep(0.05)
        assert not feed.connected
        again = FeedServer(path, Position(12, 3, 12))
        await again.start()
        assert await feed.reached(12, 2.0)
        assert len(connects) == 2
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await again.stop()

    asyncio.run(check())


def test_tokens_from_the_far_future_leave_nothing_behind(tmp_path: Path) -> None:
    async def check() -> None:
        feed = FoldFeed(tmp_path / "fold.sock", on_epoch=lambda: None, on_connect=lambda: None)
        patient = asyncio.create_task(feed.reached(7, 5.0))
        for _ in range(5):
            assert not any(await asyncio.gather(*(feed.reached(10**60 + n, 0.001) for n in range(100))))
        assert len(feed._waiting) < 200
        feed.receive([Announcement(Position(7, 0, 0))])
        assert await patient, "those who still wait are kept"

    asyncio.run(check())


# -- the supervisor ----------------------------------------------------------------------------------------


def test_workers_share_a_port_and_nobody_else_gets_it() -> None:
    listeners = listen("127.0.0.1", 0, 3)
    ports = {listener.getsockname()[1] for listener in listeners}
    assert len(ports) == 1
    with pytest.raises(ConfigurationError, match="Cannot listen on"):
        listen("127.0.0.1", ports.pop(), 1)
    for listener in listeners:
        listener.close()


def test_a_dead_child_is_started_again_and_all_are_taken_down(tmp_path: Path) -> None:
    async def check() -> None:
        mark = tmp_path / "starts"
        dies = f"open({str(mark)!r}, 'a').write('x'); raise SystemExit(1 if len(open({str(mark)!r}).read()) < 3 else __import__('time').sleep(60))"
        stays = "import time; time.sleep(60)"
        children = [Child("fold", [sys.executable, "-c", dies]), Child("writer", [sys.executable, "-c", stays])]
        supervisor = Supervisor(children, tmp_path, None)
        running = asyncio.create_task(supervisor.run(lambda: None))
        for _ in range(200):
            if mark.exists() and len(mark.read_text()) == 3:
                break
            await asyncio.sleep(0.02)
        assert children[0].starts == 3
        assert children[1].starts == 1
        supervisor.stop()
        await asyncio.wait_for(running, 10.0)
        assert all(child.process is not None and child.process.returncode is not None for child in children)

    asyncio.run(check())


def test_a_child_has_one_thread_and_large_pages_unless_the_environment_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    said = tmp_path / "said"
    names = ["GLIBC_TUNABLES", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"]
    tells = (
        f"import os, time; open({str(said) + '~'!r}, 'w').write(' '.join(map(os.environ.get, {names})))\n"
        f"os.rename({str(said) + '~'!r}, {str(said)!r}); time.sleep(60)"
    )

    async def check() -> None:
        supervisor = Supervisor([Child("fold", [sys.executable, "-c", tells])], tmp_path, None)
        running = asyncio.create_task(supervisor.run(lambda: None))
        async with asyncio.timeout(30.0):
            while not said.exists():
                await asyncio.sleep(0.02)
        supervisor.stop()
        await asyncio.wait_for(running, 10.0)

    asyncio.run(check())
    assert said.read_text() == "glibc.malloc.hugetlb=1 3 1"


def test_a_child_that_keeps_dying_is_started_later_and_later_but_always_again() -> None:
    pauses = [pause_after(failures) for failures in range(5_000)]  # some hours of them
    assert pauses[: QUICK_RESTARTS + 2] == [0.0] * (QUICK_RESTARTS + 1) + [0.2]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE_S


def test_a_child_that_the_machine_has_no_room_for_is_tried_again(tmp_path: Path) -> None:
    async def check() -> None:
        program = tmp_path / "program"
        child = Child("fold", [str(program)], listener=socket.create_server(("127.0.0.1", 0)))
        supervisor = Supervisor([child], tmp_path, None)
        with capture_logs() as said:
            running = asyncio.create_task(supervisor.run(lambda: None))
            for _ in range(200):
                if said and said[-1]["event"] == "process_keeps_dying":
                    program.write_text("#!/bin/sh\nexec sleep 60\n")
                    program.chmod(0o700)
                if child.starts:
                    break
                await asyncio.sleep(0.02)
            assert child.starts == 1
            events = [line["event"] for line in said]
            assert events.count("process_not_started") > QUICK_RESTARTS
            assert events[-1] == "process_started"
            supervisor.stop()
            await asyncio.wait_for(running, 10.0)

    asyncio.run(check())


def test_a_child_that_cannot_start_ends_the_whole(tmp_path: Path) -> None:
    async def check() -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            address = unused.getsockname()
        child = Child("writer", [sys.executable, "-c", "raise SystemExit(2)"])
        supervisor = Supervisor([child], tmp_path, address)
        with pytest.raises(UnavailableError, match="writer process could not start"):
            await asyncio.wait_for(supervisor.run(lambda: None), 10.0)
        assert child.starts == 1

    asyncio.run(check())
