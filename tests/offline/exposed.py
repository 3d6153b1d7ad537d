"""A site that shows lists and is clicked on, as a log: late, doubled and retracted events, strangers, odd lists."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from headwater.log.commands import AppendServed, PutItems, ServedEntry
from headwater.log.memory import MemoryLog
from headwater.log.protocol import Commit, Term
from headwater.log.record import Namespace
from headwater.schema.config import Config, Label, Training
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.schema.requests import Address, ServedList
from headwater.testing.events import START_MS, Step, Written

MINUTE = 60_000
CONFIG = Config(
    training=Training(
        watermark="5m",
        labels=(
            Label(name="click", window="20m"),
            Label(name="engaged", types=("click", "like", "purchase"), window="1h"),
        ),
    )
)
ITEMS = 15


def site(seed: int, requests: int, *, users: int = 6, pace_ms: int = 90_000) -> Written:
    """A log of about ``requests`` lists, each recorded as served and as impressions, and what followed them."""
    rng = np.random.default_rng(seed)
    log = Written(CONFIG)
    now_ms = START_MS
    log.add([Step(now_ms, PutItems([Item(id=f"i{i}", categories=[f"c{i % 3}"]) for i in range(ITEMS)]))])
    waiting: list[tuple[int, Event]] = []  # events, and when they arrive
    for r in range(requests):
        now_ms += int(rng.exponential(pace_ms))
        for event in [event for at, event in waiting if at <= now_ms]:
            log.add([Step(now_ms, [event])])
        waiting = [(at, event) for at, event in waiting if at > now_ms]
        user, request = f"u{rng.integers(users)}", f"request-{r}"
        items = [f"i{i}" for i in rng.choice(ITEMS, 4, replace=False)]
        entry = served_entry(log, user if rng.random() < 0.8 else None, request, items, now_ms)
        copies = 2 if rng.random() < 0.1 else 1
        log.add([Step(now_ms + 5, AppendServed([entry]))] * copies)
        for position, item in enumerate(items):
            if rng.random() < 0.7:
                shown_ms = now_ms + 50
                named = rng.random() < 0.7
                impression = Event(
                    user=user, item=item, type="impression", time=shown_ms, surface="home",
                    request_id=request if named else None, position=position if named else None,
                    attributes={"country": "de"} if rng.random() < 0.5 else None,
                )  # fmt: skip
                waiting.append((now_ms + int(rng.choice([60, 20_000, 4 * MINUTE, 40 * MINUTE])), impression))
            if rng.random() < 0.35:
                kind = str(rng.choice(["click", "like", "purchase", "view"]))
                acted_ms = now_ms + int(rng.choice([50, 5_000, 19 * MINUTE, 50 * MINUTE, 90 * MINUTE]))
                value = float(rng.integers(1, 9)) if rng.random() < 0.5 else None
                named = rng.random() < 0.6
                act = Event(
                    user=user, item=item, type=kind, time=acted_ms, value=value, request_id=request if named else None
                )
                late = int(rng.choice([10, 10, 3 * MINUTE, 70 * MINUTE]))
                waiting.append((acted_ms + late, act))
                if rng.random() < 0.3:
                    taken_back = msgspec.structs.replace(act, retract=True, value=None)
                    waiting.append((acted_ms + late + int(rng.choice([1_000, 10 * MINUTE])), taken_back))
                if rng.random() < 0.2:
                    waiting.append((acted_ms + late, act))
        waiting.sort(key=lambda one: one[0])
    return log


def served_entry(
    log: Written, user: str | None, request: str, items: Sequence[str], now_ms: int, anchor: str = ""
) -> ServedEntry:
    """A list as the server would record it, assembled at the end of the log."""
    offset = log.log.last_offset
    served = ServedList(
        request_id=request, surface="home", items=[log.item(name) for name in items],
        scores=[1.0 / (1 + position) for position in range(len(items))], sources=["popular"] * len(items), tier=0,
        reasons=[], address=Address(offset, max(offset - 3, 0), now_ms, "plan", "bundle"),
        context=[0, 0, log.item(anchor) if anchor else 0], features=b"",
    )  # fmt: skip
    dense = 0 if user is None else log.user(user)
    return ServedEntry(dense, dense, msgspec.msgpack.encode(served))


def cut(log: Written, until: int) -> MemoryLog:
    """The log as it stood at ``until``."""
    part = MemoryLog()
    grow(part, log, until)
    return part


def grow(part: MemoryLog, log: Written, until: int) -> None:
    """Append what ``log`` holds behind the end of ``part``, up to ``until``."""
    vocabulary = log.log.vocabulary()
    known = part.vocabulary()
    terms = [
        Term(n, i, text) for n in Namespace for i, text in enumerate(vocabulary.texts(n)) if i and i > known.size(n)
    ]
    while part.last_offset < until:
        block = log.log.read(part.last_offset, until - part.last_offset)
        assert block is not None
        part.append(Commit(block, terms))
        terms = []
