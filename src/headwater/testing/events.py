"""Generated logs: what people, editors and the system do, written by the real writer into a log in memory.

``script`` makes long ones from a seed; ``scripts`` are short ones that hypothesis can take apart.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec
import numpy as np
from hypothesis import strategies as st

from headwater.log.batch import TableRecord, events_to_batch
from headwater.log.commands import (
    AppendEvents,
    AppendServed,
    Command,
    DeleteItems,
    EraseUsers,
    Login,
    PutItems,
    PutProfiles,
    ServedEntry,
)
from headwater.log.dedup import DedupWindow
from headwater.log.identity import MemoryIdentity
from headwater.log.memory import MemoryLog
from headwater.log.record import RECORD, Kind, Namespace, RecordBlock
from headwater.log.staging import NewTerms, Stage
from headwater.log.writer import LogWriter
from headwater.schema.config import Config, CoVisits, EventType, Factors, Features
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.schema.segments import Segments
from headwater.schema.surfaces import Fatigue
from headwater.schema.users import UserProfile

START_MS = 1_760_000_000_000
DAY_MS = 86_400_000
COUNTRIES = ("de", "fr", "jp", "br", "in")
DEVICES = ("phone", "tv")
WORDS = ("river", "rain", "delta", "spring", "harbour", "stone", "reed", "ferry")
ZONES = ("Europe/Berlin", "Asia/Tokyo", "America/Sao_Paulo")
AUTHORS = ("ada", "ben", "cy")
TABLES = {"stock": ("left", "score"), "credit": ("score",)}  # columns by table; any table may be of users or items


@dataclass(frozen=True, slots=True)
class TableRow:
    """Values of a table for one user or one item, valid from a moment (``None``: from when it is received)."""

    entity: Literal["user", "item"]
    id: str
    table: str
    values: dict[str, float | None]
    valid_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One command at a moment; events stand as events, tried out ones with ``trial``."""

    at_ms: int
    command: Sequence[Event] | Command | TableRow
    trial: bool = False


@dataclass(slots=True)
class Written:
    """A log, and the way back from names to numbers."""

    config: Config
    log: MemoryLog = field(default_factory=MemoryLog)
    now_ms: int = 0
    identity: MemoryIdentity = field(init=False)
    writer: LogWriter = field(init=False)

    def __post_init__(self) -> None:
        self.identity = MemoryIdentity(entropy=counted_entropy())
        keys = self.config.segments.keys
        self.writer = LogWriter(self.log, self.identity, clock=lambda: self.now_ms, segment_keys=keys)

    def add(self, steps: Sequence[Step]) -> Written:
        """Append all steps, each at its moment."""
        for step in steps:
            self.now_ms = max(self.now_ms, step.at_ms)
            command = step.command
            if isinstance(command, TableRow):
                self._load(command)
                continue
            if isinstance(command, Sequence):
                command = AppendEvents(events_to_batch(command, self.config.segments.keys, trial=step.trial))
            self.writer.commit(command)
        return self

    def _load(self, row: TableRow) -> None:
        """Append a ``TABLE`` record."""
        stage = Stage(
            self.log.vocabulary(), DedupWindow(2), self.log.last_offset, self.log.last_received_ms, self.now_ms
        )
        new, records = NewTerms(self.log.vocabulary()), np.zeros(1, RECORD)
        records["kind"] = Kind.TABLE
        if row.entity == "user":
            assigned = self.identity.assign([row.id])
            records["user"], records["surrogate"] = assigned
        else:
            records["item"] = new.index(Namespace.ITEM, row.id)
        stage.others(new, records, [msgspec.msgpack.encode(TableRecord(row.table, row.values))])
        if row.valid_ms is not None:
            records["time_ms"] = row.valid_ms
        commit = stage.finish(self.identity)
        if commit is not None:
            self.log.append(commit)

    def item(self, name: str) -> int:
        """The dense number of an item, 0 when it has none."""
        return self.log.vocabulary().index(Namespace.ITEM, name)

    def items(self, *names: str) -> list[int]:
        return [self.item(name) for name in names]

    def names(self, items: Sequence[int]) -> list[str]:
        """The external ids of dense items."""
        return [self.log.vocabulary().text(Namespace.ITEM, int(item)) or f"#{item}" for item in items]

    def user(self, name: str) -> int:
        """The dense number of a user, 0 when unknown."""
        key = self.identity.lookup(name)
        return 0 if key is None else key.user

    def blocks(self, sizes: Sequence[int] = (), *, until: int | None = None) -> Iterator[RecordBlock]:
        """The log in blocks of these sizes, over and over (default: as it reads)."""
        after, end = 0, self.log.last_offset if until is None else until
        for size in itertools.cycle(sizes or (16_384,)):
            block = self.log.read(after, min(size, end - after)) if after < end else None
            if block is None:
                return
            after = block.last_offset
            yield block


