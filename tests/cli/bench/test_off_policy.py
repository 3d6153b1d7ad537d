"""``headwater bench off-policy``: every estimator of every world, on one line or in tables."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from headwater.cli.main import build_app
from headwater.evaluation.off_policy import estimators, lists

SMALL = ["bench", "off-policy", "--logs", "100", "--users", "60", "--draws", "100"]


def test_it_says_how_often_each_interval_holds_the_truth() -> None:
    done = CliRunner().invoke(build_app(), [*SMALL, "--json"])
    assert done.exit_code == 0
    said = json.loads(done.stdout.splitlines()[-1])
    assert {"worlds", "cpu_s", "seed", "machine", "versions"} <= said.keys()
    for name, world in said["worlds"].items():
        known = estimators.NAMES if name in ("linear", "curved", "unseen") else lists.NAMES
        assert set(world["estimators"]) == set(known)
        assert (world["logs"], world["users"]) == (100, 60)
        for one in world["estimators"].values():
            assert 0.0 <= one["bootstrap"] <= 1.0
        assert world["estimators"][known[0]]["asymptotic"] > 0.8
    assert said["worlds"]["curved"]["estimators"]["DM"]["bias"] < -0.01, "the model lacks what matters there"
