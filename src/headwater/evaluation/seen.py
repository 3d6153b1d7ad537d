"""What the lists looked like that a candidate gave when the gate asked it: the part of a bundle's reference that is about served rows."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from headwater.registry.reference import SCORE, BundleReference, ReferenceColumn, ReferenceHead, quantiles_of

Float32 = npt.NDArray[np.float32]

LIST = 20  # places of a list that are looked at, as many as a request has where it does not say
HOUR_MS = 3_600_000
HEADS_EVERY = 8  # lists: heads are asked apart from the score, which the others must not wait for


class Seen:
    """Rows of the head of each answer. ``columns`` are those of the plan; a fitted source's scores behind them are not served rows.

    ``ask`` says when and whom the next answer is for.
    """

    def __init__(self, columns: tuple[str, ...]) -> None:
        self._columns = columns
        self._rows: list[Float32] = []
        self._heads: list[Float32] = []
        self._names: tuple[str, ...] = ()
        self._asked: list[tuple[int, int]] = []
        self._next = (0, 0)

    @property
    def lists(self) -> int:
        """Answers that were taken in."""
        return len(self._rows)

    def ask(self, now_ms: int, user: int) -> None:
        """The next answer is for ``user`` at ``now_ms``."""
        self._next = (now_ms, user)

    def take(self, features: Float32, scores: Float32) -> npt.NDArray[np.int64]:
        """Take in a scored request, ``float32[n, >= columns]`` and ``float32[n]``; the rows of its head, int64[<= LIST]."""
        head = np.argsort(-scores, kind="stable")[:LIST]
        self._rows.append(np.column_stack((features[head, : len(self._columns)], scores[head])))
        self._asked.append(self._next)
        return head

    @property
    def wants_heads(self) -> bool:
        """Whether the heads of the answer that was taken in last are wanted too."""
        return len(self._rows) % HEADS_EVERY == 1

    def take_heads(self, names: tuple[str, ...], said: Float32) -> None:
        """Take in what the heads said of the rows of that answer, ``float32[n, h]``."""
        self._names = names
        self._heads.append(said)

    def into(self, reference: BundleReference) -> BundleReference:
        """The reference with what was seen; as it is when that is nothing."""
        if not self._rows:
            return reference
        rows = np.concatenate(self._rows)
        hours = np.array([now_ms // HOUR_MS for now_ms, _ in self._asked], np.int64)
        lasting = np.array([now_ms for now_ms, _ in self._asked], np.int64)
        columns = tuple(
            ReferenceColumn(
                name=name,
                missing=float((~np.isfinite(rows[:, c])).mean()),
                quantiles=quantiles_of(rows[:, c]),
                hours=one_valued([each[:, c] for each in self._rows], hours),
            )
            for c, name in enumerate((*self._columns, SCORE))
        )
        said = np.concatenate(self._heads) if self._heads else np.zeros((0, 0), np.float32)
        return replace(
            reference, lists=len(self._rows), users=len({user for _, user in self._asked}), rows=len(rows),
            first_ms=int(lasting.min()), last_ms=int(lasting.max()), columns=columns,
            heads=tuple(ReferenceHead(name=name, quantiles=quantiles_of(said[:, h])) for h, name in enumerate(self._names)),
        )  # fmt: skip


def one_valued(lists: list[Float32], hours: npt.NDArray[np.int64]) -> tuple[tuple[int, int], ...]:
    """For each hour its lists, and how many were wholly of the value that most of them were wholly of; missing cells are one value."""
    found: dict[int, Counter[float | None]] = {}
    counts: Counter[int] = Counter(hours.tolist())
    for cells, hour in zip(lists, hours.tolist(), strict=True):
        known = cells[np.isfinite(cells)]
        if not len(known):
            found.setdefault(hour, Counter())[None] += 1
        elif len(known) == len(cells) and known.min() == known.max():
            found.setdefault(hour, Counter())[float(known[0])] += 1
    return tuple((n, max(found.get(hour, Counter()).values(), default=0)) for hour, n in sorted(counts.items()))