def counted_entropy() -> Callable[[int], bytes]:
    """Bytes that differ on every call and are the same on every run."""
    calls = itertools.count()
    return lambda size: hashlib.shake_128(next(calls).to_bytes(8, "little")).digest(size)


def written(steps: Sequence[Step], config: Config) -> Written:
    """A log of ``steps``."""
    return Written(config).add(steps)


def configurations() -> dict[str, Config]:
    """Configurations that bring out different corners: the default, rings that overflow at once, none of the extras."""
    tight = Features(
        recent=3, seen=4, affinity=2, item_half_lives=("10m",), user_half_lives=("1h",), affinity_half_life="2h",
        segment_half_life="30m", segment_slots=4, content_size=8,
        co_visits=CoVisits(neighbours=3, depth=2, window="2h", half_life="1d"),
        factors=Factors(size=3, hidden=4, negatives=2, learning_rate=0.5, regularisation=0.1),
    )  # fmt: skip
    wide = Features(
        recent=20, seen=30, affinity=5, item_half_lives=("2d", "90s", "30m", "6h"), user_half_lives=("14d", "500ms"),
        affinity_half_life="14d", segment_half_life="6h", segment_slots=64, content_size=16,
        co_visits=CoVisits(neighbours=12, depth=30, window="500ms", half_life="60d"), factors=Factors(size=2, negatives=7),
    )  # fmt: skip
    return {
        "default": Config(),
        "tight": Config(
            features=tight,
            events=(
                EventType(name="click", positive=True, weight=1.0),
                EventType(name="view", weight=0.3, seen=True, sequence=True),
                EventType(name="hide", weight=-2.0, seen=True),
            ),
            fatigue=Fatigue(impressions=2, types=("hide",), window="10m", size=2),
        ),
        "wide": Config(
            features=wide,
            segments=Segments(keys=("device",)),
            events=(
                EventType(name="impression", seen=True),
                EventType(name="view", weight=-0.25, sequence=True),
                EventType(name="click", positive=True, weight=1.5, seen=False),
                EventType(name="like", positive=True, weight=0.7, sequence=False),
            ),
            fatigue=Fatigue(impressions=3, size=5),
        ),
        "plain": Config(
            features=Features(recent=1, seen=1, affinity=1, segment_slots=1, content_size=8,
                              co_visits=CoVisits(neighbours=1, depth=1, window="30d", half_life="1h")),
            segments=Segments(keys=()),
            events=(EventType(name="click", positive=True, weight=2.0),),
        ),
    }  # fmt: skip


TYPES = ("click", "click", "view", "impression", "like", "hide", "purchase", "rumour")  # "rumour" is configured nowhere


