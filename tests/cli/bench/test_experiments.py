"""``headwater bench experiments``: the promises hold in its short form, its simulations are what they say."""

from __future__ import annotations

from functools import partial

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from headwater.cli.bench.experiments import missed
from headwater.cli.bench.trials import METRICS, clicks_per_user, conversion, looked_at, rate, split_alarms
from headwater.cli.main import build_app
from tests.reliability.experiments import sighted, sound


def test_the_short_form_keeps_the_promises() -> None:
    size = ["--tests", "100", "--looks", "30", "--splits", "1000", "--users", "1000", "--seed", "1"]
    result = CliRunner().invoke(build_app(), ["bench", "experiments", *size, "--json"])
    assert result.exit_code == 0, result.output
    figures = msgspec.json.decode(result.output.strip().splitlines()[-1])
    assert figures["missed"] == []
    assert set(figures["aa"]) == set(METRICS)
    assert figures["naive_false_positives"] > 0.15 > figures["false_positives"]
    assert figures["mismatch_found"] == 1.0
    assert figures["cuped_factor"] > 1.4
    verdicts = figures["verdicts"]
    assert figures["wrong_verdicts"] <= 0.1
    assert verdicts["clicks +10%"].get("ship", 0) >= 8 <= verdicts["clicks -10%"].get("stop: harm", 0)
    low, high = figures["interleaving"]["factor_ci95"]
    assert 1.0 < low < figures["interleaving_factor"] < high
    assert {"seed", "machine", "versions", "cpu_s"} <= set(figures)


def test_a_promise_that_is_missed_is_named() -> None:
    good = {"false_positives": 0.05, "srm_false_alarms": 0.001, "mismatch_found": 0.99}
    assert missed(good) == []
    assert missed(good | {"false_positives": 0.051}) == ["false positives"]
    assert missed(good | {"srm_false_alarms": 0.0011, "mismatch_found": 0.98}) == [
        "false alarms of the split",
        "mismatch found",
    ]


def test_the_check_of_the_reliability_table_in_short() -> None:
    found = sound(tests=60, looks=20, splits=500, seed=1)
    assert found.good
    assert found.false_positives <= 0.05 < found.naive
    assert found.srm_false_alarms == 0.0
    assert sighted(splits=500, seed=1).good


def test_an_effect_is_found_and_a_fixed_test_errs_as_often_as_it_says() -> None:
    treated = partial(conversion, lift=0.5)
    rates, left = looked_at(conversion, treated=treated, tests=60, looks=10, each=1_000, seed=2)
    assert rates["always_valid"].share > 0.9
    assert left == 1.0
    rates, left = looked_at(clicks_per_user, tests=1_500, looks=4, each=200, seed=3)
    assert 0.03 < rates["fixed"].share < 0.075
    assert 0.4 < left < 0.7


def test_a_rate_has_the_exact_interval() -> None:
    found = rate(np.array([True] * 3 + [False] * 7))
    assert found.ci95 == pytest.approx((0.0667, 0.6525), abs=1e-4)
    assert rate(np.zeros(20, np.bool_)).ci95 == pytest.approx((0.0, 0.1684), abs=1e-4)
    assert split_alarms((0.5, 0.5), (0.6, 0.4), runs=50, looks=40, each=100, seed=1).alarms.share == 1.0
