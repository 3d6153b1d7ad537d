"""Duplicates, retries across restarts, shuffled and late events: what is in the state, against the slow fold.

``python -m tests.reliability.disorder --events 20000 --duplicates 0.2 --restarts 20`` prints one JSON object (table
rows 7 and 8): ``doubled`` counts events that were folded more than once, ``lost`` those that were not folded.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from headwater.features.fold import Fold
from headwater.features.plan import compile_plan
from headwater.log.archived import open_log
from headwater.log.batch import events_to_batch
from headwater.log.identity import LmdbIdentity
from headwater.log.record import Kind, Namespace
from headwater.log.writer import open_writer
from headwater.schema.config import Config
from headwater.schema.events import Event
from headwater.testing.oracle import SlowFold
from headwater.testing.oracle_rows import item_row, user_row

USERS, ITEMS, HOUR_MS = 200, 150, 3_600_000
START_MS = 1_772_000_000_000
TYPES = ("impression", "view", "click", "purchase")


class Outcome(Struct, frozen=True):
    """``sent`` posts of ``unique`` events; ``late`` of them are more than an hour old when they arrive."""

    seed: int
    unique: int
    sent: int
    late: int
    restarts: int
    duplicates_refused: int
    doubled: int
    lost: int
    rows: int
    state_equal: bool

    @property
    def good(self) -> bool:
        """Whether each event counted once and the state is the slow fold's, to the bit."""
        return self.doubled == 0 and self.lost == 0 and self.state_equal


@dataclass
class Clock:
    """A clock that is set."""

    now_ms: int

    def __call__(self) -> int:
        return self.now_ms


def run(folder: Path, *, events: int, duplicates: float, restarts: int, seed: int) -> Outcome:
    """Send ``events`` events in shuffled order, a share of them again, to a writer that starts anew ``restarts`` times."""
    rng = np.random.default_rng(seed)
    config, clock = Config(), Clock(START_MS)
    made = [
        Event(
            user=f"u{rng.integers(USERS)}", item=f"i{min(int(rng.zipf(1.3)), ITEMS)}", type=str(rng.choice(TYPES)),
            time=START_MS + 40_000 * n, event_id=f"e{n}", value=float(rng.random()),
            attributes={"country": str(rng.choice(["de", "fr"]))},
        )
        for n in range(events)
    ]  # fmt: skip
    # a third of the events stand somewhere else in line: many arrive long after what happened after them
    line = np.argsort(np.arange(events) + rng.normal(0.0, events / 4, events) * (rng.random(events) < 0.3))
    again = rng.choice(events, int(events * duplicates), replace=False)
    order = [*line.tolist()]
    for n in again.tolist():
        order.insert(int(rng.integers(len(order))), n)
    sent, late, refused = 0, 0, 0
    for part in np.array_split(np.array(order), restarts + 1):
        with open_writer(folder, clock=clock, segment_keys=config.segments.keys) as writer:
            at = 0
            while at < len(part):
                batch = [made[n] for n in part[at : at + int(rng.integers(1, 200))].tolist()]
                at += len(batch)
                clock.now_ms = max(clock.now_ms, *(event.time or 0 for event in batch)) + 1
                late += sum(clock.now_ms - (event.time or 0) > HOUR_MS for event in batch)
                ack = writer.append_events(events_to_batch(batch, config.segments.keys))
                sent, refused = sent + len(batch), refused + ack.duplicates
    return _judge(folder, config, made, Outcome(seed, events, sent, late, restarts, refused, 0, 0, 0, False))


def _judge(folder: Path, config: Config, made: list[Event], outcome: Outcome) -> Outcome:
    log, identity = open_log(folder), LmdbIdentity(folder / "identity", readonly=True)
    try:
        plan = compile_plan(config)
        fold, slow = Fold(plan, cache_users=20), SlowFold(config)
        folded: Counter[int] = Counter()
        while (block := log.read(fold.offset)) is not None:
            folded.update(block.records["event_key"][block.records["kind"] == Kind.EVENT].tolist())
            fold.apply(block)
            slow.apply(block)
        rows, equal = 0, True
        for name in dict.fromkeys(event.user for event in made):
            key = identity.lookup(name)
            user = 0 if key is None else key.user
            equal &= _same(fold.users.user(user), user_row(plan, slow, user))
            rows += 1
        for item in range(fold.items.count):
            table = fold.items.rows
            equal &= _same((table.i8[item], table.f4[item], table.u4[item]), item_row(plan, slow, item))
            rows += 1
        assert log.vocabulary().size(Namespace.ITEM) + 1 == fold.items.count
        return msgspec.structs.replace(
            outcome, doubled=sum(count > 1 for count in folded.values()), lost=len(made) - len(folded), rows=rows,
            state_equal=equal,
        )  # fmt: skip
    finally:
        identity.close()
        log.close()


def _same(ours: tuple[npt.NDArray[np.generic], ...], theirs: tuple[npt.NDArray[np.generic], ...]) -> bool:
    return all(a.tobytes() == b.tobytes() for a, b in zip(ours, theirs, strict=True))


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--duplicates", type=float, default=0.2)
    parser.add_argument("--restarts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=7)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headwater-disorder-") as folder:
        outcome = run(
            Path(folder), events=chosen.events, duplicates=chosen.duplicates, restarts=chosen.restarts,
            seed=chosen.seed,
        )  # fmt: skip
    sys.stdout.write(msgspec.json.encode(outcome).decode() + "\n")
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
