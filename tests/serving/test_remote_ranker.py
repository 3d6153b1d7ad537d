"""A ranker in another process: the scores of the one in this process, and no request that fails when it hangs, dies or is another.

The other process is a real MLServer with the runtime of ``deploy/mlserver``, and a strict server of our own, which accepts nothing that the
protocol does not say.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from headwater.features.plan import Plan
from headwater.learning.gbdt import GbdtParams, fit_gbdt
from headwater.log.commands import PutItems
from headwater.ranking.gbdt import MODEL_FILE
from headwater.ranking.ranker import RankerError, UnreachableError, open_ranker
from headwater.ranking.remote import RemoteRanker
from headwater.registry.bundle import Bundle, DataRange, ManifestFields, load_bundle, write_bundle
from headwater.schema.config import Config, Ranker
from headwater.schema.items import Item
from headwater.serving.model import Model, open_model
from headwater.serving.pipeline import Conditions, Pipeline
from headwater.serving.request import Answer, Query
from headwater.serving.scorer import ThreadScorer
from headwater.serving.stages import TIER_FULL, TIER_LIGHT, TIER_RETRIEVAL
from headwater.testing.events import START_MS, Step
from tests.retrieval.worlds import World, clicks, many, world
from tests.serving.elsewhere import PATIENCE_S, Elsewhere, elsewhere
from tests.serving.rankers import by_column
from tests.serving.test_pipeline import CONFIG, NO_DEADLINE_MS


@pytest.fixture(scope="module")
def small() -> World:
    put = PutItems([Item(id=f"i{n}", categories=[f"c{n % 3}"]) for n in range(30)])
    return world(Step(START_MS, put), clicks(*many("i1", 4), *many("i2", 3), ("me", "i3")), config=CONFIG)


def trees(folder: Path, plan: Plan) -> Bundle:
    """A bundle with a small ranker that was fitted on noise, some of it missing."""
    random = np.random.default_rng(5)
    rows = random.random((400, len(plan.columns)), np.float32)
    rows[random.random(rows.shape) < 0.1] = np.nan
    text, _ = fit_gbdt(
        rows, np.tile([1, 0, 0, 0], 100), np.full(100, 4), None, columns=plan.columns,
        params=GbdtParams(trees=5, leaves=4), seed=1, num_threads=1,
    )  # fmt: skip
    fields = ManifestFields(
        created_ms=1_772_000_000_000, plan_hash=plan.hash, columns=plan.columns, ranker="lightgbm",
        event_types=plan.event_types, data=DataRange(first_offset=1, last_offset=1, first_ms=0, last_ms=0),
    )  # fmt: skip
    return load_bundle(write_bundle(folder, fields, {MODEL_FILE: text}), plan_hash=plan.hash)


@pytest.fixture(scope="module", params=["strict", "mlserver"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, small: World
) -> Iterator[Elsewhere]:
    folder = tmp_path_factory.mktemp(request.param)
    with elsewhere(request.param, folder, trees(folder / "bundles", small.plan)) as made:
        yield made


def opened(server: Elsewhere, small: World) -> Model:
    """The model as a worker opens it, with a light ranker."""
    config = Config(features=CONFIG.features, surfaces=CONFIG.surfaces, ranker=Ranker(remote=server.url))
    model = open_model(server.bundle, config, small.plan, remote=True)
    assert isinstance(model.ranker, RemoteRanker)
    return replace(model, light=by_column(small.plan, "item_age").ranker)


def test_scores_are_those_of_the_ranker_in_this_process(server: Elsewhere, small: World) -> None:
    remote = opened(server, small).ranker
    assert isinstance(remote, RemoteRanker)
    remote.check(PATIENCE_S)
    local = open_ranker("lightgbm", server.bundle.files, server.bundle.manifest.columns)
    assert local is not None
    random = np.random.default_rng(9)
    for n in (1, 7, 200):
        rows = random.random((n, len(small.plan.columns)), np.float32)
        rows[random.random(rows.shape) < 0.1] = np.nan
        assert np.allclose(remote.score_within(rows, None, PATIENCE_S), local.score(rows), rtol=0.0, atol=1e-5)
    remote.close()


def test_lists_are_those_of_the_ranker_in_this_process(server: Elsewhere, small: World) -> None:
    model = opened(server, small)
    direct = open_model(server.bundle, CONFIG, small.plan)
    scorer = ThreadScorer()
    made = Pipeline(CONFIG, small.plan, conditions=Conditions(scorer=scorer))
    try:
        for user in range(3):
            query = Query("r", user=user, k=10, deadline_ms=NO_DEADLINE_MS)
            answer = made.recommend(query, small.view, model, small.now_ms)
            wanted = Pipeline(CONFIG, small.plan).recommend(query, small.view, direct, small.now_ms)
            assert (answer.tier, answer.items.tolist()) == (TIER_FULL, wanted.items.tolist())
    finally:
        scorer.close()
        model.close()


def test_what_is_not_the_bundle_in_service_is_refused(server: Elsewhere, small: World) -> None:
    manifest = server.bundle.manifest
    stated = {"version": manifest.version, "plan_hash": manifest.plan_hash, "columns": manifest.columns}
    with contextlib.ExitStack() as made:

        def remote(**changes: str | tuple[str, ...]) -> RemoteRanker:
            ranker = RemoteRanker(server.url, attends=False, **(stated | changes))  # type: ignore[arg-type]
            made.callback(ranker.close)
            return ranker

        with pytest.raises(UnreachableError, match="404"):
            remote(version="20990101T000000000Z-0123456789ab").check(PATIENCE_S)
        with pytest.raises(RankerError, match=f"belongs to plan {small.plan.hash}, the bundle to other"):
            remote(plan_hash="other").check(PATIENCE_S)
        fewer = remote(columns=small.plan.columns[1:])
        with pytest.raises(RankerError, match="columns"):
            fewer.check(PATIENCE_S)
        with pytest.raises(UnreachableError, match="answered 400"):
            fewer.score_within(np.zeros((2, len(small.plan.columns) - 1), np.float32), None, PATIENCE_S)


def test_one_that_hangs_or_dies_fails_no_request_and_comes_back(server: Elsewhere, small: World) -> None:
    """The last test of a server."""
    model = opened(server, small)
    scorer = ThreadScorer()
    made = Pipeline(CONFIG, small.plan, conditions=Conditions(scorer=scorer))

    def ask(deadline_ms: float = NO_DEADLINE_MS) -> Answer:
        answer = made.recommend(Query("r", user=1, k=10, deadline_ms=deadline_ms), small.view, model, small.now_ms)
        assert len(answer.items) == 10
        return answer

    def until(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.01)

    try:
        with capture_logs() as logged:
            assert ask().tier == TIER_FULL
            server.process.send_signal(signal.SIGSTOP)
            first = ask(deadline_ms=1_000.0)
            while not scorer.resting:  # on a busy machine there may be no time left to ask it
                first = ask(deadline_ms=1_000.0)
            assert first.tier in (TIER_LIGHT, TIER_RETRIEVAL)
            assert any("did not answer in time" in why or "ranker stalled" in why for why in first.degraded)
            began = time.monotonic()
            for _ in range(20):
                answer = ask()
                assert answer.tier == TIER_LIGHT
                assert any("ranker rests" in why for why in answer.degraded)
            assert time.monotonic() - began < 10.0, "requests waited for it"
            server.process.send_signal(signal.SIGCONT)
            until(lambda: ask().tier == TIER_FULL)
            server.process.send_signal(signal.SIGKILL)
            server.process.wait(30)
            for _ in range(20):
                answer = ask()
                assert answer.tier == TIER_LIGHT
                assert any("cannot be reached" in why or "ranker rests" in why for why in answer.degraded)
            bare = replace(model, light=None)
            answer = made.recommend(Query("r", k=5, deadline_ms=NO_DEADLINE_MS), small.view, bare, small.now_ms)
            assert answer.tier == TIER_RETRIEVAL
        names = [line["event"] for line in logged]
        assert names.count("ranker_unreachable") + names.count("ranker_stalled") >= 2
        assert "ranker_back" in names
        assert len(names) < 20, "one line for each rest, not for each request"
    finally:
        scorer.close()
        model.close()
