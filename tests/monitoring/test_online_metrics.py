"""Online metrics against a slow oracle that has the whole log in its hands."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from headwater.evaluation.closed_loop import figures as closed_loop
from headwater.log.batch import events_to_batch
from headwater.log.commands import ServedEntry
from headwater.log.identity import MemoryIdentity
from headwater.log.memory import MemoryLog
from headwater.log.writer import LogWriter
from headwater.monitoring import online_metrics
from headwater.monitoring.behind import BEHIND, is_behind
from headwater.monitoring.exposure import coverage, first_new_item, gini, new_share, popularity_lift
from headwater.monitoring.gauges import Gauges
from headwater.monitoring.online_metrics import METRICS, SETTLE_MS, OnlineMetrics
from headwater.monitoring.samples import Sample, sample
from headwater.monitoring.scrape import Scrape
from headwater.monitoring.windows import SlidingSums
from headwater.schema.config import Config, parse_config
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.schema.requests import Address, ServedList

START_MS = 1_772_000_000_000
ATTRIBUTION_MS, WINDOW_MS = 60_000, 600_000
CONFIG = parse_config(
    '[monitoring.online]\nwindow = "10m"\nattribution = "1m"\ndwell = "view"\nnew_for = "5m"\nopen_lists = 50_000\n'
)
WEIGHTS = {kind.name: kind.weight for kind in Config().events}


class Given(NamedTuple):
    """A list and what it is grouped by."""

    user: str
    at_ms: int
    surface: str
    items: list[int]
    bundle: str
    variant: str


class World:
    """A log that is written step by step, on a clock of its own."""

    def __init__(self, items: int = 30, users: int = 12) -> None:
        self.now_ms = START_MS
        self.log = MemoryLog()
        self.identity = MemoryIdentity()
        self.writer = LogWriter(self.log, self.identity, clock=lambda: self.now_ms, segment_keys=("country",))
        self.writer.put_items([Item(id=f"i{n}", categories=["c"]) for n in range(1, items + 1)])
        self.users = [f"u{n}" for n in range(users)]
        self.do([Event(user=user, item="i1", type="skip") for user in self.users])
        self.given: list[Given] = []
        self.events: list[Event] = []

    def do(self, events: list[Event]) -> None:
        self.writer.append_events(events_to_batch(events, ("country",)))

    def give(self, given: Given, request_id: str) -> None:
        key = self.identity.lookup(given.user)
        payload = msgspec.msgpack.encode(
            ServedList(
                request_id=request_id, surface=given.surface, items=given.items, scores=[0.0] * len(given.items),
                sources=["popular"] * len(given.items), tier=0, reasons=[], features=b"x" * 100, context=[0, 0, 0, 0],
                address=Address(0, 0, given.at_ms, "plan", given.bundle), experiments={"test": given.variant},
            )
        )  # fmt: skip
        user, surrogate = (0, 0) if key is None else (key.user, key.surrogate)
        self.writer.append_served([ServedEntry(user, surrogate, payload)])
        self.given.append(given)


def lived(seed: int = 3, minutes: int = 20) -> World:
    """A while in which lists are given and things are done with them, not always with what was listed last."""
    rng, world = np.random.default_rng(seed), World()
    until_ms = START_MS + minutes * 60_000
    number = 0
    while world.now_ms < until_ms:
        world.now_ms += int(rng.integers(200, 4_000))
        user = str(rng.choice([*world.users, "nobody"]))
        if rng.random() < 0.4 or user == "nobody":
            items = (1 + rng.permutation(30)[:5]).tolist()
            surface = str(rng.choice(["home", "cart"]))
            at_ms = world.now_ms - int(rng.integers(0, 80))
            world.give(
                Given(user, at_ms, surface, items, f"b{at_ms % 2}", str(rng.choice(["control", "new"]))), f"r{number}"
            )
            number += 1
        else:
            item, kind = (
                int(rng.integers(1, 31)),
                str(rng.choice(["click", "purchase", "view", "skip", "hide", "impression"])),
            )
            value = float(rng.integers(1, 100)) if kind in ("purchase", "view") else None
            event = Event(user=user, item=f"i{item}", type=kind, time=world.now_ms, value=value)
            world.do([event])
            world.events.append(event)
    return world


def expected(world: World, now_ms: int) -> dict[tuple[str, str, str], dict[str, float]]:
    """Every group's figures, event by event and list by list."""
    outcomes: dict[int, list[Event]] = {}
    for event in world.events:
        assert event.time is not None
        item = int(event.item[1:])
        best = -1
        for at, given in enumerate(world.given):
            shows = given.user == event.user and item in given.items and 0 <= event.time - given.at_ms < ATTRIBUTION_MS
            if shows and (best < 0 or given.at_ms >= world.given[best].at_ms):
                best = at
        if best >= 0:
            outcomes.setdefault(best, []).append(event)
    step_ms = WINDOW_MS // 12
    first = (now_ms // step_ms - 11) * step_ms
    groups: dict[tuple[str, str, str], list[int]] = {}
    for at, given in enumerate(world.given):
        over_ms = given.at_ms + ATTRIBUTION_MS
        if given.user == "nobody" or over_ms > now_ms - SETTLE_MS or over_ms < first:
            continue
        for by, name in (("all", ""), ("bundle", given.bundle), ("variant", f"test/{given.variant}")):
            groups.setdefault((given.surface, by, name), []).append(at)
    found = {}
    for key, lists in groups.items():
        n = len(lists)
        done = [outcomes.get(at, []) for at in lists]
        dwelt = [event.value or 0.0 for one in done for event in one if event.type == "view"]
        found[key] = {
            "lists": n,
            "ctr": sum(len({event.item for event in one if event.type == "click"}) for one in done) / (5 * n),
            "conversion": sum(any(event.type == "purchase" for event in one) for one in done) / n,
            "value": sum(event.value or 0.0 for one in done for event in one if event.type == "purchase") / n,
            "satisfaction": sum(WEIGHTS[event.type] for one in done for event in one) / n,
        } | ({"dwell": sum(dwelt) / len(dwelt)} if dwelt else {})
    return found


def grouped(samples: list[Sample]) -> dict[tuple[str, str, str], dict[str, float]]:
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for name, labels, value in samples:
        said = dict(labels)
        if "group" in said and "surface" in said:
            key = said["surface"], said["by"], said["group"]
            found.setdefault(key, {})[name.removeprefix("headwater_online_")] = value
    return found


def single(samples: list[Sample], name: str, **labels: str) -> float:
    (value,) = [one.value for one in samples if one.name == f"headwater_online_{name}" and dict(one.labels) == labels]
    return value


def test_figures_are_those_of_the_oracle_whenever_it_looks() -> None:
    world = lived()
    once = OnlineMetrics(world.log, CONFIG)
    assert grouped(list(once.look(world.now_ms))) == {
        key: pytest.approx(figures) for key, figures in expected(world, world.now_ms).items()
    }
    later_ms = world.now_ms + 120_000  # nothing more comes: the lists that were open are judged all the same
    assert grouped(list(once.look(later_ms))) == {
        key: pytest.approx(figures) for key, figures in expected(world, later_ms).items()
    }


def test_looking_often_gives_what_looking_once_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online_metrics, "READ_LIMIT", 16)
    monkeypatch.setattr(online_metrics, "MOST_RECORDS", 16)
    world = lived(seed=4, minutes=12)
    often = OnlineMetrics(world.log, CONFIG)
    for _ in range(100):
        samples = list(often.look(world.now_ms))
        if single(samples, "lag_records") == 0.0:
            break
        if is_behind(samples[0]):  # nothing of then as if it were of now
            assert [one.name for one in samples] == [BEHIND, "headwater_online_lag_records"]
    assert samples[0] == sample(BEHIND, 0.0, watch="online")
    assert grouped(samples) == {key: pytest.approx(figures) for key, figures in expected(world, world.now_ms).items()}


