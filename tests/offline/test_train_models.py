"""The full system from one command: fitted sources, the ranker on what they offer and think, one bundle, one pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import msgspec
import numpy as np
import pytest
from structlog.testing import capture_logs

from headwater.cli.local import Site, make_site, write_world
from headwater.features.fold import Fold
from headwater.features.plan import compile_plan
from headwater.features.replay import fold_to
from headwater.log.lmdb import LmdbLog
from headwater.log.record import RecordBlock
from headwater.offline.fitted import FittedSources
from headwater.offline.train import TrainReport, train
from headwater.ranking.ranker import RankerError
from headwater.registry.audit import Author
from headwater.registry.bundle import Bundle
from headwater.registry.card import read_card
from headwater.registry.registry import Registry
from headwater.retrieval.fitted import score_column
from headwater.schema.config import FITTED_NAMES, Config, Ranker, load_config
from headwater.schema.errors import HeadwaterError
from headwater.schema.surfaces import Surface
from headwater.serving.model import Model, open_model
from headwater.serving.pipeline import Pipeline
from headwater.serving.request import Query
from headwater.serving.stages import TIER_FULL
from headwater.serving.view import FoldView
from headwater.simulator import World

START_MS = 1_760_313_600_000
TABLES: dict[str, dict[str, str | int | float | bool | list[str]]] = {
    "ranker": {"trees": 5, "leaves": 4, "negatives": 5, "max_rows": 2_000},
    "gate": {"enabled": False},
    "models.sequence": {"size": 16, "length": 12, "epochs": 2, "heads": 2, "blocks": 1, "batch_tokens": 512},
    "models.als": {"size": 8, "iterations": 3},
    "models.deep": {"width": 16, "crosses": 1, "epochs": 2, "batch": 256, "heads": ["click", "like"]},
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


def made(folder: pytest.TempPathFactory, name: str, ranker: str, sources: tuple[str, ...]) -> Site:
    tables = {key: dict(table) for key, table in TABLES.items()}
    tables["ranker"]["kind"] = ranker
    site = make_site(folder.mktemp(name), {**tables, **{f"sources.{source}": {"enabled": True} for source in sources}})
    write_world(site, World(3, start_ms=START_MS, users=200, items=80, hours=24, visits_per_day=4.0), lambda _: None)
    return site


def trained(site: Site) -> TrainReport:
    with closing(LmdbLog(site.data / "log", readonly=True)) as log:
        return train(
            load_config(site.config),
            log,
            site.data / "models",
            promote=Author("cli", lambda: START_MS),
            created_ms=START_MS,
            checks=site.data / "checks",
            threads=1,
        )


def bundle_of(site: Site, version: str) -> Bundle:
    return Registry(site.data / "models").load(version, plan_hash=compile_plan(load_config(site.config)).hash)


@pytest.mark.parametrize(
    ("ranker", "sources"),
    [("lightgbm", FITTED_NAMES), ("deep", ("sequence", "item_knn")), ("deep", ("ease",)), ("deep", ())],
)
def test_a_bundle_has_its_sources_and_serves(
    tmp_path_factory: pytest.TempPathFactory, ranker: str, sources: tuple[str, ...]
) -> None:
    site = made(tmp_path_factory, "site", ranker, sources)
    config = load_config(site.config)
    plan = compile_plan(config)
    report = trained(site)
    assert set(report.sources_s) == set(sources)
    bundle = bundle_of(site, report.bundle)
    assert bundle.manifest.sources == sources
    searched = {"sequence", "als"} & set(sources)
    assert {name for name, choice in report.indexes.items() if choice.kind == "exact"} == searched, (
        "few items are scanned"
    )
    card = read_card(bundle)
    assert card is not None
    assert card.indexes == {name: str(choice) for name, choice in report.indexes.items()}
    assert {name for name in bundle.files if name.endswith("_index.json")} == {
        f"{name}_index.json" for name in searched
    }
    assert bundle.manifest.columns == (*plan.columns, *map(score_column, sources))
    model = open_model(bundle, config, plan)
    assert model.ranker is not None
    assert model.ranker.attends == (ranker == "deep" and "sequence" in sources)
    with closing(LmdbLog(site.data / "log", readonly=True)) as log:
        fold = Fold(plan)
        fold_to(log, fold, log.last_offset)
    view = FoldView(plan, fold)
    view.refresh()
    pipeline = Pipeline(config, plan)
    offered: set[str] = set()
    for user in range(1, 60):
        answer = pipeline.recommend(Query("r", user=user, k=10, deadline_ms=1e9), view, model, fold.received_ms + 1)
        assert (answer.tier, answer.degraded) == (TIER_FULL, [n for n in answer.degraded if "failed" not in n])
        assert answer.modelled.shape == (len(answer.items), len(sources))
        assert np.isfinite(answer.modelled).all()
        offered |= {name for name, width in answer.widths.items() if width}
    assert set(sources) <= offered, "each source finds something for somebody"
    stranger = pipeline.recommend(Query("r", k=10, deadline_ms=1e9), view, model, fold.received_ms + 1)
    assert stranger.tier == TIER_FULL
    assert len(stranger.items) == 10
    check_objectives(config, bundle, view, fold.received_ms + 1)


def aiming(config: Config, **objective: float) -> Config:
    surfaces = (Surface(name="home"), Surface(name="cart", objective=objective))
    return msgspec.structs.replace(config, ranker=Ranker(kind="deep"), surfaces=surfaces)


def check_objectives(config: Config, bundle: Bundle, view: FoldView, now_ms: int) -> None:
    """A surface with an objective ranks by it, the others as trained, and what a bundle cannot follow it refuses."""
    plan = compile_plan(config)
    if bundle.manifest.ranker == "lightgbm":
        with pytest.raises(
            RankerError, match=r'surface "cart" has an objective, and the ranker of bundle .* has no heads'
        ):
            open_model(bundle, aiming(config, click=1.0), plan)
        return
    with pytest.raises(
        RankerError, match=r'"cart" does not fit bundle .*"clicks", did you mean "click".*has click, like'
    ):
        open_model(bundle, aiming(config, clicks=1.0), plan)
    chosen = aiming(config, click=1.0, like=3.0)
    model, likes = open_model(bundle, chosen, plan), open_model(bundle, aiming(config, like=1.0), plan)
    clicks = open_model(bundle, aiming(config, click=1.0), plan)

    def scores(of: Model, surface: str) -> dict[int, float]:
        query = Query("r", user=3, surface=surface, k=20, deadline_ms=1e9)
        answer = Pipeline(chosen, plan).recommend(query, view, of, now_ms)
        assert answer.tier == TIER_FULL
        assert (np.diff(answer.scores) <= 0.0).all()
        return dict(zip(answer.items.tolist(), answer.scores.tolist(), strict=True))

    both, click, like = scores(model, "cart"), scores(clicks, "cart"), scores(likes, "cart")
    for item in both.keys() & click.keys() & like.keys():
        assert both[item] == pytest.approx(click[item] + 3.0 * like[item], rel=1e-4, abs=1e-4)
    assert both.keys() & click.keys() & like.keys()
    assert scores(model, "home") == scores(likes, "home") != both
    model.close()
    with pytest.raises(RankerError, match="was closed"):
        model.on("cart").ranker.score(np.zeros((1, len(bundle.manifest.columns)), np.float32))  # type: ignore[union-attr]


def test_the_same_training_gives_the_same_bundle(tmp_path_factory: pytest.TempPathFactory) -> None:
    site = made(tmp_path_factory, "same", "lightgbm", ("item_knn", "ease"))
    assert trained(site).bundle == trained(site).bundle


def test_scores_that_the_ranker_learns_from_never_knew_the_answer(tmp_path_factory: pytest.TempPathFactory) -> None:
    site = made(tmp_path_factory, "split", "lightgbm", ("item_knn",))
    config = load_config(site.config)
    with closing(LmdbLog(site.data / "log", readonly=True)) as log:
        sources = FittedSources(log, compile_plan(config), config, log.last_offset, 0, seed=7, threads=1)
        model, begins_ms = sources.before_the_ranker()
        early = dict(sources.files)
        assert [source.name for source in model.sources] == ["item_knn"]
        received = np.concatenate([block.records["received_ms"] for block in blocks(log)])
        assert 0.5 < float((received < begins_ms).mean()) < 0.9
        until = int((received < begins_ms).sum())
        alone = FittedSources(log, compile_plan(config), config, until, 0, seed=7, threads=1)
        alone.again(attends=False)
        assert alone.files == early, "trained on what lies before the ranker's questions, and nothing else"
        sources.again(attends=True)
        assert sources.files == early, "a ranker that attends keeps the vectors that it knows"
        sources.again(attends=False)
        assert sources.files != early


def blocks(log: LmdbLog) -> Iterator[RecordBlock]:
    after = 0
    while (block := log.read(after)) is not None:
        yield block
        after = block.last_offset


def test_too_few_events_for_two_parts_are_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    site = made(tmp_path_factory, "few", "lightgbm", ("item_knn",))
    config = load_config(site.config)
    with closing(LmdbLog(site.data / "log", readonly=True)) as log:
        sources = FittedSources(log, compile_plan(config), config, 90, 0, seed=7, threads=1)
        with pytest.raises(HeadwaterError, match="too few to train sources"):
            sources.before_the_ranker()
