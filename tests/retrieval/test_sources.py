"""Each source alone, in worlds whose right answer is known."""

from __future__ import annotations

from itertools import zip_longest

import numpy as np
import pytest

from headwater.features.assemble import anchor_user
from headwater.features.layout import FLAG_CONTENT, I_FLAGS, U_RECENT_LENGTH
from headwater.features.plan import compile_plan
from headwater.features.rows import new_rows
from headwater.log.commands import DeleteItems, PutItems
from headwater.log.record import Namespace
from headwater.retrieval.cause import co_visit_cause
from headwater.retrieval.index import Ranked
from headwater.retrieval.sources import (
    Asked,
    Content,
    CoVisit,
    Fresh,
    Popular,
    Source,
    Trending,
    _interleave,
    configured_sources,
)
from headwater.schema.config import Config, Features, FreshConfig, SourceConfig, Sources
from headwater.schema.items import Item
from headwater.testing.events import DAY_MS, START_MS, Step
from tests.retrieval.worlds import HOUR_MS, MINUTE_MS, World, clicks, many, world

CONFIG = Config()


def names(source: Source, at: World, asked: Asked) -> list[str]:
    offer = source.fetch(asked, at.view.index)
    assert bool(len(offer.ranked)) != bool(offer.why_empty), "an empty offer says why, another one has nothing to say"
    assert len(set(offer.ranked.items.tolist())) == len(offer.ranked)
    assert (np.diff(offer.ranked.scores) <= 0).all()
    return at.names(offer.ranked)


def test_popular_is_the_most_positive_weight() -> None:
    small = world(clicks(*many("b", 3), *many("a", 5), *many("c", 1)), clicks(("x", "d"), kind="purchase"))
    assert names(Popular(CONFIG, small.plan), small, small.asked()) == ["a", "d", "b", "c"]


def test_popular_asks_the_requests_segment_first() -> None:
    small = world(
        clicks(*many("a", 5), *many("b", 4), attributes={"country": "de"}),
        clicks(*many("c", 2), *many("a", 1, "y"), attributes={"country": "fr"}),
    )
    france = small.log.log.vocabulary().index(Namespace.SEGMENT, "country=fr")
    source = Popular(CONFIG, small.plan)
    assert names(source, small, small.asked()) == ["a", "b", "c"]
    assert names(source, small, small.asked(segments=(france, 0)))[:2] == ["c", "a"]
    assert names(source, small, small.asked(segments=(63, 0))) == ["a", "b", "c"], "a segment that nobody was in"
    assert names(source, small, small.asked(segments=(999, 0))) == ["a", "b", "c"], "a segment without a cell"


def test_a_blend_is_not_taken_for_another_list() -> None:
    """Segment terms may be any numbers, also those that name a half-life and a width."""
    small = world(clicks(*many("a", 5)), clicks(("y", "b"), attributes={"country": "fr"}))
    source = Popular(Config(sources=Sources(popular=SourceConfig(width=9))), small.plan)
    france = small.log.log.vocabulary().index(Namespace.SEGMENT, "country=fr")
    assert (source.half_life, france, source.width) == (1, 1, 9)
    assert names(source, small, small.asked(segments=(1, 9)))[0] == "b"


def test_trending_prefers_what_happens_now() -> None:
    small = world(clicks(*many("old", 50)), clicks(*many("new", 5), at_ms=START_MS + 6 * HOUR_MS))
    assert names(Trending(CONFIG), small, small.asked()) == ["new", "old"]
    assert names(Popular(CONFIG, small.plan), small, small.asked()) == ["old", "new"]


def test_trending_takes_the_shortest_half_life_wherever_it_stands() -> None:
    config = Config(features=Features(item_half_lives=("3d", "30m", "6h")))
    assert (Trending(config).half_life, Popular(config, world(config=config).plan).half_life) == (1, 2)


@pytest.mark.parametrize("make", [lambda w: Popular(CONFIG, w.plan), lambda _: Trending(CONFIG)])
def test_lists_hold_no_item_that_cannot_be_shown(make: object) -> None:
    assert callable(make)
    items = [
        Item(id="hidden", available=False),
        Item(id="expired", expires=START_MS),
        Item(id="tomorrow", published=START_MS + DAY_MS),
        Item(id="shown", published=START_MS - DAY_MS, expires=START_MS + DAY_MS),
        Item(id="deleted"),
    ]
    everything = [pair for item in items for pair in many(item.id, 3)]
    small = world(Step(START_MS, PutItems(items)), clicks(*everything), Step(START_MS, DeleteItems(["deleted"])))
    assert names(make(small), small, small.asked()) == ["shown"]


