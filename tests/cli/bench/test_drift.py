"""``headwater bench drift``: the promises hold in its short form, its columns are what they say."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from headwater.cli.bench.drift import COLUMNS, drawn, missed
from headwater.cli.main import build_app
from tests.reliability.drift import judged


def test_the_short_form_keeps_the_promises() -> None:
    result = CliRunner().invoke(
        build_app(), ["bench", "drift", "--windows", "30", "--no-power", "--seed", "1", "--json"]
    )
    assert result.exit_code == 0, result.output
    figures = msgspec.json.decode(result.output.strip().splitlines()[-1])
    assert figures["missed"] == []
    assert set(figures["columns"]) == set(COLUMNS)
    assert figures["rows_of_users"]["chi_square_false_alarms"] > 0.9
    assert figures["rows_of_users"]["effective_rows"] == pytest.approx(500, rel=0.3)
    for column in figures["columns"].values():
        assert column["detected"] == 1.0
        assert column["psi_0.2_detected"] == 0.0  # the usual threshold sees nothing of it
        assert column["beyond_chance_of_1_percent"] <= 0.1
    assert judged(windows=10, rows=10_000, shift=0.2, seed=3).good
    assert not judged(windows=10, rows=10_000, shift=0.0, seed=3).good


def test_means_are_as_far_apart_as_is_said() -> None:
    rng = np.random.default_rng(3)
    calm, moved = (drawn(rng, 400_000, shift).astype(np.float64) for shift in (0.0, 0.2))
    apart = (moved.mean(0) - calm.mean(0)) / np.array([1.0, np.sqrt(3.0), np.sqrt(2.0), calm[:, 3].std()])
    assert apart == pytest.approx([0.2] * 4, abs=0.02)


def test_a_promise_that_is_missed_is_named() -> None:
    good = {"false_alarms": 0.01, "rows_of_users": {"false_alarms": 0.0}, "detected": 0.99}
    assert missed(good) == []
    assert missed(good | {"rows_of_users": {"false_alarms": 0.02}}) == ["false alarms"]
    assert missed(good | {"false_alarms": 0.011, "detected": 0.98}) == ["false alarms", "detection"]
