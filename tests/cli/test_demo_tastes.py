"""The demo's drift of tastes: it is set up to be heard, and its course is told as the files of alerts, audit and registry have it."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from headwater.cli.demo_tastes import ALERTS, DAY_S, TABLES, Course, Watch, drift_s
from headwater.cli.local import make_site
from headwater.cli.monitor import rules_of
from headwater.monitoring.alerts import AlertState
from headwater.monitoring.standing import write_standing
from headwater.registry.controls import change_controls
from headwater.schema.config import load_config
from headwater.schema.durations import parse_duration
from headwater.simulator import load_scenario

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
    assert parse_duration(config.learn.every) / 1e3 > 600, "it trains when it is asked to"
    assert drift_s(load_scenario("viral-item")) is None


class Traffic:
    """What visitors saw and clicked so far."""

    places = clicks = 0


def test_the_course_is_told_as_it_goes(tmp_path: Path) -> None:
    site = make_site(tmp_path, TABLES)
    site.data.mkdir()
    said, clock, traffic, serves = list[str](), [0.0], Traffic(), ["one"]
    watch = Watch(site, traffic, said.append, at=100.0, timer=lambda: clock[0], in_service=lambda: serves[0])

    def look(at: float, places: int, clicks: int, standing: str = "ok") -> Course:
        clock[0], traffic.places, traffic.clicks = at, places, clicks
        state = AlertState(
            alert=ALERT, severity="warning", state="firing" if standing == "firing" else "ok", since_ms=0
        )
        write_standing(site.data, 0, [state])
        watch.look()
        return watch.course

    (site.data / "monitoring").mkdir()
    assert look(65.0, 1_000, 100).fired_s is None
    assert look(100.0, 2_000, 200).before == 0.1
    assert look(140.0, 3_000, 250, "firing").fired_s == 40.0
    change_controls(site.data, by=f"alert:{ALERT}", reason="0.05 of 0.1", time_ms=1, retrain_asked_ms=1)
    assert look(141.0, 3_000, 250, "firing").asked_s == 41.0
    serves[0] = "two"
    course = look(160.0, 4_000, 300, "firing")
    assert (course.renewed, course.promoted_s, course.fallen) == ("two", 60.0, 0.05)
    assert not course.recovered
    assert look(190.0, 5_000, 390).resolved_s == 90.0
    course = look(220.0, 6_000, 480)
    assert course.after == 0.09
    assert course.recovered
    assert watch.over()
    assert [line.split(":")[0] for line in said] == [
        "tastes drift now; people clicked 10.0% of what they saw", f"alert {ALERT} fires", "alert",
        "model two serves; since the drift people clicked 5.0%", f"alert {ALERT} is over", "with it people clicked 9.0%",
    ]  # fmt: skip


def course(**changed: float | bool) -> Course:
    said = Course(fired_s=3.0, asked_s=4.0, promoted_s=5.0, resolved_s=9.0, before=0.1, fallen=0.05, after=0.1)
    return replace(said, **changed)


def test_what_counts_as_seen_through() -> None:
    assert course().recovered
    assert not course(fired_s=-3.0, false_alarm=True).recovered, "an alert before the drift is a false one"
    assert not course(after=0.05).recovered, "the new bundle helped nobody"
    assert not replace(course(), promoted_s=None).recovered
