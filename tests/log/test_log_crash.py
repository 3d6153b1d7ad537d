"""Writers that die: what was acknowledged is there, what failed stops the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import headwater
from headwater.log.batch import event_key, events_to_batch
from headwater.log.lmdb import LmdbLog
from headwater.log.record import Kind
from headwater.log.socket import EXIT_COMMIT_FAILED, SyncWriterClient
from headwater.log.writer import WriterRunningError, open_writer
from headwater.schema.errors import UnavailableError
from headwater.schema.events import Event

START_S = 30.0


@contextmanager
def _process(data: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    source = str(Path(headwater.__file__).parents[1])
    command = [sys.executable, str(Path(__file__).with_name("writer_process.py")), str(data), *arguments]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": source}, stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def _events(thread: int, number: int) -> list[Event]:
    return [Event(user=f"u{number}", item="i", type="view", event_id=f"{thread}.{number}.{n}") for n in range(3)]


def _client(data: Path) -> SyncWriterClient:
    return SyncWriterClient(data / "run" / "writer.sock", connect_timeout_s=START_S)


def _send_until_it_dies(data: Path, thread: int, acked: list[tuple[int, list[Event]]]) -> None:
    with _client(data) as client:
        for number in range(1_000_000):
            events = _events(thread, number)
            try:
                reply = client.append_events(events_to_batch(events, ()))
            except UnavailableError:
                return
            acked.append((reply.offset, events))


def _stored_keys(data: Path) -> dict[int, int]:
    log = LmdbLog(data / "log", readonly=True)
    keys: dict[int, int] = {}
    after = 0
    while (block := log.read(after)) is not None:  # every checksum is verified on the way
        events = block.records[block.records["kind"] == Kind.EVENT]
        found = dict(zip(events["event_key"].tolist(), events["offset"].tolist(), strict=True))
        assert not found.keys() & keys.keys()
        keys |= found
        after = block.last_offset
    assert after == log.last_offset
    log.close()
    return keys


def test_no_acknowledged_event_is_lost_to_a_kill(tmp_path: Path) -> None:
    acked: list[list[tuple[int, list[Event]]]] = [[], []]
    for round_number in range(2):
        with _process(tmp_path) as process:
            threads = [
                threading.Thread(target=_send_until_it_dies, args=(tmp_path, 2 * round_number + n, acked[n]))
                for n in range(2)
            ]
            already = sum(map(len, acked))
            for thread in threads:
                thread.start()
            while sum(map(len, acked)) < already + 60:
                assert process.poll() is None
                threads[0].join(0.001)
            process.send_signal(signal.SIGKILL)
            for thread in threads:
                thread.join()
    stored = _stored_keys(tmp_path)
    for offset, events in acked[0] + acked[1]:
        for event in events:
            assert stored[event_key(event.event_id or "")] <= offset
    with open_writer(tmp_path, clock=lambda: 1, map_size=1 << 30, dedup_window=100_000) as writer:
        for _, events in acked[0][-5:]:
            assert writer.append_events(events_to_batch(events, ())).duplicates == 3


def test_a_failed_commit_stops_the_process(tmp_path: Path) -> None:
    with _process(tmp_path, "3") as process, _client(tmp_path) as client:
        for number in range(3):
            client.append_events(events_to_batch(_events(0, number), ()))
        with pytest.raises(UnavailableError):
            client.append_events(events_to_batch(_events(0, 3), ()))
        assert process.wait(START_S) == EXIT_COMMIT_FAILED
    assert len(_stored_keys(tmp_path)) == 9


def test_a_writer_process_keeps_others_out_and_stops_cleanly(tmp_path: Path) -> None:
    with _process(tmp_path) as process, _client(tmp_path) as client:
        client.ping()
        with pytest.raises(WriterRunningError, match=f"Process {process.pid} writes"):
            open_writer(tmp_path)
        process.terminate()
        assert process.wait(START_S) == 0
    assert not (tmp_path / "run" / "writer.sock").exists()
