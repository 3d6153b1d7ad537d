"""Sketches of what was served, hour by hour, in files that anyone may add up: ``sketches/<hours since the epoch>.json``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from headwater.monitoring.sketches import Sketches
from headwater.registry.files import read_regular, replace_file

KEPT = 72  # hours
MOST_BYTES = 64 << 20
USERS, ITEMS = "users", "items"


class Hours:
    """The sketches of the hour that is running. ``folder`` None: nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._hour = 0
        self._sketches = Sketches()
        self._users: list[int] = []
        self._items: list[int] = []

    def begin(self, hour: int) -> None:
        """Go over to another hour: what there is of the one before goes to its file, and the oldest files go."""
        if hour == self._hour:
            return
        if self._hour and self._folder is not None:
            self._tell()
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            path = self._folder / f"{self._hour}.json"
            if path.exists():  # the part before a restart
                self._sketches.merge(Sketches.decode(read_regular(path, MOST_BYTES)))
            replace_file(path, self._sketches.encode())
            for old in sorted(self._folder.glob("*.json"))[:-KEPT]:
                old.unlink()
        self._hour, self._sketches = hour, Sketches()

    def saw(self, user: int, items: list[int]) -> None:
        """A user got these items."""
        if self._folder is None:
            return
        if user:
            self._users.append(user)
        self._items += items

    def update(self, name: str, cells: npt.NDArray[np.float32]) -> None:
        """Take in cells of a column."""
        if self._folder is not None:
            self._sketches.update(name, np.ascontiguousarray(cells))
            self._tell()

    def _tell(self) -> None:
        self._sketches.count(USERS, np.array(self._users, np.int64))
        self._sketches.count(ITEMS, np.array(self._items, np.int64))
        self._users, self._items = [], []


def read_hours(folder: Path, first: int, last: int) -> Sketches:
    """The sketches of the hours ``first`` to ``last`` (since the epoch), both included, added up; hours without a file count for nothing.

    Raises:
        HeadwaterError: a file is damaged.
    """
    made = Sketches()
    for hour in range(first, last + 1):
        path = folder / f"{hour}.json"
        if path.is_file():
            made.merge(Sketches.decode(read_regular(path, MOST_BYTES)))
    return made
