"""Alert rules: what fires, what does not flap, what is missing, and which rules are refused at load."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from msgspec.structs import replace

from headwater.cli.monitor import known_metrics, rules_of
from headwater.monitoring.alerts import Alerts, AlertState
from headwater.monitoring.samples import Sample, sample
from headwater.schema.alerts import AlertRule, Missing
from headwater.schema.config import Config, parse_config
from headwater.schema.default_alerts import DEFAULT_ALERTS
from headwater.schema.errors import ConfigurationError

HOT = AlertRule(name="hot", metric="heat", above=10.0, clear=5.0, for_="10s", clear_for="10s", window="10s")


def played(rule: AlertRule, values: Sequence[float | None], every_ms: int = 5_000) -> list[str]:
    """What happened in rounds with these values of ``heat``: "5:fires" for the sixth round."""
    alerts, happened = Alerts([rule]), list[str]()
    for number, value in enumerate(values):
        samples = [] if value is None else [sample("heat", value)]
        happened += [f"{number}:{event.change}" for event in alerts.judge(1_000_000 + number * every_ms, samples)]
    return happened


def test_it_fires_after_its_duration_and_is_over_beyond_the_margin() -> None:
    assert played(HOT, [1, 11, 11, 1, 11, 11, 11, 7, 7, 4, 4, 7, 4, 4, 4]) == ["6:fires", "14:resolves"]


def test_a_value_that_swings_round_the_threshold_makes_one_incident() -> None:
    swinging = [11.0, 9.0] * 50
    assert played(AlertRule(name="hot", metric="heat", above=10.0, clear=5.0), swinging) == ["0:fires"]


def test_missing_is_a_state_of_its_own() -> None:
    gone: list[float | None] = [1.0] + [None] * 20
    assert played(HOT, gone) == ["13:goes_missing"]  # 60 s after it went
    assert played(AlertRule(name="hot", metric="heat", above=10.0, missing="ok"), gone) == []
    assert played(AlertRule(name="hot", metric="heat", above=10.0, missing="fire"), gone) == ["1:fires"]
    firing: list[float | None] = [11.0, 11.0, 11.0, *[None] * 20]
    assert played(HOT, firing) == ["2:fires"]  # it is not over because nobody sees it


def test_what_was_done_is_taken_back_later_each_time_it_comes_back_at_once() -> None:
    rule = AlertRule(
        name="hot",
        metric="heat",
        above=10.0,
        clear_for="0s",
        actions=("walk_down",),
        cooldown="1s",
        restore_after="20s",
    )
    alerts, happened, now_ms = Alerts([rule]), list[tuple[int, str]](), 0
    for _ in range(3):
        for value in (11.0, 11.0, *[1.0] * 30):
            for event in alerts.judge(now_ms, [sample("heat", value)]):
                happened.append((now_ms, event.change))
                state = event.state
                if event.change == "fires":
                    alerts.note(_changed(state, acted_ms=now_ms, entries=("e",)))
                if event.change == "restores":
                    alerts.note(_changed(state, entries=(), restored_ms=now_ms))
            if happened and happened[-1][1] == "restores" and happened[-1][0] == now_ms:
                break
            now_ms += 5_000
    waits = [
        restored - resolved
        for (resolved, first), (restored, second) in pairwise(happened)
        if (first, second) == ("resolves", "restores")
    ]
    assert waits == [20_000, 40_000, 80_000]


def _changed(state: AlertState, **values: object) -> AlertState:
    return replace(state, **values)


def counters(now: int, good: float, bad: float) -> list[Sample]:
    return [sample("calls_total", good, status="200"), sample("calls_total", bad, status="503")]


def test_a_ratio_is_of_what_came_in_the_window_and_wants_enough_of_it() -> None:
    rule = AlertRule(
        name="errors", metric="calls_total", labels={"status": "5*"}, of="ratio", over="calls_total", at_least=100,
        above=0.1, window="10s", clear_for="0s", missing="ok",
    )  # fmt: skip
    alerts = Alerts([rule])
    history = [(1000, 500), (1005, 505), (1010, 505), (1100, 505), (1200, 530), (1300, 560), (1400, 560), (1500, 560)]
    happened = [
        [event.change for event in alerts.judge(number * 5_000, counters(number, *counts))]
        for number, counts in enumerate(history)
    ]
    # half of all calls ever were bad, and 5 of the first 15: too few to say. Then 25 of 220, and later none
    assert happened == [[], [], [], [], ["fires"], [], [], ["resolves"]]


def test_counters_that_begin_anew_and_windows_that_are_not_full() -> None:
    rule = AlertRule(name="calls", metric="calls_total", of="increase", above=50, window="10s", clear_for="0s")
    alerts = Alerts([rule])
    values = [1_000.0, 1_010.0, 1_020.0, 5.0, 10.0, 15.0]
    for number, value in enumerate(values):
        assert alerts.judge(number * 5_000, [sample("calls_total", value)]) == []
        assert alerts.states[0].state == ("missing" if number < 2 else "ok")


def test_quantiles_of_histograms_by_group() -> None:
    rule = AlertRule(
        name="slow", metric="wait_seconds", of="quantile", by="route", at_least=10, above=0.1, window="5s", missing="ok"
    )
    alerts = Alerts([rule])

    def buckets(route: str, counts: tuple[float, float, float]) -> list[Sample]:
        return [
            sample("wait_seconds_bucket", count, le=bound, route=route)
            for bound, count in zip(("0.05", "0.2", "+Inf"), counts, strict=True)
        ]

    alerts.judge(0, [*buckets("a", (0, 0, 0)), *buckets("b", (0, 0, 0))])
    events = alerts.judge(5_000, [*buckets("a", (100, 100, 100)), *buckets("b", (0, 100, 100))])
    assert [event.state.group for event in events] == ["b"]
    assert {state.group: state.value for state in alerts.states} == {
        "a": pytest.approx(0.0475), "b": pytest.approx(0.1925),
    }  # fmt: skip


@pytest.mark.parametrize("missing", ["ok", "fire", "tell"])
def test_a_new_monitor_says_nothing_of_a_window_that_it_has_not_seen(missing: Missing) -> None:
    rule = AlertRule(
        name="errors", metric="bad_total", of="increase", above=10.0, window="5m", clear_for="1m", missing=missing
    )
    alerts, counted, happened = Alerts([rule]), 0.0, list[tuple[int, str]]()
    for number in range(120):
        counted += 5.0
        if number == 70:  # the monitor is started again in the middle of an incident
            alerts = Alerts([rule], alerts.states)
        happened += [(number, event.change) for event in alerts.judge(5_000 * number, [sample("bad_total", counted)])]
    assert happened == [(54, "fires")]  # once nine tenths of the window were seen; then one incident that goes on


def test_how_rules_stood_survives_a_restart() -> None:
    alerts = Alerts([HOT])
    for number in range(3):
        alerts.judge(number * 5_000, [sample("heat", 11.0)])
    assert alerts.states[0].state == "firing"
    assert Alerts([HOT], alerts.states).judge(20_000, [sample("heat", 11.0)]) == []  # the same incident: nothing new


def test_the_default_rules_are_about_metrics_that_there_are() -> None:
    rules = rules_of(Config())
    assert {rule.name for rule in rules} == {rule.name for rule in DEFAULT_ALERTS}
    assert len(known_metrics()) > 40


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name = "slow-answer"\nabove = 1.0', 'did you mean "slow-answers"'),
        ('name = "a"\nmetric = "x_y"\nabove = 1.0\nbelow = 0.0', "exactly one of above and below"),
        ('name = "a"\nmetric = "x_y"\nabove = 1.0\nclear = 2.0', "alerts[0].clear: Expected at most above (1)"),
        ('name = "a"\nmetric = "x_y"\nof = "ratio"\nabove = 1.0', "alerts[0].over"),
        ('name = "a"\nmetric = "x_y"\nabove = 1.0\nat_least = 5', "alerts[0].at_least"),
        ('name = "a"\nmetric = "x_y"\nabove = 1.0\nactions = ["stop_experiment"]', 'by = "experiment"'),
        ('name = "a"\nmetric = "x_y"\nabove = 1.0\nfrom = "1s"', "did you mean"),
        ('name = "errors"\n[[alerts]]\nname = "errors"', 'There are two alerts "errors"'),
        ('name = "a"\nmetric = "headwater_fold_lag"\nabove = 1.0', 'did you mean "headwater_fold_lag_records"'),
        ('name = "a"\nmetric = "headwater_answers_total"\nabove = 1.0', "is of a gauge"),
        (
            'name = "a"\nmetric = "headwater_request_seconds"\nof = "rate"\nabove = 1.0',
            "headwater_request_seconds_count",
        ),
        (
            'name = "a"\nmetric = "headwater_answers_total"\nof = "rate"\nabove = 1.0\n[alerts.labels]\ntiers = "4"',
            'has no label "tiers", did you mean "tier"',
        ),
    ],
)
def test_rules_that_cannot_be_are_refused_at_load(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        rules_of(parse_config(f"[[alerts]]\n{text}\n"))
    assert said in str(refused.value)


def test_a_default_rule_is_changed_or_switched_off_by_name() -> None:
    text = '[[alerts]]\nname = "slow-answers"\nabove = 0.3\n[[alerts]]\nname = "errors"\nenabled = false\n'
    rules = {rule.name: rule for rule in rules_of(parse_config(text))}
    assert (rules["slow-answers"].above, rules["slow-answers"].clear) == (0.3, None)
    assert rules["slow-answers"].actions == ("walk_down",)
    assert not rules["errors"].enabled
    assert rules_of(parse_config("[monitoring]\ndefault_alerts = false\n")) == ()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://hooks.example/x", "not an allowed host"),
        ("http://hooks.example/x", "Expected https://"),
        ("ftp://127.0.0.1/x", "Expected a URL that starts with"),
    ],
)
def test_webhooks_lead_to_hosts_that_are_allowed(url: str, said: str) -> None:
    hosts = 'hosts = ["hooks.example"]' if said.startswith("Expected") else ""
    with pytest.raises(ConfigurationError, match=said):
        parse_config(f'[limits]\n{hosts}\n[monitoring]\nwebhooks = ["{url}"]\n')
