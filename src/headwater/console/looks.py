"""What the pages about users, items and features ask of the running server; ``online`` has it, ``cli`` brings both together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from headwater.log.identity import UserKey
from headwater.log.protocol import EventLog
from headwater.schema.looks import (
    CatalogueMap,
    FeatureColumn,
    FeatureSample,
    ItemPage,
    ItemQuery,
    ItemState,
    Neighbours,
    UserState,
)
from headwater.schema.seen import Card


class Users(Protocol):
    """Who somebody is, and what the state holds of them. Where the state is away these raise ``UnavailableError``."""

    def find(self, external: str) -> UserKey | None:
        """The user of an id as clients send it; None: there is none, or they were erased."""
        ...

    def with_surrogate(self, surrogate: int) -> UserKey | None:
        """The user that history calls ``surrogate``; None: there is none, or they were erased."""
        ...

    def unseal(self, user: int, sealed: bytes) -> bytes | None:
        """A profile of the log in clear (MessagePack); None: the key is gone."""
        ...

    def state(self, user: int, now_ms: int) -> UserState:
        """The row of a dense user."""
        ...


class Items(Protocol):
    """The catalogue. Where the state is away these raise ``UnavailableError``, and so do changes where the writer is."""

    sorts: list[str]

    def number(self, item: str) -> int:
        """The dense number of an item; 0: nobody ever named it."""
        ...

    def cards(self, items: Iterable[str]) -> dict[str, Card]:
        """How people see some items."""
        ...

    def categories(self) -> list[str]:
        """All categories that items ever had."""
        ...

    async def page(self, query: ItemQuery, now_ms: int) -> ItemPage:
        """The items of a query."""
        ...

    def item(self, item: str, now_ms: int) -> ItemState | None:
        """All about one item; None: nobody ever named it."""
        ...

    async def neighbours(self, number: int, now_ms: int, most: int) -> list[Neighbours]:
        """What is near an item, by each measure that there is."""
        ...

    async def set_available(self, item: str, available: bool) -> None:
        """Show or hide an item; ``KeyError``: the catalogue says nothing of it."""
        ...

    async def delete(self, item: str) -> None:
        """Take an item out of the catalogue."""
        ...


class Map(Protocol):
    """The catalogue in two dimensions."""

    def kinds(self) -> list[str]:
        """Whose vectors there are, the best first."""
        ...

    async def draw(self, kind: str) -> CatalogueMap:
        """The map of the vectors of ``kind``, one of :meth:`kinds`."""
        ...


class Features(Protocol):
    """The plan, and how the values of the moment are spread."""

    columns: list[FeatureColumn]
    plan: str

    async def sample(self, users: Sequence[int], now_ms: int) -> FeatureSample:
        """Distributions over the rows of some dense users, each with a few items."""
        ...


Erase = Callable[[str], Awaitable[Mapping[str, Any]]]
"""Erases the user of an id as clients send it, searches every store for them, and returns the certificate."""


@dataclass(frozen=True, slots=True)
class Looks:
    """All of them, and the log."""

    log: EventLog
    users: Users
    items: Items
    map: Map
    features: Features
    erase: Erase
