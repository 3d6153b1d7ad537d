"""As-of replay: the log again, stopping in front of chosen records with the state of that moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from headwater.features.fold import Fold
from headwater.log.protocol import EventLog
from headwater.log.record import RecordBlock


def stops(
    log: EventLog, fold: Fold, wanted: Callable[[RecordBlock], npt.NDArray[np.bool_]], *, until: int | None = None
) -> Iterator[tuple[RecordBlock, int]]:
    """Fold the log behind ``fold.offset`` and yield each wanted record ``(block, i)`` just before it is folded.

    At a yield the fold stands at the offset before that record: exactly what was known. ``until`` is the
    last offset to fold.
    """
    while until is None or fold.offset < until:
        block = log.read(fold.offset)
        if block is None:
            return
        if until is not None and block.last_offset > until:
            block = block.head(until - block.first_offset + 1)
        start = 0
        for i in np.flatnonzero(wanted(block)).tolist():
            fold.apply(block.head(i).tail(start))
            start = i
            yield block, i
        fold.apply(block.tail(start))


def fold_to(log: EventLog, fold: Fold, offset: int) -> None:
    """Fold everything up to and with ``offset``."""
    for _ in stops(log, fold, lambda block: np.zeros(len(block), np.bool_), until=offset):
        pass
