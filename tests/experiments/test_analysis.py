"""The whole analysis on generated users: effects that are there are found, guardrails trip, a broken split stops everything."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import msgspec
import numpy as np
import pytest

from headwater.experiments.analysis import ExperimentReport, analyse
from headwater.experiments.decisions import watch
from headwater.experiments.definitions import Guardrail
from headwater.experiments.exposures import Arms
from headwater.experiments.metrics import Measure, Metric
from headwater.experiments.outcomes import Outcomes
from headwater.experiments.report import markdown, write_report
from headwater.schema.errors import HeadwaterError

DAY = 86_400_000
CLICKS = Metric(name="clicks", numerator=Measure(of="events"))
PER_LIST = Metric(name="per_list", numerator=Measure(of="events"), denominator=Measure(of="lists"))
HIDES = Metric(name="hides", numerator=Measure(of="events", types=("hide",)), better="decrease")
METRICS = (CLICKS, PER_LIST, HIDES)


def report(
    users: int = 20_000, clicks: float = 1.0, hides: float = 1.0, shares: tuple[float, ...] = (0.5, 0.5), seed: int = 1,
    guardrails: tuple[Guardrail, ...] = (Guardrail(metric="hides", direction="increase", bound=0.5),), late: int = 0,
) -> ExperimentReport:  # fmt: skip
    """An experiment in which the treatment multiplies clicks and hides; ``late`` users' windows are not over."""
    rng = np.random.default_rng(seed)
    variant = rng.choice(len(shares), users, p=np.array(shares) / sum(shares))
    first_ms = np.sort(rng.integers(0, 10 * DAY, users))
    likes = rng.gamma(2.0, 1.0, users)
    treated = variant == 1
    made = {
        "clicks": np.stack([rng.poisson(likes * np.where(treated, clicks, 1.0)), np.ones(users), rng.poisson(likes), np.ones(users)], 1),
        "hides": np.stack([rng.poisson(0.2 * np.where(treated, hides, 1.0), users), np.ones(users), np.zeros(users), np.ones(users)], 1),
    }  # fmt: skip
    lists = 1.0 + rng.poisson(likes * 3)
    made["per_list"] = np.stack([made["clicks"][:, 0], lists, made["clicks"][:, 2], np.maximum(lists - 1, 1)], 1)
    complete = np.arange(users) < users - late
    segments = np.stack([rng.integers(0, 3, users), rng.integers(3, 5, users)], axis=1)
    outcomes = Outcomes(
        {name: columns.astype(np.float64) for name, columns in made.items()},
        dict.fromkeys(made, complete), segments, 20 * DAY,
    )  # fmt: skip
    names = {1: "country=de", 2: "country=fr", 3: "device=phone", 4: "device=tv"}
    return analyse(
        "more", Arms(np.arange(users, dtype=np.uint32), variant, first_ms, 3), outcomes, METRICS, variants=["control", "new"],
        weights=[0.5, 0.5], primary=["clicks"], guardrails=guardrails, planned_users=20_000, segment_names=names,
    )  # fmt: skip


def test_a_gain_ships_and_the_report_says_how_sure_it_is(tmp_path: Path) -> None:
    found = report(clicks=1.08, late=500)
    assert [verdict.decision for verdict in found.verdicts] == ["ship", "ship"]
    clicks = found.comparisons[0]
    assert clicks.role == "primary"
    assert sum(clicks.users) == 19_500
    low, high = clicks.relative_sequence
    assert low is not None
    assert high is not None
    assert 0.0 < low < 0.08 < high
    assert clicks.fixed is not None
    assert high - low > clicks.fixed.relative_interval[1] - clicks.fixed.relative_interval[0]
    assert clicks.p_value <= clicks.p_holm <= 0.05
    assert 0.4 < clicks.variance_ratio < 0.8
    assert [one.role for one in found.comparisons] == ["primary", "secondary", "guardrail"]
    assert found.guardrails[0].state == "held"
    looks = [look.users for look in clicks.path]
    assert looks == sorted(looks)
    assert looks[-1] == 19_500
    assert {one.segment for one in found.breakdown.slices} == {"country=de", "country=fr", "device=phone", "device=tv"}
    assert "4 slices" in found.breakdown.warning
    paths = write_report(found, tmp_path / "out")
    assert msgspec.json.decode(paths[0].read_bytes(), type=ExperimentReport) == found
    assert "**ship**: new: clicks is better" in paths[1].read_text()
    drawing = ET.fromstring(paths[2].read_text())  # noqa: S314  (our own file)
    assert len(drawing.findall(".//{http://www.w3.org/2000/svg}polygon")) == 1
    with pytest.raises(HeadwaterError, match="--out"):
        write_report(found, paths[0])


def test_no_effect_goes_on() -> None:
    found = report(seed=2)
    assert found.verdicts[0].decision == "continue"
    assert not found.split.alarm
    assert found.mixed == 3


def test_harm_stops_by_the_metric_and_by_the_guardrail() -> None:
    assert report(clicks=0.9).verdicts[0].decision == "stop: harm"
    worse = report(clicks=1.08, hides=2.0)
    assert worse.guardrails[0].state == "violated"
    assert worse.verdicts[0].decision == "stop: harm"
    assert "hides" in worse.verdicts[0].reasons[0]


def test_a_guardrail_that_is_not_known_to_hold_keeps_a_gain_from_shipping() -> None:
    found = report(clicks=1.08, hides=1.0, guardrails=(Guardrail(metric="hides", direction="increase", bound=0.01),))
    assert found.guardrails[0].state == "open"
    assert found.verdicts[0].decision == "continue"
    assert "not known to hold" in found.verdicts[0].reasons[0]
    assert "open" in markdown(found)


def test_a_broken_split_is_believed_before_anything_else() -> None:
    found = report(clicks=1.2, shares=(0.53, 0.47))
    assert found.split.alarm
    assert {verdict.decision for verdict in found.verdicts} == {"stop: invalid"}


def test_few_users_and_nobody_give_a_report_without_claims() -> None:
    for users, late in ((120, 0), (50, 50), (0, 0)):
        found = report(users=users, late=late)
        assert found.verdicts[0].decision == "continue"
        clicks = found.comparisons[0]
        assert clicks.sequence == clicks.relative_sequence == (None, None)
        assert clicks.p_value == 1.0
        assert clicks.fixed is None
        assert markdown(found)


def test_a_metric_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="no metric latency"):
        report(guardrails=(Guardrail(metric="latency"),))


@pytest.mark.parametrize(
    ("direction", "low", "high", "state"),
    [
        ("decrease", -0.2, -0.06, "violated"), ("decrease", -0.2, -0.04, "open"), ("decrease", -0.04, None, "held"),
        ("increase", 0.06, 0.2, "violated"), ("increase", None, 0.06, "open"), ("increase", -1.0, 0.04, "held"),
        ("increase", None, None, "open"),
    ],
)  # fmt: skip
def test_guardrails_by_side_and_bound(direction: str, low: float | None, high: float | None, state: str) -> None:
    guardrail = msgspec.convert({"metric": "m", "direction": direction, "bound": 0.05}, Guardrail)
    assert watch(guardrail, "new", 0.0, (low, high)).state == state
