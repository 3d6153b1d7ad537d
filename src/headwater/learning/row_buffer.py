"""Room for training rows: each group is assembled by the kernel that serves, as the state stands at that moment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headwater.features.asof import Questions
from headwater.features.plan import Plan
from headwater.retrieval.fitted import Recent
from headwater.serving.model import Model
from headwater.serving.pipeline import Pipeline
from headwater.serving.request import Query
from headwater.serving.view import FoldView

Int64 = npt.NDArray[np.int64]


class Attending(NamedTuple):
    """What target attention learns from: the vectors of all items ``float32[items, e]``, and the latest events of each
    question's user: items, type slots and ages in seconds, each ``[g, length]``, newest last, zeros in front.
    """

    vectors: npt.NDArray[np.float32]
    items: Int64
    types: Int64
    age_s: npt.NDArray[np.float32]


class RowBuffer:
    """Features, addresses and recent events of at most ``rows`` rows in at most ``groups`` groups of at most ``most`` rows each.

    ``features`` float32[rows, d + s]: the columns of the plan, then what each fitted source of ``model`` thinks of the item. A
    model that rows are scored with later has to have the same sources.
    """

    def __init__(self, plan: Plan, model: Model | None, *, rows: int, groups: int, most: int) -> None:
        self._plain = len(plan.columns)
        self._attended = None if model is None else model.attended
        fitted = 0 if model is None else len(model.sources)
        self._assembled = np.zeros((most, self._plain), np.float32)
        self.features = np.zeros((rows, self._plain + fitted), np.float32)
        self._address_of = np.zeros((4, rows), np.int64)  # offset, user, item, moment
        shape = (groups, 0 if self._attended is None else self._attended.length)
        self._latest = Recent(np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.float32))
        self._most_groups, self._most = groups, most
        self.used = 0
        self.sizes: list[int] = []

    @property
    def full(self) -> bool:
        """Whether another group might not find room."""
        return self.used + self._most > len(self.features) or len(self.sizes) == self._most_groups

    def put(
        self, pipeline: Pipeline, view: FoldView, query: Query, items: Int64, now_ms: int, model: Model | None
    ) -> slice:  # fmt: skip
        """A group of the rows of ``items``, at most ``most``, for the request that ``pipeline`` was asked about last; returns where it stands."""
        here = slice(self.used, self.used + len(items))
        self.features[here, : self._plain] = pipeline.features(query, view, items, now_ms, self._assembled)
        if model is not None:
            pipeline.modelled(model, view, items, self.features[here, self._plain :])
        if self._attended is not None:
            recent, row = self._attended.recent(pipeline.asked, view.index), len(self.sizes)
            known = slice(self._attended.length - len(recent.items), self._attended.length)
            self._latest.items[row, known], self._latest.types[row, known] = recent.items, recent.types
            self._latest.age_s[row, known] = recent.age_s
        self._address_of[0, here], self._address_of[1, here] = view.fold.offset, query.user
        self._address_of[2, here], self._address_of[3, here] = items, now_ms
        self.used += len(items)
        self.sizes.append(len(items))
        return here

    def move(self, groups: Sequence[int], into: RowBuffer) -> None:
        """Copy ``groups`` behind what ``into`` holds, which has room for them."""
        begins = np.cumsum(self.sizes) - self.sizes
        for g in groups:
            size, row = self.sizes[g], len(into.sizes)
            old, new = slice(int(begins[g]), int(begins[g]) + size), slice(into.used, into.used + size)
            into.features[new], into._address_of[:, new] = self.features[old], self._address_of[:, old]
            for name in Recent._fields:
                getattr(into._latest, name)[row] = getattr(self._latest, name)[g]
            into.used += size
            into.sizes.append(size)

    def addresses(self, rows: Int64 | slice) -> Questions:
        """What each of ``rows`` was assembled for, and when."""
        offset, user, item, now_ms = self._address_of[:, rows]
        return Questions(
            offset=offset, user=user, item=item, now_ms=now_ms, segments=np.zeros((len(offset), 2), np.uint16)
        )

    def attending(self, groups: Int64 | slice, view: FoldView) -> Attending | None:
        """What target attention learns from, for each of ``groups``; None: the model has no source with vectors."""
        if self._attended is None:
            return None
        latest = self._latest
        return Attending(
            self._attended.vectors(view.index), latest.items[groups], latest.types[groups], latest.age_s[groups]
        )
