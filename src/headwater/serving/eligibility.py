"""Which items may be shown to whom a request comes from: what its user must not get again, and what no one may get now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from headwater.features.layout import FLAG_HIDDEN, U_SEEN_LENGTH
from headwater.features.plan import Plan
from headwater.features.rows import User
from headwater.policy.eligibility import MAY_SHOW, mark, why_ineligible
from headwater.serving.observer import Observer
from headwater.serving.request import NO_ITEMS, Query
from headwater.serving.rules import Rules
from headwater.serving.view import View

Int64 = npt.NDArray[np.int64]


class Eligibility:
    """Verdicts on items, in memory that is used again from request to request. ``region``: where the user at hand is, 0: unknown.

    An ``observer`` is told every verdict.
    """

    def __init__(self, plan: Plan) -> None:
        self.region = 0
        self.observer: Observer | None = None
        self._layout = plan.layout
        self._barred = np.zeros(1024, np.uint8)
        self._verdicts = np.zeros(8192, np.uint8)

    def make_room(self, capacity: int) -> bool:
        """Have room for item numbers below ``capacity``; whether there was less."""
        if len(self._barred) >= capacity:
            return False
        self._barred = np.zeros(capacity, np.uint8)
        return True

    @contextmanager
    def barring(self, query: Query, user: User, rules: Rules | None) -> Iterator[None]:
        """Meanwhile ``user`` must not get what ``query`` excludes or is about, what they have seen, and what they are tired of.

        What they have seen, or were shown too often, may be among candidates of the caller: who names an item wants to know its place.
        """
        layout, u4 = self._layout, user.u4
        seen = min(int(u4[U_SEEN_LENGTH]), layout.seen_size) if query.candidates is None else 0
        ring = u4[layout.seen : layout.seen + seen]
        about = np.array((query.anchor, *query.before), np.int64)
        tired = NO_ITEMS if rules is None or query.candidates is not None else rules.dropped
        mark(self._barred, tired, ring, query.exclude, about, True)
        try:
            yield
        finally:
            mark(self._barred, tired, ring, query.exclude, about, False)

    def may_show(self, ids: Int64, view: View, now_ms: int, rules: Rules | None) -> npt.NDArray[np.bool_]:
        """``bool[n]``: which of ``ids`` may be shown, filters of ``rules`` included."""
        if len(self._verdicts) < len(ids):
            self._verdicts = np.zeros(2 * len(ids), np.uint8)
        held = view.index.columns
        why_ineligible(
            ids, held.limited, held.flags, FLAG_HIDDEN, held.published, held.expires, held.regions, self.region, now_ms, self._barred,
            self._verdicts,
        )  # fmt: skip
        shown = self._verdicts[: len(ids)] == MAY_SHOW
        if self.observer is not None:
            self.observer.looked_at(ids, self._verdicts[: len(ids)])
        return shown if rules is None else rules.filter(ids, shown)
