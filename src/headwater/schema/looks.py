"""What the console is shown of users, items and features: plain figures, made by the server, drawn by the pages."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from headwater.schema.items import Item

Status = Literal["shown", "hidden", "deleted", "unpublished", "expired", "unknown"]
"""What stands in the way of an item, for everybody. "deleted": it is hidden, and not because its last upsert said so."""


class Reading(Struct, frozen=True, kw_only=True):
    """A feature of a row, read now. ``age_ms`` and ``age_of`` as in :class:`~headwater.schema.explanation.FeatureValue`."""

    name: str
    value: float
    default: float
    unit: str
    description: str
    age_ms: int | None
    age_of: Literal["", "event", "row"]


class RecentEvent(Struct, frozen=True, kw_only=True):
    """An entry of a user's recent sequence."""

    item: str
    type: str
    time_ms: int


class Share(Struct, frozen=True):
    """A part of a whole, between 0 and 1."""

    name: str
    share: float


class UserState(Struct, frozen=True, kw_only=True):
    """A user's row of state. ``offset``: the log offset that it stands at; ``first_ms`` 0: the row is empty.

    ``recent`` is newest first, ``tastes`` are the shares of the category affinity, the largest first. ``seen`` counts the items that are not
    shown again.
    """

    offset: int
    first_ms: int
    last_ms: int
    readings: list[Reading]
    recent: list[RecentEvent]
    tastes: list[Share]
    segments: list[str]
    timezone: str
    seen: int


class ItemQuery(Struct, frozen=True, kw_only=True):
    """Which items of the catalogue: those with ``text`` in id or title, of ``category``, of ``status`` ("": any), from place ``start`` on.

    ``sort`` is an item feature of the plan, ``id``, or ``age`` (the newest first unless ``ascending``).
    """

    text: str = ""
    category: str = ""
    status: Status | Literal[""] = ""
    sort: str = "age"
    ascending: bool = False
    start: int = 0
    count: int = 50


class ItemLine(Struct, frozen=True, kw_only=True):
    """An item in a list. ``figures`` stand for the columns that the page names; ``born_ms`` 0: not known."""

    item: str
    title: str
    categories: list[str]
    status: Status
    price: float | None
    born_ms: int
    figures: list[float]


class ItemPage(Struct, frozen=True, kw_only=True):
    """A page of the catalogue. ``total`` items fit the query; the titles of ``read`` of ``items`` are known to the search by now."""

    lines: list[ItemLine]
    total: int
    items: int
    read: int
    columns: list[str]


class ItemPromise(Struct, frozen=True, kw_only=True):
    """What ``[new_items]`` promised an item and what became of it: ``shown`` of ``impressions``, until ``until_ms``."""

    state: Literal["owed", "behind", "reached", "stopped", "over"]
    shown: int
    liked: int
    impressions: int
    until_ms: int


class ItemState(Struct, frozen=True, kw_only=True):
    """An item: what the catalogue says (None: nothing, it was deleted or only ever named by events) and its row of state."""

    item: str
    number: int
    record: Item | None
    status: Status
    born_ms: int
    last_ms: int
    offset: int
    readings: list[Reading]
    promise: ItemPromise | None


class Neighbour(Struct, frozen=True, kw_only=True):
    """An item that is near another one; ``score`` in the measure of its list."""

    item: str
    title: str
    category: str
    score: float


class Neighbours(Struct, frozen=True, kw_only=True):
    """The neighbours of an item by one measure, the nearest first; ``why_none`` when there are none."""

    name: str
    measure: str
    items: list[Neighbour]
    why_none: str = ""


class MapPoint(Struct, frozen=True, array_like=True):
    """An item on the map of the catalogue."""

    x: float
    y: float
    item: str
    title: str
    category: str


class CatalogueMap(Struct, frozen=True, kw_only=True):
    """Item vectors in two dimensions. ``of`` says whose vectors; ``items`` have one, ``points`` are all of them or a sample.

    ``kept`` is the share of the variance that the two dimensions keep.
    """

    of: str
    items: int
    points: list[MapPoint]
    kept: float


class FeatureColumn(Struct, frozen=True, kw_only=True):
    """A feature of the plan, as ``headwater features show`` says it. ``bytes``: of full-width rows that it reads."""

    name: str
    entity: str
    kind: str
    formula: str
    unit: str
    dtype: str
    default: float
    owner: str
    description: str
    version: str
    user_bytes: int
    item_bytes: int


class Distribution(Struct, frozen=True, kw_only=True):
    """How the values of a feature are spread. ``missing`` is the share at the default, of ``count`` values; the rest is of all of them.

    ``edges`` (one more than ``counts``) span the 1st to the 99th percentile; what lies outside is counted at the ends.
    """

    count: int
    missing: float
    mean: float
    quantiles: dict[str, float]
    edges: list[float]
    counts: list[int]


class FeatureSample(Struct, frozen=True, kw_only=True):
    """Distributions of all features over rows that were assembled just now: ``rows`` of them, of ``users`` and ``items``."""

    made_ms: int
    rows: int
    users: int
    items: int
    columns: dict[str, Distribution]
