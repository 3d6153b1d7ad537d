"""What the pages of the group "See" ask of the running server; ``online`` has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from headwater.schema.events import Event
from headwater.schema.explanation import Explanation
from headwater.schema.requests import RecommendRequest
from headwater.schema.seen import Card, PastList, Person, Pulse, ShownList, Step, Whom


class Play(Protocol):
    """Lists for the playground, and what events do to them. Where state or writer are away these raise ``HeadwaterError``."""

    def cards(self, items: Sequence[str]) -> dict[str, Card]:
        """What the catalogue says of ``items``, by id."""
        ...

    def person(self, whom: Whom) -> Person:
        """What the state says of a user."""
        ...

    def look(self, request: RecommendRequest, whom: Whom) -> ShownList:
        """A list that is neither recorded nor counted. Raises ``HeadwaterError``: the request is wrong."""
        ...

    async def ask(self, request: RecommendRequest) -> ShownList:
        """A list as clients get it: recorded, counted, with the user's experiments."""
        ...

    async def act(self, event: Event, request: RecommendRequest, shown: Sequence[str]) -> Step:
        """Take ``event`` in, then :meth:`ask` for the list that reflects it. ``shown`` are the items of the list before."""
        ...

    async def compare(self, request: RecommendRequest, whom: Whom, way: str) -> tuple[ShownList, ShownList]:
        """The list of the configuration and bundle in service, and that of another ``way``: "bundle:VERSION" or one of the console's
        ``WAYS``; both without experiments, neither recorded. Raises ``HeadwaterError``: there is no such way.
        """
        ...

    async def forget(self, user: str) -> None:
        """Erase a visitor that was made up here."""
        ...


class Past(Protocol):
    """Lists of the log, and why they are as they are."""

    async def newest(self, limit: int, surface: str, user: int) -> list[PastList]:
        """The newest lists (of ``surface``, "": of any; of the dense ``user``, -1: of anybody), newest first; as far back as a short look goes."""
        ...

    async def explain(self, request_id: str, item: str, bundle: str, after: int) -> Explanation:
        """Why a list is as it is. ``item``, ``bundle`` and ``after`` as for ``/v1/explain``; "" and -1: not asked.

        Raises:
            WaitError: another request is being explained.
            HeadwaterError: it cannot be explained; the message says why.
        """
        ...


class Planes(Protocol):
    """How the planes are."""

    async def pulse(self) -> Pulse:
        """The figures of the moment; visitors who look at the same time share them."""
        ...
