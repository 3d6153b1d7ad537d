"""The label join: equal to the slow one on generated exposures and outcomes, and the rules one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.learning.labels import (
    NEVER,
    Exposed,
    LabelRule,
    Labels,
    Outcomes,
    closes_after_ms,
    join_labels,
    label_rules,
    retractions,
)
from headwater.schema.config import Config
from tests.learning.label_oracle import labels_slowly

MINUTE = 60_000
WINDOW, WATERMARK = 30 * MINUTE, 5 * MINUTE

times = st.integers(0, 12)
exposures = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 2), times, st.integers(0, 3), st.integers(0, 2)), max_size=12
)
events = st.lists(
    st.tuples(
        st.integers(1, 2), st.integers(1, 2), st.integers(1, 3), times, st.integers(0, 12), st.integers(0, 2),
        st.none() | st.integers(0, 12),
    ), max_size=12,
)  # fmt: skip


def exposed(*rows: tuple[int, int, int, int, int]) -> Exposed:
    """(user, item, time, late, request); sorted as the log would hold them."""
    ordered = sorted(rows, key=lambda row: row[2] + row[3])
    a = np.array(ordered, np.int64).reshape(len(rows), 5)
    return Exposed(a[:, 0], a[:, 1], a[:, 2], a[:, 2] + a[:, 3], a[:, 4].astype(np.uint64))


def outcomes(*rows: tuple[int, int, int, int, int, int, int | None]) -> Outcomes:
    """(user, item, type, time, late, request, retracted so much after it was received)."""
    ordered = sorted(rows, key=lambda row: row[3] + row[4])
    a = np.array([row[:6] for row in ordered], np.int64).reshape(len(rows), 6)
    received = a[:, 3] + a[:, 4]
    retracted = [NEVER if row[6] is None else int(received[i]) + row[6] for i, row in enumerate(ordered)]
    value = np.arange(len(rows), dtype=np.float32)
    value[::3] = np.nan
    return Outcomes(
        a[:, 0], a[:, 1], a[:, 2], a[:, 3], received, a[:, 5].astype(np.uint64), value, np.array(retracted, np.int64)
    )


def as_rows(labels: Labels) -> list[tuple[int, int, float]]:
    return list(zip(labels.label.tolist(), labels.delay_ms.tolist(), labels.value.tolist(), strict=True))


def same(a: list[tuple[int, int, float]], b: list[tuple[int, int, float]]) -> bool:
    return [(*row[:2], None if math.isnan(row[2]) else row[2]) for row in a] == [
        (*row[:2], None if math.isnan(row[2]) else row[2]) for row in b
    ]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(exposures, events, st.integers(1, 8), st.integers(0, 4))
def test_the_join_is_the_slow_join(
    shown: list[tuple[int, int, int, int, int]],
    acted: list[tuple[int, int, int, int, int, int, int | None]],
    window: int,
    watermark: int,
) -> None:
    e, o = exposed(*shown), outcomes(*acted)
    fast = join_labels(e, o, np.array([1, 2]), window, watermark)
    assert same(as_rows(fast), labels_slowly(e, o, {1, 2}, window, watermark))
    assert fast.label.dtype == np.uint8
    assert fast.delay_ms.dtype == np.int64
    assert fast.value.dtype == np.float32


def test_a_large_join_is_the_slow_join() -> None:
    rng = np.random.default_rng(3)
    n = 600
    late = np.where(rng.random(n) < 0.3, rng.integers(0, WATERMARK, n), 0)
    shown = zip(
        rng.integers(0, 5, n), rng.integers(1, 6, n), rng.integers(0, 600 * MINUTE, n), late, rng.integers(0, 4, n),
        strict=True,
    )  # fmt: skip
    acted = [
        (
            int(rng.integers(1, 5)), int(rng.integers(1, 6)), int(rng.integers(1, 4)),
            int(rng.integers(0, 600 * MINUTE)), int(rng.integers(0, 60 * MINUTE)), int(rng.integers(0, 4)),
            int(rng.integers(0, 60 * MINUTE)) if rng.random() < 0.3 else None,
        )
        for _ in range(n)
    ]  # fmt: skip
    e = exposed(*[(int(a), int(b), int(c), int(d), int(r)) for a, b, c, d, r in shown])
    o = outcomes(*acted)
    fast = join_labels(e, o, np.array([1, 3]), WINDOW, WATERMARK)
    assert same(as_rows(fast), labels_slowly(e, o, {1, 3}, WINDOW, WATERMARK))
    assert 20 < int(fast.label.sum()) < n


CLICK = np.array([1])


def labels(shown: Exposed, acted: Outcomes, window: int = 10, watermark: int = 2) -> list[int]:
    found: list[int] = join_labels(shown, acted, CLICK, window, watermark).label.tolist()
    return found


def test_the_latest_exposure_at_or_before_the_outcome_has_it() -> None:
    shown = exposed((1, 1, 0, 0, 0), (1, 1, 5, 0, 0), (1, 1, 9, 0, 0))
    assert labels(shown, outcomes((1, 1, 1, 8, 0, 0, None))) == [0, 1, 0]
    assert labels(shown, outcomes((1, 1, 1, 9, 0, 0, None))) == [0, 0, 1]
    assert labels(shown, outcomes((1, 2, 1, 9, 0, 0, None), (2, 1, 1, 9, 0, 0, None))) == [0, 0, 0]


def test_equal_requests_go_before_the_nearest_and_unequal_ones_never_match() -> None:
    shown = exposed((1, 1, 0, 0, 7), (1, 1, 5, 0, 8))
    assert labels(shown, outcomes((1, 1, 1, 6, 0, 7, None))) == [1, 0]
    assert labels(shown, outcomes((1, 1, 1, 6, 0, 9, None))) == [0, 0]
    assert labels(shown, outcomes((1, 1, 1, 6, 0, 0, None))) == [0, 1]
    assert labels(exposed((1, 1, 0, 0, 0), (1, 1, 5, 0, 8)), outcomes((1, 1, 1, 6, 0, 9, None))) == [1, 0]


def test_a_stranger_is_found_by_the_request_alone() -> None:
    shown = exposed((0, 1, 0, 0, 7), (0, 1, 1, 0, 0))
    assert labels(shown, outcomes((3, 1, 1, 6, 0, 7, None))) == [1, 0]
    assert labels(shown, outcomes((3, 1, 1, 6, 0, 0, None))) == [0, 0]


def test_a_slow_clock_does_not_take_a_click_from_the_list_that_it_names() -> None:
    shown = exposed((1, 1, 10, 0, 7), (1, 1, 12, 0, 7), (0, 1, 11, 0, 8))
    slow = outcomes(
        (1, 1, 1, 3, 9, 7, None), (5, 1, 1, 4, 8, 8, None)
    )  # by their own time before the list, received after it
    found = join_labels(shown, slow, CLICK, 10, 2)
    assert found.label.tolist() == [1, 1, 0], "the first place that its request showed it at, and the stranger's list"
    assert found.delay_ms.tolist() == [0, 0, -1]
    assert labels(shown, outcomes((1, 1, 1, 3, 6, 7, None))) == [0, 0, 0], "received before the list was made"
    assert labels(shown, outcomes((1, 1, 1, 3, 9, 0, None))) == [0, 0, 0], "it names none"
    assert labels(shown, outcomes((2, 1, 1, 3, 9, 7, None))) == [0, 0, 0], "another user's"


def test_the_window_and_the_watermark_end_where_they_say() -> None:
    shown = exposed((1, 1, 0, 1, 0))  # received at 1: closes at 13
    assert labels(shown, outcomes((1, 1, 1, 10, 3, 0, None))) == [1]
    assert labels(shown, outcomes((1, 1, 1, 10, 4, 0, None))) == [0], "it came after the label was closed"
    assert labels(shown, outcomes((1, 1, 1, 11, 0, 0, None))) == [0], "it happened after the window"


def test_a_retraction_counts_when_it_came_before_the_close() -> None:
    shown = exposed((1, 1, 0, 0, 0))  # closes at 12
    assert labels(shown, outcomes((1, 1, 1, 5, 0, 0, 7))) == [0]
    assert labels(shown, outcomes((1, 1, 1, 5, 0, 0, 8))) == [1]
    both = outcomes((1, 1, 1, 5, 0, 0, 1), (1, 1, 1, 6, 0, 0, None))
    assert join_labels(shown, both, CLICK, 10, 2).delay_ms.tolist() == [6], "the other outcome stands"


def test_a_retraction_takes_back_the_latest_equal_event_that_stands() -> None:
    a = np.array
    one = np.ones(6, np.int64)
    retract = a([False, False, True, True, True, False])
    time_ms = a([5, 5, 5, 5, 5, 6])
    when, lost = retractions(one, one, one, time_ms, a([5, 6, 7, 8, 9, 10]), retract)
    assert when.tolist() == [8, 7, NEVER, NEVER, NEVER, NEVER]
    assert lost == 1
    for other in (time_ms + a([0, 0, 1, 1, 1, 0]), time_ms):
        user = one if other is not time_ms else a([1, 1, 2, 2, 2, 1])
        when, lost = retractions(user, one, one, other, a([5, 6, 7, 8, 9, 10]), retract)
        assert (when == NEVER).all()
        assert lost == 3


def test_rules_come_from_the_configuration() -> None:
    rules = label_rules(Config().training)
    assert rules[0] == LabelRule("click", ("click",), 30 * MINUTE)
    assert closes_after_ms([*rules, LabelRule("buy", ("purchase",), 90 * MINUTE)], WATERMARK) == 95 * MINUTE
    assert closes_after_ms([], WATERMARK) == WATERMARK


@pytest.mark.parametrize(("shown", "acted"), [(0, 0), (0, 1), (1, 0)])
def test_nothing_shown_or_nothing_done(shown: int, acted: int) -> None:
    found = labels(exposed(*[(1, 1, 0, 0, 0)] * shown), outcomes(*[(1, 1, 1, 0, 0, 0, None)] * acted))
    assert found == [0] * shown
