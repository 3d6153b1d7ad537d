"""The writer behind its socket: many clients, one order, honest answers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headwater.breaker import Breaker
from headwater.log import frames
from headwater.log.batch import events_to_batch
from headwater.log.commands import Appended, Command, PutItems, PutTable, ServedEntry
from headwater.log.frames import Frames, decode_request, encode_reply
from headwater.log.identity import MemoryIdentity
from headwater.log.memory import MemoryLog
from headwater.log.protocol import EventLog, ImportRange, RefusedError
from headwater.log.record import Kind
from headwater.log.socket import EXIT_COMMIT_FAILED, SyncWriterClient, WriterClient, WriterServer, serve_writer
from headwater.log.writer import LogWriter, Outcome
from headwater.schema.errors import ConfigurationError, UnavailableError
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.schema.users import UserProfile


class CountingWriter(LogWriter):
    """Knows the sizes of its groups and may be made to fail."""

    def __init__(self, log: EventLog) -> None:
        super().__init__(log, MemoryIdentity(), clock=lambda: 1, dedup_window=10_000)
        self.groups: list[int] = []
        self.failing = False

    def commit_group(self, commands: Sequence[Command]) -> list[Outcome]:
        self.groups.append(len(commands))
        if self.failing:
            raise OSError(28, "No space left on device")
        return super().commit_group(commands)


@asynccontextmanager
async def _served(writer: LogWriter, path: Path) -> AsyncIterator[None]:
    stop, ready = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(serve_writer(writer, path, stop=stop, on_ready=ready.set))
    await ready.wait()
    try:
        yield
    finally:
        stop.set()
        await task


def _one(number: object, user: str = "u") -> list[Event]:
    return [Event(user=user, item=f"i{number}", type="view", event_id=f"{user}{number}")]


def test_two_clients_at_once(tmp_path: Path) -> None:
    """Pipelined requests of two clients: contiguous offsets, own answers, fewer commits than requests."""
    log = MemoryLog()
    writer = CountingWriter(log)

    async def go() -> None:
        path = tmp_path / "w.sock"
        async with _served(writer, path), WriterClient(path) as one, WriterClient(path) as two:
            replies = await asyncio.gather(
                *(
                    c.append_events(events_to_batch(_one(n, u), ()))
                    for n in range(200)
                    for c, u in ((one, "a"), (two, "b"))
                )
            )
            assert all(reply.accepted == 1 for reply in replies)
            assert (await two.append_events(events_to_batch(_one(7, "a"), ()))).duplicates == 1

    asyncio.run(go())
    block = log.read(0)
    assert block is not None
    assert block.records["offset"].tolist() == list(range(1, len(block) + 1))
    assert int((block.records["kind"] == Kind.EVENT).sum()) == 400
    assert len(writer.groups) < 200


def test_every_command_travels(tmp_path: Path) -> None:
    log = MemoryLog()
    path = tmp_path / "w.sock"

    def blocking() -> Appended:
        with SyncWriterClient(path) as client:
            client.put_items([Item(id="k", vector=[1.0])], at_ms=3)
            return client.append_import(events_to_batch(_one(5), ()), ImportRange("f", 0, 1, "m"))

    async def go() -> None:
        async with (
            _served(LogWriter(log, MemoryIdentity(), clock=lambda: 9, dedup_window=9), path),
            WriterClient(path) as client,
        ):
            await client.put_items([Item(id="i", categories=["c"])])
            await client.put_profiles([UserProfile(id="u", country="DE")])
            await client.append_served([ServedEntry(0, 0, b"x"), ServedEntry(1, 2**64 - 1, b"y")])
            await client.append_shadows([ServedEntry(1, 7, b"z")])
            await client.commit(PutTable("risk", "user", ["churn"], ["u"], [4], [[0.5]]))
            await client.login("guest", "u")
            await client.delete_items(["i", "unknown"])
            await client.erase_users(["u"])
            first = await client.append_import(events_to_batch(_one(1), ()), ImportRange("f", 5, 6, "m"))
            again = await client.append_import(events_to_batch(_one(1), ()), ImportRange("f", 5, 6, "m"))
            assert (first.accepted, again) == (1, Appended(0, 0, first.offset, already=True))
            last = await asyncio.to_thread(blocking)
            assert await client.ping() == Appended(0, 0, last.offset)

    asyncio.run(go())
    block = log.read(0)
    assert block is not None
    assert set(block.records["kind"].tolist()) == set(Kind) - {Kind.EXPOSURE}


def test_followers_see_every_commit(tmp_path: Path) -> None:
    log = MemoryLog()

    async def go() -> None:
        path = tmp_path / "w.sock"
        async with (
            _served(LogWriter(log, MemoryIdentity(), clock=lambda: 1, dedup_window=9), path),
            WriterClient(path) as client,
        ):
            offsets = client.follow()
            assert await anext(offsets) == 0
            for number in range(5):
                reply = await client.append_events(events_to_batch(_one(number), ()))
                assert await anext(offsets) == reply.offset == log.last_offset
            following = SyncWriterClient(path).follow()
            assert await asyncio.to_thread(next, following) == log.last_offset
            following.close()
            await offsets.aclose()

    asyncio.run(go())


def test_a_refused_command_says_why_and_harms_nobody(tmp_path: Path) -> None:
    async def go() -> None:
        path = tmp_path / "w.sock"
        async with (
            _served(LogWriter(MemoryLog(), MemoryIdentity(), clock=lambda: 1, dedup_window=9), path),
            WriterClient(path) as client,
        ):
            bad = client.commit(PutItems([Item(id="")]))  # the schema wants at least one character
            good = client.put_items([Item(id="i")])
            refused, done = await asyncio.gather(bad, good, return_exceptions=True)
            assert isinstance(refused, RefusedError)
            assert "length >= 1" in str(refused)
            assert isinstance(done, Appended)
            with pytest.raises(RefusedError, match="two different ids"):
                await client.login("u", "u")
            with pytest.raises(RefusedError, match="no valid text"):
                await client.delete_items(["\ud800"])

    asyncio.run(go())


def test_oversized_requests_are_refused_before_they_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MAX_FRAME", 100)
    with pytest.raises(RefusedError, match="send smaller batches"):
        frames.encode_request(1, PutItems([Item(id="i", title="x" * 200)]))


@pytest.mark.parametrize("noise", [b"GET / HTTP/1.1\r\n\r\n", b"\x03\0\0\0abc", b"\x01\0\0\0\x92"])
def test_noise_closes_its_own_connection_only(tmp_path: Path, noise: bytes) -> None:
    path = tmp_path / "w.sock"

    def shout() -> bytes:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(path))
            connection.sendall(noise)
            return connection.recv(10)

    async def go() -> None:
        async with (
            _served(LogWriter(MemoryLog(), MemoryIdentity(), clock=lambda: 1, dedup_window=9), path),
            WriterClient(path) as client,
        ):
            await client.ping()
            assert await asyncio.to_thread(shout) == b""
            assert (await client.put_items([Item(id="i")])).accepted == 1

    asyncio.run(go())


def test_a_client_comes_back_after_a_restart(tmp_path: Path) -> None:
    log, path = MemoryLog(), tmp_path / "w.sock"

    async def go() -> None:
        async with WriterClient(path, connect_timeout_s=0.05) as client:
            with pytest.raises(UnavailableError, match="No writer answers"):
                await client.ping()
            offsets = client.follow()
            for number in range(2):
                async with _served(LogWriter(log, MemoryIdentity(), clock=lambda: 1, dedup_window=9), path):
                    reply = await client.append_events(events_to_batch(_one(number), ()))
                    assert reply.accepted == 1
                    assert await anext(offsets) == reply.offset
                await asyncio.sleep(0.01)
            await offsets.aclose()

    asyncio.run(go())


def test_all_who_wait_for_a_writer_that_is_away_are_told_at_the_same_time(tmp_path: Path) -> None:
    class Counting(WriterClient):
        dials = 0

        async def _dial(self) -> Any:
            self.dials += 1
            return await super()._dial()

    async def go() -> None:
        async with Counting(tmp_path / "w.sock", connect_timeout_s=0.1) as client:
            commands = (client.put_items([Item(id="i")]) for _ in range(20))
            answers = await asyncio.gather(*commands, return_exceptions=True)
            assert all(isinstance(answer, UnavailableError) for answer in answers)
            # each on its own tries three times in its tenth of a second; in the time that is over each tries once
            assert client.dials < 2 * len(answers), "not one after the other"

    asyncio.run(go())


def test_a_ping_does_not_wait_for_a_writer_that_is_away_even_beside_those_who_do(tmp_path: Path) -> None:
    async def go() -> None:
        path = tmp_path / "w.sock"
        async with WriterClient(path, connect_timeout_s=60.0) as client:
            waiting = asyncio.create_task(client.put_items([Item(id="i")]))
            await asyncio.sleep(0.05)
            async with asyncio.timeout(30.0):
                with pytest.raises(UnavailableError, match="No writer answers"):
                    await client.ping()
            assert not waiting.done()
            async with _served(LogWriter(MemoryLog(), MemoryIdentity(), clock=lambda: 1, dedup_window=9), path):
                assert (await client.ping()).offset >= 0
                assert (await waiting).accepted == 1

    asyncio.run(go())


def test_a_failed_commit_fails_all_and_stops(tmp_path: Path) -> None:
    writer = CountingWriter(MemoryLog())
    codes: list[int] = []

    async def go() -> None:
        path = tmp_path / "w.sock"
        server = WriterServer(writer, exit_process=codes.append)
        await server.start(path)
        async with WriterClient(path) as client:
            await client.ping()
            writer.failing = True
            outcomes = await asyncio.gather(
                *(client.append_events(events_to_batch(_one(n), ())) for n in range(5)), return_exceptions=True
            )
            assert all(isinstance(outcome, UnavailableError) for outcome in outcomes)
        with pytest.raises(OSError, match="No space left"):
            await server.stop()

    asyncio.run(go())
    assert codes == [EXIT_COMMIT_FAILED]


def test_a_socket_path_that_is_too_long_is_named() -> None:
    with pytest.raises(ConfigurationError, match="shorter `data_dir`"):
        WriterClient(Path("x" * 120))


def test_frames_in_any_pieces() -> None:
    whole = b"".join(frames.encode_request(n, PutItems([Item(id="i" * (n + 1))])) for n in range(5))
    for size in (1, 3, 7, len(whole)):
        joined = frames.Frames()
        bodies = [body for at in range(0, len(whole), size) for body in joined.feed(whole[at : at + size])]
        assert [msgspec.msgpack.decode(body)[0] for body in bodies] == list(range(5))


def test_a_writer_that_does_not_answer_is_left_alone_and_tried_now_and_then(tmp_path: Path) -> None:
    async def scenario() -> None:
        taken: list[bytes] = []
        replies = False
        links: list[asyncio.StreamWriter] = []

        async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            links.append(writer)
            while data := await reader.read(65_536):
                taken.append(data)
                if replies:
                    for body in Frames().feed(data):
                        writer.write(encode_reply(decode_request(body)[0], Appended(0, 0, 1)))

        server = await asyncio.start_unix_server(swallow, tmp_path / "w.sock")
        now_s = [0.0]
        async with WriterClient(tmp_path / "w.sock", ack_timeout_s=0.05) as client:
            client.breaker = Breaker(0.25, 2.0, clock=lambda: now_s[0])
            with pytest.raises(UnavailableError, match=r"within 0\.05 s"):
                await client.ping()
            for _ in range(50):
                with pytest.raises(UnavailableError, match="tried again in a moment"):
                    client.ping().send(None)  # at once: not even a turn of the loop goes by
            assert len(taken) == 1
            now_s[0] += 0.3
            with contextlib.suppress(UnavailableError, TimeoutError):  # who gives up the trial leaves none behind
                async with asyncio.timeout(0.02):
                    await client.ping()
            while len(taken) == 1:  # what was sent is on its way
                await asyncio.sleep(0.001)
            assert len(taken) == 2
            with pytest.raises(UnavailableError, match="tried again in a moment"):
                client.ping().send(None)
            replies, answered = True, False
            while not answered:  # on a busy machine an answer may take longer than the 50 ms
                now_s[0] += 3.0
                await asyncio.sleep(0.001)
                with contextlib.suppress(UnavailableError):
                    answered = (await client.ping()).offset == 1
            assert not client.breaker.is_open
        server.close()
        for link in links:
            link.close()

    asyncio.run(asyncio.wait_for(scenario(), 30.0))
