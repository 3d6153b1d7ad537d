"""The packed form: what an ordinary history takes, and the words that the encoding treats apart."""

from __future__ import annotations

import numpy as np
import pytest

from headwater.features.assemble import stranger
from headwater.features.layout import ITEM_BITS, U_COUNTS, U_RECENT_LENGTH, U_SEEN_LENGTH
from headwater.features.packing import FARTHEST, SPAN_MS, SPAN_S, WORD
from headwater.features.rows import User, pack_user, unpack_user
from tests.features.states import PLANS

PLAN = PLANS["default"]
LAYOUT = PLAN.layout
NOW_MS = 1_790_000_000_123
NOW_S = NOW_MS // 1000
EMPTY = len(pack_user(stranger(PLAN), LAYOUT))


def history(clock_ms: int, items: list[int], times_s: list[int], seen: list[int]) -> User:
    """A row with these recent events of type 3 and these items in its seen ring."""
    row = stranger(PLAN)
    row.i8[0] = clock_ms
    for start, values in ((LAYOUT.recent_keys, items), (LAYOUT.recent_times, times_s), (LAYOUT.seen, seen)):
        row.u4[start : start + len(values)] = values
    row.u4[LAYOUT.recent_keys : LAYOUT.recent_keys + len(items)] |= np.uint32(3 << ITEM_BITS)
    row.u4[U_RECENT_LENGTH], row.u4[U_SEEN_LENGTH] = len(items), len(seen)
    return row


def size(row: User) -> int:
    """Bytes beyond an empty row, after checking that it comes back."""
    packed, back = pack_user(row, LAYOUT), stranger(PLAN)
    unpack_user(packed, back, LAYOUT)
    assert [part.tobytes() for part in back] == [part.tobytes() for part in row]
    return len(packed) - EMPTY


def test_an_event_of_a_visit_takes_five_bytes() -> None:
    items = list(range(10_000, 10_020))
    times = [NOW_S - 60 * k for k in reversed(range(20))]
    # an item and its type 3, the time 1, and two bits for each of the three; lengths and their bits: 3
    assert size(history(NOW_MS, items, times, items)) <= 20 * 5 + 3 + 3


@pytest.mark.parametrize(
    "seen",
    [
        [11, 12, 13, 14],  # as they came
        [12, 13, 14],  # a repeated item in front
        [14],  # the others were taken back
        [900, 901, 11, 12, 13, 14],  # older than the recent sequence
        [14, 13, 12, 11],  # a ring that has turned
        [0, 1 << 31, 11],  # no items at all
        [],
    ],
)
def test_the_seen_ring_leans_on_the_recent_items_whatever_it_holds(seen: list[int]) -> None:
    times = [NOW_S - 30, NOW_S - 20, NOW_S - 10, NOW_S]
    plain = size(history(NOW_MS, [11, 12, 13, 14], times, []))
    assert size(history(NOW_MS, [11, 12, 13, 14], times, seen)) <= plain + 4 * len(seen) + 8


@pytest.mark.parametrize(
    "clock_ms",
    [
        0,
        1,
        NOW_MS,
        2 * SPAN_MS,
        2 * SPAN_MS + 1,
        3 * SPAN_S * 1000,
        FARTHEST,
        FARTHEST + 1,
        (1 << 63) - 1,
        -5,
        -(1 << 63),
    ],
)
def test_times_come_back_from_any_clock(clock_ms: int) -> None:
    moments = [0, 1, -1, clock_ms, (1 << 63) - 1, -(1 << 63)]
    moments += [edge + k for edge in (clock_ms, clock_ms - SPAN_MS, SPAN_MS, 1 << 32) for k in (-1, 0, 1)]
    for moment in moments:
        row = history(clock_ms, [5, 6], [7, clock_ms // 1000 & WORD], [5])
        row.i8[1:] = (moment + (1 << 63)) % (1 << 64) - (1 << 63)
        size(row)


def test_times_of_the_last_seventeen_years_take_five_bytes_at_most() -> None:
    for ago_ms, most in ((0, 1), (200, 1), (60_000, 2), (3_600_000, 3), (40 * 86_400_000, 4), (SPAN_MS - 1, 5)):
        row = history(NOW_MS, [], [], [])
        row.i8[1] = NOW_MS - ago_ms
        assert size(row) <= most + 1 + 3


@pytest.mark.parametrize("word", [1, SPAN_S - 1, SPAN_S, SPAN_S + 1, 2 * SPAN_S - 1, 2 * SPAN_S, NOW_S - SPAN_S, NOW_S - SPAN_S + 1, NOW_S,
                                  NOW_S + 1, (1 << 32) - 1])  # fmt: skip
def test_numbers_and_moments_share_a_word(word: int) -> None:
    row = history(NOW_MS, [], [], [])
    row.u4[U_COUNTS : LAYOUT.recent_keys] = word
    places = LAYOUT.recent_keys - U_COUNTS
    taken = size(row) - 2 - places / 4
    assert taken <= 3 * places + 4 if word < SPAN_S or NOW_S - SPAN_S < word <= NOW_S else taken <= 4 * places + 4


def test_random_histories_survive() -> None:
    rng = np.random.default_rng(11)
    for _ in range(200):
        n = int(rng.integers(0, LAYOUT.recent_size + 1))
        items = rng.integers(1, [20, 1 << 10, 1 << 24][int(rng.integers(3))], n).tolist()
        times = np.sort(NOW_S - rng.integers(0, 3 * SPAN_S, n)).tolist()
        seen = list(dict.fromkeys(items)) if rng.random() < 0.7 else rng.permutation(items).tolist()
        size(history(NOW_MS, items, times, seen))
