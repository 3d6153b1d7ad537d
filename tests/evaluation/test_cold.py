"""Cold items and cold users on small worlds."""

from __future__ import annotations

from math import log2

import msgspec
import numpy as np
import pytest
from structlog.testing import capture_logs

from headwater.evaluation.cold_items import choose_cold, evaluate_cold_items, gains
from headwater.evaluation.cold_users import evaluate_cold_users
from headwater.evaluation.scoring import CONTENT, POPULARITY, RECENT_POPULARITY, Training
from headwater.evaluation.temporal import CO_VISITS, RANKER, UNION
from headwater.features.plan import compile_plan
from headwater.retrieval.fitted import open_sources
from headwater.schema.config import Config, FittedConfig, Sources
from headwater.schema.errors import HeadwaterError
from headwater.schema.events import Event
from headwater.testing.events import START_MS, Step, Written, written
from headwater.testing.source_contract import FittedSourceContract, taste_world
from tests.retrieval.worlds import MINUTE_MS, clicks, many
from tests.serving.rankers import by_column

CONFIG = Config(sources=Sources(item_knn=FittedConfig(enabled=True)))
PLAN = compile_plan(CONFIG)
TRAINING = Training(sources=("item_knn",), seed=4)


def test_gains_are_those_of_the_definition() -> None:
    recall, wide, hit, narrow, mrr = gains(np.array([1, 3, 15, 25]))
    assert (recall, hit, mrr) == (0.75, 1.0, 1.0)
    ideal = 1 + 1 / log2(3) + 1 / log2(4) + 1 / log2(5)
    assert narrow == pytest.approx((1 + 1 / log2(4)) / ideal)
    assert wide == pytest.approx((1 + 1 / log2(4) + 1 / log2(16)) / ideal)
    assert gains(np.arange(1, 31))[:2] == pytest.approx((20 / 30, 1.0))
    assert gains(np.array([40])) == (0.0, 0.0, 0.0, 0.0, 1 / 40)


def test_cold_items_are_drawn_from_those_with_content_by_the_seed() -> None:
    items, content = np.arange(1, 101), np.arange(101) % 2 == 0
    cold = choose_cold(items, content, 0.2, 1)
    assert len(cold) == 10
    assert (cold % 2 == 0).all()
    assert cold.tolist() == choose_cold(items, content, 0.2, 1).tolist()
    assert cold.tolist() != choose_cold(items, content, 0.2, 2).tolist()


def test_of_cold_items_content_knows_and_neighbours_do_not() -> None:
    """Groups of items share their words: content finds the cold ones of a group, counts have never heard of them."""
    world = taste_world(CONFIG)
    report = evaluate_cold_items(world.log.log, PLAN, CONFIG, TRAINING)
    assert (report.items, report.cold_items, report.share) == (24, 5, 0.2)
    assert set(report.models) == set(report.all_items) == {RECENT_POPULARITY, POPULARITY, CONTENT, "item_knn"}
    assert report.models[CONTENT].mrr > 0.6
    # five candidates that all have no event: the relevant ones come last, by the rule of ties
    assert report.models[POPULARITY].mrr < 0.4
    assert report.models["item_knn"].mrr == report.models[POPULARITY].mrr == report.models[RECENT_POPULARITY].mrr
    assert report.models[CONTENT].recall_at_20 == 1.0, "there are but five"
    assert report.all_items[CONTENT].mrr > report.all_items[POPULARITY].mrr
    assert report.all_items[POPULARITY].hr_at_10 == 0.0
    msgspec.json.encode(report)


def test_cold_items_are_in_nobodys_training() -> None:
    world = taste_world(CONFIG)
    report = evaluate_cold_items(world.log.log, PLAN, CONFIG, TRAINING)
    sequences = world.sequences()
    cold = choose_cold(np.unique(sequences.items), world.view.index.has_content, 0.2, 4)
    assert report.training_events == int((~np.isin(sequences.items, cold)).sum())
    assert report.n <= len(sequences.users)


def test_without_content_there_is_no_cold_item() -> None:
    log = written([clicks(("a", "x"), ("a", "y"))], CONFIG)
    with pytest.raises(HeadwaterError, match="import the catalogue"):
        evaluate_cold_items(log.log, PLAN, CONFIG, TRAINING)


def later(minutes: int, user: str, *items: str) -> list[Step]:
    at_ms = START_MS + minutes * MINUTE_MS
    return [Step(at_ms + n * 1_000, [Event(user=user, item=item, type="click")]) for n, item in enumerate(items)]


@pytest.fixture
def split() -> tuple[Written, int]:
    """Five like a, three like b before; then x0 comes back, and ann and bob are new."""
    log = written([clicks(*many("a", 5), *many("b", 3, "y"), at_ms=START_MS)], CONFIG)
    offset = log.log.last_offset
    log.add([*later(1, "x0", "b"), *later(2, "ann", "b", "a", "c", "d", "e", "f", "g"), *later(3, "bob", "a")])
    return log, offset


def test_new_users_are_asked_after_so_many_events(split: tuple[Written, int]) -> None:
    """
    ann after 0: a (5), b (4): asked for b → 2nd.  bob after 0: a (6), b (5) …: asked for a → 1st
    ann after 1: asked for a → 1st.  after 3: asked for d, after 5: for f: nobody has heard of them
    """
    log, offset = split
    with capture_logs():
        report = evaluate_cold_users(
            log.log, PLAN, CONFIG, by_column(PLAN, "co_sum"), split_offset=offset, sample=1.0, seed=1, train_s={}
        )
    assert report.questions == {"0": 2, "1": 1, "3": 1, "5": 1}
    assert (report.n, report.new_users) == (5, 2)
    assert set(report.models) == {RECENT_POPULARITY, CO_VISITS, UNION, RANKER}
    popular = {k: models[RECENT_POPULARITY].mrr for k, models in report.by_events.items()}
    assert popular == {"0": pytest.approx(0.75), "1": pytest.approx(1.0), "3": 0.0, "5": 0.0}
    assert report.models[RECENT_POPULARITY].mrr == pytest.approx(2.5 / 5)
    msgspec.json.encode(report)


def test_fitted_sources_go_through_the_pipeline(split: tuple[Written, int]) -> None:
    world = taste_world(CONFIG)

    class Knn(FittedSourceContract):
        name = "item_knn"

    fitted = open_sources(("item_knn",), Knn.fit(world), CONFIG, world.plan)
    offset = world.log.log.last_offset
    now = world.log.now_ms
    names = ("a0", "a1", "a2", "a3", "a4")
    world.log.add(
        [Step(now + 60_000 * n, [Event(user="new", item=name, type="click")]) for n, name in enumerate(names)]
    )
    with capture_logs():
        report = evaluate_cold_users(
            world.log.log, world.plan, CONFIG, by_column(world.plan, "co_sum"), split_offset=offset, sample=1.0, seed=1,
            train_s={"item_knn": 3.0}, alone=fitted,
        )  # fmt: skip
    assert report.models["item_knn"].train_s == 3.0
    assert report.by_events["1"]["item_knn"].hr_at_10 == 1.0
    assert report.by_events["0"]["item_knn"].mrr == report.by_events["0"][RECENT_POPULARITY].mrr, "popularity fills up"


def test_without_new_users_it_says_so(split: tuple[Written, int]) -> None:
    log, _ = split
    with pytest.raises(HeadwaterError, match="no question to ask"):
        evaluate_cold_users(
            log.log,
            PLAN,
            CONFIG,
            by_column(PLAN, "co_sum"),
            split_offset=log.log.last_offset,
            sample=1.0,
            seed=1,
            train_s={},
        )
