"""Fitted item neighbours (item-kNN, EASE): what goes with the recent items, summed by weight.

A bundle holds for each item its partners and their weights, in compressed rows. The score of an item is the sum over the
user's latest items of the weight that it has as a partner there, times how recent that item is.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from headwater.features.plan import Plan
from headwater.jit import kernel
from headwater.retrieval.arrays import AGAIN, array_bytes, read_array, read_settings
from headwater.retrieval.fitted import Files, FittedSource, SourceError
from headwater.retrieval.index import NOTHING, ItemIndex, Ranked, best
from headwater.retrieval.latest import Latest, Recency
from headwater.retrieval.sources import Asked, Offer
from headwater.schema.config import Config

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]

WEIGHTS = {"item_knn": 0.9, "ease": 0.9}
REASONS = {"item_knn": "goes with {item}", "ease": "goes with what you saw"}


class NeighbourSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """``NAME.json``: the number of rows, and how recency counts (see :class:`Recency`)."""

    items: int
    depth: int
    discount: float
    gap_s: int
    across: float


def neighbour_files(name: str, starts: Int64, partners: Int32, weights: Float32, recency: Recency) -> dict[str, bytes]:
    """The files of a source: partners of item ``i`` are ``starts[i] … starts[i + 1] - 1``; row 0 is empty."""
    settings = NeighbourSettings(len(starts) - 1, *recency)
    return {
        f"{name}.json": msgspec.json.encode(settings),
        f"{name}_starts.npy": array_bytes(starts.astype(np.int64)),
        f"{name}_partners.npy": array_bytes(partners.astype(np.int32)),
        f"{name}_weights.npy": array_bytes(weights.astype(np.float32)),
    }


@kernel
def _sum_partners(
    latest: Int64, recency: Float64, starts: Int64, partners: Int32, weights: Float32, most: int, scores: Float32,
    marks: UInt8, touched: Int64,
) -> int:  # fmt: skip
    """Add up ``recency · weight`` by partner into ``scores`` (zeros); ``touched`` says for which items, the result how many."""
    count = 0
    for k in range(len(latest)):
        item = latest[k]
        if item + 1 < len(starts):
            for j in range(starts[item], starts[item + 1]):
                partner = np.int64(partners[j])
                if partner < most:
                    if not marks[partner]:
                        marks[partner] = 1
                        touched[count] = partner
                        count += 1
                    scores[partner] = np.float32(scores[partner] + recency[k] * weights[j])
    return count


@kernel
def _clean(touched: Int64, scores: Float32, marks: UInt8) -> None:
    for k in range(len(touched)):
        scores[touched[k]] = np.float32(0.0)
        marks[touched[k]] = 0


class Neighbours:
    """A :class:`FittedSource` over compressed rows of partners."""

    def __init__(self, name: str, files: Mapping[str, bytes], config: Config, plan: Plan) -> None:
        self.name, self.weight, self.reason = name, WEIGHTS[name], REASONS[name]
        self.width = int(getattr(config.sources, name).width)
        settings = read_settings(files, f"{name}.json", NeighbourSettings)
        self._starts = read_array(files, f"{name}_starts.npy", np.int64, 1)
        self._partners = read_array(files, f"{name}_partners.npy", np.int32, 1)
        self._weights = read_array(files, f"{name}_weights.npy", np.float32, 1)
        self._check(settings)
        self._latest = Latest(plan.layout, Recency(settings.depth, settings.discount, settings.gap_s, settings.across))
        self._scores = np.zeros(0, np.float32)
        self._marks = np.zeros(0, np.uint8)
        self._touched = np.zeros(0, np.int64)
        self._filled = 0
        self._asked: Asked | None = None
        self._key: bytes = b""
        self._closed = False

    def prepare(self, index: ItemIndex) -> None:
        """See :meth:`FittedSource.prepare`: the neighbours need nothing of the items but their number."""
        self._reserve(len(index.table.dirty))

    def fetch(self, asked: Asked, index: ItemIndex) -> Offer:
        """What goes with the latest items; the user's own are offered too, for the pipeline says what may be shown again."""
        length = self._compute(asked, index)
        if not length:
            return Offer(NOTHING, "no recent items")
        touched = self._touched[: self._filled]
        ranked = best(self._scores[touched], self.width * 2 + length)
        if not len(ranked):
            return Offer(NOTHING, "the recent items have no neighbours")
        return Offer(_by_item(Ranked(touched[ranked.items], ranked.scores)))

    def score(self, asked: Asked, index: ItemIndex, items: Int64, out: Float32) -> None:
        """See :meth:`FittedSource.score`."""
        self._compute(asked, index)
        inside = (items > 0) & (items < len(self._scores))
        out[:] = np.where(inside, self._scores[np.where(inside, items, 0)], np.float32(0.0))

    def close(self) -> None:
        """See :meth:`FittedSource.close`."""
        self._closed = True
        self._starts, self._partners, self._weights = (
            np.zeros(1, np.int64),
            np.zeros(0, np.int32),
            np.zeros(0, np.float32),
        )
        self._scores, self._marks, self._touched = np.zeros(0, np.float32), np.zeros(0, np.uint8), np.zeros(0, np.int64)
        self._filled, self._asked = 0, None

    def _compute(self, asked: Asked, index: ItemIndex) -> int:
        """Scores of all partners of the latest items, unless they are those of this request already; returns how many items."""
        if self._closed:
            raise SourceError(f"the source {self.name} is closed")
        self._reserve(len(index.table.dirty))
        latest, recency = self._latest.of(asked.user)
        # what is asked may be an object whose user row is used again: the row itself says whether it is the same
        key = latest.tobytes() + recency.tobytes()
        if asked is not self._asked or key != self._key:
            _clean(self._touched[: self._filled], self._scores, self._marks)
            self._filled = _sum_partners(
                latest, recency, self._starts, self._partners, self._weights, index.table.count, self._scores,
                self._marks, self._touched,
            )  # fmt: skip
            self._asked, self._key = asked, key
        return len(latest)

    def _reserve(self, count: int) -> None:
        if len(self._scores) < count:
            self._scores, self._marks = np.zeros(count, np.float32), np.zeros(count, np.uint8)
            self._touched = np.zeros(count, np.int64)
            self._filled, self._asked = 0, None

    def _check(self, settings: NeighbourSettings) -> None:
        starts, m = self._starts, len(self._partners)
        fits = (
            len(starts) == settings.items + 1 >= 2
            and starts[0] == 0
            and bool((np.diff(starts) >= 0).all())
            and starts[-1] == m == len(self._weights)
            and starts[1] == 0
        )
        if not fits or (m and (int(self._partners.min()) < 1 or int(self._partners.max()) >= settings.items)):
            raise SourceError(f"the files of {self.name} do not fit together. {AGAIN}")
        if not np.isfinite(self._weights).all():
            raise SourceError(f"{self.name}_weights.npy holds a number that is not finite. {AGAIN}")
        if settings.depth < 1 or not (np.isfinite(settings.discount) and np.isfinite(settings.across)):
            raise SourceError(f"{self.name}.json has no usable recency. {AGAIN}")


def _by_item(ranked: Ranked) -> Ranked:
    """Ties by the lower item number: the touched list is in the order of partners, not of numbers."""
    order = np.lexsort((ranked.items, -ranked.scores))
    return Ranked(ranked.items[order], ranked.scores[order])


def open_item_knn(files: Files, config: Config, plan: Plan) -> FittedSource:
    """The source ``item_knn`` of a bundle."""
    return Neighbours("item_knn", files, config, plan)


def open_ease(files: Files, config: Config, plan: Plan) -> FittedSource:
    """The source ``ease`` of a bundle."""
    return Neighbours("ease", files, config, plan)
