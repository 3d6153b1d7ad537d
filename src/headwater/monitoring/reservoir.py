"""A bounded, even sample of rows that keep coming."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from msgspec import Struct

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

GROUPS = 64
MOST_ROWS = 20_000
HOUR_MS = 3_600_000
_SEED = 7


class Cells(NamedTuple):
    """Rows of lists of one hour: ``values`` float32[n, columns], the group of each one's user int64[n] (below ``GROUPS``), and when the
    last of them was served.
    """

    values: Float32
    groups: Int64
    time_ms: int


class Sampled(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A reservoir, to be written down: rows float32[n, width] and their groups and hours int64[n, 2], in C order."""

    seen: int = 0
    rows: bytes = b""
    places: bytes = b""


class Reservoir:
    """At most ``most`` rows, each that was seen with the same chance (J. Vitter, "Random sampling with a reservoir", 1985)."""

    def __init__(self, width: int, state: Sampled | None = None, most: int = MOST_ROWS) -> None:
        state = state or Sampled()
        self.seen, self._most = state.seen, most
        self._rows = np.zeros((most, width), np.float32)
        self._places = np.zeros((most, 2), np.int64)
        self._used = len(state.places) // 16
        self._rows[: self._used] = np.frombuffer(state.rows, np.float32).reshape(self._used, width)
        self._places[: self._used] = np.frombuffer(state.places, np.int64).reshape(self._used, 2)
        self._rng = np.random.default_rng((_SEED, self.seen))

    @property
    def rows(self) -> Float32:
        """float32[n, width]"""
        return self._rows[: self._used]

    @property
    def groups(self) -> Int64:
        """The group of each row, int64[n]."""
        return self._places[: self._used, 0]

    @property
    def hours(self) -> Int64:
        """The hour of each row since the epoch, int64[n]."""
        return self._places[: self._used, 1]

    def add(self, cells: Cells) -> None:
        """Take in rows."""
        count = len(cells.values)
        if self.seen + count <= self._most:  # all have room
            there = slice(self.seen, self.seen + count)
            self._rows[there], self._places[there, 0] = cells.values, cells.groups
            self._places[there, 1] = cells.time_ms // HOUR_MS
            self.seen = self._used = self.seen + count
            return
        at = np.arange(self.seen, self.seen + count)
        full = at >= self._most
        at[full] = self._rng.integers(0, at[full] + 1)
        kept = at < self._most
        self._rows[at[kept]] = cells.values[kept]
        self._places[at[kept], 0] = cells.groups[kept]
        self._places[at[kept], 1] = cells.time_ms // HOUR_MS
        self.seen += count
        self._used = min(self.seen, self._most)

    def saved(self) -> Sampled:
        """What it holds."""
        return Sampled(
            seen=self.seen, rows=self.rows.tobytes(), places=np.ascontiguousarray(self._places[: self._used]).tobytes()
        )
