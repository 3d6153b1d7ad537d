"""The cost of monitoring is what the blocks say."""

from __future__ import annotations

import numpy as np

from headwater.cli.bench.monitoring import Round, costs


def test_the_share_is_that_of_the_blocks_and_of_what_is_told() -> None:
    rng = np.random.default_rng(5)
    without = 0.1 * (1.0 + 0.2 * rng.random(80))
    noise = 1.0 + 0.01 * rng.standard_normal(80)
    found = costs([Round(float(s * 1.02 * n), float(s)) for s, n in zip(without, noise, strict=True)], 50, 0.001, 3)
    assert abs(found["share"] - 0.021) < 0.004
    low, high = found["ci95"]
    assert low < found["share"] < high
    assert high - low < 0.01
    assert found["requests"] == 4_000
    assert found["tell_ms_per_s"] == 1.0


def test_noise_alone_is_no_cost() -> None:
    rng = np.random.default_rng(6)
    found = costs([Round(*(0.1 * (1.0 + 0.5 * rng.random(2))).tolist()) for _ in range(2_000)], 10, 0.0, 3)
    low, high = found["ci95"]
    assert low < 0.0 < high
    assert abs(found["share"]) < 0.01
