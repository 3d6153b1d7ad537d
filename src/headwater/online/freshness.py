"""How far what a worker answers from is behind the log: measured from the log's own records and clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from headwater.log.protocol import EventLog
from headwater.log.record import Kind, Namespace, of_people
from headwater.online.metrics import Metrics
from headwater.schema.errors import HeadwaterError
from headwater.schema.feed import Position
from headwater.serving.view import View

EVERY_S = 0.1  # of the commits that a worker hears of in this time, one is timed
LOOKED_AT = 1_024  # records in a round that are looked at for one that changes an item; each is looked at once


class Freshness:
    """Watches ``event_log`` and ``view``. ``clock`` is that of requests, the one that the writer stamps records with; ``types`` are
    the event types that the fold knows.
    """

    def __init__(
        self, metrics: Metrics, event_log: EventLog, view: View, types: Sequence[str], *, clock: Callable[[], int],
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._metrics, self._log, self._view, self._types = metrics, event_log, view, types
        self._clock, self._seconds = clock, seconds
        self._reflected = -1  # up to where the fold has said so; below 0: it has not said anything
        self._timed_s = seconds()
        self._clean = 0  # behind the item columns and up to here no record changes an item
        self._users, self._items = (metrics.staleness.labels(entity) for entity in ("user", "item"))

    def heard(self, position: Position) -> None:
        """The fold has committed up to ``position``: from now on lists reflect it. Times the oldest record of the commit, if it is time."""
        before, self._reflected = self._reflected, position.user_offset
        if 0 <= before < position.user_offset and self._seconds() - self._timed_s >= EVERY_S:
            self._timed_s = self._seconds()
            self._metrics.event_delay.observe(self._age_s(before))

    def tell(self, lag: int) -> None:
        """Set the gauges; ``lag`` is how many records the log is ahead of user rows."""
        self._metrics.fold_lag.set(lag)
        self._users.set(self._age_s(self._log.last_offset - lag) if lag else 0.0)
        self._items.set(self._item_age_s())

    def _age_s(self, after: int) -> float:
        """How long ago the record after offset ``after`` was recorded; 0 when there is none."""
        try:
            block = self._log.read(after, 1)
        except HeadwaterError:  # trimmed or damaged: the fold, which has to read it too, stops and says so
            return 0.0
        return 0.0 if block is None else self._since_s(int(block.records["received_ms"][0]))

    def _item_age_s(self) -> float:
        after = max(self._view.item_offset, self._clean)
        if after >= self._log.last_offset:
            return 0.0
        try:
            block = self._log.read(after, LOOKED_AT)
        except HeadwaterError:  # as above
            return 0.0
        if block is None:
            return 0.0
        records, vocabulary = block.records, self._log.vocabulary()
        known = [vocabulary.index(Namespace.EVENT_TYPE, name) for name in self._types]
        of_items = np.isin(records["kind"], (Kind.ITEM, Kind.ITEM_DELETED)) | (
            of_people(records, Kind.EVENT) & np.isin(records["type"], known)
        )
        changing = np.flatnonzero(of_items)
        if not len(changing):
            self._clean = block.last_offset
            return 0.0
        first = records[changing[0]]
        self._clean = int(first["offset"]) - 1
        return self._since_s(int(first["received_ms"]))

    def _since_s(self, received_ms: int) -> float:
        return max(0, self._clock() - received_ms) / 1e3
