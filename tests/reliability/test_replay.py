"""The short form of :mod:`tests.reliability.replay`."""

from __future__ import annotations

from pathlib import Path

from headwater.features.plan import compile_plan
from headwater.schema.config import Config
from tests.reliability.replay import run


def test_served_features_are_the_replayed_ones(tmp_path: Path) -> None:
    report = run(tmp_path, requests=300, seed=11, patience_s=300.0)
    assert report.requests >= 300
    assert report.rows > report.requests
    assert report.mismatched_bytes == 0
    assert sorted(report.by_feature) == sorted(compile_plan(Config()).columns)
