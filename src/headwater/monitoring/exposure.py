"""What is shown, against what there is and what is consumed: coverage, concentration, popularity, the share of new items."""

from __future__ import annotations

import numpy as np

from headwater.log.protocol import READ_LIMIT, EventLog
from headwater.log.record import Kind, Namespace
from headwater.log.seek import last_before
from headwater.monitoring.windows import Counts

LOOKED_THROUGH = 64  # blocks of the log in which the first new item is looked for


def coverage(shown: Counts, catalogue: int) -> float:
    """The share of the ``catalogue`` items that were shown at all."""
    return len(shown[0]) / catalogue


def gini(shown: Counts, catalogue: int) -> float:
    """The Gini coefficient of impressions over all ``catalogue`` items: 0 when each had as many, towards 1 when one had them all.

    ``Σ (2i − n − 1) x_i / (n Σ x)``, ascending; those that were never shown are the first, with 0.
    """
    counts = np.sort(shown[1]).astype(np.float64)
    n = catalogue
    places = np.arange(n - len(counts) + 1, n + 1)
    return float(((2 * places - n - 1) * counts).sum() / (n * counts.sum()))


def popularity_lift(shown: Counts, consumed: Counts) -> float | None:
    """How much more popular what is shown is than what people consume: ``mean popularity shown / mean popularity consumed − 1``.

    The popularity of an item is how often it was consumed in the window; the means are over impressions and over consumption
    (Abdollahpouri et al., "The Unfairness of Popularity Bias in Recommendation", 2019, for all users as one group). None: nothing was consumed.
    """
    if not len(consumed[0]) or not len(shown[0]):
        return None
    items, popularity = consumed
    at = np.minimum(np.searchsorted(items, shown[0]), len(items) - 1)
    popular = np.where(items[at] == shown[0], popularity[at], 0)
    ours = float((popular * shown[1]).sum() / shown[1].sum())
    theirs = float((popularity.astype(np.float64) ** 2).sum() / popularity.sum())
    return ours / theirs - 1.0


def new_share(shown: Counts, first_new: int) -> float:
    """The share of impressions that items from the number ``first_new`` on had."""
    return float(shown[1][shown[0] >= first_new].sum() / shown[1].sum())


def first_new_item(event_log: EventLog, since_ms: int) -> int | None:
    """The number of the first item that came into the log at ``since_ms`` or later: numbers are given in order, so those from it on are new.

    None: no item came in the part of the log that is looked through, and there is more of it.

    Raises:
        CorruptLogError: the log does not read as it was written.
    """
    at = last_before(event_log, since_ms)[0]
    for _ in range(LOOKED_THROUGH):
        block = event_log.read(at, READ_LIMIT)
        if block is None:
            return event_log.vocabulary().size(Namespace.ITEM) + 1
        records = block.records
        terms = (records["kind"] == Kind.TERM) & (records["type"] == Namespace.ITEM)
        if terms.any():
            return int(records["item"][terms][0])
        at = block.last_offset
    return None
