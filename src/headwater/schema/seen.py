"""What the console shows of lists and of what they are made of."""

from __future__ import annotations

from msgspec import Struct


class Card(Struct, frozen=True):
    """An item as people see it; ``title`` is its id where it has none."""

    id: str
    title: str
    categories: list[str]


class ShownItem(Struct, frozen=True):
    """An item of a list, with the source that found it and why it is there."""

    card: Card
    score: float
    source: str
    reason: str


class ShownList(Struct, frozen=True, kw_only=True):
    """A list. ``recorded``: it is in the log (or on its way there), so that it can be explained; ``after`` is an offset before its record.
    ``took_ms`` is the time of the stages together.
    """

    request_id: str
    items: list[ShownItem]
    tier: int
    reasons: list[str]
    model: str
    recorded: bool
    after: int
    took_ms: float


class PastList(Struct, frozen=True, kw_only=True):
    """A list of the log. ``user`` is the dense number of whom it was for, 0: a stranger; ``first`` are the first items."""

    request_id: str
    time_ms: int
    surface: str
    tier: int
    user: int
    length: int
    first: list[Card]
    bundle: str
    after: int
    drawn: bool


class PastEvent(Struct, frozen=True):
    """An event of a recent sequence."""

    card: Card
    type: str
    time_ms: int


class Person(Struct, frozen=True):
    """A user: whether anything is known of them, and their recent sequence, the newest event first."""

    known: bool
    recent: list[PastEvent]


class Whom(Struct, frozen=True):
    """Whom a list is for: the user that clients call ``id``, or the one with the dense ``number``; neither: a stranger."""

    id: str = ""
    number: int = 0


class FeatureMove(Struct, frozen=True):
    """A feature that an event changed: its mean over the ``items`` of the list before and after, at the same moment. ``changed`` is of how many
    items it changed.
    """

    name: str
    unit: str
    description: str
    before: float
    after: float
    changed: int
    items: int


class Step(Struct, frozen=True):
    """What an event did: after how many ms it was durable, and after how many a list was there that reflects it."""

    durable_ms: float
    reflected_ms: float
    reflected: bool
    shown: ShownList
    moves: list[FeatureMove]


class Pulse(Struct, frozen=True, kw_only=True):
    """How the planes are at ``time_ms``. Rates are per second over the last ``window_s`` seconds; None: not known yet.

    ``stages`` and ``sources`` are those of the request path, in its order: name, what it does, and its mean milliseconds; name and mean candidates of a list.
    ``tiers`` are the shares of the answers by tier. ``requests`` is the time to answer /v1/recommend at P50, P95 and P99.
    """

    time_ms: int
    window_s: float
    events_s: float | None
    other_s: float | None
    rejected_s: float | None
    answers_s: float | None
    served_s: float | None
    request_ms: tuple[float | None, float | None, float | None]
    fresh_ms: float | None
    stages: list[tuple[str, str, float | None]]
    sources: list[tuple[str, float | None]]
    tiers: list[float]
    shed_s: float | None
    log_offset: int
    lag: int
    epoch_age_s: float
    items: int
    quality: float
    model: str
    model_ms: int | None
    hits: float | None
