"""Metrics from the log, against a loop over everything that was written."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from headwater.experiments import outcomes
from headwater.experiments.metrics import Measure, Metric, check_types, parse_metrics, predefined
from headwater.experiments.outcomes import read_outcomes
from headwater.log.commands import AppendServed, ServedEntry
from headwater.log.record import Namespace
from headwater.schema.config import Config, EventType
from headwater.schema.errors import ConfigurationError
from headwater.schema.events import Event
from headwater.schema.requests import Address, ServedList
from headwater.testing.events import START_MS, Step, Written

CONFIG = Config()
HOUR = 3_600_000
USERS = 8
METRICS = (
    *predefined(CONFIG, "2d").values(),
    Metric(name="spread", numerator=Measure(of="value", types=("purchase",), after="6h"), window="1d", winsorise=0.6),
)

Row = tuple[int, str, int, float, bool, str]  # user, type or "list", time, value, retracts, country


def written(rng: np.random.Generator) -> tuple[Written, list[Row]]:
    log = Written(CONFIG)
    rows: list[Row] = []
    now_ms = START_MS
    for r in range(700):
        now_ms += int(rng.exponential(0.3 * HOUR))
        user = int(rng.integers(USERS + 1))
        if rng.random() < 0.25 and r > 50:
            served = ServedList(
                request_id=f"r{r}", surface="home", items=[1], scores=[0.0], sources=["popular"], tier=0, reasons=[],
                address=Address(1, 1, now_ms, "p", "b"), context=[0, 0, 0, 0], features=b"",
            )  # fmt: skip
            key = log.identity.lookup(f"u{user}")
            assert key is not None
            made = AppendServed([ServedEntry(key.user, key.surrogate, msgspec.msgpack.encode(served))])
            log.add([Step(now_ms, made)] * (2 if rng.random() < 0.2 else 1))
            rows.append((user, "list", now_ms, 0.0, False, ""))
            continue
        kind = str(rng.choice(["click", "view", "purchase", "skip"])) if r > 50 else "view"
        time, value, back = now_ms - int(rng.integers(0, HOUR // 12)), float(rng.integers(1, 50)), rng.random() < 0.1
        country = str(rng.choice(["de", "fr", ""]))
        event = Event(
            user=f"u{user}" if r > USERS else f"u{r}", item="i", type=kind, time=time, value=value, retract=bool(back),
            attributes={"country": country} if country else None,
        )  # fmt: skip
        log.add([Step(now_ms, [event])])
        rows.append((user if r > USERS else r, kind, time, value, bool(back), country))
    return log, rows


def measured(rows: list[Row], measure: Measure, start: int, end: int) -> float:
    """What a person would count."""
    mine = [row for row in rows if start <= row[2] < end and (row[1] == "list") == (measure.of == "lists")]
    mine = [row for row in mine if not measure.types or row[1] in measure.types]
    sign = [-1 if row[4] else 1 for row in mine]
    if measure.of == "value":
        return sum(s * row[3] for s, row in zip(sign, mine, strict=True))
    if measure.of == "users":
        return float(sum(sign) > 0)
    if measure.of == "sessions":
        times = sorted(row[2] for row in mine if not row[4])
        return float(sum(i == 0 or t - times[i - 1] > HOUR / 2 for i, t in enumerate(times)))
    return float(sum(sign))


@pytest.mark.parametrize("seed", [1, 2])
def test_outcomes_are_what_a_loop_over_the_log_counts(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "READ_LIMIT", 61)
    rng = np.random.default_rng(seed)
    log, rows = written(rng)
    last_ms = rows[-1][2] if rows[-1][1] == "list" else log.log.last_received_ms
    names = [f"u{u}" for u in rng.permutation(USERS)]
    keys = [log.identity.lookup(name) for name in names]
    user = np.array([key.user for key in keys if key is not None])
    span = log.log.last_received_ms - START_MS
    first_ms = START_MS + rng.integers(span // 3, span, USERS)
    found = read_outcomes(log.log, METRICS, user=user, first_ms=first_ms, before_ms=30 * HOUR)
    assert found.until_ms == last_ms
    assert sum(done.sum() for done in found.complete.values()) > USERS
    for metric in METRICS:
        columns = np.ones((USERS, 4))
        for n, name in enumerate(names):
            mine = [row for row in rows if f"u{row[0]}" == name]
            at = int(first_ms[n])
            for half, measure in ((0, metric.numerator), (1, metric.denominator)):
                if measure is None:
                    continue
                after = {"0s": 0, "6h": 6 * HOUR, "1d": 24 * HOUR}[measure.after]
                columns[n, half] = measured(mine, measure, at + after, at + metric.window_ms)
                columns[n, half + 2] = measured(mine, measure, at - 30 * HOUR, at)
        done = first_ms + metric.window_ms <= found.until_ms
        np.testing.assert_array_equal(found.complete[metric.name], done)
        for column in (0, 2) if metric.winsorise < 1.0 and done.any() else ():
            highest = np.sort(columns[done, column])[int(np.ceil(metric.winsorise * (done.sum() - 1)))]
            columns[done, column] = np.minimum(columns[done, column], highest)
        np.testing.assert_array_equal(found.values[metric.name][done], columns[done], err_msg=metric.name)
    vocabulary = log.log.vocabulary()
    for n, name in enumerate(names):
        before = [row[5] for row in rows if f"u{row[0]}" == name and row[2] <= first_ms[n] and row[5]]
        text = vocabulary.text(Namespace.SEGMENT, int(found.segments[n, 0]))
        assert text == (f"country={before[-1]}" if before else None)


def test_what_is_received_later_does_not_count() -> None:
    log, rows = written(np.random.default_rng(3))
    key = log.identity.lookup("u1")
    assert key is not None
    half = (START_MS + log.log.last_received_ms) // 2
    metric = Metric(name="all", numerator=Measure(of="events"), window="1000d")
    found = read_outcomes(
        log.log, [metric], user=np.array([key.user]), first_ms=np.array([START_MS]), before_ms=0, until_ms=half
    )
    assert found.until_ms == half
    assert not found.complete["all"][0]
    assert 0 < found.values["all"][0, 0] < sum(row[0] == 1 and row[1] != "list" for row in rows)
    nobody = read_outcomes(log.log, [metric], user=np.zeros(0, np.int64), first_ms=np.zeros(0, np.int64), before_ms=0)
    assert nobody.values["all"].shape == (0, 4)


def test_the_predefined_metrics_follow_the_event_types() -> None:
    own = Config(
        events=(EventType(name="play", positive=True, weight=1.0), EventType(name="finish", positive=True, weight=3.0))
    )
    found = predefined(own, "1d")
    assert found["clicks_per_list"].numerator.types == ("play",)
    assert found["conversion"].numerator.types == ("finish",)
    assert "hides_per_user" not in found
    check_types(found.values(), own)
    with pytest.raises(ConfigurationError, match='no event type "play"'):
        check_types(found.values(), CONFIG)


def test_definitions_are_read_strictly() -> None:
    text = '[[metrics]]\nname = "reads"\nwindow = "3d"\nnumerator = {of = "events", types = ["view"]}\n'
    assert parse_metrics(text, "m.toml")["reads"].window_ms == 3 * 24 * HOUR
    for wrong, said in (
        (text + 'unit = "list"\n', "unit"),
        (text + text, "twice"),
        (text.replace("window", "windows"), "windows"),
        (text.replace('"3d"', '"1d"').replace("types", 'after = "1d", types'), "make the window longer"),
        ("metrics = 3", "Expected"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            parse_metrics(wrong, "m.toml")
    twice = [Metric(name="a", numerator=Measure(of="lists"))] * 2
    with pytest.raises(ConfigurationError, match="one name"):
        read_outcomes(
            Written(CONFIG).log, twice, user=np.zeros(0, np.int64), first_ms=np.zeros(0, np.int64), before_ms=0
        )
