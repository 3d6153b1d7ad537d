"""A tenth of the events that arrive is malformed: the others are all kept, and the sums are exact (table row 9).

``python -m tests.reliability.malformed --events 100000`` prints one JSON object.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
from msgspec import Struct

from headwater.cli.bench.measure import Metrics
from headwater.log.batch import event_key
from headwater.log.lmdb import LmdbLog
from tests.online.running import Running, catalogue
from tests.reliability.kill import keys_in

USERS, ITEMS = 300, 100
Entry = Any

# What is done to a good event, by the field that the answer must name ("$": the entry as a whole).
SPOILS: dict[str, tuple[str, Callable[[dict[str, Entry]], Entry]]] = {
    "no user": ("user", lambda event: {k: v for k, v in event.items() if k != "user"}),
    "no item": ("item", lambda event: {k: v for k, v in event.items() if k != "item"}),
    "empty user": ("user", lambda event: event | {"user": ""}),
    "long user": ("user", lambda event: event | {"user": "u" * 129}),
    "number as user": ("user", lambda event: event | {"user": 7}),
    "unknown type": ("type", lambda event: event | {"type": "clik"}),
    "type of odd letters": ("type", lambda event: event | {"type": "cl ick"}),
    "unknown field": ("usr", lambda event: event | {"usr": "x"}),
    "time as text": ("time", lambda event: event | {"time": "now"}),
    "negative time": ("time", lambda event: event | {"time": -1}),
    "time of another age": ("time", lambda event: event | {"time": 10**17}),
    "value as text": ("value", lambda event: event | {"value": "9"}),
    "huge value": ("value", lambda event: event | {"value": 1e300}),
    "position below zero": ("position", lambda event: event | {"position": -1}),
    "retract as number": ("retract", lambda event: event | {"retract": 1}),
    "attributes as list": ("attributes", lambda event: event | {"attributes": ["a"]}),
    "nested attribute": ("attributes[...]", lambda event: event | {"attributes": {"a": {"b": 1}}}),
    "too many attributes": ("$", lambda event: event | {"attributes": {f"a{n}": n for n in range(33)}}),
    "long attribute": ("$", lambda event: event | {"attributes": {"a": "x" * 513}}),
    "a list": ("$", lambda event: [event]),
    "a text": ("$", lambda event: str(event)),
    "null": ("$", lambda event: event.get("nothing")),
}


class Outcome(Struct, frozen=True):
    """``unsaid``: malformed events that an answer did not name, or not by the field; ``miscounted``: answers whose figures don't
    add up; ``metrics_off``: by how much the counters differ from what was sent.
    """

    seed: int
    batches: int
    sent: int
    malformed: int
    accepted: int
    rejected: int
    lost: int
    slipped_in: int
    unsaid: int
    miscounted: int
    metrics_off: int
    wrong: list[str]

    @property
    def good(self) -> bool:
        """Whether every valid event was kept, no other one was, and every sum is exact."""
        return not (self.lost or self.slipped_in or self.unsaid or self.miscounted or self.metrics_off)


def _counted(http: httpx.Client) -> dict[str, float]:
    samples = Metrics(http.get("/metrics").text).samples
    found: dict[str, float] = {}
    for (name, labels), value in samples.items():
        given = dict(labels)
        if name == "headwater_ingested_total" and given["kind"] == "event":
            found[given["outcome"]] = found.get(given["outcome"], 0.0) + value
    return found


def send(url: str, data: Path, *, events: int, share: float, seed: int) -> Outcome:
    """Post about ``events`` events, ``share`` of them malformed, to the server at ``url`` whose log is below ``data``."""
    draw = random.Random(seed)
    sent = malformed = accepted = rejected = batches = unsaid = miscounted = 0
    valid, spoiled, wrong = list[str](), list[str](), set[str]()
    with httpx.Client(base_url=url, timeout=30.0) as http:
        before = _counted(http)
        while sent < events:
            batch: list[Entry] = []
            bad: dict[int, tuple[str, str]] = {}
            for index in range(draw.choice((1, 3, 20, 200))):
                name = f"m{seed}-{sent + index}"
                event = {
                    "user": f"user-{draw.randrange(USERS)}", "item": f"item-{draw.randrange(ITEMS)}", "type": "click",
                    "event_id": name, "value": draw.random(),
                }  # fmt: skip
                if draw.random() < share:
                    kind = draw.choice(list(SPOILS))
                    field, spoil = SPOILS[kind]
                    batch.append(spoil(event))
                    bad[index] = (kind, field)
                    spoiled.append(name)
                else:
                    batch.append(event)
                    valid.append(name)
            reply = http.post("/v1/events", json=batch)
            answer = reply.json()
            told = {entry["index"]: entry["field"] for entry in answer.get("rejected", [])}
            for index, (kind, field) in bad.items():
                if told.get(index) != field:
                    unsaid += 1
                    wrong.add(f"{kind}: {told.get(index)!r} and not {field!r}")
            kept = answer.get("accepted", 0)
            all_bad = len(bad) == len(batch)
            miscounted += reply.status_code != (400 if all_bad else 200) or kept != len(batch) - len(bad)
            miscounted += set(told) != set(bad)
            batches, sent, malformed = batches + 1, sent + len(batch), malformed + len(bad)
            accepted, rejected = accepted + kept, rejected + len(told)
        after = _counted(http)
    rise = {outcome: int(after.get(outcome, 0.0) - before.get(outcome, 0.0)) for outcome in after}
    log = LmdbLog(data / "log", readonly=True)
    try:
        there = keys_in(log)
    finally:
        log.close()
    return Outcome(
        seed=seed, batches=batches, sent=sent, malformed=malformed, accepted=accepted, rejected=rejected,
        lost=sum(there[event_key(name)] != 1 for name in valid), slipped_in=sum(event_key(name) in there for name in spoiled),
        unsaid=unsaid, miscounted=miscounted, wrong=sorted(wrong),
        metrics_off=abs(rise.get("accepted", 0) - len(valid)) + abs(rise.get("rejected", 0) - malformed) + rise.get("duplicate", 0),
    )  # fmt: skip


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headwater-malformed-") as folder, Running(Path(folder)) as running:
        running.ingest("/v1/items", catalogue(ITEMS))
        outcome = send(running.url, running.data, events=given.events, share=given.share, seed=given.seed)
        assert running.stop() == 0
    sys.stdout.write(msgspec.json.encode(outcome).decode() + "\n")
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
