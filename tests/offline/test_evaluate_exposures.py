"""The exposures protocol from a log to its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from headwater.offline.evaluate_exposures import ExposureReport, evaluate_exposures
from headwater.schema.config import Ranker
from headwater.schema.errors import HeadwaterError
from headwater.schema.models import DeepModel, Models
from headwater.testing.events import START_MS, Written
from tests.offline.exposed import CONFIG, MINUTE, site

SMALL = msgspec.structs.replace(
    CONFIG, models=Models(deep=DeepModel(width=16, epochs=1, batch=256, heads=("click",))), ranker=Ranker(trees=5)
)
SPLIT = START_MS + 220 * MINUTE


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with capture_logs():
        yield


@pytest.fixture(scope="module")
def log() -> Written:
    with capture_logs():
        return site(3, 300, users=40)


def run(log: Written, out: Path, **more: Any) -> ExposureReport:
    options: dict[str, Any] = {"split_ms": SPLIT, "seed": 7, "threads": 1}
    return evaluate_exposures(more.pop("config", SMALL), log.log, out, **(options | more))


def test_every_model_is_judged_on_the_same_impressions_twice_alike(log: Written, tmp_path: Path) -> None:
    report = run(log, tmp_path)
    text = json.loads(msgspec.json.encode(report))
    assert text["protocol"] == "exposures"
    assert list(text["models"]) == ["popularity", "item_rate", "lightgbm", "deep"]
    for model in text["models"].values():
        assert set(model) == {"heads", "train_s", "peak_mb"}
        assert {"auc", "gauc", "logloss", "ece", "ci95"} <= set(model["heads"]["click"])
    assert report.n == report.data["test"] > 100
    assert report.data["train"] > 100
    again = run(log, tmp_path)
    assert {n: m.heads for n, m in again.models.items()} == {n: m.heads for n, m in report.models.items()}
    assert "user_since" in report.held


def test_until_ends_the_questions(log: Written, tmp_path: Path) -> None:
    early = run(log, tmp_path, until_ms=SPLIT + 100 * MINUTE)
    assert 100 < early.n < run(log, tmp_path).n
    assert run(log, tmp_path, until_ms=SPLIT + 100 * MINUTE).n == early.n  # the folder holds more by now


def test_what_cannot_be_judged_is_named(log: Written, tmp_path: Path) -> None:
    with pytest.raises(HeadwaterError, match="choose another --split"):
        run(log, tmp_path, split_ms=START_MS)
    wrong = msgspec.structs.replace(SMALL, models=Models(deep=DeepModel(heads=("purchase",))))
    with pytest.raises(HeadwaterError, match=r"names purchase, and \[\[training.labels\]\] does not"):
        run(log, tmp_path, config=wrong)
