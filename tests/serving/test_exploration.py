"""Exploration in the pipeline: who is drawn, what the record says, and what is never drawn."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import msgspec
import numpy as np
import pytest

from headwater.log.commands import PutItems
from headwater.schema.config import Config, parse_config
from headwater.schema.errors import ConfigurationError
from headwater.schema.items import Item
from headwater.schema.requests import ServedList
from headwater.serving.lists import LastLists
from headwater.serving.model import Model
from headwater.serving.pipeline import Conditions, Pipeline
from headwater.serving.request import Answer, Query, served_list
from headwater.serving.results import ResultLists
from headwater.serving.rules import open_rules
from headwater.serving.stages import TIER_FULL, TIER_LAST, TIER_RETRIEVAL
from headwater.serving.view import View
from headwater.serving.walk import drawn_tier
from headwater.testing.events import START_MS, Step
from tests.retrieval.worlds import World, clicks, many, world
from tests.serving.rankers import by_column
from tests.serving.test_ladder import away

RULES = """
[[rules]]
name = "variety"
cap = {by = "category", at_most = 2}
[[rules]]
name = "campaign"
pin = {item = "i7", position = 2}
"""


def exploring(share: float = 1.0, rules: str = RULES) -> Config:
    surface = f'[[surfaces]]\nname = "home"\nexploration = {{share = {share}, temperature = 0.5, candidates = 12}}\n'
    return parse_config(f'{surface}[[surfaces]]\nname = "cart"\n{rules}')


@cache
def small() -> World:
    put = PutItems([Item(id=f"i{n}", categories=[f"c{n % 5}"]) for n in range(30)])
    return world(Step(START_MS, put), clicks(*many("i1", 4), *many("i2", 3)), config=exploring())


def made(config: Config, conditions: Conditions | None = None) -> Pipeline:
    rules = open_rules(config, small().plan, small().log.log.vocabulary())
    return Pipeline(config, small().plan, rules=rules, conditions=conditions)


def ask(pipeline: Pipeline, name: str, view: View | None = None, model: Model | None = None, **said: object) -> Answer:
    query = replace(Query(name, k=6, deadline_ms=1e9), **said)  # type: ignore[arg-type]
    return pipeline.recommend(query, view or small().view, model or by_column(small().plan, "item_age"), small().now_ms)


def test_a_drawn_list_obeys_the_rules_and_its_record_says_how_likely_it_was() -> None:
    pipeline, lists = made(exploring()), set[tuple[int, ...]]()
    for n in range(40):
        answer = ask(pipeline, f"r{n}")
        drawn = answer.explored
        assert drawn is not None
        lists.add(tuple(answer.items.tolist()))
        names = small().log.names(answer.items.tolist())
        kinds = [int(name[1:]) % 5 for name in names]
        assert max(kinds.count(kind) for kind in kinds) <= 2
        assert names[1] == "i7"
        assert drawn.log_propensities[1] == 0.0
        assert len(drawn.log_propensities) == 6
        assert (len(drawn.candidates), drawn.share, drawn.temperature) == (12, 1.0, 0.5)
        assert set(answer.items.tolist()) - set(small().log.items("i7")) <= set(drawn.candidates)
        record = served_list(Query(f"r{n}"), answer, sampled=False)
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(record), type=ServedList).explored == drawn
        assert record.log_propensity == pytest.approx(sum(drawn.log_propensities))
    assert len(lists) > 20


def test_a_request_draws_the_same_list_whenever_it_is_asked_again() -> None:
    one, other = ask(made(exploring()), "the same"), ask(made(exploring()), "the same")
    assert one.items.tolist() == other.items.tolist()
    assert one.explored == other.explored


def test_a_share_of_the_requests_explores_and_the_others_get_what_they_always_got() -> None:
    plain = ask(made(exploring(0.0)), "r").items.tolist()
    some = made(exploring(0.3))
    answers = [ask(some, f"r{n}") for n in range(200)]
    drawn = [answer for answer in answers if answer.explored is not None]
    assert abs(len(drawn) - 60) < 4 * np.sqrt(60 * 0.7)
    for answer in answers:
        if answer.explored is None:
            assert answer.items.tolist() == plain
            assert served_list(Query("r"), answer, sampled=False).log_propensity == 0.0
    assert ask(made(exploring(1.0)), "r", surface="cart").explored is None


@pytest.mark.parametrize(("factor", "rate"), [(0.0, 0.0), (0.5, 0.15), (2.0, 0.6), (10.0, 1.0)])
def test_the_controls_raise_and_lower_exploration_and_the_record_says_the_rate(factor: float, rate: float) -> None:
    pipeline = made(exploring(0.3))
    drawn = [
        answer.explored
        for n in range(200)
        if (answer := ask(pipeline, f"r{n}", exploration=factor)).explored is not None
    ]
    assert abs(len(drawn) - 200 * rate) <= 4 * np.sqrt(200 * rate * (1 - rate))
    assert {explored.share for explored in drawn} <= {rate}


def test_the_controls_hold_answers_to_a_tier() -> None:
    pipeline = made(exploring(0.0))
    for tier in range(5):
        answer = ask(pipeline, "held", tier_floor=tier)
        assert answer.tier >= tier
        assert len(answer.items) == 6
        assert any("controls: answers come from" in reason for reason in answer.degraded) == (tier > 0)


def test_rows_of_a_drawn_list_are_those_of_its_items() -> None:
    answer = ask(made(exploring()), "rows")
    fresh, out = Pipeline(exploring(), small().plan), np.zeros((6, len(small().plan.columns)), np.float32)
    fresh.candidates(Query("rows", k=6), small().view, small().now_ms)
    rows = fresh.features(Query("rows", k=6), small().view, answer.items, small().now_ms, out)
    assert rows.tobytes() == answer.features.tobytes()


def test_it_explores_without_rules_and_without_a_ranker_but_not_on_what_is_left_of_a_list() -> None:
    config = exploring(rules="")
    conditions = Conditions(lists=LastLists(), walk=0.1)
    pipeline = made(config, conditions)
    name = next(f"r{n}" for n in range(1_000) if not drawn_tier(f"r{n}", 0.1))
    unranked = pipeline.recommend(Query(name, k=6, deadline_ms=1e9), small().view, None, small().now_ms)
    assert (unranked.tier, unranked.explored is not None) == (TIER_RETRIEVAL, True)
    assert ask(pipeline, name).tier == TIER_FULL
    assert conditions.lists is not None
    assert not len(conditions.lists), "a list that was drawn is nobody's last good one"
    lost = ask(pipeline, name, away(small()))
    assert (lost.tier >= TIER_LAST, lost.explored) == (True, None)
    walker = next(f"r{n}" for n in range(1_000) if drawn_tier(f"r{n}", 0.1) == TIER_RETRIEVAL)
    walked = ask(pipeline, walker)
    assert (walked.tier, walked.explored) == (TIER_RETRIEVAL, None)


def test_records_of_releases_that_drew_nothing_read_as_certain() -> None:
    record = msgspec.to_builtins(served_list(Query("r"), ask(made(exploring(0.0)), "r"), sampled=False))
    old = msgspec.convert(record[: ServedList.__struct_fields__.index("explored")], ServedList)
    assert (old.log_propensity, old.explored, old.promised, old.teams) == (0.0, None, None, b"")


def test_a_request_without_lots_gets_what_it_would_get_if_nothing_were_drawn() -> None:
    plain = ask(made(exploring(0.0)), "r").items.tolist()
    answer = ask(made(exploring(1.0)), "r", lots=False)
    assert (answer.explored, answer.promised, answer.items.tolist()) == (None, None, plain)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('diversity = 0.3\ndiversity_by = "dpp"\nexploration = {share = 0.1}', 'surface "home" cannot have both'),
        ("exploration = {share = 0.1, temperature = 0.001}", "temperature"),
        ("exploration = {share = 0.1}\n[serving]\nlog_served = false", "serving.log_served"),
        ("[gate]\noff_policy = true", "gate.off_policy: Expected a surface with exploration"),
        ("objective = {click = 0.0}", "is 0 for every head"),
        ("objective = {click = 1.0}", r'surfaces\[0\].objective: Expected ranker.kind = "deep"'),
    ],
)
def test_what_does_not_go_together_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        parse_config(f'[[surfaces]]\nname = "home"\n{text}\n')


def test_a_drawn_list_comes_from_no_cache_and_stays_in_none() -> None:
    results = ResultLists(60_000, 100)
    drawing, plain = made(exploring(), Conditions(results=results)), made(exploring(0.0), Conditions(results=results))
    for n in range(2):
        assert ask(drawing, f"r{n}").explored is not None
    assert not len(results)
    first, again = ask(plain, "r0"), ask(plain, "r1")
    assert again.items.tolist() == first.items.tolist()
    assert results.hits == 1
    assert ask(drawing, "r2").explored is not None


def test_what_a_surface_does_with_its_lists_is_part_of_the_version_of_the_rules() -> None:
    vocabulary = small().log.log.vocabulary()
    versions = set()
    for config in (exploring(0.0), exploring(0.1)):
        rules = open_rules(config, small().plan, vocabulary)
        assert rules is not None
        versions.add(rules.version)
    assert len(versions) == 2
