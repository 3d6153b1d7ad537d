"""One running system for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.online.pages import Pages
from tests.online.running import CONFIG, Running, catalogue, publish_ranker

WATCHED = """
[monitoring]
every = "1s"
default_alerts = false   # tests do to a server what would make them act

[[alerts]]
name = "flood"
metric = "headwater_ingested_total"
labels = {kind = "event", outcome = "duplicate"}
of = "increase"
above = 3000
window = "2s"
clear_for = "0s"
missing = "ok"
actions = ["raise_exploration"]   # which the surfaces of this server do not do
cooldown = "1s"
restore_after = "1s"
"""
# on a surface that no other test asks: lists with promised places are not kept
PROMISES = '\n[new_items]\nimpressions = 30\nwithin = "1d"\nsurfaces = ["because"]\nshare = 0.2\n'
CACHE = '\n[cache]\nresult_ttl = "1s"\n'


class Site(Running):
    """The running system, what it answered when it was empty, and the version of its first bundle."""

    empty_answer: dict[str, Any]
    version: str


@pytest.fixture(scope="session")
def pages() -> Iterator[Pages]:
    """The site whose pages may call the running system from a browser."""
    with Pages({}) as pages:
        yield pages


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, pages: Pages) -> Iterator[Site]:
    """A system with a ranker and 100 items; tests add users and items of their own."""
    cors = f'\n[cors]\norigins = ["{pages.origin}"]\n'
    watched = CONFIG.partition("[monitoring]")[0] + WATCHED
    with Site(tmp_path_factory.mktemp("site"), watched + CACHE + PROMISES + cors) as site:
        site.empty_answer = site.recommend(user="first")
        site.version = publish_ranker(site.data, site.config, seed=1, created_ms=1_772_000_000_000)
        site.reflected(site.ingest("/v1/items", catalogue(100)))
        site.wait_serving(site.version)
        yield site
