"""The memory in which candidates become rows for a ranker: reused from request to request."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headwater.features.assemble import Context, Scratch, assemble, new_scratch
from headwater.features.plan import Plan
from headwater.features.rows import User
from headwater.retrieval.sources import Asked
from headwater.serving.model import Model
from headwater.serving.view import View

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


class Assembly:
    """Rows of up to ``candidates`` candidates (more are made room for), scratch memory of the kernels."""

    def __init__(self, plan: Plan, candidates: int) -> None:
        self._plan = plan
        self._items = 1024
        self._rows = np.zeros((candidates, len(plan.columns)), np.float32)
        self._wide = np.zeros((0, 0), np.float32)
        self._scratch: Scratch = new_scratch(self._items, candidates, plan)

    def make_room(self, items: int) -> None:
        """For tables of ``items`` rows."""
        if items > self._items:
            self._items = items
            self._scratch = new_scratch(items, len(self._rows), self._plan)

    def replace(self) -> None:
        """Take new memory for rows: a ranker that stalled may still read the old one."""
        self._rows, self._wide = np.zeros_like(self._rows), np.zeros_like(self._wide)

    def features(
        self, user: User, view: View, items: Int64, context: Context, now_ms: int, out: Float32 | None = None
    ) -> Float32:
        """Assembled rows of ``items`` int64[n] in ``out`` (None: in the memory at hand), ``float32[n, columns]``."""
        if out is None:
            if len(items) > len(self._rows):
                self._rows = np.zeros((2 * len(items), self._rows.shape[1]), np.float32)
                self._scratch = new_scratch(self._items, len(self._rows), self._plan)
            out = self._rows
        return assemble(self._plan, user, view.table.rows, items, context, now_ms, self._scratch, out)

    def widened(
        self, asked: Asked, model: Model, view: View, items: Int64, features: Float32
    ) -> tuple[Float32, Float32]:
        """The rows that the ranker gets (plan columns, then a score of each fitted source), and these scores alone."""
        if not model.sources:
            return features, features[:, :0]
        plain, wide = features.shape[1], features.shape[1] + len(model.sources)
        if len(self._wide) < len(items) or self._wide.shape[1] != wide:
            self._wide = np.zeros((len(self._rows), wide), np.float32)
        rows = self._wide[: len(items)]
        rows[:, :plain] = features
        modelled(asked, model, view, items, rows[:, plain:])
        return rows, rows[:, plain:]


def modelled(asked: Asked, model: Model, view: View, items: Int64, out: Float32) -> None:
    """What each fitted source of ``model`` thinks of ``items``, into ``out`` float32[n, sources]."""
    scores = np.empty(len(items), np.float32)
    for column, source in enumerate(model.sources):
        source.score(asked, view.index, items, scores)
        out[: len(items), column] = scores