def test_co_visits_follow_what_others_did_next() -> None:
    steps = []
    for n, other in enumerate(["b", "b", "b", "c"]):
        steps.append(clicks((f"u{n}", "a"), at_ms=START_MS + n * MINUTE_MS))
        steps.append(clicks((f"u{n}", other), at_ms=START_MS + n * MINUTE_MS + 1_000))
    small = world(*steps, clicks(("me", "a"), at_ms=START_MS + HOUR_MS))
    source = CoVisit(CONFIG, small.plan)
    assert names(source, small, small.asked("me")) == ["b", "c"]
    assert names(source, small, small.asked("me")) == ["b", "c"], "the memory of the first request is clean"
    assert source.fetch(small.asked(), small.view.index).why_empty == "no recent items"
    alone = world(clicks(("me", "lonely")))
    assert "no co-visits" in CoVisit(CONFIG, alone.plan).fetch(alone.asked("me"), alone.view.index).why_empty


def test_co_visits_weigh_the_latest_item_most() -> None:
    steps = [clicks(("p", "a"), ("q", "b")), clicks(("p", "after a"), ("q", "after b"), at_ms=START_MS + 1_000)]
    small = world(
        *steps, clicks(("me", "a"), at_ms=START_MS + HOUR_MS), clicks(("me", "b"), at_ms=START_MS + HOUR_MS + 1_000)
    )
    found = names(CoVisit(CONFIG, small.plan), small, small.asked("me"))
    assert found.index("after b") < found.index("after a")


def test_a_cause_is_the_recent_item_that_led_there() -> None:
    steps = [clicks(("p", "a"), ("q", "b")), clicks(("p", "after a"), ("q", "after b"), at_ms=START_MS + 1_000)]
    small = world(
        *steps, clicks(("me", "a"), at_ms=START_MS + HOUR_MS), clicks(("me", "b"), at_ms=START_MS + HOUR_MS + 1_000)
    )
    items = np.array([*small.log.items("after a", "after b"), 999], np.int64)
    out = np.full(3, -1, np.int64)
    co_visit_cause(small.user("me"), small.fold.items.rows, small.plan.layout, items, out)
    assert out.tolist() == [*small.log.items("a", "b"), 0]


@pytest.mark.parametrize("seed", range(12))
def test_a_cause_has_the_largest_share_of_all_recent_items(seed: int) -> None:
    """Many items, so that some share the digits that the kernel looks at first."""
    rng = np.random.default_rng(seed)
    small, layout = world(clicks(("me", "a"))), compile_plan(CONFIG).layout
    rows, user = new_rows(1_200, layout.item_i8, layout.item_f4, layout.item_u4), small.user("me")
    recent = rng.permutation(np.arange(1, 1_200))[:5]
    user.u4[U_RECENT_LENGTH] = len(recent)
    user.u4[layout.recent_keys : layout.recent_keys + 5] = recent
    user.u4[layout.recent_times : layout.recent_times + 5] = 1_000
    shares: dict[int, tuple[float, int]] = {}
    for k, item in enumerate(recent[::-1].tolist()):  # the latest first
        partners = rng.permutation(np.arange(1, 600))[: layout.co_size - 1 if k else layout.co_size]
        weights = rng.random(len(partners)).astype(np.float32)
        rows.u4[item, layout.co_u4 : layout.co_u4 + len(partners)] = partners
        rows.f4[item, layout.co_f4 : layout.co_f4 + len(partners)] = weights
        rows.f4[item, layout.co_total_f4] = total = 3.0 * k
        for partner, weight in zip(partners.tolist(), weights.tolist(), strict=True):
            if total and (share := 0.8**k * weight / total) > shares.get(partner, (0.0, 0))[0]:
                shares[partner] = share, item
    candidates = rng.permutation(np.arange(1, 1_000))[:40]
    out = np.full(40, -1, np.int64)
    co_visit_cause(user, rows, layout, candidates, out)
    assert out.tolist() == [shares.get(item, (0.0, 0))[1] for item in candidates.tolist()]
    assert (out > 0).any()


