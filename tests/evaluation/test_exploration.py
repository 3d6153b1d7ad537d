"""The account of exploration, against loops over everything."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import cache

import msgspec
import numpy as np
import pytest
from structlog.testing import capture_logs

from headwater.cli.exploration import _print
from headwater.evaluation.exploration import ExplorationReport, measure_exploration
from headwater.evaluation.metrics import weighted_difference
from headwater.log.commands import AppendServed, PutItems, ServedEntry
from headwater.log.record import Namespace
from headwater.schema.config import parse_config
from headwater.schema.errors import HeadwaterError
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.schema.requests import Address, Explored, Promised, ServedList
from headwater.testing.events import START_MS, Step, Written

MINUTE_MS = 60_000
WINDOW_MS = 10 * MINUTE_MS
CONFIG = parse_config('[new_items]\nimpressions = 5\nwithin = "1h"\n')


@pytest.fixture(autouse=True)
def quiet() -> Iterator[list[object]]:
    with capture_logs():
        yield []


Line = tuple[str, str, str, int, list[str], tuple[float, bool] | None, int]


@cache
def told() -> tuple[Written, list[Line], list[tuple[str, str, int]]]:
    """A log of lists that were drawn this way and that: (user, surface, how, when, shown, (chance, kept) of the second place, tier), and
    the positive events.
    """
    rng = np.random.default_rng(8)
    log = Written(CONFIG)
    names = [f"i{n}" for n in range(12)]
    log.add([Step(START_MS, PutItems([Item(id=name, published=START_MS - 1) for name in names]))])
    log.add([Step(START_MS, [Event(user=f"u{u}", item="i0", type="view") for u in range(7)])])
    known = log.log.vocabulary()
    lists: list[Line] = []
    likes: list[tuple[str, str, int]] = []
    now_ms = START_MS
    for r in range(500):
        now_ms += int(rng.exponential(MINUTE_MS))
        user, surface = f"u{rng.integers(7)}", str(rng.choice(["home", "cart"]))
        how = str(rng.choice(["plain", "explored", "uniform"])) if surface == "home" else "plain"
        shown = [str(name) for name in rng.choice(names, 3, replace=False)]
        chance = float(rng.choice([0.2, 0.7]))
        place = (chance, bool(rng.random() < chance)) if surface == "home" and how != "uniform" else None
        tier, walked = int(rng.choice([0, 0, 0, 3])), int(rng.random() < 0.05)
        stranger = rng.random() < 0.1
        key = None if stranger else log.identity.lookup(user)
        served = ServedList(
            f"r{r}", surface, [known.index(Namespace.ITEM, name) for name in shown], [0.0] * 3, ["popular"] * 3, tier, [],
            Address(1, 1, now_ms, "p", "b"), [0, 0, 0, 0], b"", walked=walked,
            explored=None if how == "plain" else Explored([0.0] * 3, [], 0.2, 0.1, how == "uniform"),
            promised=None if place is None else Promised([1], [place[0]], [place[1]], [math.log(0.5)]),
        )  # fmt: skip
        payload = msgspec.msgpack.encode(served)
        made = ServedEntry(key.user, key.surrogate, payload) if key is not None else ServedEntry(0, 0, payload)
        log.add([Step(now_ms, AppendServed([made]))] * (2 if rng.random() < 0.1 else 1))
        if not stranger and not walked and tier < 3:
            lists.append((user, surface, how, now_ms, shown, place, tier))
        if rng.random() < (0.8 if how == "plain" else 0.4):
            at = now_ms + int(rng.integers(1, 30_000))
            log.add([Step(at, [Event(user=user, item=str(rng.choice(shown)), type="click", time=at)])])
            event = log.log.read(log.log.last_offset - 1)
            assert event is not None
            likes.append((user, known_item(log, int(event.records["item"][-1])), at))
            now_ms = at
    return log, lists, likes


def known_item(log: Written, number: int) -> str:
    return log.names([number])[0]


@cache
def report() -> ExplorationReport:
    return measure_exploration(told()[0].log, CONFIG, window_ms=WINDOW_MS)


def took(user: str, items: list[str], at_ms: int) -> bool:
    return any(u == user and i in items and at_ms < t <= at_ms + WINDOW_MS for u, i, t in told()[2])


def test_lists_that_were_drawn_are_compared_with_those_that_were_not() -> None:
    _, lists, _ = told()
    assert [cost.surface for cost in report().surfaces] == ["home"], "nothing was drawn on the other"
    home = [one for one in lists if one[1] == "home"]
    rates = {}
    assert [line.how for line in report().surfaces[0].lists] == ["plain", "explored", "uniform"]
    for line in report().surfaces[0].lists:
        taken = [took(user, shown, at) for user, _, how, at, shown, _, _ in home if how == line.how]
        assert (line.lists, line.taken) == (len(taken), sum(taken))
        rates[line.how] = np.mean(taken)
        assert line.rate == pytest.approx(rates[line.how])
        assert line.ci95[0] <= line.rate <= line.ci95[1]
        if line.how == "plain":
            assert line.difference is None
        else:
            assert line.difference is not None
            assert line.difference == pytest.approx(rates[line.how] - rates["plain"])
            assert line.difference_ci95 is not None
            assert line.difference_ci95[0] < line.difference < line.difference_ci95[1] < 0.0, "it was made so"


def test_promised_places_are_weighed_by_what_might_have_stood_there() -> None:
    sums = {True: [0.0, 0.0, 0.0], False: [0.0, 0.0, 0.0]}
    rows = [one for one in told()[1] if one[5] is not None]
    for user, _, _, at, shown, place, _ in rows:
        assert place is not None
        chance, kept = place
        weight = 1.0 - chance if kept else chance
        sums[kept][0] += weight
        sums[kept][1] += weight * took(user, shown[1:2], at)
        sums[kept][2] += weight * took(user, shown, at)
    said = report().surfaces[0].promised
    assert said is not None
    assert (said.places, said.kept) == (len(rows), sum(one[5][1] for one in rows if one[5]))
    assert said.expected == pytest.approx(sum(one[5][0] for one in rows if one[5]))
    for cost, interval, column in ((said.place_cost, said.place_ci95, 1), (said.list_cost, said.list_ci95, 2)):
        assert cost is not None
        assert interval is not None
        assert cost == pytest.approx(sums[False][column] / sums[False][0] - sums[True][column] / sums[True][0])
        assert interval[0] <= cost <= interval[1]


def test_what_became_of_the_promises_is_what_the_log_says_of_each_item() -> None:
    log = Written(CONFIG)
    old = [Item(id=f"old{n}", published=START_MS - MINUTE_MS) for n in range(20)]
    log.add([Step(START_MS, PutItems(old))])
    seen = [Event(user=f"u{n}", item=f"old{n % 20}", type="impression") for n in range(400)]
    log.add([Step(START_MS + 1, seen)])
    log.add([Step(START_MS + 2, [Event(user=f"u{n}", item=f"old{n % 20}", type="click") for n in range(80)])])
    born = START_MS + MINUTE_MS
    log.add([Step(born, PutItems([Item(id=name) for name in ("good", "slow", "bad", "late")]))])

    def show(item: str, count: int, at_ms: int, kind: str = "impression") -> None:
        log.add([Step(at_ms, [Event(user=f"v{n}", item=item, type=kind) for n in range(count)])])

    for minute in range(1, 7):
        show("good", 1, born + minute * MINUTE_MS)
    show("good", 1, born + 7 * MINUTE_MS, "click")
    show("slow", 4, born + 20 * MINUTE_MS)
    log.add([Step(born + 50 * MINUTE_MS, PutItems([Item(id="young")]))])
    show("slow", 3, born + 61 * MINUTE_MS)
    config = CONFIG
    gain = measure_exploration(log.log, config, window_ms=WINDOW_MS).gain
    assert gain is not None
    assert gain.items == 5, "what was published before is not new"
    assert (gain.reached.items, gain.missed.items, gain.running.items, gain.stopped.items) == (1, 3, 1, 0)
    assert gain.hours_to_promise["p50"] == pytest.approx(5 / 60)
    assert gain.reached_share == pytest.approx(1 / 4)
    assert (gain.reached.impressions, gain.reached.later_impressions, gain.reached.later_rate) == (5, 1, 1.0)
    assert (gain.missed.impressions, gain.missed.later_impressions) == (4, 3)
    many = parse_config('[new_items]\nimpressions = 500\nwithin = "1h"\n')
    show("bad", 300, born + 62 * MINUTE_MS)
    log.add([Step(born + 55 * MINUTE_MS, PutItems([Item(id="worse")]))])
    show("worse", 300, born + 63 * MINUTE_MS)
    again = measure_exploration(log.log, many, window_ms=WINDOW_MS).gain
    assert again is not None
    assert (again.stopped.items, again.stopped.impressions, again.stopped.rate) == (1, 300, 0.0)


def test_the_report_is_printed_and_a_log_without_lots_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    _print(report(), "10m")
    printed = capsys.readouterr().out
    for word in ("home", "uniform", "promised", "reached", "of strangers not counted"):
        assert word in printed
    assert json.loads(msgspec.json.encode(report()))["surfaces"][0]["promised"]["places"] > 50
    with pytest.raises(HeadwaterError, match=r"surfaces\.exploration"):
        measure_exploration(Written(CONFIG).log, parse_config(""), window_ms=WINDOW_MS)


def test_the_interval_of_a_difference_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(400):
        users = rng.integers(0, 60, 600)
        ours = rng.random(600) < 0.3
        own = rng.normal(0.0, 0.3, 60)[users]  # people differ
        values = own + np.where(ours, 0.1, 0.0) + rng.normal(0.0, 0.5, 600)
        _, (low, high) = weighted_difference(values, rng.uniform(0.5, 1.0, 600), ours, users)
        held += low <= 0.1 <= high
    assert 368 <= held <= 392  # 95% of 400, give or take 2.75 standard errors
    with pytest.raises(ValueError, match="no weight"):
        weighted_difference(np.ones(3), np.ones(3), np.zeros(3, np.bool_), np.arange(3))
