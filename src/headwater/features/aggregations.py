"""What a row of state can hold: the algebra that the fold updates and the assembly reads.

Every aggregation is zero when nothing has happened (``empty``), takes in one event (``update``) and gives its value
at a moment (``read``). They belong to users or to items; item row 0 takes in every event and stands for all items
together. What they do with an event that takes an earlier one back (``retract``) is part of each description.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Entity = Literal["user", "item"]
Of = Literal["one", "value", "given"]

# A type of its own for aggregations: a positive event that follows another one of the same visit, that is,
# the same user had a positive event on another item within ``co_visits.window`` before it.
FOLLOWED = "@followed"

# Another one for item rows: a place in a served list. It counts nothing unless an aggregation names it.
SERVED = "@served"


class Decayed(Struct, frozen=True, tag=True):
    """``sum weight * x * 2^(-age / half_life)`` over events of ``types`` (weights in the same order).

    Sums of items and of everybody keep about 48 bits, those of users 24 (``sums``). ``x`` is 1, the event's ``value`` (events without one add nothing), or 1 for events that have a value
    (``given``: the divisor of a mean). ``half_life_ms`` 0: nothing ever fades. A retraction takes its part off; sums
    of ones stop at 0, and are 0 when less than a millionth of that part is left.
    """

    entity: Entity
    types: tuple[str, ...]
    weights: tuple[float, ...]
    half_life_ms: int
    of: Of = "one"


class Counted(Struct, frozen=True, tag=True):
    """Exact number of events of ``types``, up to 2^32 - 1 (a retraction takes one off, down to 0)."""

    entity: Entity
    types: tuple[str, ...]


class LastTime(Struct, frozen=True, tag=True):
    """Time of the latest event of ``types``, in ms; 0 when there was none. A retraction changes nothing."""

    entity: Entity
    types: tuple[str, ...]


class Windowed(Struct, frozen=True, tag=True):
    """``sum weight * x`` over the tiles of the last ``window_ms``, in ``tiles`` tiles of equal length.

    An event at ``t`` lies in tile ``floor(t / tile)``; a read at ``now`` sums the tiles above
    ``floor(now / tile) - tiles``: between ``window - tile`` and ``window`` of time. Events that are older than the
    window when they arrive add nothing. A retraction takes its part off; sums of ones stop at 0.
    """

    entity: Entity
    types: tuple[str, ...]
    weights: tuple[float, ...]
    window_ms: int
    tiles: int
    of: Of = "one"

    @property
    def tile_ms(self) -> int:
        """Length of a tile."""
        return self.window_ms // self.tiles


class Extreme(Struct, frozen=True, tag=True):
    """Largest (or smallest) ``value`` of the events of ``types`` ever. A retraction changes nothing."""

    entity: Entity
    types: tuple[str, ...]
    largest: bool


class LastValue(Struct, frozen=True, tag=True):
    """``value`` of the latest event of ``types`` that has one; of two at one time the later in the log.

    A retraction changes nothing. As with latest times, an event at time 0 (1970) is none.
    """

    entity: Entity
    types: tuple[str, ...]


class Distinct(Struct, frozen=True, tag=True):
    """About how many different users, items or first categories the events of ``types`` were about: a HyperLogLog.

    ``2^precision`` registers of one byte; standard error ``1.04 / sqrt(2^precision)`` (Flajolet et al. 2007).
    A retraction changes nothing.
    """

    entity: Entity
    types: tuple[str, ...]
    of: Literal["user", "item", "category"]
    precision: int = 6


class Affinity(Struct, frozen=True, tag=True):
    """The user's heaviest ``slots`` keys with their decayed weights and latest times.

    ``key``: "category" (an event counts for each category of its item) or the name of an item attribute. A
    retraction takes its weight off, down to 0, and changes no time. A full row gives its lightest place to a heavier
    newcomer.
    """

    types: tuple[str, ...]
    weights: tuple[float, ...]
    key: str
    half_life_ms: int
    slots: int

    @property
    def entity(self) -> Entity:
        """Affinities belong to users."""
        return "user"


class Attribute(Struct, frozen=True, tag=True):
    """An attribute of the item, or of the user's profile, as said last.

    ``number``: its value (true is 1, false 0). ``category``: a 32-bit hash of its text. Anything else is missing.
    """

    entity: Entity
    name: str
    kind: Literal["number", "category"]


class TableValue(Struct, frozen=True, tag=True):
    """A column of one of the ``[[tables]]``: of the rows loaded so far the one that is valid from the latest time (of two
    at one time the later in the log), and that time.
    """

    entity: Entity
    table: str
    column: str


Aggregation = (
    Decayed | Counted | LastTime | Windowed | Extreme | LastValue | Distinct | Affinity | Attribute | TableValue
)
