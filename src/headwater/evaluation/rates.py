"""What counting alone says of an impression: baselines as of each moment, independent of any feature plan."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

STRENGTH = 10.0  # impressions that the prior weighs


def earlier(event_item: Int64, event_ms: Int64, item: Int64, now_ms: Int64) -> Int64:
    """How many events ``(event_item, event_ms)`` of the same item came before ``now_ms``: ``int64[n]`` for n questions."""
    order = np.lexsort((event_ms, event_item))
    items, starts = np.unique(event_item[order], return_index=True)
    # one sorted line of times: those of each item are moved behind those of the item before it
    low = min(int(event_ms.min(initial=0)), int(now_ms.min(initial=0)))
    span = max(int(event_ms.max(initial=0)), int(now_ms.max(initial=0))) - low + 2
    line = np.searchsorted(items, event_item[order]) * span + (event_ms[order] - low)
    place = np.searchsorted(items, item)
    known = (place < len(items)) & (items[np.minimum(place, len(items) - 1)] == item) if len(items) else place < 0
    place = np.where(known, place, 0)
    found = np.searchsorted(line, place * span + (now_ms - low)) - np.append(starts, 0)[place]
    return np.where(known, found, 0).astype(np.int64)


def item_rates(
    item: Int64, now_ms: Int64, label: npt.NDArray[np.floating], delay_ms: Int64, prior: float
) -> tuple[Float64, Int64]:
    """``(outcomes + prior · 10) / (impressions + 10)`` of each impression's item, of what was known before it, and the impressions.

    ``item``, ``now_ms`` int64[n]; ``label`` float[n]; an outcome is known ``delay_ms`` int64[n] after its impression.
    """
    shown = earlier(item, now_ms, item, now_ms)
    hit = label > 0
    outcomes = earlier(item[hit], now_ms[hit] + np.maximum(delay_ms[hit], 0), item, now_ms)
    return (outcomes + prior * STRENGTH) / (shown + STRENGTH), shown
