"""Caches of a worker: told what changed, renewed between requests, counted; and lists on a running server."""

from __future__ import annotations

import asyncio
import time
from typing import Any

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
from tests.online.conftest import Site

AT = Position(1, 0, 0)
CACHED = "from the cache"


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


# -- a running server ----------------------------------------------------------------------------------------


def cached(answer: dict[str, Any]) -> bool:
    return any(reason.startswith(CACHED) for reason in answer["reasons"])


def asked_again(server: Site, **request: Any) -> dict[str, Any]:
    """The answer to a question that was asked a moment ago, from the cache."""
    until = time.monotonic() + 10.0
    while not cached(answer := server.recommend(**request)):
        assert time.monotonic() < until, answer["reasons"]
    return answer


def shown(answer: dict[str, Any]) -> list[str]:
    return [item["id"] for item in answer["items"]]


def test_a_list_goes_with_the_next_event_of_its_user(server: Site) -> None:
    """With the token no answer is older than the event, and nothing hidden or of somebody else comes back."""
    ann, bob = {"user": "cached-ann", "k": 5}, {"user": "cached-bob", "k": 5}
    for name in ("cached-ann", "cached-bob"):
        server.ingest("/v1/events", {"user": name, "item": "item-50", "type": "click"})
    for _ in range(5):
        first = asked_again(server, **ann)
        taken = shown(first)[0]
        token = server.ingest("/v1/events", {"user": "cached-ann", "item": taken, "type": "click"})
        answer = server.recommend(**ann, token=token)
        assert not cached(answer)
        assert taken not in shown(answer)
        assert answer["address"]["user_offset"] >= int(token)
        again = asked_again(server, **ann, token=token)
        assert taken not in shown(again)
        assert again["address"]["user_offset"] >= int(token)
    asked_again(server, **bob)
    assert taken in shown(server.recommend(user="cached-bob", k=200)), "what ann took is not kept from bob"

    gone = shown(asked_again(server, **ann))[0]
    hidden = server.ingest("/v1/items", {"id": gone, "title": "gone", "available": False})
    server.reflected(hidden)
    assert gone not in shown(server.recommend(**ann)), "the list from before is filtered again"
    server.ingest("/v1/items", {"id": gone, "title": "back again", "available": True})

    assert server.http.delete("/v1/users/cached-ann").status_code == 200
    text = server.http.get("/metrics").text
    hits = [line for line in text.splitlines() if 'cache="results",outcome="hit"' in line]
    assert float(hits[0].rpartition(" ")[2]) >= 10
