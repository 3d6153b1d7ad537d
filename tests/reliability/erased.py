"""Erase people from a running system, then look for them everywhere: stores, models, logs, memory (table row 29).

``python -m tests.reliability.erased --users 1000 --erase 100`` prints one JSON object. Everybody has a profile, events and served lists;
the older half of the log is in the lake, and a bundle is in service. ``headwater erase`` runs against the server.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from headwater.offline.archive import Archiver
from headwater.offline.erase import erase
from tests.online.running import PARTS, Running, catalogue, publish_ranker

ITEMS = 100
_MAPPED = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw")
_AT_ONCE = 16 * 1024 * 1024


class Outcome(Struct, frozen=True):
    """``recoverable``: erased people of whom a file of the data directory still says something; ``searched`` its parts.

    ``logged``: ids in the log of the server. ``known_again``: people whom the server still treats as it did before.
    ``in_memory``: ids that stand somewhere in the memory of a process, freed memory included, until it is used again.
    """

    seed: int
    users: int
    erased: int
    searched: list[str]
    searched_mb: float
    state_rows: int
    recoverable: int
    logged: int
    known_again: int
    in_memory: dict[str, int]
    seconds: float

    @property
    def good(self) -> bool:
        """Whether nothing leads to anybody, within an hour."""
        return not (self.state_rows or self.recoverable or self.logged or self.known_again) and self.seconds <= 3_600.0


def _memory(pid: int) -> Iterator[bytes]:
    """The writable memory of a process, piece by piece."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if (found := _MAPPED.match(line)) is None:
                continue
            at, end = (int(part, 16) for part in found.groups())
            while at < end:
                memory.seek(at)
                try:
                    data = memory.read(min(_AT_ONCE, end - at))
                except OSError:  # mapped, and nothing behind it
                    break
                if not data:
                    break
                yield data
                at += len(data)


def run(folder: Path, *, users: int, erasing: int, seed: int) -> Outcome:
    """Serve below ``folder`` to ``users`` people and erase ``erasing`` of them."""
    names = [f"somebody.{seed}.{n}@example.org" for n in range(users)]
    gone = names[:: max(users // erasing, 1)][:erasing]
    with Running(folder) as running:
        running.ingest("/v1/items", catalogue(ITEMS))
        publish_ranker(running.data, running.config, seed=seed, created_ms=1_772_000_000_000)
        token = ""
        for half in (names[: users // 2], names[users // 2 :]):
            running.ingest("/v1/users", [{"id": name, "country": "DE"} for name in half])
            events = [
                {"user": name, "item": f"item-{(n + k) % ITEMS}", "type": "click"}
                for n, name in enumerate(half)
                for k in range(3)
            ]
            token = running.ingest("/v1/events", events)
            archiver = Archiver(running.data)
            archiver.run()
            archiver.close()
        for name in names:
            running.recommend(user=name, k=5, token=token)
        done = erase(running.data, running.config, gone, at_ms=time.time_ns() // 1_000_000)
        in_memory = {role: _people_in(running, role, gone) for role in PARTS}
        known_again = 0
        for number, name in enumerate(names):
            if name in gone:
                theirs = {f"item-{(number % (users // 2) + k) % ITEMS}" for k in range(3)}
                listed = {item["id"] for item in running.recommend(user=name, k=ITEMS, token=str(done.offset))["items"]}
                known_again += not theirs <= listed
        assert running.stop() == 0
        logged = running.log_path.read_text()
    return Outcome(
        seed=seed, users=users, erased=done.erased, searched=[search.part for search in done.searched],
        searched_mb=sum(search.bytes for search in done.searched) / 1e6, state_rows=done.state_rows,
        recoverable=done.recoverable, logged=sum(name in logged for name in gone), known_again=known_again,
        in_memory=in_memory, seconds=done.seconds,
    )  # fmt: skip


def _people_in(running: Running, role: str, names: list[str]) -> int:
    """How many of ``names`` stand in the memory of the process of ``role``."""
    found = set[str]()
    wanted = re.compile(b"|".join(re.escape(name.encode()) for name in names))
    for piece in _memory(running.pids(role)[0]):
        found.update(hit.decode() for hit in wanted.findall(piece))
    return len(found)


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=1_000)
    parser.add_argument("--erase", type=int, default=100)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headwater-erased-") as folder:
        outcome = run(Path(folder), users=given.users, erasing=given.erase, seed=given.seed)
    sys.stdout.write(msgspec.json.encode(outcome).decode() + "\n")
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