def test_what_is_shown() -> None:
    world = lived()
    samples = list(OnlineMetrics(world.log, CONFIG).look(world.now_ms))
    first = world.now_ms // 50_000 - 11
    shown = Counter(
        i for given in world.given if given.surface == "home" and given.at_ms // 50_000 >= first for i in given.items
    )
    counts = np.array([shown.get(item, 0) for item in range(1, 31)])
    assert single(samples, "coverage", surface="home") == pytest.approx((counts > 0).mean())
    assert single(samples, "new_item_share", surface="home") == 0.0, "all items came twenty minutes ago"
    sessions = single(samples, "sessions", by="all", group="")
    assert sessions > 0.0
    assert single(samples, "users_share") == 1.0
    world.writer.put_items([Item(id="young", categories=["c"])])
    world.give(Given("u1", world.now_ms, "cart", [31], "b0", "control"), "young")
    world.now_ms += 60_000
    samples = list(OnlineMetrics(world.log, CONFIG).look(world.now_ms))
    places = sum(
        len(g.items) for g in world.given if g.surface == "cart" and g.at_ms // 50_000 >= world.now_ms // 50_000 - 11
    )
    assert single(samples, "new_item_share", surface="cart") == pytest.approx(1 / places)


def test_with_too_many_lists_fewer_users_are_looked_at() -> None:
    config = parse_config('[monitoring.online]\nattribution = "1h"\nopen_lists = 100\n')
    world = World(users=400)
    for number, user in enumerate(world.users):
        world.give(Given(user, world.now_ms, "home", [1, 2, 3], "b", "control"), f"r{number}")
    watch = OnlineMetrics(world.log, config)
    share = single(list(watch.look(world.now_ms)), "users_share")
    assert share < 1.0
    assert single(list(watch.look(world.now_ms + 2 * 3_600_000)), "users_share") == share * 2.0


