"""Ages: what an event changes is as old as that event."""

from __future__ import annotations

import numpy as np
import pytest

from headwater.features.ages import Ages
from headwater.features.assemble import Context, assemble, new_scratch
from headwater.log.commands import PutItems
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.testing.events import START_MS, Step
from tests.retrieval.worlds import HOUR_MS, MINUTE_MS, World, world

ITEMS, USERS = 6, 3


def rows(small: World, user: str, candidates: np.ndarray, now_ms: int) -> np.ndarray:
    out = np.zeros((len(candidates), len(small.plan.columns)), np.float32)
    scratch = new_scratch(len(small.fold.items.dirty), len(candidates), small.plan)
    table = small.fold.items.rows
    return assemble(small.plan, small.user(user), table, candidates, Context((1, 1)), now_ms, scratch, out)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_number_that_an_event_changed_is_as_old_as_the_event(seed: int) -> None:
    rng = np.random.default_rng(seed)
    put = [Item(id=f"i{n}", categories=[f"c{n % 3}"], title=f"about {n % 2}") for n in range(ITEMS)]
    small = world(Step(START_MS, PutItems(put)))
    candidates = np.array(small.log.items(*(item.id for item in put)))
    now_ms, ages, met = START_MS + 10 * HOUR_MS, Ages(small.plan), set()
    for n in range(1, 40):
        at_ms = START_MS + n * MINUTE_MS
        before = {f"u{u}": rows(small, f"u{u}", candidates, now_ms) for u in range(USERS)}
        event = Event(
            user=f"u{rng.integers(USERS)}", item=f"i{rng.integers(ITEMS)}", type=str(rng.choice(["click", "view", "like", "impression"])),
            attributes={"country": "DE"},
        )  # fmt: skip
        small.add(Step(at_ms, [event]))
        for user, earlier in before.items():
            now = rows(small, user, candidates, now_ms)
            for row, column in np.argwhere(np.abs(now - earlier) > 1e-4 * np.abs(earlier)).tolist():
                declared = small.plan.declared[column]
                changed = ages.of(declared, small.user(user), small.fold.items.rows, int(candidates[row]))
                assert changed.ms == at_ms, (declared.name, changed, n)
                met.add((declared.name, changed.by))
    assert len({name for name, _ in met}) > 0.6 * len(small.plan.columns)
    assert {by for _, by in met} == {"event", "row"}
