"""The aggregations of ``features.aggregations`` as plain objects: one event after the other, by the book.

What is stored as ``float32`` is rounded to it after every change, in the order in which the descriptions name the
factors; all else is exact or ``float64``. Sums of items keep what the rounding leaves, rounded too, and go on from both. A decayed sum is kept for the landmark of its row's clock (``features.decay``).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Hashable, Iterable
from ctypes import c_float
from dataclasses import dataclass, field

import xxhash

from headwater.features.aggregations import (
    Aggregation,
    Attribute,
    Counted,
    Decayed,
    Distinct,
    Extreme,
    LastTime,
    LastValue,
    Windowed,
)
from headwater.schema.events import Scalar

_LN2 = math.log(2.0)
_MASK = 2**64 - 1
_TOP_BIT = 1 << 31
_HALF_LIVES = 32  # from one landmark to the next


def f32(value: float) -> float:
    """``value`` as a ``float32`` holds it."""
    return c_float(value).value


def two_to(exponent: float) -> float:
    """``2 ** exponent``; exactly 0 below -1,000.

    The exponent is a whole number, some 64ths and a rest: two exact or tabled powers and the Taylor polynomial of degree
    5 by Horner's rule are multiplied. That is the one definition of the value's last bits.
    """
    if exponent < -1000.0:
        return 0.0
    whole = math.floor(exponent)
    sixty_fourths = (exponent - whole) * 64.0
    part = int(sixty_fourths)
    rest = (sixty_fourths - part) / 64.0
    value = 0.0
    for k in range(5, -1, -1):
        value = value * rest + _LN2**k / math.factorial(k)
    return float(value * 2.0 ** (part / 64) * 2.0**whole)


def decay(age: int, half_life: float) -> float:
    """``2 ** (-age / half_life)``, both in one unit: 1 for no age; a half-life of 0 has none of anything older."""
    if age <= 0:
        return 1.0
    return two_to(-(age * (1.0 / half_life))) if half_life > 0 else 0.0


def period_of(clock: int, half_life: int) -> int:
    """Which period of 32 half-lives a moment lies in; without a half-life there is only one."""
    return clock // (_HALF_LIVES * half_life) if half_life else 0


def landmark(clock: int, half_life: int) -> int:
    """The beginning of the period."""
    return period_of(clock, half_life) * _HALF_LIVES * half_life


def rescaled(value: float, before: int, now: int, half_life: int) -> float:
    """A stored sum when its row's clock moves from ``before`` to ``now``."""
    return f32(math.ldexp(value, -_HALF_LIVES * (period_of(now, half_life) - period_of(before, half_life))))


def weight_at(time: int, clock: int, half_life: int) -> float:
    """What an event at ``time`` weighs in a sum of a row with this clock, which is not before it."""
    past = time - landmark(time, half_life)
    grown = two_to(past * (1.0 / half_life)) if half_life else 1.0
    return math.ldexp(grown, -_HALF_LIVES * (period_of(clock, half_life) - period_of(time, half_life)))


def worth_now(clock: int, now: int, half_life: int) -> float:
    """What a stored sum is multiplied with to give its value at ``now``; a moment before the clock counts as the clock."""
    age = max(now, clock) - landmark(clock, half_life)
    return two_to(-(age * (1.0 / half_life))) if half_life else 1.0


def number_code(value: float | None) -> int:
    """A ``float32`` as an integer of the same order; ``None`` is 0, and -0 is 0.0."""
    if value is None or math.isnan(value):
        return 0
    (bits,) = struct.unpack("<I", struct.pack("<f", f32(value) + 0.0))
    return int(bits ^ (2**32 - 1)) if bits & _TOP_BIT else int(bits | _TOP_BIT)


def text_code(value: Scalar | None) -> int:
    """The 32-bit hash of a text that an attribute of kind "category" is; ``None`` is 0."""
    return 0 if value is None else xxhash.xxh32_intdigest(str(value).encode()) % (2**32 - 1) + 1


def number_of(value: Scalar | None) -> float | None:
    """The number that an attribute of kind "number" is; texts are none."""
    return None if value is None or isinstance(value, str) else f32(float(value))


