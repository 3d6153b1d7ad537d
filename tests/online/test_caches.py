"""Caches of a worker: told what changed, renewed between requests, counted. (On a running server: test_serve.)"""

from __future__ import annotations

import asyncio

import numpy as np

from headwater.features.plan import compile_plan
from headwater.online.caches import CacheKeeper, Caches, popular_lists, result_lists
from headwater.online.metrics import Metrics
from headwater.retrieval.index import NOTHING, Ranked
from headwater.schema.caches import Cache
from headwater.schema.config import Config
from headwater.schema.feed import UNNAMED, Changes, Position
from headwater.serving.lists import KEEP_MS, LastLists, PopularSnapshot
from headwater.serving.request import Query

AT = Position(1, 0, 0)


def caches(config: Cache) -> Caches:
    snapshot = PopularSnapshot(compile_plan(Config()))
    return Caches(result_lists(config), LastLists(), popular_lists(config), snapshot.lists, None)


def lookups(metrics: Metrics, cache: str, outcome: str) -> float:
    labels = {"cache": cache, "outcome": outcome}
    return metrics.registry.get_sample_value("headwater_cache_lookups_total", labels) or 0.0


def test_lists_of_users_whose_rows_are_gone_are_let_go_of() -> None:
    made = caches(Cache(result_ttl="1s"))
    keeper = CacheKeeper(made, Metrics(), lambda: 0)
    assert made.results is not None

    def known() -> list[int]:
        return [user for user in (0, 1, 2) if made.last.find(Query("r", user=user, segments=(user, 0)), (9, 9), 5)]

    for user in (0, 1, 2):
        segments = (0, 0) if user == 0 else (user, 0)
        made.last.keep(Query("r", user=user, surface="home" if user else "other"), segments, np.ones(3), 0, 5)  # type: ignore[arg-type]
    assert known() == [1, 2]
    keeper.follow(AT, Changes((1, 2), ()))
    assert known() == [1, 2], "a list of before somebody's event is still their last good one"
    keeper.follow(AT, Changes((), (2,)))
    assert known() == [1]
    keeper.follow(AT, UNNAMED)
    assert known() == []
    assert len(made.last) == 1, "what strangers got names nobody"


def test_old_entries_go_without_a_request() -> None:
    made = caches(Cache(result_ttl="10ms"))
    made.last.keep(Query("r", user=1), (0, 0), np.ones(3, np.int64), 0, 5)
    made.last.drop_old(4 + KEEP_MS)
    assert len(made.last) == 1
    made.last.drop_old(5 + KEEP_MS)
    assert len(made.last) == 0


def test_a_stale_list_is_renewed_in_a_turn_of_the_loop_of_its_own() -> None:
    async def check() -> None:
        now = [0]
        made, metrics = caches(Cache(popular_ttl="100ms", popular_stale="100ms")), Metrics()
        keeper = CacheKeeper(made, metrics, lambda: now[0])

        def ranked(at_ms: int) -> Ranked:
            return Ranked(np.array([at_ms]), np.ones(1, np.float32))

        for key in ("a", "b"):
            made.popular.get((key,), 0, ranked)
        now[0] = 150
        for key in ("a", "b", "a"):
            assert made.popular.get((key,), 150, ranked).items.tolist() == [0]
        await asyncio.sleep(0)
        assert [made.popular.get((key,), 150, ranked).items.tolist() for key in ("a", "b")] == [[150], [0]]
        await asyncio.sleep(0)
        assert made.popular.get(("b",), 150, ranked).items.tolist() == [150]
        made.popular.get(("c",), 150, lambda _: NOTHING)
        keeper.tell()
        keeper.tell()
        found = [lookups(metrics, "popular", outcome) for outcome in ("hit", "stale", "miss")]
        assert found == [made.popular.hits, made.popular.stale, made.popular.misses] == [2.0, 4.0, 3.0]
        assert metrics.registry.get_sample_value("headwater_cache_entries", {"cache": "popular"}) == 2

    asyncio.run(check())


def test_answers_are_not_kept_unless_they_are_asked_to_be() -> None:
    assert result_lists(Cache()) is None
    found = result_lists(Cache(result_ttl="2s", result_lists=7))
    assert found is not None
    assert (found.ttl_ms, found.most) == (2_000, 7)
