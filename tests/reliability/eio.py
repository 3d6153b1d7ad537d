"""Let the disk fail while the writer works: nothing may be acknowledged after that, and the process must end (table row 4).

``python -m tests.reliability.eio --rounds 30`` prints one JSON object. In each round a real writer process is started whose
n-th sync, and every later one, returns EIO. Afterwards a disk is made that holds nothing of what was not synced: every event
that was acknowledged must be on it.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import msgspec
from msgspec import Struct

from headwater.cli.options import configure_logging
from headwater.log.batch import event_key, events_to_batch
from headwater.log.client import SyncWriterClient
from headwater.log.lmdb import LmdbLog
from headwater.log.record import Kind
from headwater.log.writer import open_writer
from headwater.schema.errors import UnavailableError
from headwater.schema.events import Event
from tests.reliability.faults import Disk, Op, environment, read_trace
from tests.reliability.power import LEFT_OUT

START_S, STOP_S = 60.0, 1.0
MAP_SIZE = 1 << 30
CONFIG = "[log]\nmap_size_gib = 1.0\ndedup_window = 10000\n"


class Round(Struct, frozen=True):
    """One writer: which sync failed, how many events were acknowledged before, and what came of it."""

    failed_sync: int
    acked: int
    acked_after: int
    lost: int
    stop_s: float
    exit_code: int


class Outcome(Struct, frozen=True):
    """``acked_after``: acknowledgements of what was sent after the error; ``lost``: acknowledged events that were not synced."""

    seed: int
    rounds: int
    acked: int
    acked_after: int
    lost: int
    stop_max_s: float
    exit_codes: list[int]

    @property
    def good(self) -> bool:
        """Whether no acknowledgement was wrong and every writer ended in time, with an error."""
        return not (self.acked_after or self.lost) and self.stop_max_s < STOP_S and 0 not in self.exit_codes


class Sender(threading.Thread):
    """Sends batch after batch until the writer is gone; keeps when each was sent and its ids."""

    def __init__(self, data: Path, name: str, seed: int) -> None:
        super().__init__(name=name)
        self.acked: list[tuple[int, list[str]]] = []
        self._socket, self._random = data / "run" / "writer.sock", random.Random(seed)

    def run(self) -> None:
        with SyncWriterClient(self._socket, connect_timeout_s=0.2) as client:
            number = 0
            while True:
                number += 1
                ids = [f"{self.name}.{number}.{n}" for n in range(self._random.choice((1, 5, 50)))]
                events = [Event(user=f"{self.name}{number}", item="i", type="view", event_id=name) for name in ids]
                sent = time.monotonic_ns()
                try:
                    client.append_events(events_to_batch(events, ()))
                except UnavailableError:
                    return
                self.acked.append((sent, ids))


def once(folder: Path, *, fail: int, seed: int) -> Round:
    """A writer below ``folder`` whose ``fail``-th sync is the first to fail."""
    data, trace, config = folder / "data", folder / "trace", folder / "headwater.toml"
    data.mkdir(parents=True)
    config.write_text(CONFIG)
    with open_writer(data, map_size=MAP_SIZE):  # what a new log writes first is not what is tested
        pass
    before = {str(file.relative_to(data)): file.read_bytes() for file in data.rglob("*") if file.is_file()}
    command = [sys.executable, "-m", "headwater.cli.main", "serve", "--role", "all", "--part", "writer"]
    command += ["--config", str(config), "--data", str(data)]
    with subprocess.Popen(
        command, env=environment(trace=trace, root=data, fail=fail), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            until = time.monotonic() + START_S
            while process.poll() is None and not (data / "run" / "writer.sock").exists():
                assert time.monotonic() < until, "the writer does not listen"
                time.sleep(0.01)
            senders = [Sender(data, f"s{n}", seed + n) for n in range(2)]
            for sender in senders:
                sender.start()
            code, ended = process.wait(START_S), time.monotonic_ns()
            for sender in senders:
                sender.join()
        finally:
            process.kill()
    entries = read_trace(trace)
    failed_ns = next(entry.at for entry in entries if entry.op is Op.FAILED)
    acked = [(sent, name) for sender in senders for sent, names in sender.acked for name in names]
    disk, cut = Disk(before=before), folder / "cut"
    for entry in entries:
        disk.apply(entry)
    for file, content in disk.after_power_cut(random.Random(seed), LEFT_OUT, chance=0.0).items():
        (cut / file).parent.mkdir(parents=True, exist_ok=True)
        (cut / file).write_bytes(content)
    there = _keys(cut / "log")
    return Round(
        failed_sync=fail, acked=len(acked), acked_after=sum(sent > failed_ns for sent, _ in acked),
        lost=sum(event_key(name) not in there for _, name in acked), stop_s=(ended - failed_ns) / 1e9, exit_code=code,
    )  # fmt: skip


def _keys(path: Path) -> set[int]:
    log, found, offset = LmdbLog(path, readonly=True), set[int](), 0
    try:
        while (block := log.read(offset)) is not None:
            found.update(block.records["event_key"][block.records["kind"] == Kind.EVENT].tolist())
            offset = block.last_offset
    finally:
        log.close()
    return found


def run(folder: Path, *, rounds: int, seed: int) -> Outcome:
    """``rounds`` writers below ``folder``, each with another sync that fails."""
    draw = random.Random(seed)
    done = [once(folder / f"round{n}", fail=draw.randrange(2, 120), seed=seed + n) for n in range(rounds)]
    return Outcome(
        seed=seed, rounds=rounds, acked=sum(part.acked for part in done),
        acked_after=sum(part.acked_after for part in done), lost=sum(part.lost for part in done),
        stop_max_s=max(part.stop_s for part in done), exit_codes=sorted({part.exit_code for part in done}),
    )  # fmt: skip


def main() -> int:
    """Run from the command line."""
    configure_logging("warning")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headwater-eio-") as folder:
        outcome = run(Path(folder), rounds=given.rounds, seed=given.seed)
    sys.stdout.write(msgspec.json.encode(outcome).decode() + "\n")
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
