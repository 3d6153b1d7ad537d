"""Watches that take their time: looked at in a thread, at a pace of their own; those that are behind, piece by piece."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from headwater.monitoring.behind import is_behind
from headwater.monitoring.samples import Sample, Watch

MOST_SHARE = 0.1  # of the time, at most
STALE_AFTER = 3
"""What was found counts for so many times the pace; then it is missing."""


rest = time.sleep


class Paced:
    """``watch``, asked every ``every_ms`` in a thread, and less often when it takes more than :data:`MOST_SHARE` of the time; in between it
    shows what it found last. One that says that it is behind (:mod:`headwater.monitoring.behind`) is looked at on and on until it has caught up, with rests
    that keep it to that share.

    ``still``: whether a sample that was found a while ago is worth showing yet. Watches that share the lock ``one_by_one`` are looked at one after the other. What it raises is raised by the next :meth:`look`, once. The thread keeps no process from ending.
    """

    def __init__(
        self, watch: Watch, every_ms: int, one_by_one: threading.Lock | None = None, *, still: Callable[[Sample], bool] = lambda _: True,
    ) -> None:  # fmt: skip
        self.name = watch.name
        self._still = still
        self._one_by_one = threading.Lock() if one_by_one is None else one_by_one
        self._watch, self._every_ms = watch, every_ms
        self._asked_ms = self._found_ms = -every_ms
        self._took_ms = 0.0
        self._found: list[Sample] = []
        self._error: Exception | None = None
        self._looking: threading.Thread | None = None
        self._looked = False
        self.begins = True
        """Whether its first look had not ended when it was asked last: then it has said nothing, and that means nothing."""

    def look(self, now_ms: int) -> Iterable[Sample]:
        """What was found last."""
        self.begins = not self._looked
        pace_ms = max(self._every_ms, self._took_ms / MOST_SHARE)
        looking = self._looking is not None and self._looking.is_alive()
        if not looking and self._error is not None:
            error, self._error = self._error, None
            raise error
        if not looking and now_ms - self._asked_ms >= pace_ms:
            self._asked_ms = now_ms
            self._looking = threading.Thread(target=self._look, args=(now_ms,), name=self.name, daemon=True)
            self._looking.start()
        fresh = now_ms - self._found_ms <= STALE_AFTER * pace_ms
        return [found for found in self._found if self._still(found)] if fresh else []

    def _look(self, now_ms: int) -> None:
        began, behind = time.monotonic(), True
        while behind:
            with self._one_by_one:
                began_piece = time.monotonic()
                at_ms = now_ms + int(1e3 * (began_piece - began))
                try:
                    self._found = list(self._watch.look(at_ms))
                    self._found_ms = at_ms
                    behind = any(map(is_behind, self._found))
                except Exception as error:  # noqa: BLE001  (it is raised where somebody hears it)
                    self._error, behind = error, False
                took_s = time.monotonic() - began_piece
                # what the first look imports and compiles says nothing about the next ones
                self._took_ms, self._looked = 1e3 * took_s if self._looked else 0.0, True
            if behind:
                rest(took_s / MOST_SHARE - took_s)


def beginning(watches: Iterable[Watch]) -> set[str]:
    """Those of ``watches`` that are in their first look, which may take minutes of a long log."""
    return {watch.name for watch in watches if isinstance(watch, Paced) and watch.begins}
