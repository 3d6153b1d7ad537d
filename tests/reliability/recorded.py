"""The process whose disk is watched: ``python -m tests.reliability.recorded DATA JOURNAL COMMITS SEED``.

It does a random mixture of what a writer is asked to do, each command durable before the next. The journal (one JSON line a
command, written before it is done) says what it asked for; a mark in the trace says that it was acknowledged.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import msgspec
from msgspec import Struct

from headwater.log.batch import events_to_batch
from headwater.log.writer import LogWriter, open_writer
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.schema.users import UserProfile
from tests.reliability.faults import mark

MAP_SIZE = 1 << 30
WINDOW = 2_000
USERS, ITEMS = 300, 200
START_MS = 1_772_000_000_000


class Asked(Struct, frozen=True):
    """Command ``number``: ids of its events, whom it erases, whether it trims the log, its profiles."""

    number: int
    events: list[str] = []
    erased: list[str] = []
    trims: bool = False
    profiles: list[str] = []


def _ask(writer: LogWriter, draw: random.Random, number: int, note: msgspec.json.Encoder, journal: Path) -> None:
    def write_down(asked: Asked) -> None:
        with journal.open("ab") as file:
            file.write(note.encode(asked) + b"\n")

    kind = draw.choices(("events", "items", "profiles", "erase", "login", "trim"), (70, 8, 8, 5, 5, 4))[0]
    if kind == "items":
        write_down(Asked(number))
        ids = [draw.randrange(ITEMS) for _ in range(draw.randrange(1, 20))]
        writer.put_items([Item(id=f"i{n}", title="t" * draw.randrange(400), categories=[f"c{n % 9}"]) for n in ids])
    elif kind == "profiles":
        users = [f"u{draw.randrange(USERS)}" for _ in range(draw.randrange(1, 10))]
        write_down(Asked(number, profiles=users))
        writer.put_profiles([UserProfile(id=user, country="DE") for user in users])
    elif kind == "erase":
        gone = [f"once{draw.randrange(number + 1)}" for _ in range(3)]
        write_down(Asked(number, erased=gone))
        writer.erase_users(gone)
    elif kind == "login":
        write_down(Asked(number))
        writer.login(f"visit{number}", f"u{draw.randrange(USERS)}")
    elif kind == "trim":
        write_down(Asked(number, trims=True))
        writer.trim_log(writer.last_offset - draw.randrange(3_000))
    else:
        count = draw.choice((1, 3, 20, 200))
        users = [f"once{number}", *(f"u{draw.randrange(USERS)}" for _ in range(count - 1))]
        events = [
            Event(
                user=user, item=f"i{draw.randrange(ITEMS)}", type=draw.choice(("view", "click")),
                event_id=f"{number}.{n}", attributes={"note": "x" * draw.randrange(200)},
            )
            for n, user in enumerate(users)
        ]  # fmt: skip
        write_down(Asked(number, events=[event.event_id or "" for event in events]))
        writer.append_events(events_to_batch(events, ()))


def main(data: Path, journal: Path, commits: int, seed: int) -> None:
    """Do ``commits`` commands."""
    draw, note = random.Random(seed), msgspec.json.Encoder()
    with open_writer(data, clock=lambda: START_MS, dedup_window=WINDOW, map_size=MAP_SIZE) as writer:
        for number in range(commits):
            _ask(writer, draw, number, note, journal)
            mark(number)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
