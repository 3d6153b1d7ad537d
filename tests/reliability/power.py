"""Cut the power at random points of a writer's life: what was acknowledged must be there, and nothing half (table row 2).

``python -m tests.reliability.power --points 300`` prints one JSON object. A real writer runs with every write and sync of its
files written down. For each point a disk is made that holds what was synced by then and, of the rest, a random set of
sectors of 512 bytes; the writer opens it, and everything is read. A last part takes every sync for nothing and keeps half of the
sectors: there losses must be found, or the check could not find any.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

import lmdb
import msgspec
from msgspec import Struct

from headwater.cli.options import configure_logging
from headwater.log.batch import event_key, events_to_batch
from headwater.log.erasures import read_erasures
from headwater.log.identity import LmdbIdentity
from headwater.log.lmdb import LmdbLog
from headwater.log.record import Kind, Namespace
from headwater.log.writer import open_writer
from headwater.schema.errors import HeadwaterError
from headwater.schema.events import Event
from tests.reliability.apart import Died, apart
from tests.reliability.faults import Disk, Op, environment, read_trace
from tests.reliability.recorded import MAP_SIZE, START_MS, WINDOW, Asked

LEFT_OUT = ("log/lock.mdb", "identity/lock.mdb", "writer.lock", ".", "log", "identity")  # made anew after a restart


class Outcome(Struct, frozen=True):
    """``lost``: acknowledged events that were not there; ``corrupt``: points at which something did not read as it was
    written; ``halved``: commands of which a part was there; ``unopened``: points at which the writer did not start.

    ``unsynced_bytes``: what the cuts put at risk, in all. ``found_without_syncs``: losses and faults when syncs are ignored.
    """

    seed: int
    points: int
    commits: int
    acked_events: int
    lost: int
    corrupt: int
    halved: int
    unerased: int
    unopened: int
    reasons: dict[str, int]
    unsynced_bytes: int
    found_without_syncs: int

    @property
    def good(self) -> bool:
        """Whether nothing was lost or damaged, and the check can find what it looks for."""
        return not (self.lost or self.corrupt or self.halved or self.unerased or self.unopened) and (
            self.found_without_syncs > 0
        )


class Findings(Struct):
    """What was wrong, of one point or of all."""

    lost: int = 0
    corrupt: int = 0
    halved: int = 0
    unerased: int = 0
    unopened: int = 0
    reasons: dict[str, int] = {}

    @property
    def total(self) -> int:
        return self.lost + self.corrupt + self.halved + self.unerased + self.unopened

    def add(self, other: Findings) -> None:
        """Sum up."""
        self.lost, self.corrupt = self.lost + other.lost, self.corrupt + other.corrupt
        self.halved, self.unerased = self.halved + other.halved, self.unerased + other.unerased
        self.unopened += other.unopened
        self.reasons = dict(Counter(self.reasons) + Counter(other.reasons))

    def check(self, data: Path, asked: list[Asked], acked: int) -> None:
        """Open ``data`` as a writer does after a restart and read it all; the first ``acked`` of ``asked`` must be there."""
        try:
            with open_writer(data, clock=lambda: START_MS, dedup_window=WINDOW, map_size=MAP_SIZE) as writer:
                last = Event(user="after", item="after", type="view", event_id="after the cut")
                writer.append_events(events_to_batch([last], ()))
        except (HeadwaterError, lmdb.Error, OSError) as error:
            self.unopened += 1
            self.reasons[_short(error)] = 1
            return
        try:
            self._read(data, asked, acked)
        except (HeadwaterError, lmdb.Error, AssertionError) as error:
            self.corrupt += 1
            self.reasons[_short(error)] = 1

    def _read(self, data: Path, asked: list[Asked], acked: int) -> None:
        log, identity = LmdbLog(data / "log", readonly=True), LmdbIdentity(data / "identity", readonly=True)
        try:
            first = log.first_offset
            trimmed = any(command.trims for command in asked)
            assert first == 1 or trimmed, "the log begins late though nobody trimmed it"
            keys, erased, users, sealed = set[int](), set[int](), set[int](), list[tuple[int, bytes]]()
            items, offset = 0, first - 1
            while (block := log.read(offset)) is not None:  # checks every checksum
                records = block.records
                keys.update(records["event_key"][records["kind"] == Kind.EVENT].tolist())
                erased.update(records["user"][records["kind"] == Kind.ERASURE].tolist())
                users.update(records["user"].tolist())
                items = max(items, int(records["item"][records["kind"] == Kind.EVENT].max(initial=0)))
                for row in (records["kind"] == Kind.PROFILE).nonzero()[0].tolist():
                    sealed.append((int(records["user"][row]), block.payload(row)))
                offset = block.last_offset
            assert offset == log.last_offset, "the log ends before its end"
            assert items <= log.vocabulary().size(Namespace.ITEM), "an event names an item without a number"
            assert event_key("after the cut") in keys, "what came after the cut is not there"
            erased |= {entry.user for entry in read_erasures(data / "erasures.jsonl")}
            for user in users - {0}:
                assert user in erased or identity.key_of(user), "a user of the log has no key"
            for user, payload in sealed:
                assert user in erased or identity.decrypt(user, payload), "a profile cannot be read"
            self._compare(asked, acked, keys, trimmed, identity)
        finally:
            log.close()
            identity.close()

    def _compare(self, asked: list[Asked], acked: int, keys: set[int], trimmed: bool, identity: LmdbIdentity) -> None:
        """A trim takes whole blocks from the front: there what is missing must be one run of the oldest commands."""
        whole_before = False
        for command in asked:
            if command.events:
                there = sum(event_key(name) in keys for name in command.events)
                self.halved += 0 < there < len(command.events)
                if there == 0 and command.number < acked and not (trimmed and not whole_before):
                    self.lost += len(command.events)
                whole_before = whole_before or there > 0
            if command.number < acked:
                self.unerased += sum(identity.lookup(name) is not None for name in command.erased)


def examine(data: Path, asked: list[Asked], acked: int) -> Findings:
    """The findings at one point."""
    found = Findings()
    found.check(data, asked, acked)
    return found


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).split(':')[-1].strip()[:90]}"


def record(folder: Path, *, commits: int, seed: int) -> tuple[Path, list[Asked]]:
    """Let a writer do ``commits`` commands below ``folder``/recorded; the trace and what it was asked."""
    data, journal, trace = folder / "recorded", folder / "journal.jsonl", folder / "trace"
    data.mkdir()
    command = [sys.executable, "-m", "tests.reliability.recorded", str(data), str(journal), str(commits), str(seed)]
    subprocess.run(command, env=environment(trace=trace, root=data), check=True, stdout=subprocess.DEVNULL)
    return trace, [msgspec.json.decode(line, type=Asked) for line in journal.read_bytes().splitlines()]


def run(folder: Path, *, points: int, commits: int, seed: int, blind_points: int = 20) -> Outcome:
    """Record ``commits`` commands in ``folder``, cut the power at ``points`` points; ``blind_points`` with syncs ignored."""
    trace, asked = record(folder, commits=commits, seed=seed)
    entries, draw = read_trace(trace), random.Random(seed)
    found, blind = (
        examine(folder / "recorded", asked, len(asked)),
        Findings(),
    )  # here: the forks find all kernels loaded
    unsynced = 0
    for findings, syncs, count in ((found, True, points), (blind, False, blind_points)):
        disk, acked, at = Disk(syncs=syncs), 0, 0
        for number, point in enumerate(sorted(draw.sample(range(1, len(entries) + 1), count))):
            for entry in entries[at:point]:
                disk.apply(entry)
                acked += entry.op is Op.MARK
            at = point
            unsynced += disk.unsynced() if syncs else 0
            with tempfile.TemporaryDirectory(dir=folder, prefix=f"cut{number}-") as name:
                data = Path(name)
                chance = (
                    None if syncs else 0.5
                )  # drawn as well, it may be "everything is there" at each of a few points
                for file, content in disk.after_power_cut(draw, LEFT_OUT, chance).items():
                    (data / file).parent.mkdir(parents=True, exist_ok=True)
                    (data / file).write_bytes(content)
                found_here = apart(partial(examine, data, asked, acked), Findings)
                findings.add(
                    Findings(corrupt=1, reasons={found_here: 1}) if isinstance(found_here, Died) else found_here
                )
    return Outcome(
        seed=seed, points=points, commits=commits, acked_events=sum(len(command.events) for command in asked),
        lost=found.lost, corrupt=found.corrupt, halved=found.halved, unerased=found.unerased, unopened=found.unopened,
        reasons=found.reasons, unsynced_bytes=unsynced, found_without_syncs=blind.total,
    )  # fmt: skip


def main() -> int:
    """Run from the command line."""
    configure_logging("error")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=300)
    parser.add_argument("--commits", type=int, default=600)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headwater-power-") as folder:
        outcome = run(Path(folder), points=given.points, commits=given.commits, seed=given.seed)
    sys.stdout.write(msgspec.json.encode(outcome).decode() + "\n")
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