def script(
    seed: int, count: int, *, users: int = 12, items: int = 30, pace_ms: int = 200_000, start_ms: int = START_MS,
    tables: bool = False, trials: bool = False,
) -> list[Step]:  # fmt: skip
    """``count`` steps about ``pace_ms`` apart: late, doubled, early and retracted events, and everything else there is.

    ``tables`` puts rows of :data:`TABLES` in between, ``trials`` makes every fifth batch of events one that is tried out.
    """
    rng, more = np.random.default_rng(seed), np.random.default_rng([seed, 1])  # one for what is optional
    tried = np.random.default_rng([seed, 2])
    now_ms = start_ms
    steps: list[Step] = []
    past: list[Event] = []
    for _ in range(count):
        now_ms += int(rng.exponential(pace_ms)) if rng.random() < 0.8 else 0
        kind = rng.random()
        if kind < 0.86:
            events = [_event(rng, more, now_ms, users, items, past) for _ in range(int(rng.integers(1, 4)))]
            past.extend(events)
            steps.append(Step(now_ms, events, trials and tried.random() < 0.2))
        else:
            steps.append(Step(now_ms, _command(rng, more, kind, now_ms, users, items)))
        if tables and more.random() < 0.05:
            steps.append(Step(now_ms, _table_row(more, now_ms, users, items)))
    return steps


def _event(
    rng: np.random.Generator, more: np.random.Generator, now_ms: int, users: int, items: int, past: list[Event]
) -> Event:
    kind = rng.random()
    if past and kind < 0.06:
        one = past[int(rng.integers(max(0, len(past) - 60), len(past)))]
        return Event(user=one.user, item=one.item, type=one.type, time=one.time, value=one.value, retract=True)
    time: int | None = None
    if kind < 0.15:
        time = now_ms - int(rng.integers(0, 5_000))
    elif kind < 0.25:
        time = max(now_ms - int(rng.integers(0, 3 * DAY_MS)), 0)
    elif kind < 0.30:
        time = now_ms + int(rng.integers(0, DAY_MS))
    elif kind < 0.36 and past and past[-1].time is not None:
        time = past[-1].time
    elif kind < 0.37:
        time = int(rng.integers(0, 2))
    attributes: dict[str, str | int | float | bool] = {}
    if rng.random() < 0.5:
        attributes["country"] = str(rng.choice(COUNTRIES))
    if rng.random() < 0.3:
        attributes["device"] = str(rng.choice(DEVICES))
    return Event(
        user=f"u{rng.integers(users)}",
        item=f"i{min(int(rng.zipf(1.3)), items)}",
        type=str(rng.choice(TYPES)),
        time=time,
        value=float(np.float32(more.normal() * 10)) if more.random() < 0.5 else None,
        attributes=attributes or None,
    )


def _table_row(more: np.random.Generator, now_ms: int, users: int, items: int) -> TableRow:
    table = str(more.choice(list(TABLES)))
    return TableRow(
        entity := "user" if more.random() < 0.5 else "item",
        f"u{more.integers(users)}" if entity == "user" else f"i{more.integers(items)}",
        table,
        {column: float(more.normal()) if more.random() < 0.8 else None for column in TABLES[table]},
        now_ms - int(more.integers(-DAY_MS, 3 * DAY_MS)) if more.random() < 0.7 else None,
    )


def _command(
    rng: np.random.Generator, more: np.random.Generator, kind: float, now_ms: int, users: int, items: int
) -> Command:
    if kind < 0.94:
        return PutItems([_item(rng, more, now_ms, items) for _ in range(int(rng.integers(1, 4)))])
    if kind < 0.95:
        return DeleteItems([f"i{rng.integers(items)}"])
    if kind < 0.97:
        profile = UserProfile(
            id=f"u{rng.integers(users)}", country=str(rng.choice(COUNTRIES)),
            timezone=str(more.choice(ZONES)) if more.random() < 0.7 else None,
            birth_year=int(more.integers(1950, 2010)) if more.random() < 0.5 else None,
            attributes={"plan": str(more.choice(["free", "gold"]))} if more.random() < 0.5 else None,
        )  # fmt: skip
        return PutProfiles([profile])
    if kind < 0.98:
        return EraseUsers([f"u{rng.integers(users)}"])
    if kind < 0.995:
        anonymous, user = rng.choice(users, 2, replace=False)
        return Login(f"u{anonymous}", f"u{user}")
    return AppendServed([ServedEntry(0, 0, b"list")])


