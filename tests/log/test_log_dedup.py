"""The dedup window against a plain list."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.log.dedup import DedupWindow


@settings(deadline=None)
@given(
    size=st.integers(1, 20),
    batches=st.lists(st.lists(st.integers(0, 40) | st.just(2**64 - 1), max_size=30), max_size=12),
)
def test_equals_a_list_of_the_last_keys(size: int, batches: list[list[int]]) -> None:
    window, remembered = DedupWindow(size), list[int]()
    for batch in batches:
        keys = np.array(batch, np.uint64)
        mask = window.fresh(keys)
        expected: list[bool] = []
        for position, key in enumerate(batch):
            expected.append(key == 0 or (key not in remembered[-size:] and key not in batch[:position]))
        assert (mask.tolist() if mask is not None else [True] * len(batch)) == expected
        kept = [key for key, fresh in zip(batch, expected, strict=True) if fresh]
        window.add(np.array(kept, np.uint64))
        remembered += [key for key in kept if key]
        assert len(window) == min(size, len(remembered))


def test_asking_changes_nothing() -> None:
    window = DedupWindow(4)
    keys = np.array([5, 5], np.uint64)
    for _ in range(2):
        mask = window.fresh(keys)
        assert mask is not None
        assert mask.tolist() == [True, False]
    assert len(window) == 0
