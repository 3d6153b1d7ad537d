"""The demo's drift of tastes: it is set up to be heard, and its course is told as the files of alerts, audit and registry have it."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from headwater.cli.demo_tastes import AFTERWARDS, ALERTS, DAY_S, TABLES, Course, Rate, Watch, drift_s, gained, rate
from headwater.cli.local import make_site
from headwater.cli.monitor import rules_of
from headwater.learning.trainingset import windows_ms
from headwater.monitoring.alerts import AlertState
from headwater.monitoring.standing import write_standing
from headwater.registry.controls import change_controls
from headwater.schema.config import load_config
from headwater.schema.durations import parse_duration
from headwater.simulator import load_scenario
from headwater.simulator.traffic import Shown

ALERT = "calibration-off"


def test_the_reference_is_whole_before_tastes_drift_and_the_alert_asks_for_a_training(tmp_path: Path) -> None:
    config = load_config(make_site(tmp_path, TABLES).config)
    rules = [rule for rule in rules_of(config) if rule.name in ALERTS]
    assert len(rules) == len(ALERTS)
    assert all(rule.enabled and rule.actions == ("retrain",) for rule in rules)
    drift = config.monitoring.drift
    drifts_s = drift_s(load_scenario("taste-turn"))
    assert drifts_s is not None
    assert drifts_s == 1.5 * DAY_S
    assert parse_duration(drift.reference) / 1e3 < drifts_s, "the reference knows nothing of it"
    assert config.gate.enabled
    closed_ms = max(windows_ms(config).values()) + parse_duration(config.training.watermark)
    assert closed_ms < 20_000, "what people make of a list is learnt while it is news"
    assert parse_duration(config.learn.every) / 1e3 > 600, "it trains when it is asked to"
    assert drift_s(load_scenario("viral-item")) is None


class Traffic:
    """What visitors saw and clicked so far: ten people in turn, lists of ten places."""

    def __init__(self) -> None:
        self.lists: list[Shown] = []

    def goes_on(self, lists: int, clicks: int) -> None:
        """Lists of which ``clicks`` places in all were clicked, evenly."""
        for n in range(len(self.lists), lists):
            self.lists.append(Shown(f"user-{n % 10}", 10, 0))
        so_far = sum(shown.clicks for shown in self.lists)
        for n in range(lists - (clicks - so_far), lists):
            self.lists[n] = self.lists[n]._replace(clicks=1)


def test_the_course_is_told_as_it_goes(tmp_path: Path) -> None:
    site = make_site(tmp_path, TABLES)
    site.data.mkdir()
    said, clock, traffic, serves = list[str](), [0.0], Traffic(), ["one"]
    watch = Watch(
        site, traffic, said.append, at=100.0, timer=lambda: clock[0], in_service=lambda: serves[0], refused=lambda: 1
    )  # fmt: skip

    def look(at: float, lists: int, clicks: int, standing: str = "ok") -> Course:
        clock[0] = at
        traffic.goes_on(lists, clicks)
        state = AlertState(
            alert=ALERT, severity="warning", state="firing" if standing == "firing" else "ok", since_ms=0
        )
        write_standing(site.data, 0, [state])
        watch.look()
        return watch.course

    (site.data / "monitoring").mkdir()
    assert look(65.0, 100, 100).fired_s is None
    before = look(100.0, 200, 200).before
    assert before is not None
    assert (before.value, before.lists) == (0.1, 100)
    assert look(140.0, 300, 250, "firing").fired_s == 40.0
    change_controls(site.data, by=f"alert:{ALERT}", reason="0.05 of 0.1", time_ms=1, retrain_asked_ms=1)
    assert look(141.0, 300, 250, "firing").asked_s == 41.0
    serves[0] = "two"
    course = look(160.0, 400, 300, "firing")
    assert course.fallen is not None
    assert course.lost is not None
    assert (course.renewed, course.promoted_s, course.refused, course.fallen.value) == ("two", 60.0, 1, 0.05)
    assert course.lost.value == -0.05
    assert not course.recovered
    assert look(190.0, 500, 390).resolved_s == 90.0
    assert not watch.over()
    course = look(220.0, 400 + AFTERWARDS, 300 + 9 * AFTERWARDS // 10)
    assert course.after is not None
    assert course.regained is not None
    assert (course.after.value, course.regained.value, course.regained.lists) == (0.09, 0.04, AFTERWARDS)
    assert course.recovered
    assert watch.over()
    assert [line.split(":")[0].split(" [")[0] for line in said] == [
        "tastes drift now; people clicked 10.0%", f"alert {ALERT} fires", "alert",
        "model two serves; since the drift people clicked 5.0%", f"alert {ALERT} is over", "with it people clicked 9.0%",
    ]  # fmt: skip


def test_rates_are_of_people() -> None:
    half = [Shown(f"user-{n % 20}", 10, 5 * (n % 2)) for n in range(40)]
    found = rate(half)
    assert found is not None
    assert (found.value, found.lists) == (0.25, 40)
    assert 0.1 < found.low < 0.25 < found.high < 0.4, "ten people click half of what they see, and ten nothing"
    more = [shown._replace(clicks=shown.clicks + 1) for shown in half]
    over = gained(more, half)
    assert over is not None
    assert (over.value, over.low, over.high) == (0.1, 0.1, 0.1), (
        "each clicks one place in ten more: paired, that is certain"
    )
    assert rate([]) is None
    assert gained(half, []) is None


def course(**changed: float | bool | Rate) -> Course:
    better = Rate(value=0.05, low=0.02, high=0.08, lists=100)
    said = Course(fired_s=3.0, asked_s=4.0, promoted_s=5.0, resolved_s=9.0, regained=better)
    return replace(said, **changed)


def test_what_counts_as_seen_through() -> None:
    assert course().recovered
    assert not course(fired_s=-3.0, false_alarm=True).recovered, "an alert before the drift is a false one"
    by_chance = Rate(value=0.01, low=-0.01, high=0.03, lists=100)
    assert not course(regained=by_chance).recovered, "that may be chance"
    assert not replace(course(), promoted_s=None).recovered
