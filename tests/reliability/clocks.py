"""Set the clock an hour on and back while the system runs: nothing stalls, no time is negative, nothing expires wrongly (table row 10).

``python -m tests.reliability.clocks`` prints one JSON object. Every process of a real system runs on a wall clock that is shifted
by 0, +1 h, 0, −1 h, … (``faults.c``), writer and workers are killed while it stands wrong, events and requests go on.
"""

from __future__ import annotations

import argparse
import struct
import sys
import tempfile
import time
from pathlib import Path

import httpx
import msgspec
import numpy as np
from msgspec import Struct

from headwater.evaluation.verify import verify
from headwater.features.paths import state_dir
from headwater.features.plan import Plan, compile_plan
from headwater.log.batch import event_key
from headwater.log.lmdb import LmdbLog
from headwater.log.record import Kind
from headwater.schema.requests import ServedList
from tests.online.running import Running, catalogue, publish_ranker
from tests.reliability.faults import environment
from tests.reliability.kill import compare_state, keys_in
from tests.reliability.load import Asker

HOUR_MS = 3_600_000
SHIFTS_MS = (0, HOUR_MS, 0, -HOUR_MS, 0, HOUR_MS, -HOUR_MS, 0)
ITEMS, USERS = 100, 200
STALL_S = 3.0
CLOSE_MS = 5_000  # how far an answer's time may be from the clock's
NONE = -1.0  # what a time since an event is when there was none
SIGNED = ("trend", "lift", "content", "affinity", "price")  # columns that may be below zero


class Outcome(Struct, frozen=True):
    """``stall_s``: the longest time without an acknowledged batch while nobody was killed. ``wrong_times``: answers that are not of the
    clock's time. ``backwards``: records that count as received before the one in front of them. ``negative``: cells of
    served feature rows below zero, or infinite, whose columns cannot be. ``requests_failed``: those that failed twice while the one worker was killed. ``wrong_ttl``: steps at which an item that had
    expired was shown, or one that had not was not.
    """

    seed: int
    steps: int
    acked: int
    lost: int
    stall_s: float
    requests: int
    requests_failed: int
    wrong_times: int
    backwards: int
    negative: int
    negative_columns: list[str]
    rows: int
    mismatched_bytes: int
    wrong_ttl: int
    state_equal: bool

    @property
    def good(self) -> bool:
        """Whether nothing stalled, went below zero, expired wrongly, or differs from a replay."""
        wrong = (self.lost, self.wrong_times, self.backwards, self.negative, self.wrong_ttl, self.mismatched_bytes)
        return not any(wrong) and self.stall_s < STALL_S and self.state_equal and self.rows > 0


class _Events:
    """Posts a batch when asked; keeps the longest time between two acknowledgements."""

    def __init__(self, running: Running) -> None:
        self.acked: list[str] = []
        self.stall_s = 0.0
        self._http = httpx.Client(base_url=running.url, timeout=30.0)
        self._sent, self._last = 0, time.monotonic()

    def forgive(self) -> None:
        """What went by until now does not count."""
        self._last = time.monotonic()

    def close(self) -> None:
        self._http.close()

    def post(self) -> None:
        """One batch of 20."""
        names = [f"clock-{n}" for n in range(self._sent, self._sent + 20)]
        self._sent += 20
        batch = [
            {
                "user": f"user-{n * 7 % USERS}",
                "item": f"item-{(n * 13 + len(self.acked)) % ITEMS}",
                "type": "click",
                "event_id": name,
            }
            for n, name in enumerate(names)
        ]
        while self._http.post("/v1/events", json=batch).status_code != 200:
            time.sleep(0.02)
        self.stall_s = max(self.stall_s, time.monotonic() - self._last)
        self._last = time.monotonic()
        self.acked.extend(names)


