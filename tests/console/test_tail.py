"""Looking back in the log: what is found of users and items, how far was looked, and the way on."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import pytest

from headwater.console import tail
from headwater.console.tail import LookBack, active_users, counted, item_past, user_past, user_profile
from headwater.log.batch import events_to_batch
from headwater.log.commands import ExposureEntry
from headwater.log.identity import MemoryIdentity, UserKey
from headwater.log.memory import MemoryLog
from headwater.log.record import Namespace
from headwater.log.writer import LogWriter
from headwater.schema.events import Event
from headwater.schema.experiments import ExposureRecord
from headwater.schema.items import Item
from headwater.schema.requests import Address
from headwater.schema.users import UserProfile
from tests.evaluation.served import entry

ADDRESS = Address(0, 0, 0, "plan", "bundle-1")
FOREVER_S = 1e9


class Written:
    """A log in memory; each call comes in a second after the one before."""

    def __init__(self) -> None:
        self.log, self.identity, self.now_ms = MemoryLog(), MemoryIdentity(), 10_000
        self.writer = LogWriter(self.log, self.identity, clock=self._clock, dedup_window=9, segment_keys=("country",))
        self._served = itertools.count()

    def event(self, user: str, item: str, kind: str = "click", **more: object) -> None:
        event = msgspec.convert({"user": user, "item": item, "type": kind, **more}, Event)
        self.writer.append_events(events_to_batch([event], ("country",)))

    def serve(self, user: str, items: list[str]) -> str:
        request, key = f"{next(self._served):032x}", self.key(user)
        numbers = [self.item(item) for item in items]
        given = entry(key.user, numbers, ADDRESS, [0, 0, 0, 0], b"", request=request)
        self.writer.append_served([msgspec.structs.replace(given, surrogate=key.surrogate)])
        return request

    def key(self, user: str) -> UserKey:
        found = self.identity.lookup(user)
        assert found is not None
        return found

    def item(self, item: str) -> int:
        return self.log.vocabulary().index(Namespace.ITEM, item)

    def _clock(self) -> int:
        self.now_ms += 1_000
        return self.now_ms


@pytest.fixture
def at() -> Written:
    return Written()


def test_an_empty_log_is_looked_at_whole_and_holds_nothing(at: Written) -> None:
    past = user_past(at.log, 1)
    assert (past.events, past.lists, past.looked.whole, past.looked.since_ms) == ([], [], True, 0)
    assert active_users(at.log)[0] == []
    assert item_past(at.log, 1).shown == 0
    assert user_profile(at.log, 1).profile is None


def test_what_a_user_did_and_got_is_told_in_words_newest_first(at: Written) -> None:
    at.event("ann", "a", "view", surface="home")
    at.event("bob", "b")
    request = at.serve("ann", ["b", "a"])
    at.event("ann", "b", "purchase", value=2.5, request_id=request)
    at.event("ann", "b", "purchase", retract=True)
    ann = at.key("ann")
    record = msgspec.msgpack.encode(ExposureRecord("width", "wide", "v1", request))
    at.writer.append_exposures([ExposureEntry(*ann, "", record)])
    past = user_past(at.log, ann.user)
    told = [
        (event.type, event.item, event.surface, event.value, event.retracts, event.request_id) for event in past.events
    ]
    assert told == [
        ("purchase", "b", "", None, True, None),
        ("purchase", "b", "", 2.5, False, request),
        ("view", "a", "home", None, False, None),
    ]
    (served,) = past.lists
    assert (served.request_id, served.items, served.bundle, served.surface) == (request, 2, "bundle-1", "home")
    assert list(past.variants) == [("width", "wide")]
    assert past.looked.whole


def test_a_page_ends_when_it_is_full_and_the_next_begins_there(at: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "PAGE", 4)
    monkeypatch.setattr(tail, "_SMALL", 3)
    for number in range(11):
        at.event("ann", f"item-{number}")
        at.event("bob", "x")
    seen, before = [], None
    for _ in range(4):
        past = user_past(at.log, at.key("ann").user, before, FOREVER_S)
        seen.append([event.item for event in past.events])
        if past.looked.whole:
            break
        assert past.looked.since_ms > 0
        before = past.looked.offset + 1
    assert [len(page) for page in seen] == [4, 4, 3]
    assert [item for page in seen for item in page] == [f"item-{number}" for number in range(10, -1, -1)]


def test_time_is_up_and_the_page_says_how_far_it_came(at: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "_SMALL", 2)
    monkeypatch.setattr(tail, "_LARGE", 2)
    for number in range(20):
        at.event("ann", f"item-{number}")
    ticks = itertools.count()
    looked = LookBack(at.log, None, 3.0, timer=lambda: float(next(ticks)))
    records = np.concatenate([block.records["offset"] for block in looked])
    assert not looked.whole
    assert sorted(records.tolist()) == list(range(looked.offset + 1, at.log.last_offset + 1))
    more = LookBack(at.log, looked.offset + 1, FOREVER_S)
    rest = np.concatenate([block.records["offset"] for block in more])
    assert more.whole
    assert sorted(rest.tolist()) == list(range(1, looked.offset + 1))


def test_retention_may_come_by_while_one_looks(at: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "_SMALL", 3)
    monkeypatch.setattr(tail, "_LARGE", 100)
    for number in range(20):
        at.event("ann", f"item-{number}")
    looked = LookBack(at.log, None, FOREVER_S)
    seen = []
    for block in looked:
        seen += block.records["offset"].tolist()
        at.log.trim(12)
    assert at.log.first_offset > 1
    assert looked.whole
    assert sorted(seen) == list(range(at.log.first_offset, at.log.last_offset + 1))


def test_the_latest_profile_is_found_sealed(at: Written) -> None:
    for country in ("DE", "FR"):
        at.writer.put_profiles([UserProfile(id="ann", country=country)])
        at.event("ann", "a")
    ann = at.key("ann")
    found = user_profile(at.log, ann.user)
    assert found.profile is not None
    assert b"FR" not in found.profile
    plain = at.identity.decrypt(ann.user, found.profile)
    assert plain is not None
    assert msgspec.msgpack.decode(plain, type=UserProfile).country == "FR"
    older = user_profile(at.log, ann.user, found.looked.offset + 1)
    assert older.looked.whole  # the block that held it was looked at as a whole


def test_users_who_were_active_last_come_first(at: Written) -> None:
    for user, times in (("ann", 3), ("bob", 1), ("eve", 2)):
        for _ in range(times):
            at.event(user, "a")
    at.serve("bob", ["a"])
    found, numbers, looked = active_users(at.log)
    named = {at.key(user).surrogate: user for user in ("ann", "bob", "eve")}
    assert [(named[each.surrogate], each.events, each.lists) for each in found] == [
        ("bob", 1, 1),
        ("eve", 2, 0),
        ("ann", 3, 0),
    ]
    assert numbers == [at.key(named[each.surrogate]).user for each in found]
    assert looked.whole
    assert [each.last_ms for each in found] == sorted((each.last_ms for each in found), reverse=True)


def test_impressions_and_events_of_an_item(at: Written) -> None:
    at.writer.put_items([Item(id=f"item-{number}") for number in range(300)])
    at.event("ann", "item-200", "view")
    at.event("ann", "item-200")
    at.event("ann", "item-1")
    at.serve("ann", ["item-1", "item-200"])
    at.serve("ann", ["item-200"])
    at.serve("ann", ["item-2"])
    past = item_past(at.log, at.item("item-200"))
    assert sorted(past.places) == [1, 2]
    assert past.sources == {"popular": 2}
    assert {name: len(times) for name, times in past.events_ms.items()} == {"view": 1, "click": 1}
    assert past.until_ms == at.log.last_received_ms
    assert item_past(at.log, at.item("item-299")).shown == 0


def test_times_are_counted_between_edges_and_the_ends_take_the_rest() -> None:
    edges = np.array([0, 10, 20, 30])
    assert counted([-5, 0, 9, 10, 29, 30, 99], edges) == [3, 1, 3]
    assert counted([], edges) == [0, 0, 0]
