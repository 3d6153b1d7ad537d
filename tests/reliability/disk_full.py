"""Fill the disk under a running system: lists go on, what was acknowledged stays, and room heals it (table row 5).

``python -m tests.reliability.disk_full`` prints one JSON object. The data directory is a tmpfs of 64 MB (root mounts it).
Events come until the log says that it is full (``log.min_free_mb``); then somebody else takes the last byte too; then
that is freed. All the time lists are asked for.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec
from msgspec import Struct

from headwater.log.batch import event_key
from headwater.log.lmdb import LmdbLog
from headwater.schema.errors import HeadwaterError
from tests.online.running import CONFIG, Running, catalogue
from tests.reliability.kill import keys_in
from tests.reliability.load import Asker

ITEMS, USERS, BATCH = 100, 500, 1_000
PATIENCE_S = 120.0
MB = 1_000_000


class NoMountError(HeadwaterError):
    """A small disk cannot be made here."""


class Outcome(Struct, frozen=True):
    """``answers``: status codes while there was no room. ``clear``: refusals that say that the disk is full, while the reserve
    was left. ``recovery_s``: from the moment of room to the first acknowledged batch and a ready server.
    """

    seed: int
    disk_mb: int
    acked: int
    lost: int
    answers: dict[str, int]
    clear: bool
    requests: int
    requests_retried: int
    requests_failed: int
    recovery_s: float

    @property
    def good(self) -> bool:
        """Whether nothing was lost, refusals were clear, every list came and it healed within 10 s."""
        return (
            self.lost == 0
            and set(self.answers) <= {"503", "507"}
            and self.clear
            and self.requests_failed == 0
            and self.recovery_s <= 10.0
        )


@contextmanager
def small_disk(path: Path, size_mb: int) -> Iterator[None]:
    """A tmpfs of ``size_mb`` MB at ``path``. Raises :class:`NoMountError` when this process may not mount."""
    path.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise NoMountError(f"A disk of {size_mb} MB cannot be mounted: {done.stderr.strip()}. Run this as root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


class _Events:
    """Posts batches of large events with ids of their own."""

    def __init__(self, url: str) -> None:
        self.acked: list[str] = []
        self.refusals: list[tuple[int, str]] = []
        self._http = httpx.Client(base_url=url, timeout=15.0)
        self._sent = 0

    def close(self) -> None:
        self._http.close()

    def post(self) -> bool:
        """One batch; whether it was acknowledged."""
        first, self._sent = self._sent, self._sent + BATCH
        events = [
            {
                "user": f"user-{n % USERS}", "item": f"item-{n % ITEMS}", "type": "view", "event_id": f"full-{n}",
                "attributes": {"note": "x" * 100},
            }
            for n in range(first, self._sent)
        ]  # fmt: skip
        response = self._http.post("/v1/events", json=events)
        if response.status_code == 200:
            self.acked.extend(event["event_id"] for event in events)  # type: ignore[misc]
            return True
        self.refusals.append((response.status_code, response.json()["error"]["reason"]))
        return False


def _take_the_rest(path: Path) -> None:
    """Fill the disk of ``path`` to the last byte."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            while True:
                try:
                    if file.write(bytes(size)) < size:
                        break
                except OSError:
                    break


def config_for(disk_mb: int) -> str:
    """A configuration whose reserve suits a disk of ``disk_mb`` MB."""
    return CONFIG.replace("map_size_gib = 4.0", f"map_size_gib = 4.0\nmin_free_mb = {disk_mb / 8}")


def fill(running: Running, *, disk_mb: int, full_s: float, seed: int) -> Outcome:
    """Fill the disk of ``disk_mb`` MB that ``running`` has its data on, keep it full for ``full_s`` seconds, free it."""
    ballast, rest = running.data / "ballast", running.data / "rest"
    ballast.write_bytes(bytes(disk_mb * MB // 2))
    running.ingest("/v1/items", catalogue(ITEMS))
    asker, events = Asker(running.url, seed=seed, users=USERS, k=10, pause_s=0.02), _Events(running.url)
    asker.start()
    try:
        until = time.monotonic() + 10 * PATIENCE_S
        while events.post():
            assert time.monotonic() < until, "the disk does not become full"
        clear = True
        end = time.monotonic() + full_s / 2
        while time.monotonic() < end:
            events.post()
            clear = clear and "full" in events.refusals[-1][1]
            time.sleep(0.05)
        _take_the_rest(rest)
        end = time.monotonic() + full_s / 2
        while time.monotonic() < end:
            events.post()
            time.sleep(0.05)
        refusals = list(events.refusals)
        rest.unlink()
        ballast.unlink()
        freed = time.monotonic()
        while not events.post():
            assert time.monotonic() - freed < PATIENCE_S, f"no event is taken: {events.refusals[-1]}"
            time.sleep(0.05)
        running.wait_ready(PATIENCE_S)
        recovery_s = time.monotonic() - freed
    finally:
        asker.stop()
        events.close()
    log = LmdbLog(running.data / "log", readonly=True)
    try:
        there = keys_in(log)
    finally:
        log.close()
    return Outcome(
        seed=seed, disk_mb=disk_mb, acked=len(events.acked),
        lost=sum(event_key(name) not in there for name in events.acked),
        answers=dict(Counter(str(status) for status, _ in refusals)), clear=clear, requests=asker.answered,
        requests_retried=asker.retried, requests_failed=asker.failed, recovery_s=recovery_s,
    )  # fmt: skip


def run(folder: Path, *, disk_mb: int, full_s: float, seed: int) -> Outcome:
    """Serve below ``folder`` on a disk of its own, and fill that."""
    with small_disk(folder / "data", disk_mb), Running(folder, config_for(disk_mb)) as running:
        outcome = fill(running, disk_mb=disk_mb, full_s=full_s, seed=seed)
        assert running.stop() == 0
    return outcome


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--disk-mb", type=int, default=64)
    parser.add_argument("--full-s", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headwater-full-") as folder:
        outcome = run(Path(folder), disk_mb=given.disk_mb, full_s=given.full_s, seed=given.seed)
    sys.stdout.write(msgspec.json.encode(outcome).decode() + "\n")
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
