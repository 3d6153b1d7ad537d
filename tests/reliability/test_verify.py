"""The verifier finds what it is there to find: a single wrong byte, under the name of its column."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from headwater.evaluation.verify import verify
from headwater.features.assemble import Context, assemble, new_scratch, stranger
from headwater.features.fold import Fold
from headwater.features.plan import compile_plan
from headwater.features.replay import fold_to
from headwater.log.batch import events_to_batch
from headwater.log.commands import ServedEntry
from headwater.log.identity import MemoryIdentity
from headwater.log.memory import MemoryLog
from headwater.log.writer import LogWriter
from headwater.schema.config import Config
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.schema.requests import Address, ServedList

CONFIG = Config()
PLAN = compile_plan(CONFIG)
NOW_MS = 1_772_000_000_000
ITEMS = [1, 2, 3]


class Recorded:
    """A log with events, and served lists whose features come from a fold of it."""

    def __init__(self) -> None:
        self.log = MemoryLog()
        self.writer = LogWriter(self.log, MemoryIdentity(), clock=lambda: NOW_MS, segment_keys=CONFIG.segments.keys)
        self.writer.put_items([Item(id=f"i{n}", title=f"about {n}", categories=["c"]) for n in range(5)])
        self.act()

    def act(self) -> None:
        events = [Event(user="u", item=f"i{n}", type="click", attributes={"country": "DE"}) for n in range(4)]
        self.writer.append_events(events_to_batch(events, CONFIG.segments.keys))

    def rows(self, user_offset: int, item_offset: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        users, items = Fold(PLAN), Fold(PLAN)
        fold_to(self.log, users, user_offset)
        fold_to(self.log, items, item_offset)
        row = stranger(PLAN)
        users.users.read(1, row)
        out = np.zeros((len(ITEMS), len(PLAN.columns)), np.float32)
        assemble(
            PLAN, row, items.items.rows, np.array(ITEMS, np.int64), Context((1, 0)), NOW_MS + 5,
            new_scratch(len(items.items.dirty), len(ITEMS), PLAN), out,
        )  # fmt: skip
        return out

    def serve(self, user_offset: int, item_offset: int, features: bytes, plan: str = PLAN.hash) -> None:
        address = Address(user_offset, item_offset, NOW_MS + 5, plan, "none")
        served = ServedList("r", "home", ITEMS, [0.0] * 3, ["popular"] * 3, 0, [], address, [1, 0, 0], features)
        self.writer.append_served([ServedEntry(1, 1, msgspec.msgpack.encode(served))])


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


def test_equal_rows_are_equal_at_any_address(recorded: Recorded) -> None:
    early = recorded.log.last_offset
    recorded.act()
    late = recorded.log.last_offset
    for user_offset, item_offset in ((early, early), (late, early), (late, late), (early, late), (late, 0)):
        recorded.serve(user_offset, item_offset, recorded.rows(user_offset, item_offset).tobytes())
    report = verify(recorded.log, PLAN)
    assert (report.requests, report.rows, report.mismatched_bytes) == (5, 15, 0)


def test_rows_of_another_moment_are_found_out(recorded: Recorded) -> None:
    early = recorded.log.last_offset
    recorded.act()
    recorded.serve(recorded.log.last_offset, early, recorded.rows(early, early).tobytes())
    report = verify(recorded.log, PLAN)
    assert report.mismatched_bytes > 0
    assert report.by_feature["user_count"] > 0
    assert report.by_feature["item_count"] == 0


def test_one_wrong_byte_is_counted_under_its_column(recorded: Recorded) -> None:
    offset = recorded.log.last_offset
    features = bytearray(recorded.rows(offset, offset).tobytes())
    column = PLAN.columns.index("item_age")
    features[(len(PLAN.columns) + column) * 4] ^= 1  # the second item's
    recorded.serve(offset, offset, bytes(features))
    report = verify(recorded.log, PLAN)
    assert report.mismatched_bytes == 1
    assert report.by_feature["item_age"] == 1


def test_what_cannot_be_compared_is_said(recorded: Recorded) -> None:
    offset = recorded.log.last_offset
    good = recorded.rows(offset, offset).tobytes()
    recorded.serve(offset, offset, b"")
    recorded.serve(offset, offset, good, plan="another")
    recorded.serve(offset, offset, good)
    recorded.serve(offset, offset, good)
    report = verify(recorded.log, PLAN, limit=1)
    assert report.requests == 1
    assert report.skipped == {"not sampled": 1, "empty list": 0, "another plan": 1, "user erased": 0}
