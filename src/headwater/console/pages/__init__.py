"""The pages, a module each: ``ENTRIES`` for the navigation, ``routes(desk)`` for what they answer."""

from __future__ import annotations

from typing import Protocol

from litestar.handlers import HTTPRouteHandler

from headwater.console.desk import Desk, Entry
from headwater.console.pages import (
    alerts,
    audit,
    catalogue_map,
    configuration,
    experiments,
    features,
    item_rules,
    items,
    keys,
    models,
    overview,
    playground,
    rules,
    users,
    why,
)


class Page(Protocol):
    """A module of this folder."""

    ENTRIES: tuple[Entry, ...]

    def routes(self, desk: Desk) -> list[HTTPRouteHandler]:
        """What it answers."""
        ...


PAGES: tuple[Page, ...] = (
    overview, playground, why, users, items, item_rules, catalogue_map, features, models, experiments, rules, alerts, configuration, keys, audit,
)  # fmt: skip
"""In the order of the navigation."""
