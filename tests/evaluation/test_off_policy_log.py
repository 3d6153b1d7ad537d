"""From served lists to the value of another bundle: the log, the replay at its addresses, and the report."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import msgspec
import numpy as np
import pytest
from structlog.testing import capture_logs

from headwater.evaluation.off_policy.feedback import OverlapError
from headwater.evaluation.off_policy.replay import drawing
from headwater.evaluation.off_policy.report import OffPolicyReport, Question, judge_bundle
from headwater.log.commands import AppendServed, PutItems, ServedEntry
from headwater.schema.config import Config, parse_config
from headwater.schema.errors import HeadwaterError
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.serving.model import Model
from headwater.serving.pipeline import Pipeline
from headwater.serving.request import Query, served_list
from headwater.serving.rules import open_rules
from headwater.testing.events import START_MS, Step
from tests.retrieval.worlds import MINUTE_MS, World, clicks, many, world
from tests.serving.rankers import by_column, failing

K, ITEMS, USERS = 2, 5, 60
SURFACE = '[[surfaces]]\nname = "home"\nexploration = {share = 1.0, temperature = 0.7, candidates = 5}\n'
PIN = '[[rules]]\nname = "campaign"\npin = {item = "i3", position = 2}\n'
CONFIG = parse_config(SURFACE)
CLICKS = (0.05, 0.1, 0.3, 0.5, 0.8)  # of an item at the first place; at the second half as often
SMALL = Question(overlap=msgspec.structs.replace(Question().overlap, least_ess=30.0), draws=200)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


def by_popularity(small: World, name: str, *, ascending: bool) -> Model:
    return replace(by_column(small.plan, "item_count", ascending=ascending), version=name)


def a_site(config: Config, lists: int) -> tuple[World, Model]:
    """Lists that were drawn for people who click by item and place alone, so that the item counts stay as they are; and what served them."""
    put = PutItems([Item(id=f"i{n}") for n in range(ITEMS)])
    small = world(
        Step(START_MS, put), clicks(*(pair for n in range(ITEMS) for pair in many(f"i{n}", n + 1))), config=config
    )
    served = by_popularity(small, "served", ascending=False)
    rng = np.random.default_rng(3)
    pipeline = Pipeline(config, small.plan, rules=open_rules(config, small.plan, small.log.log.vocabulary()))
    small.add(Step(small.now_ms + 1, [Event(user=f"u{u}", item="i0", type="impression") for u in range(USERS)]))
    for n in range(lists):
        name = f"u{n % USERS}"
        query = Query(f"r{n}", user=small.log.user(name), k=K, deadline_ms=1e9)
        answer = pipeline.recommend(query, small.view, served, small.now_ms)
        payload = msgspec.msgpack.encode(served_list(query, answer, sampled=False))
        small.add(Step(small.now_ms, AppendServed([ServedEntry(query.user, query.user, payload)])))
        events = [
            Event(user=name, item=item, type="impression")
            for place, item in enumerate(small.log.names(answer.items.tolist()))
            if rng.random() < CLICKS[int(item[1:])] / (1 + place)
        ]
        # what is looked for is an event that changes no row that anybody ranks by
        small.add(Step(small.now_ms + 1, events)) if events else None
        small.add(Step(small.now_ms + 40 * MINUTE_MS, []))
    small.add(Step(small.now_ms + 60 * MINUTE_MS, [Event(user="late", item="i0", type="impression")]))
    return small, served


@cache
def site() -> tuple[World, Model]:
    return a_site(CONFIG, 300)


def judged(
    small: World, policy: Model, served: Model | None, question: Question, config: Config = CONFIG
) -> OffPolicyReport:
    return judge_bundle(small.log.log, small.plan, config, policy, lambda _: served, question)


def test_the_bundle_that_served_is_worth_what_was_logged() -> None:
    small, served = site()
    found = judged(small, served, served, replace(SMALL, reward="impression"))
    assert (found.lists, found.users, found.reproduced, found.uncovered) == (300, USERS, 1.0, 0.0)
    assert found.refused == {}
    assert abs(found.difference["CDR"].value) < 3.0 * found.difference["CDR"].error  # a draw less its own expectation
    for name in ("SIPS", "RIPS", "SNRIPS", "IIPS"):
        one = found.estimates[name]
        assert one.value == pytest.approx(found.logging.value), name
        assert found.difference[name].value == pytest.approx(0.0, abs=1e-9)
        assert one.ess == pytest.approx(300.0)
    assert 0.2 < found.logging.value < 1.4


def test_another_bundle_is_worth_what_it_would_have_been() -> None:
    """The truth is a sum over the twenty lists there are, drawn by Plackett–Luce over what the ranker makes of five items."""
    small, served = site()
    upside_down = by_popularity(small, "upside-down", ascending=True)
    weights = np.exp((np.linspace(0.0, 1.0, ITEMS)[::-1] - 1.0) / 0.7)  # counts 1 … 5, the least popular weighs most
    truth = 0.0
    for first, second in itertools.permutations(range(ITEMS), 2):
        chance = weights[first] / weights.sum() * weights[second] / (weights.sum() - weights[first])
        truth += chance * (CLICKS[first] + CLICKS[second] / 2.0)
    found = judged(small, upside_down, served, replace(SMALL, reward="impression"))
    assert set(found.estimates) == {"SIPS", "RIPS", "SNRIPS", "IIPS", "CDR"}
    for name, one in found.estimates.items():
        assert one.ci95[0] < truth < one.ci95[1], name
        assert found.difference[name].ci95[1] < 0.0, name
        assert one.bootstrap95 is not None
    assert found.estimates["IIPS"].error < found.estimates["SIPS"].error
    assert found.mean_weight == pytest.approx(1.0, abs=0.25)
    assert found.bundles == {"served": 300}


def test_without_the_bundle_that_served_there_is_no_iips() -> None:
    small, _ = site()
    found = judged(
        small, by_popularity(small, "upside-down", ascending=True), None, replace(SMALL, reward="impression", limit=150)
    )
    assert found.lists == 150
    assert "bundle served is not there any more" in found.refused["IIPS"]
    assert "RIPS" in found.estimates
    broken = judged(
        small,
        by_popularity(small, "upside-down", ascending=True),
        failing(small.plan),
        replace(SMALL, reward="impression", limit=150),
    )
    assert "bundle failing did not rank it" in broken.refused["IIPS"]


def test_a_pin_is_part_of_both_policies() -> None:
    config = parse_config(SURFACE + PIN)
    small, served = a_site(config, 80)
    found = judged(small, served, served, replace(SMALL, reward="impression"), config)
    assert found.estimates["RIPS"].value == pytest.approx(found.logging.value)
    assert "caps, pins, quotas or promises" in found.refused["IIPS"]
    gone = judged(
        small, by_popularity(small, "other", ascending=True), served, replace(SMALL, reward="impression"), config
    )
    assert gone.estimates["RIPS"].value < found.logging.value


def test_what_the_log_cannot_say_is_refused() -> None:
    small, served = site()
    with pytest.raises(HeadwaterError, match=r'surface "cart" says anything.*none was served.*exploration'):
        judged(small, served, served, replace(SMALL, surface="cart"))
    with pytest.raises(HeadwaterError, match='there is no event type "clik"'):
        judged(small, served, served, replace(SMALL, reward="clik"))
    with pytest.raises(HeadwaterError, match="300 window not over"):
        judged(small, served, served, replace(SMALL, window_ms=10**12))
    sure = replace(SMALL, overlap=msgspec.structs.replace(SMALL.overlap, least_ess=100.0))
    with pytest.raises(OverlapError, match="effective sample size"):
        judged(small, by_popularity(small, "sure", ascending=True), served, replace(sure, temperature=0.01))
    with pytest.raises(HeadwaterError, match="bundle failing did not rank it"):
        judged(small, failing(small.plan), served, replace(SMALL, limit=5))
    plain = drawing(CONFIG, "home", msgspec.structs.replace(CONFIG.surfaces[0].exploration, share=0.0))
    again = judged(small, served, served, replace(SMALL, reward="impression", limit=40), plain)
    assert again.estimates["RIPS"].value == pytest.approx(again.logging.value), (
        "what is configured today did not draw them"
    )