def test_a_list_that_was_recorded_twice_counts_once() -> None:
    world = World()
    for _ in range(2):
        world.give(Given("u1", world.now_ms, "home", [1, 2, 3], "b", "control"), "same")
    world.now_ms += ATTRIBUTION_MS + SETTLE_MS
    samples = list(OnlineMetrics(world.log, CONFIG).look(world.now_ms))
    assert single(samples, "lists", surface="home", by="all", group="") == 1.0


def test_groups_beyond_the_most_share_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online_metrics, "MOST_GROUPS", 2)
    world = World()
    for number in range(5):
        world.give(Given("u1", world.now_ms, "home", [1], f"b{number}", "control"), f"r{number}")
    world.now_ms += ATTRIBUTION_MS + SETTLE_MS
    found = grouped(list(OnlineMetrics(world.log, CONFIG).look(world.now_ms)))
    assert {key[2]: figures["lists"] for key, figures in found.items() if key[1] == "bundle"} == {
        "b0": 1.0,
        "b1": 1.0,
        "other": 3.0,
    }


def test_a_click_that_is_taken_back_does_not_count() -> None:
    world = World()
    world.give(Given("u1", world.now_ms, "home", [2, 3], "b", "control"), "r")
    for retract in (False, True):
        world.do([Event(user="u1", item="i2", type="click", time=world.now_ms, retract=retract)])
    world.now_ms += ATTRIBUTION_MS + SETTLE_MS
    samples = list(OnlineMetrics(world.log, CONFIG).look(world.now_ms))
    assert single(samples, "ctr", surface="home", by="all", group="") == 0.0
    assert single(samples, "satisfaction", surface="home", by="all", group="") == 0.0


def test_returning_sessions() -> None:
    world = World()
    world.now_ms += 40 * 60_000
    world.do([Event(user=user, item="i2", type="click") for user in ("u1", "u2", "new")])
    watch = OnlineMetrics(world.log, parse_config('[monitoring.online]\nwindow = "2h"\n'))
    samples = list(watch.look(world.now_ms))
    assert single(samples, "sessions", by="all", group="") == 15.0
    assert single(samples, "returning_sessions", by="all", group="") == pytest.approx(2 / 15)


def test_sessions_are_told_apart_by_the_list_that_they_began_with() -> None:
    world = World()
    world.now_ms += 40 * 60_000
    for user, bundle in (("u1", "b0"), ("u2", "b1"), ("first", "b1")):
        world.give(Given(user, world.now_ms, "home", [2, 3], bundle, "new"), f"r-{user}")
    world.now_ms += 1_000
    world.do([Event(user=user, item="i2", type="click") for user in ("u1", "u2", "first", "u3")])
    watch = OnlineMetrics(world.log, parse_config('[monitoring.online]\nwindow = "30m"\n'))
    list(watch.look(world.now_ms))
    samples = list(watch.look(world.now_ms + SETTLE_MS + 1))
    assert single(samples, "sessions", by="all", group="") == 4.0
    assert single(samples, "returning_sessions", by="all", group="") == 0.75
    for by, group in (
        ("bundle", "b0"),
        ("bundle", "b1"),
    ):  # who was a stranger when the list was given has no list of theirs
        assert single(samples, "sessions", by=by, group=group) == 1.0
        assert single(samples, "returning_sessions", by=by, group=group) == 1.0
    assert single(samples, "sessions", by="variant", group="test/new") == 2.0


def test_what_strangers_do_counts_for_the_list_that_they_name() -> None:
    world = World()
    at_ms = world.now_ms
    for number in range(2):
        world.give(Given("nobody", at_ms, "home", [2, 3], "b", "control"), f"home-{number}")
        world.give(Given("nobody", at_ms, "cart", [2, 3], "b", "control"), f"cart-{number}")
    world.do(
        [
            Event(user="visitor", item="i2", type="click", time=at_ms, request_id="home-0"),
            Event(user="visitor", item="i9", type="click", time=at_ms, request_id="home-0"),  # the list did not show it
            Event(user="visitor", item="i3", type="click", time=at_ms),  # nobody knows of which list
        ]
    )
    watch = OnlineMetrics(world.log, CONFIG)
    list(watch.look(world.now_ms))
    world.now_ms += ATTRIBUTION_MS + SETTLE_MS
    found = grouped(list(watch.look(world.now_ms)))
    assert found["home", "all", ""]["lists"] == 2.0
    assert found["home", "all", ""]["ctr"] == pytest.approx(1 / 4)
    assert ("cart", "all", "") not in found, "events of this surface name no lists: strangers would seem never to click"


