"""A small site in a data directory: every kind of record, through the real writer; and what its log folds to."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from headwater.features.fold import Fold
from headwater.features.plan import compile_plan
from headwater.features.replay import fold_to
from headwater.features.state import LmdbState
from headwater.log.batch import events_to_batch
from headwater.log.commands import ServedEntry
from headwater.log.protocol import EventLog, ImportRange
from headwater.log.record import RecordBlock
from headwater.log.writer import LogWriter, open_writer
from headwater.schema.config import Config
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.schema.users import UserProfile

MAP = 1 << 30
DAY_MS = 86_400_000
START_MS = 1_760_000_000_000
WINDOW = 100  # of event ids
CONFIG = Config()
KEYS = CONFIG.segments.keys


class Clock:
    """Stands where it is put."""

    def __init__(self, now_ms: int = START_MS) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


def writer_of(data: Path, clock: Clock) -> LogWriter:
    """The writer of a data directory."""
    return open_writer(data, clock=clock, segment_keys=KEYS, map_size=MAP, dedup_window=WINDOW)


def user(number: int) -> str:
    """An external id that no other text holds by chance."""
    return f"person-{number:05d}@example.org"


def fill(writer: LogWriter, clock: Clock, *, commits: int, seed: int, users: int = 20, step_ms: int = 600_000) -> None:
    """About eight records a commit, of every kind, as they come on a site."""
    rng = np.random.default_rng(seed)
    start = writer.last_offset
    for n in range(commits):
        clock.now_ms += step_ms
        who = [user(int(u)) for u in rng.integers(0, users, 6)]
        events = [
            Event(
                user=u,
                item=f"i{rng.integers(0, 30)}",
                type=["view", "click", "skip", "purchase"][int(rng.integers(0, 4))],
                event_id=f"{seed}.{start}.{n}.{k}" if k % 2 else None,
                value=float(rng.normal()) if k % 3 else None,
                surface="home",
                request_id=f"r{n}",
                attributes={"country": "de", "device": "tv"} if k % 2 else None,
                retract=bool(rng.random() < 0.05),
            )
            for k, u in enumerate(who)
        ]
        match n % 7:
            case 0:
                item = int(rng.integers(0, 30))
                writer.put_items([Item(id=f"i{item}", title=f"No {item}", categories=[f"c{item % 4}"], tags=["t"])])
            case 1:
                writer.put_profiles(
                    [UserProfile(id=who[0], country="de", attributes={"age": int(rng.integers(9, 99))})]
                )
            case 2:
                batch = events_to_batch(events, KEYS, received_from_time=True)
                writer.append_import(batch, ImportRange(f"file-{seed}", start + 10 * n, start + 10 * n + 6, "m"))
                continue
            case 3:
                writer.append_served([ServedEntry(0, 0, rng.bytes(int(rng.integers(0, 200))))])
            case 4:
                writer.login(f"visit-{seed}-{n}", who[1])
            case 5 if n % 35 == 5:
                writer.erase_users([who[2]])
            case 6 if n % 21 == 6:
                writer.delete_items([f"i{int(rng.integers(0, 30))}"])
        writer.append_events(events_to_batch(events, KEYS))


def records_of(log: EventLog, after: int = 0, limit: int = 10_000) -> list[tuple[bytes, bytes]]:
    """Every record: its header's bytes (as a block of ``limit`` has them) and its payload."""
    found: list[tuple[bytes, bytes]] = []
    while (block := log.read(after, limit)) is not None:
        found += rows_of(block)
        after = block.last_offset
    return found


def rows_of(block: RecordBlock) -> list[tuple[bytes, bytes]]:
    """Header without the place in a heap, and payload, of each record."""
    records = block.records.copy()
    records["payload_at"] = 0
    return [(records[k : k + 1].tobytes(), block.payload(k)) for k in range(len(records))]


def folded(log: EventLog, folder: Path, until: int | None = None) -> list[tuple[str, int, bytes]]:
    """Every row of the state that the log folds to, up to ``until``, as it is stored."""
    plan = compile_plan(CONFIG)
    state = LmdbState(folder, plan, writable=True, log_id=log.log_id)
    try:
        fold = Fold(plan, state)
        fold_to(log, fold, log.last_offset if until is None else until)
        fold.commit(epoch=True)
        return [*state.dump(), ("meta", state.meta().offset, repr(state.meta()).encode())]
    finally:
        state.close()
