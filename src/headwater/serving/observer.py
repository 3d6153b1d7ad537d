"""What a request met on its way through the pipeline: filled by the pipeline when somebody wants to know why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headwater.policy.eligibility import MAY_SHOW
from headwater.retrieval.index import Ranked
from headwater.retrieval.merge import Candidates, Merger
from headwater.serving.rank import Order

Int64 = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]
MayShow = Callable[[Int64], npt.NDArray[np.bool_]]

NOBODY = Candidates(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.int64))


@dataclass(frozen=True, slots=True)
class Offered:
    """What a source offered: ``ranked`` items, of which the first ``width`` that may be shown count; ``why_empty`` when none."""

    source: str
    weight: float
    width: int
    ranked: Ranked
    why_empty: str

    def rank_of(self, item: int) -> int:
        """The place of ``item`` in the offer, from 1; 0: it is not offered."""
        found = np.flatnonzero(self.ranked.items == item)
        return int(found[0]) + 1 if len(found) else 0


class Observer:
    """One request as the pipeline saw it. Pass a new one to :meth:`Pipeline.recommend`.

    ``item`` is looked at too when no source offers it (0: none); ``tier`` sends the request down to that tier. Then it holds:
    ``refused``: why items that came up may not be shown (``policy.eligibility``); ``offers`` by source; ``merged``: all that
    may be shown and lies within its source's width, of which the first ``limit`` go on; ``candidates`` with ``sources``, the names
    that their positions mean; ``order`` as ranked, with rows of its own; ``shown``: positions of candidates in the list.
    """

    def __init__(self, item: int = 0, tier: int = 0) -> None:
        self.item, self.tier = item, tier
        self.refused: dict[int, int] = {}
        self.offers: list[Offered] = []
        self.merged, self.candidates, self.limit = NOBODY, NOBODY, 0
        self.sources: list[str] = []
        empty = np.zeros((0, 0), np.float32)
        self.order = Order(NOBODY.items, NOBODY.scores, empty, empty)
        self.shown = NOBODY.items

    # -- what the pipeline tells ---------------------------------------------------------------------------

    def looked_at(self, items: Int64, verdicts: UInt8) -> None:
        """Whether ``items`` may be shown; ``verdicts`` are those of ``why_ineligible``."""
        refused = verdicts != MAY_SHOW
        self.refused.update(zip(items[refused].tolist(), verdicts[refused].tolist(), strict=True))

    def offered(
        self, names: Sequence[str], offers: list[tuple[float, int, Ranked]], limit: int, notes: Sequence[str],
        may_show: MayShow,
    ) -> None:  # fmt: skip
        """What the sources ``names`` offer, and how many of the merged ones go on; ``notes`` say why one has nothing."""
        for name, (weight, width, ranked) in zip(names, offers, strict=True):
            why = next((note for note in notes if note.startswith((f"{name}: ", f"{name} "))), "")
            self.offers.append(Offered(name, weight, width, ranked, "" if len(ranked) else why))
        self.limit = limit
        self.merged = Merger().merge(offers, sum(len(ranked) for _, _, ranked in offers), may_show)
        if self.item:
            may_show(np.array([self.item], np.int64))

    def ranked(self, candidates: Candidates, sources: list[str], order: Order) -> None:
        """The candidates, and their order before the policy."""
        self.candidates, self.sources = candidates, sources
        # the rows lie in memory that the next request uses again
        self.order = Order(order.positions, order.scores, order.features.copy(), order.modelled.copy())

    def chosen(self, order: Order) -> None:
        """What the policy made of it."""
        self.shown = order.positions

    # -- what it comes to ----------------------------------------------------------------------------------

    @property
    def listed(self) -> Int64:
        """The items of the list."""
        return self.candidates.items[self.shown]

    def places(self) -> dict[str, dict[int, int]]:
        """The place of each item, from 1, in the ``merged`` order, after ranking (``ranked``) and in the list (``shown``)."""
        orders = {
            "merged": self.merged.items,
            "ranked": self.candidates.items[self.order.positions],
            "shown": self.listed,
        }
        return {name: {item: place for place, item in enumerate(items.tolist(), 1)} for name, items in orders.items()}