def run(folder: Path, *, step_s: float, seed: int, shifts_ms: tuple[int, ...] = SHIFTS_MS) -> Outcome:
    """Serve below ``folder`` with each of ``shifts_ms`` for ``step_s`` seconds."""
    shift = folder / "shift"
    shift.write_bytes(struct.pack("<q", 0))
    wrong_times = wrong_ttl = 0
    with Running(folder, environment=environment(shift=shift)) as running:
        real_ms = time.time_ns() // 1_000_000
        half = HOUR_MS // 2
        items = [*catalogue(ITEMS), {"id": "soon", "expires": real_ms + half}, {"id": "old", "expires": real_ms - half}]
        token = running.ingest("/v1/items", items)
        running.reflected(token)
        publish_ranker(
            running.data, running.config, seed=seed, created_ms=1_772_000_000_000
        )  # its feature rows are kept
        patience = time.monotonic() + STALL_S * 20
        while running.recommend(k=1)["model"] == "none":
            assert time.monotonic() < patience, "the ranker does not come into service"
            time.sleep(0.05)
        events = _Events(running)
        asker = Asker(running.url, seed=seed, users=USERS, k=10, pause_s=0.02)
        asker.start()
        try:
            for number, shifted_ms in enumerate(shifts_ms):
                with shift.open("r+b") as file:  # in place: the processes have it mapped
                    file.write(struct.pack("<q", shifted_ms))
                if number % 2:
                    for role in ("writer", "api", "fold"):
                        pid = running.kill(role)
                        running.wait_replaced(role, pid)
                        running.wait_ready()
                    events.forgive()
                end = time.monotonic() + step_s
                while time.monotonic() < end:
                    events.post()
                    time.sleep(0.02)
                answer = running.recommend(user="nobody", k=ITEMS + 10)
                now_ms = time.time_ns() // 1_000_000 + shifted_ms
                wrong_times += abs(answer["address"]["now_ms"] - now_ms) > CLOSE_MS
                listed = {item["id"] for item in answer["items"]}
                wrong_ttl += ("soon" in listed) != (shifted_ms <= 0) or ("old" in listed) != (shifted_ms < 0)
                events.forgive()
        finally:
            asker.stop()
            events.close()
        assert running.stop() == 0
        plan = compile_plan(running.config)
    log = LmdbLog(running.data / "log", readonly=True)
    try:
        there = keys_in(log)
        backwards, rows, cells = _look(log, plan)
        report = verify(log, plan)
        _, equal = compare_state(state_dir(running.data, plan.hash), log, plan, folder / "replayed")
    finally:
        log.close()
    return Outcome(
        seed=seed, steps=len(shifts_ms), acked=len(events.acked),
        lost=sum(event_key(name) not in there for name in events.acked), stall_s=events.stall_s, requests=asker.answered,
        requests_failed=asker.failed, wrong_times=wrong_times, backwards=backwards, negative=sum(cells.values()),
        negative_columns=sorted(cells), rows=rows, mismatched_bytes=report.mismatched_bytes, wrong_ttl=wrong_ttl, state_equal=equal,
    )  # fmt: skip


def _look(log: LmdbLog, plan: Plan) -> tuple[int, int, dict[str, int]]:
    """Records that went backwards, served feature rows, and cells of them that cannot be, by column."""
    backwards, rows, last_ms, offset = 0, 0, 0, 0
    cells: dict[str, int] = {}
    decode = msgspec.msgpack.Decoder(ServedList).decode
    checked = [n for n, name in enumerate(plan.columns) if not any(word in name for word in SIGNED)]
    while (block := log.read(offset)) is not None:
        received = block.records["received_ms"]
        backwards += int((np.diff(received, prepend=last_ms) < 0).sum())
        last_ms, offset = int(received[-1]), block.last_offset
        for row in np.flatnonzero(block.records["kind"] == Kind.SERVED).tolist():
            served = decode(block.payload(row))
            if not served.features:
                continue
            matrix = np.frombuffer(served.features, np.float32).reshape(-1, len(plan.columns))
            rows += len(matrix)
            for column in checked:
                values = matrix[:, column]
                wrong = int((np.isinf(values) | ((values < 0) & (values != NONE))).sum())
                if wrong:
                    cells[plan.columns[column]] = cells.get(plan.columns[column], 0) + wrong
    return backwards, rows, cells


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step-s", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headwater-clocks-") as folder:
        outcome = run(Path(folder), step_s=given.step_s, seed=given.seed)
    sys.stdout.write(msgspec.json.encode(outcome).decode() + "\n")
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