def mixed(z: int) -> int:
    """The finaliser of splitmix64."""
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
    return z ^ z >> 31


def registers(keys: Iterable[int], precision: int) -> list[int]:
    """A HyperLogLog that was shown ``keys``: by register the highest rank, 1 plus the zeros below the first one."""
    ranks = [0] * (1 << precision)
    for key in keys:
        z = mixed(key + 0x9E3779B97F4A7C15 & _MASK)
        rest = f"{z >> 12:052b}"
        rank = len(rest) - len(rest.rstrip("0")) + 1
        place = z % len(ranks)
        ranks[place] = max(ranks[place], rank)
    return ranks


def estimate(ranks: list[int]) -> float:
    """How many keys a HyperLogLog was shown (Ertl 2017, the improved raw estimator).

    ``m^2 / (2 ln 2)`` over ``sum 2^-rank`` of the others plus ``m * sigma(e)``, where ``e`` is the share of empty
    registers and ``sigma(x) = x + sum 2^(k-1) x^(2^k)``.
    """
    count, empty, total = len(ranks), ranks.count(0), 0.0
    for rank in ranks:
        total += 2.0**-rank if rank else 0.0
    if empty == count:
        return 0.0
    sigma = power = empty / count
    for k in range(64):
        power *= power
        sigma += power * 2.0**k
    return 0.5 / math.log(2.0) * count * count / (total + count * sigma)


@dataclass(frozen=True, slots=True)
class Happening:
    """One event as rows see it. ``value`` ``None``: it has none; ``category`` 0: its item has none."""

    time: int
    value: float | None
    retract: bool
    user: int
    item: int
    category: int

    @property
    def sign(self) -> float:
        return -1.0 if self.retract else 1.0