def test_events_that_claim_to_be_of_the_future_are_of_when_they_came() -> None:
    world = World()
    watch = OnlineMetrics(world.log, CONFIG)
    world.do([Event(user=f"v{day}", item="i2", type="click", time=world.now_ms + 86_400_000 * day) for day in range(9)])
    assert single(list(watch.look(world.now_ms)), "sessions", by="all", group="") == 21.0
    world.now_ms += 2 * WINDOW_MS
    world.do([Event(user="late", item="i2", type="click")])
    assert single(list(watch.look(world.now_ms)), "sessions", by="all", group="") == 1.0  # not kept until that day


def test_concentration_is_measured_as_in_the_closed_loop() -> None:
    shown = np.array([3, 4, 9]), np.array([1, 5, 2])
    whole = np.zeros(12)
    whole[[2, 3, 8]] = [1, 5, 2]

    class Ledger:
        shown = whole
        eligible = np.ones(12, np.bool_)

    assert gini(shown, 12) == pytest.approx(closed_loop._gini(Ledger()))  # type: ignore[arg-type]
    assert coverage(shown, 12) == 0.25
    assert new_share(shown, 4) == 7 / 8


def test_popularity_lift_by_hand() -> None:
    consumed = np.array([1, 2]), np.array([8, 2])  # mean popularity of what is consumed: (64 + 4) / 10
    assert popularity_lift((np.array([1]), np.array([5])), consumed) == pytest.approx(8 / 6.8 - 1)
    assert popularity_lift((np.array([7]), np.array([5])), consumed) == -1.0
    assert popularity_lift(consumed, consumed) == pytest.approx(0.0)
    assert popularity_lift(consumed, (np.zeros(0, np.int64), np.zeros(0, np.int64))) is None


def test_the_first_new_item_by_the_log() -> None:
    world = World(items=3)
    world.now_ms += 1_000
    world.writer.put_items([Item(id="i1", categories=["changed"]), Item(id="fourth", categories=["c"])])
    assert first_new_item(world.log, START_MS) == 1
    assert first_new_item(world.log, START_MS + 1) == 4
    assert first_new_item(world.log, START_MS + 2_000) == 5


def test_sums_fall_out_of_the_window_by_steps() -> None:
    sums: SlidingSums[str] = SlidingSums(1, 12_000)
    for at_ms in range(0, 24_000, 500):
        sums.add("a", at_ms, np.ones(1))
    assert {now: float(sums.read(now)["a"][0]) for now in (23_999, 24_000, 34_000)} == {
        23_999: 24.0,
        24_000: 22.0,
        34_000: 2.0,
    }
    assert sums.read(40_000) == {}


def test_what_the_monitor_shows_of_its_watches_it_does_not_take_for_found_again(tmp_path: Path) -> None:
    """Else a figure that is over would be read from the monitor's own file, shown again, and stay for ever."""
    shared = MmapedDict(str(tmp_path / "gauge_livemostrecent_1.db"))  # type: ignore[no-untyped-call]
    for name in ("headwater_experiment_harm", "headwater_somebody_elses"):
        key = mmap_key(name, name, ["of"], ["one"], "")
        shared.write_value(key, 1.0, 1.0)  # type: ignore[no-untyped-call]
    shared.close()  # type: ignore[no-untyped-call]
    found = Scrape(lambda: [tmp_path], {"headwater_experiment_harm"}).look(0)
    assert [(one.name, one.value) for one in found] == [("headwater_somebody_elses", 1.0)]


def test_gauges_show_samples_and_what_is_over_is_not_a_number() -> None:
    gauges = Gauges(METRICS)

    def shown(group: str) -> float | None:
        labels = {"surface": "home", "by": "variant", "group": group}
        return gauges.registry.get_sample_value("headwater_online_ctr", labels)

    def ctr(group: str, value: float) -> Sample:
        return Sample("headwater_online_ctr", (("by", "variant"), ("group", group), ("surface", "home")), value)

    gauges.show([ctr("a", 0.1), ctr("b", 0.2), Sample("somebody_elses", (), 1.0)])
    assert (shown("a"), shown("b")) == (0.1, 0.2)
    gauges.show([ctr("a", 0.3)])
    assert shown("a") == 0.3
    assert shown("b") != shown("b")
