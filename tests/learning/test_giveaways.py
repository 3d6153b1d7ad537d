"""What a question just before a click gives away is not learnt."""

from __future__ import annotations

import json

import numpy as np
import pytest

from headwater.features.plan import compile_plan
from headwater.learning.giveaways import giveaways, withheld
from headwater.learning.rankers import fit_ranker
from headwater.learning.trainingset import build_training_set
from headwater.log.commands import PutItems
from headwater.schema.config import Config, Features, Ranker
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.testing.events import START_MS, Step
from tests.retrieval.worlds import world

SHOWN = ["item_impression_30m", "item_impression_6h", "item_impression_3d"]


def test_columns_of_impressions_alone_are_withheld() -> None:
    plan = compile_plan(Config())
    assert [plan.columns[position] for position in giveaways(plan, Config())] == SHOWN


def test_a_log_without_impressions_has_none() -> None:
    config = Config(features=Features(without=tuple(SHOWN)))
    plan = compile_plan(config)
    assert len(giveaways(plan, config)) == 0


def test_rows_are_as_before_when_the_ranker_is_there_or_failed() -> None:
    plan = compile_plan(Config())
    rows = np.random.default_rng(3).random((5, len(plan.columns)), np.float32)
    before, columns = rows.copy(), giveaways(plan, Config())

    def look() -> None:
        with withheld(rows, plan, Config()):
            assert (rows[:, columns] == plan.reads.default[columns]).all()
            raise RuntimeError("a ranker that cannot be trained")

    with pytest.raises(RuntimeError, match="cannot be trained"):
        look()
    assert (rows == before).all()


def test_a_ranker_does_not_learn_that_what_was_clicked_was_shown_a_moment_before() -> None:
    """Users are shown an item that they click on by the toss of a coin: all that tells it from others is that it was just shown."""
    draws = np.random.default_rng(5)
    steps = [Step(START_MS, PutItems([Item(id=f"i{n}") for n in range(40)]))]
    for n in range(600):
        at = START_MS + 60_000 * n
        user, item = f"u{n % 60}", f"i{draws.integers(40)}"
        kinds = ("impression", "click") if draws.random() < 0.5 else ("impression",)
        for after, kind in enumerate(kinds):
            event = Event(user=user, item=item, type=kind, time=at + after, event_id=f"{n}-{after}")
            steps.append(Step(at + after, [event]))
    config = Config(ranker=Ranker(negatives=10, trees=10))
    small = world(*steps, config=config)
    rows = build_training_set(
        small.log.log, small.plan, config, until=small.log.log.last_offset, start_ms=0, groups=400, seed=7
    )
    told = small.plan.columns.index(SHOWN[0])
    own = rows.features[rows.labels == 1, told].mean()
    assert own > 1.5 * rows.features[rows.labels == 0, told].mean(), "the rows do give it away"
    made = fit_ranker(config, small.plan, small.plan.columns, rows, warm=None, seed=7, threads=1, progress=None)
    assert not set(SHOWN) & set(made.gain), json.dumps(made.gain)