def _item(rng: np.random.Generator, more: np.random.Generator, now_ms: int, items: int) -> Item:
    published = now_ms + int(rng.integers(-DAY_MS, DAY_MS // 4)) if rng.random() < 0.5 else None
    return Item(
        id=f"i{rng.integers(items)}",
        title=" ".join(rng.choice(WORDS, int(rng.integers(0, 4)))),
        categories=[f"c{c}" for c in rng.integers(0, 6, int(rng.integers(0, 4)))],
        price=float(rng.random() * 100) if rng.random() < 0.5 else None,
        available=bool(rng.random() < 0.9),
        regions=[str(r) for r in rng.choice(COUNTRIES, int(rng.integers(0, 3)), replace=False)],
        published=published,
        expires=None if rng.random() < 0.7 else (published or now_ms) + int(rng.integers(0, 2 * DAY_MS)),
        attributes={"author": str(more.choice(AUTHORS)), "length": float(more.integers(1, 300))}
        if more.random() < 0.7
        else None,
        vector=[float(x) for x in rng.normal(size=5)] if rng.random() < 0.2 else None,
    )


def scripts(max_size: int = 25) -> st.SearchStrategy[list[Step]]:
    """Short scripts over very few users and items, times close together and from 0 on, and some far ahead."""
    few = st.sampled_from
    moment = st.integers(0, 20_000_000) | few([0, 1, 1_000, 3_600_000, 40 * DAY_MS, 500 * DAY_MS, START_MS])
    user, item = few(["u1", "u2", "anonymous"]), few(["i1", "i2", "i3", "i4", "i5"])
    number = few([0.0, -0.0, 1.0, -2.5, 0.1, 1e12, -1e12]) | st.floats(-1e6, 1e6, width=32)
    event = st.builds(
        Event, user=user, item=item, type=few(["click", "view", "like", "hide", "rumour"]), time=st.none() | moment,
        retract=few([False, False, False, True]), value=st.none() | number,
        attributes=st.none() | st.fixed_dictionaries({}, optional={"country": few(COUNTRIES), "device": few(DEVICES)}),
    )  # fmt: skip
    said = {"author": few(AUTHORS), "length": number | st.booleans() | few(["long", "ada"])}
    put = st.builds(
        Item, id=item, title=few(["", "river rain", "stone"]), categories=st.lists(few(["a", "b", "c"]), max_size=3),
        available=st.booleans(), price=st.none() | st.floats(0, 1e6, width=32), published=st.none() | moment,
        attributes=st.none() | st.fixed_dictionaries({}, optional=said),
    )  # fmt: skip
    profile = st.builds(
        UserProfile, id=user, country=st.none() | few(COUNTRIES), timezone=st.none() | few(ZONES),
        birth_year=st.none() | st.integers(1900, 2100),
        attributes=st.none() | st.fixed_dictionaries({}, optional={"plan": few(["free", "gold", ""]) | st.booleans()}),
    )  # fmt: skip
    events = st.lists(event, min_size=1, max_size=6)
    command = st.one_of(
        events,
        events,
        events,
        st.builds(PutItems, st.lists(put, min_size=1, max_size=2)),
        st.builds(DeleteItems, st.lists(item, min_size=1, max_size=1)),
        st.builds(PutProfiles, st.lists(profile, min_size=1, max_size=1)),
        st.builds(EraseUsers, st.lists(user, min_size=1, max_size=1)),
        st.just(Login("anonymous", "u1")),
        table_rows(user, item, moment, number),
    )
    return st.lists(st.builds(Step, moment, command), max_size=max_size)


def table_rows(
    user: st.SearchStrategy[str], item: st.SearchStrategy[str], moment: st.SearchStrategy[int],
    number: st.SearchStrategy[float],
) -> st.SearchStrategy[TableRow]:  # fmt: skip
    """Rows of :data:`TABLES` about these users and items."""
    columns = {column for names in TABLES.values() for column in names}
    values = st.fixed_dictionaries({}, optional=dict.fromkeys(sorted(columns), st.none() | number))
    table = st.sampled_from([*TABLES, "unread"])
    return st.builds(TableRow, st.just("user"), user, table, values, st.none() | moment) | st.builds(
        TableRow, st.just("item"), item, table, values, st.none() | moment
    )
