"""State in memory keeps the contract of state stores."""

from __future__ import annotations

from pathlib import Path

from headwater.features.plan import Plan
from headwater.features.state_memory import MemoryPlace, MemoryState
from headwater.testing.state_contract import StateContract
from tests.features.states import flipped

PLACES: dict[Path, MemoryPlace] = {}


class TestMemoryState(StateContract):
    def open(self, place: Path, plan: Plan, *, writable: bool, log_id: str = "") -> MemoryState:
        return MemoryState(plan, PLACES.setdefault(place, MemoryPlace()), writable=writable, log_id=log_id)

    def damage(self, place: Path, table: str, key: int, change: int | bytes) -> None:
        stored = PLACES[place]
        if table == "meta":
            stored.meta = flipped(stored.meta, change)
        else:
            rows = stored.epochs if table == "epochs" else stored.tables[table]
            rows[key] = flipped(rows[key], change)