@dataclass(slots=True)
class SlowRow:
    """What users and items have in common."""

    clock: int = 0
    first: int = 0
    sums: dict[Decayed, float] = field(default_factory=dict)
    tiles: dict[Windowed, dict[int, float]] = field(default_factory=dict)
    counts: dict[Counted, int] = field(default_factory=dict)
    latest: dict[LastTime, int] = field(default_factory=dict)
    extremes: dict[Extreme, float] = field(default_factory=dict)
    last: dict[LastValue, tuple[int, float]] = field(default_factory=dict)
    shown: dict[Distinct, set[int]] = field(default_factory=dict)
    attributes: dict[Attribute, Scalar] = field(default_factory=dict)
    tables: dict[str, tuple[int, dict[str, float | None]]] = field(default_factory=dict)
    rests: dict[Hashable, float] | None = (
        None  # of items: what rounding left of a sum, by the sum (of tiles, with its tile)
    )

    def move(self, time: int) -> None:
        """Bring the clock to ``time`` if that is later."""
        if time <= self.clock:
            return
        for cell, value in self.sums.items():
            self.sums[cell] = rescaled(value, self.clock, time, cell.half_life_ms)
            self.move_rest(cell, time, cell.half_life_ms)
        self.clock = time
        for window, tiles in self.tiles.items():
            oldest = time // window.tile_ms - window.tiles
            self.tiles[window] = {tile: value for tile, value in tiles.items() if tile > oldest}
            for tile in tiles.keys() - self.tiles[window].keys():
                if self.rests is not None:
                    self.rests.pop((window, tile), None)

    def move_rest(self, which: Hashable, time: int, half_life: int) -> None:
        """The rest of a decayed sum when the clock moves to ``time``."""
        if self.rests is not None:
            self.rests[which] = rescaled(self.rests.get(which, 0.0), self.clock, time, half_life)

    def rest(self, which: Hashable) -> float:
        """What rounding left of a sum."""
        return 0.0 if self.rests is None else self.rests.get(which, 0.0)

    def kept(self, which: Hashable, total: float) -> float:
        """A sum as it is stored, after its rest was."""
        value = f32(total)
        if self.rests is not None:
            self.rests[which] = f32(total - value)
        return value

    def take(self, cell: Aggregation, name: str, event: Happening) -> None:
        """One event of type ``name`` into one aggregation that counts such events. The clock is not before it."""
        if isinstance(cell, Decayed):
            amount = _part(event, cell.of, cell.weights[cell.types.index(name)] * self._weight(event, cell))
            if amount is not None:
                total = self.sums.get(cell, 0.0) + self.rest(cell)
                self.sums[cell] = self.kept(cell, _added(total, amount, event, floor=cell.of != "value"))
        elif isinstance(cell, Windowed):
            amount = _part(event, cell.of, cell.weights[cell.types.index(name)])
            tile = event.time // cell.tile_ms
            if amount is not None and tile > self.clock // cell.tile_ms - cell.tiles:
                tiles = self.tiles.setdefault(cell, {})
                total = tiles.get(tile, 0.0) + self.rest((cell, tile))
                tiles[tile] = self.kept((cell, tile), _added(total, amount, event, floor=cell.of != "value"))
        elif isinstance(cell, Counted):
            self.counts[cell] = min(max(self.counts.get(cell, 0) + int(event.sign), 0), 2**32 - 1)
        elif event.retract:
            pass  # changes nothing of what follows
        elif isinstance(cell, LastTime):
            self.latest[cell] = max(self.latest.get(cell, 0), event.time)
        elif isinstance(cell, Extreme) and event.value is not None:
            known = self.extremes.get(cell, event.value)
            self.extremes[cell] = max(known, event.value) if cell.largest else min(known, event.value)
        elif isinstance(cell, LastValue) and event.value is not None:
            if event.time >= self.last.get(cell, (0, 0.0))[0]:
                self.last[cell] = (event.time, event.value)
        elif isinstance(cell, Distinct):
            key = {"user": event.user, "item": event.item, "category": event.category}[cell.of]
            if key:
                self.shown.setdefault(cell, set()).add(key)

    def _weight(self, event: Happening, cell: Decayed) -> float:
        return weight_at(event.time, self.clock, cell.half_life_ms)

    def merge(self, source: SlowRow) -> None:
        """Add all that ``source`` holds of events; both clocks stand at one moment."""
        self.first = min(first for first in (source.first, self.first) if first) if source.first else self.first
        for cell, value in source.sums.items():
            self.sums[cell] = f32(self.sums.get(cell, 0.0) + value)
        for window, theirs in source.tiles.items():
            tiles = self.tiles.setdefault(window, {})
            for tile, value in theirs.items():
                tiles[tile] = f32(tiles.get(tile, 0.0) + value)
        for count, events in source.counts.items():
            self.counts[count] = self.counts.get(count, 0) + events
        for latest, time in source.latest.items():
            self.latest[latest] = max(self.latest.get(latest, 0), time)
        for extreme, value in source.extremes.items():
            known = self.extremes.get(extreme, value)
            self.extremes[extreme] = max(known, value) if extreme.largest else min(known, value)
        for last, (time, value) in source.last.items():
            if time > self.last.get(last, (0, 0.0))[0]:
                self.last[last] = (time, value)
        for distinct, keys in source.shown.items():
            self.shown.setdefault(distinct, set()).update(keys)

    def load(self, table: str, valid_ms: int, values: dict[str, float | None]) -> None:
        """Values of a table, unless those that are here are valid from a later moment."""
        if valid_ms >= self.tables.get(table, (0, {}))[0]:
            self.tables[table] = (valid_ms, values)


def _part(event: Happening, of: str, weight: float) -> float | None:
    """What an event adds to a sum; ``None``: nothing, for it has no value."""
    if of == "one":
        return event.sign * weight
    if event.value is None:
        return None
    return event.sign * event.value * weight if of == "value" else event.sign * weight


def _added(total: float, amount: float, event: Happening, *, floor: bool) -> float:
    return left(total + amount, amount) if floor and event.retract else total + amount


def left(total: float, part: float) -> float:
    """What a sum that stops at 0 holds after ``part`` was taken off: nothing where rounding may have left it."""
    return total if total > abs(part) * 2.0**-20 else 0.0
