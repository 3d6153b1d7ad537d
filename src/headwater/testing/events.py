"""Generated logs: what people, editors and the system do, written by the real writer into a log in memory.

``script`` makes long ones from a seed; ``scripts`` are short ones that hypothesis can take apart.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

from headwater.log.batch import events_to_batch
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
from headwater.log.identity import MemoryIdentity
from headwater.log.memory import MemoryLog
from headwater.log.record import Namespace, RecordBlock
from headwater.log.writer import LogWriter
from headwater.schema.config import Config, CoVisits, EventType, Features, Segments
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.schema.users import UserProfile

START_MS = 1_760_000_000_000
DAY_MS = 86_400_000
COUNTRIES = ("de", "fr", "jp", "br", "in")
DEVICES = ("phone", "tv")
WORDS = ("river", "rain", "delta", "spring", "harbour", "stone", "reed", "ferry")


@dataclass(frozen=True, slots=True)
class Step:
    """One command at a moment; events stand as events."""

    at_ms: int
    command: Sequence[Event] | Command


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
            if isinstance(command, Sequence):
                command = AppendEvents(events_to_batch(command, self.config.segments.keys))
            self.writer.commit(command)
        return self

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
    )  # fmt: skip
    wide = Features(
        recent=20, seen=30, affinity=5, item_half_lives=("2d", "90s", "30m", "6h"), user_half_lives=("14d", "500ms"),
        affinity_half_life="14d", segment_half_life="6h", segment_slots=64, content_size=16,
        co_visits=CoVisits(neighbours=12, depth=30, window="500ms", half_life="60d"),
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
    seed: int, count: int, *, users: int = 12, items: int = 30, pace_ms: int = 200_000, start_ms: int = START_MS
) -> list[Step]:
    """``count`` steps about ``pace_ms`` apart: late, doubled, early and retracted events, and everything else there is."""
    rng = np.random.default_rng(seed)
    now_ms = start_ms
    steps: list[Step] = []
    past: list[Event] = []
    for _ in range(count):
        now_ms += int(rng.exponential(pace_ms)) if rng.random() < 0.8 else 0
        kind = rng.random()
        if kind < 0.86:
            events = [_event(rng, now_ms, users, items, past) for _ in range(int(rng.integers(1, 4)))]
            past.extend(events)
            steps.append(Step(now_ms, events))
        else:
            steps.append(Step(now_ms, _command(rng, kind, now_ms, users, items)))
    return steps


def _event(rng: np.random.Generator, now_ms: int, users: int, items: int, past: list[Event]) -> Event:
    kind = rng.random()
    if past and kind < 0.06:
        one = past[int(rng.integers(max(0, len(past) - 60), len(past)))]
        return Event(user=one.user, item=one.item, type=one.type, time=one.time, retract=True)
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
        attributes=attributes or None,
    )


def _command(rng: np.random.Generator, kind: float, now_ms: int, users: int, items: int) -> Command:
    if kind < 0.94:
        return PutItems([_item(rng, now_ms, items) for _ in range(int(rng.integers(1, 4)))])
    if kind < 0.95:
        return DeleteItems([f"i{rng.integers(items)}"])
    if kind < 0.97:
        profile = UserProfile(id=f"u{rng.integers(users)}", country=str(rng.choice(COUNTRIES)))
        return PutProfiles([profile])
    if kind < 0.98:
        return EraseUsers([f"u{rng.integers(users)}"])
    if kind < 0.995:
        anonymous, user = rng.choice(users, 2, replace=False)
        return Login(f"u{anonymous}", f"u{user}")
    return AppendServed([ServedEntry(0, 0, b"list")])


def _item(rng: np.random.Generator, now_ms: int, items: int) -> Item:
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
        vector=[float(x) for x in rng.normal(size=5)] if rng.random() < 0.2 else None,
    )


def scripts(max_size: int = 25) -> st.SearchStrategy[list[Step]]:
    """Short scripts over very few users and items, times close together and from 0 on."""
    few = st.sampled_from
    moment = st.integers(0, 20_000_000) | few([0, 1, 1_000, 3_600_000])
    user, item = few(["u1", "u2", "anonymous"]), few(["i1", "i2", "i3", "i4", "i5"])
    event = st.builds(
        Event, user=user, item=item, type=few(["click", "view", "like", "hide", "rumour"]), time=st.none() | moment,
        retract=few([False, False, False, True]),
        attributes=st.none() | st.fixed_dictionaries({}, optional={"country": few(COUNTRIES), "device": few(DEVICES)}),
    )  # fmt: skip
    put = st.builds(
        Item, id=item, title=few(["", "river rain", "stone"]), categories=st.lists(few(["a", "b", "c"]), max_size=3),
        available=st.booleans(), price=st.none() | st.floats(0, 1e6, width=32), published=st.none() | moment,
    )  # fmt: skip
    command = st.one_of(
        st.lists(event, min_size=1, max_size=6),
        st.lists(event, min_size=1, max_size=6),
        st.lists(event, min_size=1, max_size=6),
        st.builds(PutItems, st.lists(put, min_size=1, max_size=2)),
        st.builds(DeleteItems, st.lists(item, min_size=1, max_size=1)),
        st.builds(
            PutProfiles, st.lists(st.builds(UserProfile, id=user, country=few(COUNTRIES)), min_size=1, max_size=1)
        ),
        st.builds(EraseUsers, st.lists(user, min_size=1, max_size=1)),
        st.just(Login("anonymous", "u1")),
    )
    return st.lists(st.builds(Step, moment, command), max_size=max_size)
