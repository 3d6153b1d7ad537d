"""Refused rows: counted by reason, and written to a file that can be mended and imported again."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import numpy as np
import numpy.typing as npt

_ENCODER = msgspec.json.Encoder(enc_hook=str)


class Verdicts:
    """Which of ``n`` rows are refused and why; the first reason that is found for a row stands."""

    def __init__(self, n: int) -> None:
        self._codes = np.zeros(n, np.uint16)
        self._reasons: list[str] = [""]

    def refuse(self, rows: npt.NDArray[np.bool_], reason: str) -> None:
        """Refuse the rows where ``rows`` (``bool[n]``) is true. ``reason`` starts with the field."""
        if not rows.any():
            return
        if reason not in self._reasons:
            self._reasons.append(reason)
        self._codes[rows & (self._codes == 0)] = self._reasons.index(reason)

    @property
    def accepted(self) -> npt.NDArray[np.bool_]:
        """``bool[n]``: the rows that nothing speaks against."""
        return np.equal(self._codes, 0)

    def refused(self) -> list[tuple[int, str]]:
        """(row, reason) of every refused row, in order."""
        return [(int(row), self._reasons[self._codes[row]]) for row in np.nonzero(self._codes)[0]]


class RejectFile:
    """JSON lines ``{"row", "reason", "record"}``, made when the first row is refused.

    ``row`` counts the rows of the file from 1 (null: a CSV row with the wrong number of columns). The file holds what people sent, so only its owner may read it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts: Counter[str] = Counter()
        self._descriptor: int | None = None

    def write(self, refused: Iterable[tuple[int | None, str, Any]]) -> None:
        """Count and write (row, reason, record) entries."""
        lines = []
        for row, reason, record in refused:
            self.counts[reason] += 1
            lines.append(_ENCODER.encode({"row": row, "reason": reason, "record": record}) + b"\n")
        if not lines:
            return
        if self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        data = memoryview(b"".join(lines))
        while data:
            data = data[os.write(self._descriptor, data) :]

    @property
    def written(self) -> Path | None:
        """The file, if there is one."""
        return self.path if self._descriptor is not None else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


def by_reason(counts: Counter[str]) -> dict[str, int]:
    """Counts with the most frequent reason first."""
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))
