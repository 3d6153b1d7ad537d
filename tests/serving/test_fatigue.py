"""What was shown again and again and never touched: the count in the user's row, and what becomes of the item."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from headwater.features.bounded import tired_of
from headwater.features.plan import compile_plan
from headwater.log.commands import Login, PutItems
from headwater.schema.config import Config, parse_config
from headwater.schema.errors import ConfigurationError
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.serving.pipeline import Pipeline
from headwater.serving.request import Answer, Query
from headwater.serving.rules import open_rules
from headwater.testing.events import START_MS, Step
from tests.retrieval.worlds import HOUR_MS, World, world
from tests.serving.rankers import by_column

SURFACES = """
[[surfaces]]
name = "home"
[[surfaces]]
name = "cart"
fatigue = {impressions = 4}
[[surfaces]]
name = "similar"
fatigue = {action = "none"}
[[surfaces]]
name = "trending"
fatigue = {action = "bury"}
"""


def made(text: str = 'impressions = 3\nwindow = "1h"\naction = "drop"', surfaces: str = SURFACES) -> Config:
    return parse_config(f"{surfaces}[fatigue]\n{text}\n")


def events(*said: tuple[str, str], at_ms: int, user: str = "me") -> Step:
    return Step(at_ms, [Event(user=user, item=item, type=kind, time=at_ms) for kind, item in said])


def shop(*steps: Step, config: Config | None = None) -> World:
    put = Step(START_MS, PutItems([Item(id=f"i{n}", published=START_MS - n) for n in range(20)]))
    return world(put, *steps, config=config or made())


def ask(small: World, config: Config, user: str = "me", later_ms: int = 0, **said: object) -> Answer:
    rules = open_rules(config, small.plan, small.log.log.vocabulary())
    query = replace(Query("r", user=small.log.user(user), k=10, deadline_ms=1e9), **said)  # type: ignore[arg-type]
    # the newer, the higher
    model = by_column(small.plan, "item_age", ascending=True)
    return Pipeline(config, small.plan, rules=rules).recommend(query, small.view, model, small.now_ms + later_ms)


def names(small: World, answer: Answer) -> list[str]:
    return small.log.names(answer.items.tolist())


SHOWN = [events(("impression", "i0"), ("impression", "i1"), at_ms=START_MS + minute * 60_000) for minute in (1, 2, 3)]


def test_an_item_that_was_shown_often_enough_is_dropped_for_a_while() -> None:
    config = made()
    small = shop(*SHOWN, events(("view", "i5"), ("click", "i1"), at_ms=START_MS + 150_000))
    seen = {"i1", "i5"}  # they were touched, and with that seen
    assert {"i0", *seen}.isdisjoint(names(small, ask(small, config, k=20)))
    for surface in ("cart", "similar"):  # once more is not yet too much, or nothing is
        shown = names(small, ask(small, config, surface=surface, k=20))
        assert "i0" in shown
        assert seen.isdisjoint(shown)
    assert "i0" in names(small, ask(small, config, user="nobody", k=20))
    assert "i0" in names(small, ask(small, config, k=20, later_ms=2 * HOUR_MS)), "it has rested"
    asked_for = np.array(small.log.items("i0", "i1", "i7"))
    assert set(names(small, ask(small, config, candidates=asked_for, k=3))) == {"i0", "i1", "i7"}
    short = ask(small, config, k=20)
    assert f"{len(short.items)} of 20 items: 1 were shown often enough and not touched" in short.degraded


def test_a_buried_item_stands_behind() -> None:
    config = made()
    small = shop(*SHOWN)
    plain = names(small, ask(small, config, surface="similar", k=20))
    buried = names(small, ask(small, config, surface="trending", k=20))
    assert plain[:2] == ["i0", "i1"]
    assert buried[-2:] == ["i0", "i1"] or set(buried[-2:]) == {"i0", "i1"}
    assert [name for name in plain if name not in ("i0", "i1")] == buried[:-2]


def test_a_touch_ends_the_count_and_a_pause_starts_it_anew() -> None:
    config = made()
    plan = compile_plan(config)

    def tired(*steps: Step, later_ms: int = 0) -> list[str]:
        small = shop(*steps, config=config)
        row = small.user("me")
        return small.log.names(tired_of(row.u4, 3, small.now_ms + later_ms, plan.layout).tolist())

    assert tired(*SHOWN) == ["i0", "i1"]
    assert tired(*SHOWN[:2]) == []
    assert tired(*SHOWN, events(("click", "i0"), at_ms=START_MS + 200_000)) == ["i1"]
    assert tired(*SHOWN, events(("skip", "i0"), at_ms=START_MS + 200_000)) == ["i0", "i1"], "a skip is no touch"
    paused = events(("impression", "i0"), at_ms=START_MS + 2 * HOUR_MS)
    assert tired(*SHOWN, paused, later_ms=-HOUR_MS) == ["i1"], "the first after the pause"
    assert tired(*SHOWN, later_ms=2 * HOUR_MS) == []
    late = Step(START_MS + HOUR_MS, [Event(user="me", item="i0", type="impression", time=START_MS + 90_000)])
    assert tired(*SHOWN[:2], late) == ["i0"], "a late one counts at its own time"


def test_a_login_brings_the_counts_along() -> None:
    config = made()
    before = events(("impression", "i0"), ("impression", "i2"), at_ms=START_MS + 30_000, user="anonymous")
    small = shop(before, *SHOWN[:2], Step(START_MS + 200_000, Login("anonymous", "me")), config=config)
    row = small.user("me")
    assert small.log.names(tired_of(row.u4, 3, small.now_ms, small.plan.layout).tolist()) == ["i0"]
    assert small.log.names(tired_of(row.u4, 1, small.now_ms, small.plan.layout).tolist()) == ["i0", "i1", "i2"]


def test_only_where_it_is_configured_it_is_part_of_the_plan() -> None:
    plain, tiring = compile_plan(Config()), compile_plan(made())
    assert plain.layout.untouched_size == 0
    assert tiring.layout.user_u4 == plain.layout.user_u4 + 64
    assert plain.hash == compile_plan(parse_config("[fatigue]\nsize = 8\n")).hash
    hashes = {
        compile_plan(made(f"impressions = 3\n{more}")).hash
        for more in ("", "size = 8", 'window = "2h"', 'types = ["skip"]')
    }
    assert len(hashes | {plain.hash}) == 5
    same = {
        compile_plan(made(text)).hash for text in ("impressions = 3", 'impressions = 4\naction = "drop"\nfactor = 0.5')
    }
    assert len(same) == 1, "what is made of the counts is no part of them"


@pytest.mark.parametrize(
    ("text", "surfaces", "why"),
    [
        ('impressions = 3\ntypes = ["impresion"]', "", 'fatigue.types: There is no event type "impresion", did you mean "impression"'),
        ("impressions = 0", '[[surfaces]]\nname = "home"\nfatigue = {action = "drop"}\n', "fatigue.impressions: Expected at least 1"),
        ("impressions = 300", "", "fatigue.impressions"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(text: str, surfaces: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        made(text, surfaces)
