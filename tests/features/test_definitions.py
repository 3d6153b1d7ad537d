"""Generated definitions over generated logs: the kernels compute what the definitions say, to the bit."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.features.definitions import Column
from headwater.features.plan import compile_plan
from headwater.schema.config import Config
from headwater.testing.assembly_oracle import assemble_slowly
from headwater.testing.definitions import definitions
from headwater.testing.events import DAY_MS, Step, scripts, written
from tests.features.states import CONFIGS, STABLE, all_bytes, assembled, assert_same_state, folded, folded_slowly


def with_idle(config: Config, idle_after: str) -> Config:
    return msgspec.structs.replace(config, features=msgspec.structs.replace(config.features, idle_after=idle_after))


IDLE = st.sampled_from(["never", "1h", "2d", "400d"])
LATER = st.sampled_from([0, 1, 60_000, DAY_MS, 400 * DAY_MS, -5_000])
ZONES = st.sampled_from([0, 3_600_000, -18_000_000, 19_800_000])
SEGMENTS = st.tuples(st.integers(0, 6), st.integers(0, 70))


@pytest.mark.parametrize("name", CONFIGS)
@settings(STABLE, max_examples=STABLE.max_examples * 5 // 8)
@given(data=st.data(), idle_after=IDLE, steps=scripts(), segments=SEGMENTS, later_ms=LATER, offset_ms=ZONES)
def test_kernels_compute_what_definitions_say(
    name: str, data: st.DataObject, idle_after: str, steps: list[Step], segments: tuple[int, int], later_ms: int,
    offset_ms: int,
) -> None:  # fmt: skip
    config = with_idle(CONFIGS[name], idle_after)
    columns: tuple[Column, ...] = data.draw(definitions(config))
    plan, log = compile_plan(config, columns), written(steps, config)
    fold, slow = folded(plan, log), folded_slowly(log, columns)
    assert_same_state(plan, fold, slow)
    now_ms = max(log.log.last_received_ms + later_ms, 0)
    items = list(range(1, fold.items.count))
    for user in [0, *slow.users]:
        fast = assembled(plan, fold, fold.users.user(user), items, segments, now_ms, offset_ms, user % 3)
        expected = assemble_slowly(slow, slow.users.get(user), items, segments, now_ms, offset_ms, user % 3)
        for d, column in enumerate(columns):
            assert fast[:, d].tobytes() == expected[:, d].tobytes(), (column, fast[:, d], expected[:, d])


@settings(STABLE, max_examples=STABLE.max_examples // 2)
@given(
    columns=definitions(Config()), steps=scripts(40), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    cache=st.integers(2, 5),
)  # fmt: skip
def test_states_depend_neither_on_cuts_nor_on_what_is_packed_away(
    columns: tuple[Column, ...], steps: list[Step], sizes: list[int], cache: int
) -> None:
    plan, log = compile_plan(Config(), columns), written(steps, Config())
    assert all_bytes(folded(plan, log)) == all_bytes(folded(plan, log, sizes, cache_users=cache))
