"""The Open Bandit Dataset: the real files, and what a made-up log of the same shape comes to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from headwater.cli.main import build_app
from headwater.evaluation.off_policy.open_bandit import measure_open_bandit
from headwater.schema.errors import HeadwaterError


def test_both_policies_are_estimated_from_the_real_logs(data_sets: Path) -> None:
    found = measure_open_bandit(data_sets / "open-bandit", bootstraps=1, seed=7)
    assert [(each.campaign, each.of, each.clicks) for each in found] == [
        ("men", "random", 46), ("men", "bts", 69), ("women", "random", 46), ("women", "bts", 46),
    ]  # fmt: skip
    for each in found:
        assert each.rows == 10_000
        if each.of == "random":
            assert each.refused is None
            assert each.mean_weight == pytest.approx(1.0, abs=0.1)
            for one in each.estimators.values():
                assert one.ci95[0] < each.truth_ci95[1]
                assert one.ci95[1] > each.truth_ci95[0]
    assert found[3].refused is not None
    assert "effective sample size" in found[3].refused


def test_a_made_up_log_is_read_and_a_wrong_folder_is_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for campaign in ("men", "women"):
        for policy, chances in (("random", np.full(4, 0.25)), ("bts", np.array([0.1, 0.2, 0.3, 0.4]))):
            item = rng.choice(4, 3_000, p=chances)
            frame = {
                "item_id": item, "position": rng.integers(1, 4, 3_000), "propensity_score": chances[item],
                "click": (rng.random(3_000) < 0.1 + 0.2 * item).astype(np.int64),
            }  # fmt: skip
            frame |= {f"user_feature_{n}": rng.choice(["a", "b"], 3_000) for n in range(4)}
            pl.DataFrame(frame).write_parquet(tmp_path / f"{policy}_{campaign}.parquet")
    for each in measure_open_bandit(tmp_path, bootstraps=2, seed=1):
        assert each.truth == pytest.approx(0.5 if each.to == "bts" else 0.4, abs=0.03)
        assert each.refused is None
        for name, one in each.estimators.items():
            assert one.relative_error < 0.12, (name, one.value, each.truth)
    shown = CliRunner().invoke(build_app(), ["bench", "open-bandit", "--data", str(tmp_path), "--bootstraps", "2"])
    assert shown.exit_code == 0
    assert "men: bts from the log of random" in shown.stdout
    assert "0.157" in shown.stdout, "the published figure stands beside"
    (tmp_path / "bts_women.parquet").unlink()
    with pytest.raises(HeadwaterError, match=r"bts_women\.parquet is missing"):
        measure_open_bandit(tmp_path, bootstraps=2, seed=1)
