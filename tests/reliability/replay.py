"""Serve requests under event load, keep every feature row, and compare all of them with replayed ones.

``python -m tests.reliability.replay --requests 10000`` prints one JSON object; exit code 1 when bytes differ.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from headwater.evaluation.verify import Verification, verify
from headwater.features.plan import compile_plan
from headwater.log.lmdb import LmdbLog
from tests.online.running import Running, catalogue, publish_ranker
from tests.reliability.load import Asker, Poster

USERS, ITEMS = 300, 400


def run(folder: Path, *, requests: int, seed: int, patience_s: float) -> Verification:
    """Serve at least ``requests`` answers in ``folder`` while events come in, then verify."""
    with Running(folder) as running:
        publish_ranker(running.data, running.config, seed=seed, created_ms=1_772_000_000_000)
        running.reflected(running.ingest("/v1/items", catalogue(ITEMS)))
        until = time.monotonic() + patience_s
        while running.recommend(k=1)["model"] == "none":
            assert time.monotonic() < until, "the bundle did not come into service"
            time.sleep(0.05)
        posters = [
            Poster(running.url, f"p{n}", seed=seed + n, users=USERS, items=ITEMS, batch=10, pause_s=0.02)
            for n in range(2)
        ]
        askers = [Asker(running.url, seed=seed + n, users=USERS, k=20, pause_s=0.0) for n in range(2)]
        parts: list[Poster | Asker] = [*posters, *askers]
        for part in parts:
            part.start()
        try:
            turn = 0
            while sum(asker.answered for asker in askers) < requests:
                assert time.monotonic() < until, f"only {sum(asker.answered for asker in askers)} answers in time"
                # the catalogue changes meanwhile, and some lists are about an item
                changed = {"id": f"item-{turn % ITEMS}", "title": f"Again {turn}", "categories": [f"topic-{turn % 7}"]}
                running.ingest("/v1/items", changed)
                running.http.get(
                    f"/v1/similar/item-{(turn * 7) % ITEMS}", params={"k": 10, "user": f"user-{turn % USERS}"}
                )
                turn += 1
                time.sleep(0.02)
        finally:
            for part in parts:
                part.stop()
        assert sum(asker.failed for asker in askers) == 0
    event_log = LmdbLog(running.data / "log", readonly=True)
    try:
        return verify(event_log, compile_plan(running.config))
    finally:
        event_log.close()


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=7)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headwater-replay-") as folder:
        report = run(Path(folder), requests=chosen.requests, seed=chosen.seed, patience_s=60.0 + 0.1 * chosen.requests)
    sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    return 0 if report.mismatched_bytes == 0 and report.requests >= chosen.requests else 1


if __name__ == "__main__":
    sys.exit(main())
