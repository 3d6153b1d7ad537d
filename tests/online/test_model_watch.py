"""A bundle whose ranker is elsewhere comes into service when that is there, and never when it is another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from structlog.testing import capture_logs

from headwater.cli.doctor import _remote_ranker as check_remote_ranker
from headwater.cli.options import Settings
from headwater.features.plan import compile_plan
from headwater.online.metrics import Metrics
from headwater.online.models import ModelWatch
from headwater.online.recommender import Recommender
from headwater.ranking.remote import RemoteRanker
from headwater.schema.config import Config, Ranker
from tests.online.running import publish_ranker
from tests.ranking.test_remote import Reply, Server, answer

PLAN = compile_plan(Config())
MISSING = answer({"error": "there is no such version"}, 404)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def described(version: str, plan: str = PLAN.hash) -> list[Reply]:
    said = {
        "name": "headwater", "versions": [version], "platform": "headwater", "parameters": {"plan_hash": plan},
        "inputs": [{"name": "features", "datatype": "FP32", "shape": [-1, len(PLAN.columns)]}],
    }  # fmt: skip
    return [answer({}), answer(said)]


def test_it_waits_for_its_own_ranker_and_the_one_before_serves(tmp_path: Path, server: Server) -> None:
    config = Config(ranker=Ranker(remote=server.url))
    recommender = cast(Recommender, SimpleNamespace(model=None))
    metrics = Metrics()
    watch = ModelWatch(tmp_path / "models", config, PLAN, recommender, metrics)

    def load() -> str | None:
        watch.swap(watch.load())
        return None if recommender.model is None else recommender.model.version

    versions = list[str]()

    def publish() -> str:
        created_ms = 1_772_000_000_000 + 1_000 * len(versions)
        versions.append(publish_ranker(tmp_path, config, seed=len(versions), created_ms=created_ms))
        return versions[-1]

    with capture_logs() as said:
        first = publish()
        server.replies.append(MISSING)
        assert load() == first, "nothing else could serve"
        assert recommender.model is not None
        assert isinstance(recommender.model.ranker, RemoteRanker)
        second = publish()
        for _ in range(3):
            server.replies.append(MISSING)
            assert load() == first
        server.replies += described(second)
        assert load() == second
        assert load() == second
        third = publish()
        server.replies += described(third, plan="other")
        assert load() == second
        assert load() == second
        assert not server.replies
    missing = [line for line in said if line["event"] == "remote_ranker_missing"]
    assert [(line["version"], line["waits"]) for line in missing] == [(first, False), (second, True)]
    (refused,) = [line for line in said if line["event"] == "bundle_refused"]
    assert f"plan other, the bundle to {PLAN.hash}" in refused["reason"]
    assert metrics.model_refused._value.get() == 1.0
    recommender.model.close()


def test_the_doctor_says_whether_it_is_there(tmp_path: Path, server: Server) -> None:
    config = Config(ranker=Ranker(remote=server.url))
    chosen = Settings(config, None, tmp_path)
    assert "no bundle is promoted" in check_remote_ranker(chosen).detail
    version = publish_ranker(tmp_path, config, seed=1, created_ms=1_772_000_000_000)
    for replies, level in ((described(version), "ok"), ([MISSING], "fail"), (described(version, plan="b"), "fail")):
        server.replies += replies
        check = check_remote_ranker(chosen)
        assert check.level == level, check
