"""The catalogue as a map: item vectors in two dimensions, and what each point is."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headwater.features.layout import FLAG_HIDDEN, FLAG_KNOWN, I_FLAGS
from headwater.log.record import Namespace
from headwater.online.console_items import BREATH_S, SLICE_S
from headwater.online.service import Service
from headwater.retrieval.fitted import SearchedSource
from headwater.schema.looks import CatalogueMap, MapPoint

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

MOST_POINTS = 2_500
SEED = 1
KEPT_S = 600.0  # a map is drawn anew after so long, with the next bundle, or when the catalogue has grown
GROWN = 1.02
CONTENT = "content"


class Projected(NamedTuple):
    """``places`` float64[n, 2], and the share of the variance that they keep."""

    places: Float64
    kept: float


def projected(vectors: Float32) -> Projected:
    """The first two principal components of ``vectors`` float32[n, d].

    The signs are those that make the entry of largest magnitude in each direction positive, so that equal vectors make equal maps.
    """
    if len(vectors) == 0:
        return Projected(np.zeros((0, 2)), 0.0)
    mean = vectors.mean(axis=0, dtype=np.float64)
    centred = vectors - mean.astype(np.float32)
    covariance = (centred.T @ centred).astype(np.float64)
    values, directions = np.linalg.eigh(covariance)
    axes = directions[:, ::-1][:, :2]
    if axes.shape[1] < 2:
        axes = np.hstack([axes, np.zeros((len(axes), 1))])
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(2)])
    total = float(np.clip(values, 0.0, None).sum())
    return Projected(centred.astype(np.float64) @ axes, float(values[::-1][:2].sum()) / total if total else 0.0)


class _Kept(NamedTuple):
    """A map, and what it was drawn of."""

    drawn: CatalogueMap
    bundle: str
    table: int  # rows of the item table
    at: float

    def holds(self, table: int, now: float) -> bool:
        return table <= GROWN * self.table and now - self.at < KEPT_S


class ConsoleMap:
    """Draws the maps of a worker's ``service``, and keeps them."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._kept: dict[str, _Kept] = {}

    def kinds(self) -> list[str]:
        """Whose vectors there are: sources of the bundle in service, and the items' own content."""
        model = self._service.recommender.model
        fitted = () if model is None else model.sources
        return [*(source.name for source in fitted if isinstance(source, SearchedSource)), CONTENT]

    async def draw(self, kind: str) -> CatalogueMap:
        """The map of the vectors of ``kind``, one of :meth:`kinds`. Raises :class:`UnavailableError`: the state cannot be reached."""
        recommender = self._service.recommender
        bundle = "" if recommender.model is None else recommender.model.version
        count = recommender.view.table.count
        kept = self._kept.get(kind)
        if kept is not None and kept.bundle == bundle and kept.holds(count, time.monotonic()):
            return kept.drawn
        vectors, of = self._vectors(kind)
        items, places, share = await asyncio.to_thread(_laid_out, vectors, self._showable())
        chosen = items
        if len(items) > MOST_POINTS:
            picked = np.sort(np.random.default_rng(SEED).choice(len(items), MOST_POINTS, replace=False))
            chosen, places = items[picked], places[picked]
        points = await self._points(chosen, places)
        made = CatalogueMap(of=of, items=len(items), points=points, kept=share)
        self._kept[kind] = _Kept(made, bundle, count, time.monotonic())
        return made

    def _vectors(self, kind: str) -> tuple[Float32, str]:
        recommender = self._service.recommender
        index, model = recommender.view.index, recommender.model
        for source in () if model is None else model.sources:
            if source.name == kind and isinstance(source, SearchedSource):
                return source.vectors(index).copy(), f"{kind}, bundle {'' if model is None else model.version}"
        return index.content[: index.table.count].copy(), "content: hashed words, tags and categories"

    def _showable(self) -> Int64:
        table = self._service.recommender.view.table
        flags = table.rows.u4[: table.count, I_FLAGS]
        return np.flatnonzero(((flags & FLAG_KNOWN) != 0) & ((flags & FLAG_HIDDEN) == 0))

    async def _points(self, items: Int64, places: Float64) -> list[MapPoint]:
        """What stands at each place, looked up between requests."""
        text, record_of = self._service.stores.log.vocabulary().text, self._service.stores.state.item_record
        points = []
        until = time.monotonic() + SLICE_S
        for item, (x, y) in zip(items.tolist(), places.tolist(), strict=True):
            record = record_of(item)
            title = "" if record is None else record.item.title
            category = record.item.categories[0] if record is not None and record.item.categories else ""
            points.append(MapPoint(round(x, 4), round(y, 4), text(Namespace.ITEM, item) or "", title, category))
            if time.monotonic() >= until:
                await asyncio.sleep(BREATH_S)
                until = time.monotonic() + SLICE_S
        return points


def _laid_out(vectors: Float32, showable: Int64) -> tuple[Int64, Float64, float]:
    """The items that have a vector, where they lie, and the share of the variance that is kept."""
    showable = showable[showable < len(vectors)]
    items = showable[(vectors[showable] != 0.0).any(axis=1)]
    places, share = projected(vectors[items])
    return items, places, share
