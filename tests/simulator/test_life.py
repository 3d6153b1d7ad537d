"""A world that goes on: people who change and come back or not, creators, and the truth about all of it."""

from __future__ import annotations

import numpy as np
import pytest

from headwater.simulator import Life, World
from headwater.simulator.catalogue import HOUR_MS
from headwater.simulator.history import CLICK, EVENT_TYPES, LIKE, PURCHASE, VIEW
from headwater.simulator.life import Choices
from headwater.simulator.response import POSITION_DECAY, Ints

START_MS = 1_760_313_600_000  # a Monday, 00:00 UTC
DAY_MS = 24 * HOUR_MS


@pytest.fixture(scope="module")
def world() -> World:
    return World(7, start_ms=START_MS, users=400, items=500, hours=24)


def lists(life: Life, rng: np.random.Generator, n: int, k: int = 10) -> Ints:
    alive = np.flatnonzero(life.alive)
    return np.stack([rng.choice(alive, k, replace=False) for _ in range(n)])


def days(life: Life, count: int, kind: str) -> tuple[int, float, float]:
    """Visits, mean satisfaction and click rate when everybody gets random, best or no lists for so many days."""
    rng = np.random.default_rng(1)
    satisfaction: list[float] = []
    clicks = impressions = 0
    for hour in range(count * 24):
        at_ms = life.start_ms + hour * HOUR_MS
        life.advance(at_ms)
        visits = life.arrivals(at_ms + HOUR_MS)
        gained, users, about = np.zeros(life.humans), visits.user, visits.about
        while len(users) and kind != "none":
            best = [life.oracle(int(u), 10, at_ms, int(a))[0] for u, a in zip(users, about, strict=True)]
            shown = lists(life, rng, len(users)) if kind == "random" else np.stack(best)
            chosen = life.choose(users, shown, at_ms, about)
            gained[users] += chosen.gained
            clicks, impressions = clicks + int(chosen.happened[CLICK].sum()), impressions + shown.size
            users, about = users[chosen.stays], chosen.about[chosen.stays]
        satisfaction += life.finish(visits.user, gained[visits.user]).tolist()
    return len(satisfaction), float(np.mean(satisfaction)), clicks / max(impressions, 1)


def test_the_same_seed_gives_the_same_life(world: World) -> None:
    first, second = Life(world), Life(world)
    assert days(first, 1, "random") == days(second, 1, "random")
    assert first.catalogue.items == second.catalogue.items
    assert np.array_equal(first.people.tastes, second.people.tastes)
    assert not np.array_equal(first.people.tastes, Life(world, seed=8).people.tastes) or first.now_ms == world.end_ms
    assert days(Life(world, seed=8), 1, "random") != days(Life(world), 1, "random")
    assert np.array_equal(
        world.people.tastes, World(7, start_ms=START_MS, users=400, items=500, hours=24).people.tastes
    )


def test_who_comes_does_not_depend_on_what_others_were_shown(world: World) -> None:
    """Two policies meet the same people, as far as these are in the same mood."""
    seen, unseen = Life(world), Life(world)
    seen.advance(seen.start_ms)
    unseen.advance(unseen.start_ms)
    seen.choose(np.arange(50), lists(seen, np.random.default_rng(1), 50), seen.now_ms, np.zeros(50, np.int64))
    a, b = (life.arrivals(life.now_ms + HOUR_MS) for life in (seen, unseen))
    assert a.user.tolist() == b.user.tolist()
    assert a.about.tolist() == b.about.tolist()
    assert (np.diff(a.start_ms) >= 0).all()
    assert ((a.start_ms >= seen.now_ms) & (a.start_ms < seen.now_ms + HOUR_MS)).all()


def test_chances_are_true(world: World) -> None:
    """In every tenth of the scale people click as often as the truth says; what follows a click follows clicks alone."""
    life, rng = Life(world), np.random.default_rng(2)
    found: list[Choices] = []
    for _ in range(20):
        users = rng.permutation(life.humans)[:300]
        found.append(life.choose(users, lists(life, rng, 300), life.now_ms, rng.integers(0, 40, 300)))
    chance = np.concatenate([c.chance.ravel() for c in found])
    clicked = np.concatenate([c.happened[CLICK].ravel() for c in found])
    for tenth in np.array_split(np.argsort(chance), 10):
        expected = chance[tenth].sum()
        assert abs(clicked[tenth].sum() - expected) < 4 * np.sqrt(expected) + 1
    for kind in (VIEW, LIKE, PURCHASE):
        assert all((c.happened[kind] <= c.happened[CLICK]).all() for c in found)
    assert sum(c.happened[VIEW].sum() for c in found) > sum(c.happened[PURCHASE].sum() for c in found)
    assert {EVENT_TYPES[kind] for kind in found[0].happened} == {"click", "view", "like", "purchase", "skip"}


