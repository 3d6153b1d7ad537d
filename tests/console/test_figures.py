"""What the overview, the playground and Why work out: quantiles, verdicts, the diagram, the funnel, moves and covers."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest

from headwater.console.covers import cover, drawn
from headwater.console.diagram import diagram
from headwater.console.pages.playground import because, buttons_of, moves_of
from headwater.console.pages.why import funnel
from headwater.console.past_figures import quantiles
from headwater.console.verdicts import verdicts
from headwater.console.watching import Watching, firing_of, watching
from headwater.monitoring.alerts import AlertState
from headwater.monitoring.behind import BEHIND, CAUGHT_UP_S
from headwater.monitoring.history import HISTORY_FILE, History, Series
from headwater.monitoring.samples import sample
from headwater.monitoring.standing import Standing
from headwater.online.console_pulse import Gain, parsed
from headwater.online.openapi import operations
from headwater.schema.config import Config
from headwater.schema.explanation import Explanation
from headwater.schema.seen import Card, PastEvent, Person, Pulse, ShownItem, ShownList
from headwater.serving.stages import STAGES

PULSE = Pulse(
    time_ms=1_000, window_s=30.0, events_s=12.0, other_s=0.5, rejected_s=0.0, answers_s=4.0, served_s=4.0,
    request_ms=(2.0, 6.0, 9.0), fresh_ms=4.0, stages=[(stage.name, stage.does, 0.5) for stage in STAGES],
    sources=[("popular", 200.0)], tiers=[0.98, 0.0, 0.02, 0.0, 0.0], shed_s=0.0, log_offset=1_234, lag=0, epoch_age_s=0.1,
    items=60, quality=1.0, model="20260226T100000000Z-f77b320de9f0", model_ms=500, hits=0.25,
)  # fmt: skip


def test_the_figures_of_prometheus_are_read_as_they_are_written() -> None:
    text = (
        '# HELP a_total words\n# TYPE a_total counter\na_total{x="1",y="b c"} 5.0\na_total{x="2",y=""} 2.5\n'
        'h_bucket{le="0.01"} 0.0\nh_bucket{le="+Inf"} 3.0\ng 1.5e-05\n'
    )
    now = parsed(text)
    assert now["a_total"] == {(("x", "1"), ("y", "b c")): 5.0, (("x", "2"), ("y", "")): 2.5}
    assert now["g"] == {(): 1.5e-05}
    before = parsed('a_total{x="1",y="b c"} 2.0\na_total{x="2",y=""} 9.0\n')
    gain = Gain(before, now, 10.0)
    assert gain.sum("a_total", x="1") == 3.0
    assert gain.sum("a_total", x="2") == 2.5, "a counter that fell began anew"
    assert gain.rate("a_total") == pytest.approx(0.55)
    assert gain.quantiles("h", (0.5,)) == [10.0], "above the last finite bound it is that bound"
    assert gain.quantiles("nothing", (0.5, 0.9)) == [None, None]
    assert Gain(now, now, 0.0).rate("a_total") is None


def test_quantiles_over_time_are_those_of_what_came_between() -> None:
    times = [0, 1_000, 2_000, 3_000]
    bounds = {"0.01": [0.0, 50.0, 50.0, 0.0], "0.02": [0.0, 100.0, 100.0, 10.0], "+Inf": [0.0, 100.0, 100.0, 10.0]}
    series = [
        Series({"le": le, "route": route}, times, values) for le, values in bounds.items() for route in ("a", "b")
    ]
    ((_, p50), (_, p90)) = quantiles(series, {"route": "a"}, (0.5, 0.9))
    assert p50 == [[1_000.0, 10.0], [3_000.0, 15.0]], (
        "nothing came before 2,000, and at 3,000 the counter had begun anew"
    )
    assert p90 == [[1_000.0, 18.0], [3_000.0, 19.0]]


def test_quantiles_agree_with_sorted_samples() -> None:
    sample = np.random.default_rng(7).exponential(0.02, 4_000)
    bounds = np.linspace(0.001, 0.2, 200)
    series = [Series({"le": f"{bound}"}, [0, 1], [0.0, float((sample <= bound).sum())]) for bound in bounds]
    series.append(Series({"le": "+Inf"}, [0, 1], [0.0, float(len(sample))]))
    for q, (_, points) in zip((0.5, 0.95), quantiles(series, {}, (0.5, 0.95)), strict=True):
        assert points[0][1] == pytest.approx(1e3 * np.quantile(sample, q), abs=1.0)


@pytest.mark.parametrize(
    ("changes", "reasons", "tones"),
    [
        ({}, [], ["good", "good", "good"]),
        ({"lag": 600}, [], ["warn", "good", "good"]),
        ({"fresh_ms": None}, ["fold: not connected"], ["bad", "good", "good"]),
        ({"request_ms": (20.0, 80.0, 90.0)}, [], ["good", "warn", "good"]),
        ({"request_ms": (20.0, 180.0, 900.0), "tiers": [0.6, 0.4, 0.0, 0.0, 0.0]}, [], ["good", "bad", "warn"]),
        ({"request_ms": (None, None, None), "tiers": [0.0] * 5}, [], ["good", "", ""]),
    ],
)
def test_the_verdicts_follow_the_figures(changes: dict[str, object], reasons: list[str], tones: list[str]) -> None:
    found = verdicts(msgspec.structs.replace(PULSE, **changes), None, reasons)
    assert [verdict.tone for verdict in found] == tones
    assert verdicts(PULSE, 0.125, [])[2].figure == "12.5%"


QUIET = Watching([], False, {})


def test_the_diagram_is_drawn_from_the_stages_and_fits_its_frame() -> None:
    picture = diagram(PULSE, wall_ms=60_500, writer_away=False, fold_away=False, bundles=2, watching=QUIET)
    small = [box for box in picture.boxes if box.title in {stage.does for stage in STAGES}]
    assert len(small) == len(STAGES)
    assert all(box.x >= 0 and box.x + box.width <= 1120 for box in picture.boxes)
    apart = sorted(picture.boxes, key=lambda box: (box.y, box.x))
    for left, right in pairwise(apart):
        assert left.y != right.y or left.x + left.width <= right.x, f"{left.name} lies on {right.name}"
    away = diagram(PULSE, wall_ms=60_500, writer_away=True, fold_away=True, bundles=0, watching=QUIET)
    assert {box.name for box in away.boxes if box.tone == "bad"} == {"Event log", "Fold"}


def test_a_monitor_that_is_behind_is_said_and_what_that_means(tmp_path: Path) -> None:
    standing, now_ms = Standing(time_ms=1_000_000), 1_004_000
    history = History(tmp_path / HISTORY_FILE)
    left = {"online": CAUGHT_UP_S + 1.0, "drift": 11_520.0}
    history.append(now_ms, [sample(BEHIND, seconds, watch=watch) for watch, seconds in left.items()])
    seen = watching(tmp_path, standing, 5_000, now_ms)
    assert "3.2 h of the log are left for drift" in seen.catching_up
    assert "alerts about that stay as they stand" in seen.catching_up
    picture = diagram(PULSE, wall_ms=60_500, writer_away=False, fold_away=False, bundles=2, watching=seen)
    box = next(box for box in picture.boxes if box.name == "Monitor")
    assert (box.value, box.note, box.tone, box.title) == (
        "3.2 h behind",
        "some alerts wait for it",
        "warn",
        seen.catching_up,
    )
    assert seen.catching_up in picture.said
    history.append(now_ms, [sample(BEHIND, CAUGHT_UP_S, watch=watch) for watch in left])
    assert watching(tmp_path, standing, 5_000, now_ms) == QUIET
    history.append(now_ms, [sample(BEHIND, 9e9, watch="drift")])
    stopped = watching(tmp_path, standing, 5_000, now_ms + 60_000)
    assert (stopped.late, stopped.catching_up) == (True, ""), "one that has stopped does not catch up"
    history.close()


def test_alerts_that_fire_come_gravest_and_oldest_first() -> None:
    states = (
        AlertState(alert="a", severity="warning", state="firing", since_ms=1),
        AlertState(alert="b", severity="critical", state="firing", since_ms=9, group="x"),
        AlertState(alert="c", severity="critical", state="pending", since_ms=1),
        AlertState(alert="d", severity="critical", state="firing", since_ms=3),
    )
    firing = firing_of(Standing(time_ms=1, states=states))
    assert firing is not None
    assert [one.alert for one in firing] == ["d", "b", "a"]
    assert firing_of(Standing()) is None


def test_the_funnel_loses_each_item_once() -> None:
    (answer,) = [one.answer for one in operations(Config()) if isinstance(one.answer, Explanation)]
    steps = funnel(answer)
    assert [step.left for step in steps] == [2, 1, 1, 1, 1, 1]
    assert [step.lost for step in steps] == [0, 1, 0, 0, 0, 0]


def test_moves_say_what_is_new_and_what_rose() -> None:
    assert moves_of(["c", "a", "d"], ["a", "b", "c"]) == {"c": 2, "a": -1, "d": None}


def test_reasons_name_what_the_user_did_by_its_title() -> None:
    card = Card("item 7", "A Lamp", [])
    item = ShownItem(Card("x", "X", []), 1.0, "covisit", "often together with item 7")
    shown = ShownList(request_id="", items=[item], tier=0, reasons=[], model="", recorded=False, after=0, took_ms=0.0)
    assert because(shown, Person(True, [PastEvent(card, "click", 0)])) == {"x": "often together with A Lamp"}
    assert because(shown, Person(True, [])) == {"x": "often together with item 7"}


def test_there_are_buttons_for_what_says_something() -> None:
    assert buttons_of(Config()) == ["click", "like", "purchase", "skip"]


@pytest.mark.parametrize("title", ["Plain Lamp", "<b>&\"'", "", "  ", "12345", "日本 語", "a-b"])
def test_a_cover_is_a_picture_and_the_same_one_each_time(title: str) -> None:
    picture = drawn("item-<1>&'", title, "Home & Garden")
    assert picture == drawn("item-<1>&'", title, "Home & Garden")
    assert ElementTree.fromstring(picture).tag.endswith("svg")  # noqa: S314  (we made it)
    hues = [re.findall(r"hsl\((\d+)", drawn(f"item-{number}", title, "Home & Garden"))[0] for number in range(40)]
    spread = np.ptp(np.unwrap(np.deg2rad(np.array(hues, float))))
    assert spread < np.deg2rad(60), "items of a category share a colour"
    assert len({drawn(f"item-{number}", title, "t") for number in range(40)}) > 30
    assert cover(Card("a b", title, ["t"])).startswith("/console/cover.svg?id=a+b&")
