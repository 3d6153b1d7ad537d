"""The simulated world: the same for a seed, shaped like a real one, and learnable."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from headwater.schema.events import Event
from headwater.simulator import EVENT_TYPES, History, World
from headwater.simulator.history import CLICK, IMPRESSION, POSITIVE, PURCHASE
from headwater.simulator.words import CATEGORIES

START_MS = 1_760_313_600_000  # a Monday, 00:00 UTC


@pytest.fixture(scope="module")
def world() -> World:
    return World(7, start_ms=START_MS)


@pytest.fixture(scope="module")
def history(world: World) -> History:
    return world.history()


def test_same_seed_gives_the_same_world() -> None:
    first, second = (World(3, start_ms=START_MS, users=300, items=400, hours=24) for _ in range(2))
    other = World(4, start_ms=START_MS, users=300, items=400, hours=24)
    assert first.catalogue.items == second.catalogue.items
    for column in ("time_ms", "user", "item", "type", "device", "session", "listing", "position"):
        assert np.array_equal(getattr(first.history(), column), getattr(second.history(), column))
    assert not np.array_equal(first.history().item[:50], other.history().item[:50])
    ids = [item.id for item in first.catalogue.items[:30]]
    assert np.array_equal(first.judge("user-00005", ids, START_MS), second.judge(5, ids, START_MS))


def test_size_of_the_default_world(world: World, history: History) -> None:
    assert len(world.people) >= 5_000
    assert len(world.items_born(0, world.end_ms)) >= 2_000
    assert 200_000 <= len(history) <= 330_000
    assert np.all(np.diff(history.time_ms) >= 0)
    assert history.time_ms[0] >= world.start_ms
    assert len({category for item in world.catalogue.items for category in item.categories}) == len(CATEGORIES)


def test_titles_are_unique_and_say_the_topic(world: World) -> None:
    titles = Counter(item.title for item in world.catalogue.items)
    assert max(titles.values()) == 1
    for item in world.catalogue.items[:200]:
        assert item.tags[1] in item.title.lower()
        assert item.tags[0] in item.text
        assert item.price is not None
        assert item.price > 0


def test_items_are_born_every_hour_and_some_expire(world: World, history: History) -> None:
    for hour in range(world.hours):
        at_ms = world.start_ms + hour * 3_600_000
        assert world.items_born(at_ms - 1, at_ms)
    expiring = [item for item in world.catalogue.items if item.expires is not None]
    assert 0.05 < len(expiring) / len(world.catalogue.items) < 0.15
    born, expires = world.catalogue.born_ms[history.item], world.catalogue.expires_ms[history.item]
    assert np.all(history.time_ms >= born)
    # A visit that starts before the end may go on a few minutes after it.
    assert np.all(history.time_ms - 2 * 3_600_000 < expires)


def test_positive_share_and_click_rate(history: History) -> None:
    assert 0.12 < np.isin(history.type, POSITIVE).mean() < 0.28
    clicks, impressions = (history.type == CLICK).sum(), (history.type == IMPRESSION).sum()
    assert 0.1 < clicks / impressions < 0.35
    assert set(np.unique(history.type)) == set(range(len(EVENT_TYPES)))
    assert np.all(np.isfinite(history.value[history.type == PURCHASE]))


def test_popularity_has_a_long_tail(world: World, history: History) -> None:
    clicks = np.sort(np.bincount(history.item[history.type == CLICK], minlength=len(world.catalogue.items)))[::-1]
    tenth = len(clicks) // 10
    assert 0.3 < clicks[:tenth].sum() / clicks.sum() < 0.7
    assert clicks[-len(clicks) // 2 :].sum() / clicks.sum() < 0.25


def test_day_and_week_have_a_rhythm() -> None:
    week = World(5, start_ms=START_MS, users=1_500, items=600, hours=24 * 7)
    history = week.history()
    _, first = np.unique(history.session, return_index=True)
    visits = history.time_ms[first] - START_MS
    hours = np.bincount(visits // 3_600_000 % 24, minlength=24)
    assert hours.max() > 2.0 * hours.min()
    days = np.bincount(visits // 86_400_000, minlength=7)[:7]
    assert days[5:].mean() > 1.1 * days[:4].mean()


def test_next_click_follows_tastes_and_what_the_visit_is_about(world: World, history: History) -> None:
    clicks = history.take(np.flatnonzero(history.type == CLICK))
    category = world.catalogue.category[clicks.item]
    order = np.lexsort((clicks.time_ms, clicks.user))
    user, session, category = clicks.user[order], clicks.session[order], category[order]
    same_user = user[1:] == user[:-1]
    same_session = session[1:] == session[:-1]
    same_category = category[1:] == category[:-1]
    chance = float(np.sum((np.bincount(category) / len(category)) ** 2))
    assert same_category[same_user & ~same_session].mean() > 4 * chance
    assert same_category[same_session].mean() > 1.3 * same_category[same_user & ~same_session].mean()


def test_clicks_happen_as_judged(world: World, history: History) -> None:
    """Impressions of items that the judge likes are clicked more, in every quarter of the scale."""
    shown = history.take(np.flatnonzero(history.type == IMPRESSION)[:20_000])
    clicked = set(zip(*(getattr(history, c)[history.type == CLICK] for c in ("listing", "item")), strict=True))
    was = np.array([(a, b) in clicked for a, b in zip(shown.listing, shown.item, strict=True)])
    ids = [world.catalogue.items[i].id for i in shown.item]
    chance = np.array(
        [
            world.judge(int(u), [item], int(t))[0]
            for u, item, t in zip(shown.user[:4_000], ids, shown.time_ms, strict=False)
        ]
    )
    quarters = np.array_split(np.argsort(chance), 4)
    rates = [was[:4_000][q].mean() for q in quarters]
    assert rates == sorted(rates)
    assert rates[-1] > 4 * rates[0]


def test_a_visit_answers_a_list(world: World) -> None:
    user = "user-00011"
    alive = [item.id for item in world.items_born(0, world.end_ms)]
    chance = world.judge(user, alive, world.end_ms)
    best = [alive[i] for i in np.argsort(-chance)[:10]]
    worst = [alive[i] for i in np.argsort(chance)[:10]]
    rng = np.random.default_rng(1)
    clicks = Counter[str]()
    for _ in range(40):
        for name, shown in (("best", best), ("worst", worst)):
            events = world.visit(rng, user, [*shown, "unheard-of"], world.end_ms, request_id="r1", surface="home")
            assert all(isinstance(event, Event) for event in events)
            assert [e.item for e in events if e.type == "impression"] == [*shown, "unheard-of"]
            assert [e.time for e in events] == sorted(e.time or 0 for e in events)
            clicks[name] += sum(e.type == "click" for e in events)
    assert clicks["best"] > 8 * clicks["worst"]


def test_judge_names_what_it_does_not_know(world: World) -> None:
    with pytest.raises(KeyError, match="nothing"):
        world.judge(0, ["nothing"], START_MS)
    with pytest.raises(KeyError):
        world.judge(10**9, [], START_MS)