def test_place_and_fatigue_lower_the_chance(world: World) -> None:
    life = Life(world)
    item = np.full((1, 10), int(np.flatnonzero(life.alive)[0]))
    one, about = np.array([3]), np.array([0])
    first = life.choose(one, item, life.now_ms, about)
    assert first.chance[0] == pytest.approx(first.chance[0, 0] * POSITION_DECAY ** np.arange(10))
    for _ in range(3):
        before = life.click_probability(3, item[0, :1], life.now_ms, 0)[0]
        chosen = life.choose(one, item[:, :1], life.now_ms, about)
        after = life.click_probability(3, item[0, :1], life.now_ms, 0)[0]
        assert after < before
        assert chosen.chance[0, 0] == before
    assert life.click_probability(4, item[0, :1], life.now_ms, 0)[0] > 0.0  # somebody else is not tired
    other = Life(world)
    assert life.click_probability(4, item[0, :1], life.now_ms, 0) == other.click_probability(
        4, item[0, :1], life.now_ms, 0
    )


def test_an_empty_place_is_not_clicked(world: World) -> None:
    life = Life(world)
    chosen = life.choose(np.arange(200), np.full((200, 5), -1), life.now_ms, np.zeros(200, np.int64))
    assert not any(mask.any() for mask in chosen.happened.values())
    assert not chosen.chance.any()
    assert life.positions(["item-00000", "unheard-of"]).tolist() == [0, -1]


def test_no_list_is_better_than_the_oracles(world: World) -> None:
    life, rng = Life(world), np.random.default_rng(3)
    for user in range(30):
        best, value = life.oracle(user, 10, life.now_ms, user % 40)
        assert len(set(best.tolist())) == 10
        assert life.alive[best].all()
        chance = life.click_probability(user, best, life.now_ms, user % 40) * POSITION_DECAY ** np.arange(10)
        assert (chance * life.true_utility(user, best)).sum() == pytest.approx(value)
        shown = lists(life, rng, 1)
        assert life.choose(np.array([user]), shown, life.now_ms, np.array([user % 40])).expected[0] <= value


def test_better_lists_make_people_content_and_bring_them_back(world: World) -> None:
    random, best, none = Life(world), Life(world), Life(world)
    visits, satisfaction, rate = days(random, 4, "random")
    more_visits, more, higher = days(best, 4, "best")
    fewer_visits, nothing, _ = days(none, 4, "none")
    assert fewer_visits < visits < more_visits
    assert nothing == 0.0
    assert satisfaction + 0.2 < more
    assert rate < higher
    assert best.left.mean() < random.left.mean() < none.left.mean()
    assert best.contentment.mean() > random.contentment.mean() > none.contentment.mean()


def test_a_lure_brings_clicks_that_are_worth_less(world: World) -> None:
    life = Life(world)
    alive = np.flatnonzero(life.alive)
    lure = life.catalogue.lure[alive]
    chance = np.mean([life.click_probability(user, alive, life.now_ms, 0) for user in range(100)], axis=0)
    worth = np.mean([life.true_utility(user, alive) for user in range(100)], axis=0)
    assert np.corrcoef(lure, np.log(chance))[0, 1] > 0.1
    assert np.corrcoef(lure, worth)[0, 1] < -0.1


def test_texts_hint_at_quality(world: World) -> None:
    quality = world.catalogue.quality
    praised = np.array(["Award winner" in item.text for item in world.catalogue.items])
    budget = np.array(["Returned items" in item.text for item in world.catalogue.items])
    assert quality[praised].mean() > quality.mean() > quality[budget].mean()
    assert len({(item.attributes or {})["creator"] for item in world.catalogue.items}) > 50


def test_tastes_walk_slowly_and_jump_now_and_then(world: World) -> None:
    life = Life(world)
    for hour in range(25):
        life.advance(life.start_ms + hour * HOUR_MS)
    moved = np.abs(life.people.tastes - world.people.tastes).sum(axis=1) / 2
    assert life.people.tastes.sum(axis=1) == pytest.approx(1.0)
    assert 0.005 < (moved > 0.3).mean() < 0.12
    assert 0.01 < np.median(moved) < 0.2


def test_items_and_creators_come_and_go(world: World) -> None:
    """Those who are seen make more; those whom nobody sees leave; the catalogue keeps its size about."""
    life = Life(world, births_per_day=50.0)
    favoured = np.unique(life.catalogue.creator)[:40]
    items = np.flatnonzero(np.isin(life.catalogue.creator, favoured) & life.alive)
    born, gone = [], []
    for hour in range(24 * 6):
        turn = life.advance(life.start_ms + hour * HOUR_MS)
        born += turn.born
        gone += turn.gone
        life.choose(np.arange(40), np.resize(items, (40, 10)), life.now_ms, np.zeros(40, np.int64))
    assert all(item.published is not None and item.expires is None for item in born)
    assert len({item.id for item in life.catalogue.items}) == len(life.catalogue)
    assert 100 < len(born) < 500
    assert len(gone) > 50
    assert set(gone).isdisjoint(life.catalogue.items[i].id for i in np.flatnonzero(life.alive))
    late = [(item.attributes or {})["creator"] for item in born[-30:]]
    assert np.isin(late, [f"creator-{c:03d}" for c in favoured]).mean() > 0.5
    assert life.supply.active[favoured].all()
    assert life.supply.active.sum() < 0.6 * len(life.supply.active)


def test_newcomers_come_later(world: World) -> None:
    life = Life(world, newcomers=1.0)
    life.advance(life.start_ms)
    assert len(life.arrivals(life.now_ms + HOUR_MS)) == 0
    for hour in range(24 * 4):
        life.advance(life.start_ms + hour * HOUR_MS)
    assert len(life.arrivals(life.now_ms + HOUR_MS)) > 0
