"""Kill the serving processes in turn under event load, then prove that nothing acknowledged was lost.

``python -m tests.reliability.kill --kills 30`` prints one JSON object: 0 of ``lost`` and ``doubled`` and
``state_equal`` are what it is about. Exit code 1 otherwise. Table row 1 is ``--part writer --kills 300 --acked 1000000
--batch 200``, row 6 ``--part fold --kills 300``.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from headwater.features.fold import Fold
from headwater.features.paths import state_dir
from headwater.features.plan import Plan, compile_plan
from headwater.features.state import LmdbState
from headwater.log.batch import event_key
from headwater.log.lmdb import LmdbLog
from headwater.log.record import Kind
from tests.online.running import PARTS, Running, catalogue
from tests.reliability.load import Asker, Poster

USERS, ITEMS = 500, 300


class Outcome(Struct, frozen=True):
    """``lost``: acknowledged events that are not in the log; ``doubled``: events that are there more than once.

    ``requests_failed``: recommend requests that failed twice. ``recovery_s`` is from the kill until there is another process
    and ``/readyz`` says yes.
    """

    seed: int
    kills: int
    acked: int
    lost: int
    doubled: int
    retried_batches: int
    requests: int
    requests_retried: int
    requests_failed: int
    recovery_p50_s: float
    recovery_max_s: float
    records: int
    state_rows: int
    state_equal: bool

    @property
    def good(self) -> bool:
        """Whether nothing was lost and state is what a replay gives."""
        return self.lost == 0 and self.doubled == 0 and self.state_equal


def run(
    folder: Path, *, kills: int, seed: int, parts: tuple[str, ...] = PARTS, pause_s: tuple[float, float] = (0.1, 0.6),
    batch: int = 20, acked: int = 0,
) -> Outcome:  # fmt: skip
    """Serve in ``folder`` under load, kill ``parts`` in turn, stop, and look at what is on disk.

    At least ``kills`` kills, and more until ``acked`` events were acknowledged; ``batch`` events a post.
    """
    draw = random.Random(seed)
    recovery: list[float] = []
    with Running(folder) as running:
        running.ingest("/v1/items", catalogue(ITEMS))
        load = [
            Poster(running.url, f"p{n}", seed=seed + n, users=USERS, items=ITEMS, batch=batch, pause_s=0.01)
            for n in range(2)
        ]
        asker = Asker(running.url, seed=seed, users=USERS, k=10, pause_s=0.01)
        callers: list[Poster | Asker] = [*load, asker]
        for caller in callers:
            caller.start()
        try:
            while len(recovery) < kills or sum(len(poster.acked) for poster in load) < acked:
                time.sleep(draw.uniform(*pause_s))
                part = parts[len(recovery) % len(parts)]
                began, pid = time.monotonic(), running.kill(part)
                running.wait_replaced(part, pid)
                running.wait_ready()
                recovery.append(time.monotonic() - began)
        finally:
            for caller in callers:
                caller.stop()
        assert running.stop() == 0
    sent = [event for poster in load for event in poster.acked]
    event_log = LmdbLog(running.data / "log", readonly=True)
    try:
        seen = keys_in(event_log)
        plan = compile_plan(running.config)
        rows, equal = compare_state(state_dir(running.data, plan.hash), event_log, plan, folder / "replayed")
        return Outcome(
            seed=seed,
            kills=len(recovery),
            acked=len(sent),
            lost=sum(seen[event_key(event)] == 0 for event in sent),
            doubled=sum(count > 1 for count in seen.values()),
            retried_batches=sum(poster.retries for poster in load),
            requests=asker.answered,
            requests_retried=asker.retried,
            requests_failed=asker.failed,
            recovery_p50_s=float(np.median(recovery)),
            recovery_max_s=max(recovery),
            records=event_log.last_offset,
            state_rows=rows,
            state_equal=equal,
        )
    finally:
        event_log.close()


def keys_in(event_log: LmdbLog) -> Counter[int]:
    """How often each event id (hashed) is in the log."""
    seen: Counter[int] = Counter()
    offset = 0
    while (block := event_log.read(offset)) is not None:
        seen.update(block.records["event_key"][block.records["kind"] == Kind.EVENT].tolist())
        offset = block.last_offset
    return seen


def compare_state(path: Path, event_log: LmdbLog, plan: Plan, scratch: Path) -> tuple[int, bool]:
    """(rows, whether they are the bytes that a fold of the whole log into an empty store gives)."""
    again = LmdbState(scratch, plan, writable=True)
    fold = Fold(plan, again)
    while (block := event_log.read(fold.offset)) is not None:
        fold.apply(block)
        fold.commit(epoch=False)
    state = LmdbState(path, plan, writable=False)
    try:
        rows = list(state.dump())
        return len(rows), state.offset == again.offset and rows == list(again.dump())
    finally:
        state.close()
        again.close()


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--part", action="append", choices=PARTS, help="whom to kill (again for more) [default: all in turn]"
    )
    parser.add_argument("--batch", type=int, default=20, help="events a post")
    parser.add_argument("--acked", type=int, default=0, help="go on until so many events were acknowledged")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headwater-kill-") as folder:
        outcome = run(
            Path(folder), kills=chosen.kills, seed=chosen.seed, parts=tuple(chosen.part or PARTS), batch=chosen.batch,
            acked=chosen.acked,
        )  # fmt: skip
    sys.stdout.write(msgspec.json.encode(outcome).decode() + "\n")
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
