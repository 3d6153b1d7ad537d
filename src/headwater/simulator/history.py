"""Events of the simulated world as columns."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

EVENT_TYPES: tuple[str, ...] = ("impression", "view", "click", "like", "purchase", "skip")
IMPRESSION, VIEW, CLICK, LIKE, PURCHASE, SKIP = range(len(EVENT_TYPES))
POSITIVE = (CLICK, LIKE, PURCHASE)


@dataclass(frozen=True)
class History:
    """``n`` events in order of time; every column has length ``n``.

    ``user`` and ``item`` are positions in the world's people and catalogue, ``type`` in ``EVENT_TYPES``, ``device``
    in ``DEVICES``. ``value`` is seconds of a view, the price of a purchase, NaN otherwise. ``listing`` numbers the
    list that was shown, ``position`` the place in it; ``session`` numbers the visit.
    """

    time_ms: npt.NDArray[np.int64]
    user: npt.NDArray[np.int32]
    item: npt.NDArray[np.int32]
    type: npt.NDArray[np.uint8]
    value: npt.NDArray[np.float32]
    device: npt.NDArray[np.uint8]
    session: npt.NDArray[np.int32]
    listing: npt.NDArray[np.int32]
    position: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.time_ms)

    def take(self, rows: slice | npt.NDArray[np.int64]) -> History:
        """The events at ``rows``."""
        return History(*(getattr(self, field.name)[rows] for field in fields(self)))


def in_order(parts: list[History]) -> History:
    """Join ``parts`` into one history sorted by time; ties keep the order of ``parts``."""
    joined = History(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(History)))
    return joined.take(np.argsort(joined.time_ms, kind="stable"))
