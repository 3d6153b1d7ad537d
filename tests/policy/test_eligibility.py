"""Eligibility against a slow loop, and rule by rule."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.policy.eligibility import (
    ELSEWHERE,
    EXPIRED,
    MAY_SHOW,
    SEEN,
    UNPUBLISHED,
    why_ineligible,
)
from headwater.policy.eligibility import HIDDEN as IS_HIDDEN
from tests.features.states import STABLE

NOW_MS = 1_000
HIDDEN = 2


@dataclass(frozen=True)
class Offered:
    """An item as the rules see it; 0 means none."""

    flags: int = 1
    published: int = 0
    expires: int = 0
    regions: tuple[int, ...] = ()
    barred: int = 0

    def why_not(self, region: int, now_ms: int) -> int:
        """The rules, one after the other."""
        if self.barred:
            return self.barred
        if self.flags & HIDDEN:
            return IS_HIDDEN
        if self.published > now_ms:
            return UNPUBLISHED
        if self.expires and self.expires <= now_ms:
            return EXPIRED
        return MAY_SHOW if not self.regions or (region != 0 and region in self.regions) else ELSEWHERE


def asked(items: list[Offered], region: int, order: list[int] | None = None) -> list[int]:
    """``why_ineligible`` over a table of ``items`` (dense numbers from 1)."""
    n = len(items) + 1
    flags, barred = np.zeros(n, np.uint32), np.zeros(n, np.uint8)
    published, expires, regions = np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros((n, 3), np.uint32)
    for i, item in enumerate(items, 1):
        flags[i], barred[i], published[i], expires[i] = item.flags, item.barred, item.published, item.expires
        regions[i, : len(item.regions)] = item.regions
    ids = np.array(order if order is not None else range(1, n), np.int64)
    limited = ((flags & HIDDEN != 0) | (expires != 0) | (regions[:, 0] != 0)).astype(np.uint8)
    out, same = np.full((2, len(ids) + 2), 99, np.uint8)
    count = why_ineligible(ids, limited, flags, HIDDEN, published, expires, regions, region, NOW_MS, barred, out)
    all_read = np.ones(n, np.uint8)
    assert count == why_ineligible(
        ids, all_read, flags, HIDDEN, published, expires, regions, region, NOW_MS, barred, same
    )
    assert np.array_equal(out, same)
    assert out[len(ids) :].tolist() == [99, 99], "wrote behind the end"
    assert count == int((out[: len(ids)] == MAY_SHOW).sum())
    return list(map(int, out[: len(ids)]))


TIMES = st.sampled_from([0, 1, NOW_MS - 1, NOW_MS, NOW_MS + 1, 10**12])
ITEMS = st.lists(
    st.builds(
        Offered, flags=st.integers(0, 7), published=TIMES, expires=TIMES, barred=st.integers(0, 3),
        regions=st.lists(st.integers(1, 4), max_size=3).map(tuple),
    ),
    max_size=12,
)  # fmt: skip


@STABLE
@given(items=ITEMS, region=st.integers(0, 4), seed=st.integers(0, 9))
def test_the_kernel_equals_the_slow_loop(items: list[Offered], region: int, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(np.arange(1, len(items) + 1)).tolist()
    assert asked(items, region, order) == [items[i - 1].why_not(region, NOW_MS) for i in order]


SHOWN = Offered(published=1, expires=NOW_MS + 1, regions=(3,))


@pytest.mark.parametrize(
    ("item", "why"),
    [
        (replace(SHOWN, flags=HIDDEN), IS_HIDDEN),
        (replace(SHOWN, flags=HIDDEN | 1), IS_HIDDEN),
        (replace(SHOWN, barred=SEEN), SEEN),
        (replace(SHOWN, published=NOW_MS + 1), UNPUBLISHED),
        (replace(SHOWN, expires=NOW_MS), EXPIRED),
        (replace(SHOWN, regions=(1, 2)), ELSEWHERE),
    ],
)
def test_each_rule_alone_keeps_an_item_back(item: Offered, why: int) -> None:
    assert asked([SHOWN, item], 3) == [MAY_SHOW, why]


def test_an_unknown_place_gets_what_is_shown_everywhere() -> None:
    assert asked([SHOWN, replace(SHOWN, regions=())], 0) == [ELSEWHERE, MAY_SHOW]