@pytest.mark.parametrize("seed", range(20))
def test_two_lists_in_turn_without_repeats(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = (rng.permutation(np.arange(1, 60))[: rng.integers(0, 40)] for _ in range(2))
    turns = [item for pair in zip_longest(first.tolist(), second.tolist()) for item in pair if item is not None]
    woven = _interleave(*(Ranked(items, np.ones(len(items), np.float32)) for items in (first, second)))
    assert woven.items.tolist() == list(dict.fromkeys(turns))
    assert woven.scores.tolist() == (1.0 / np.arange(1, len(woven) + 1)).astype(np.float32).tolist()


CATALOGUE = PutItems(
    [
        Item(id="kind of blue", categories=["jazz"], tags=["trumpet"]),
        Item(id="bitches brew", categories=["jazz"], tags=["trumpet", "electric"]),
        Item(id="blue train", categories=["jazz"], tags=["saxophone"]),
        Item(id="master of puppets", categories=["metal"], tags=["thrash"]),
        Item(id="blank"),
    ]
)


def test_content_finds_what_is_like_the_recent_items() -> None:
    small = world(Step(START_MS, CATALOGUE), clicks(("me", "kind of blue"), ("other", "blank")))
    source = Content(CONFIG, small.plan)
    found = names(source, small, small.asked("me"))
    assert found[:3] == ["kind of blue", "bitches brew", "blue train"]
    assert "blank" not in found
    assert source.fetch(small.asked(), small.view.index).why_empty == "no recent items"
    assert source.fetch(small.asked("other"), small.view.index).why_empty == "the recent items have no content"
    bare = world(clicks(("me", "a")))
    assert Content(CONFIG, bare.plan).fetch(bare.asked("me"), bare.view.index).why_empty == "no item has content"


def test_content_follows_an_anchor() -> None:
    small = world(Step(START_MS, CATALOGUE), clicks(("me", "kind of blue")))
    asked = small.asked("me")
    anchor_user(asked.user, small.log.item("master of puppets"), small.plan.layout)
    assert names(Content(CONFIG, small.plan), small, asked)[0] == "master of puppets"


def test_content_follows_the_catalogue() -> None:
    small = world(Step(START_MS, CATALOGUE), clicks(("me", "kind of blue")))
    small.add(Step(START_MS + 1, PutItems([Item(id="master of puppets", categories=["jazz"], tags=["trumpet"])])))
    source = Content(CONFIG, small.plan)
    assert "master of puppets" in names(source, small, small.asked("me"))[:2]
    small.add(Step(START_MS + 2, PutItems([Item(id="master of puppets")])))
    assert "master of puppets" not in names(source, small, small.asked("me"))
    assert not small.fold.items.rows.u4[small.log.item("master of puppets"), I_FLAGS] & FLAG_CONTENT


def test_fresh_offers_the_newest_first_and_nothing_old() -> None:
    put = PutItems(
        [
            Item(id="yesterday", published=START_MS - DAY_MS),
            Item(id="just now", published=START_MS),
            Item(id="last week", published=START_MS - 7 * DAY_MS),
            Item(id="tomorrow", published=START_MS + DAY_MS),
            Item(id="hidden", published=START_MS, available=False),
            Item(id="over", published=START_MS - 2 * DAY_MS, expires=START_MS),
        ]
    )
    small = world(Step(START_MS, put))
    assert names(Fresh(CONFIG, small.plan), small, small.asked(later_ms=1)) == ["just now", "yesterday"]
    brief = Config(sources=Sources(fresh=FreshConfig(max_age="1h")))
    assert names(Fresh(brief, small.plan), small, small.asked(later_ms=MINUTE_MS)) == ["just now"]
    assert names(Fresh(brief, small.plan), small, small.asked(later_ms=2 * HOUR_MS)) == []


def test_an_item_without_a_date_is_as_old_as_it_is_known() -> None:
    small = world(Step(START_MS, PutItems([Item(id="a")])), clicks(("u", "b"), at_ms=START_MS + HOUR_MS))
    assert names(Fresh(CONFIG, small.plan), small, small.asked()) == ["b", "a"]


def test_an_empty_world_offers_nothing_and_says_so() -> None:
    empty = world()
    for source in configured_sources(CONFIG, empty.plan):
        assert names(source, empty, empty.asked()) == []


def test_sources_are_those_that_are_enabled() -> None:
    config = Config(sources=Sources(trending=SourceConfig(enabled=False), fresh=FreshConfig(enabled=False)))
    assert [s.name for s in configured_sources(config, world().plan)] == ["covisit", "popular", "content"]
    assert {s.name for s in configured_sources(CONFIG, world().plan)} == {
        "covisit",
        "trending",
        "popular",
        "content",
        "fresh",
    }
