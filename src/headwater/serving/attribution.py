"""What made the score of an item: the heads of the ranker, and what each feature is worth to it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headwater.features.ages import NEVER, Ages, Changed
from headwater.features.plan import Plan
from headwater.features.rows import User
from headwater.ranking.ranker import Multihead, Ranker, RankerError
from headwater.retrieval.fitted import Attended, score_column
from headwater.retrieval.sources import Asked
from headwater.schema.explanation import FeatureValue
from headwater.serving.model import Model
from headwater.serving.view import View

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


class Attribution:
    """Looks at assembled rows of a request with the ``ranker`` of ``model`` that ordered them (None: none did).

    The effect of a feature is ``score(row) - score(row with the feature at its default)``: what the ranker would take off if it
    knew nothing of it (occlusion: Zeiler and Fergus 2014). Effects of features that say the same are each small.
    """

    def __init__(self, plan: Plan, model: Model | None, ranker: Ranker | None, asked: Asked, view: View) -> None:
        self._plan, self._asked, self._view = plan, asked, view
        self._model, self._ranker = model, ranker
        self._ages = Ages(plan)
        fitted = () if model is None else model.sources
        self._fitted = [score_column(source.name) for source in fitted]
        self._defaults = np.array([*(c.default for c in plan.declared), *(0.0 for _ in fitted)], np.float32)

    def heads(self, items: Int64, rows: Float32) -> list[dict[str, float]]:
        """What each head says of ``items`` int64[n], whose ``rows`` float32[n, columns + fitted] they are; empty without heads."""
        ranker: object = self._ranker
        if not isinstance(ranker, Multihead):
            return [{} for _ in items]
        said = ranker.heads(rows, self._attention(items))
        return [dict(zip(ranker.head_names, row, strict=True)) for row in said.tolist()]

    def features(self, item: int, row: Float32, most: int) -> list[FeatureValue]:
        """The ``most`` features of ``item`` with the largest effect, the largest first; without a ranker the first ones that are not at
        their default.
        """
        effects = self._effects(item, row)
        differs = np.flatnonzero(row != self._defaults)
        if effects is not None:
            differs = differs[np.lexsort((differs, -np.abs(effects[differs])))]
        found = []
        for at in differs[:most].tolist():
            plain = at < len(self._plan.declared)
            changed = self._changed(at, item) if plain else NEVER
            found.append(
                FeatureValue(
                    name=self._plan.columns[at] if plain else self._fitted[at - len(self._plan.declared)],
                    value=float(row[at]),
                    unit=self._plan.declared[at].unit if plain else "score",
                    effect=None if effects is None else float(effects[at]),
                    age_ms=max(0, self._asked.now_ms - changed.ms) if changed.by else None,
                    age_of=changed.by,
                )
            )
        return found

    def _changed(self, column: int, item: int) -> Changed:
        user: User = self._asked.user
        return self._ages.of(self._plan.declared[column], user, self._view.table.rows, item)

    def _effects(self, item: int, row: Float32) -> Float32 | None:
        """``float32[columns + fitted]``; None: there is no ranker, or it fails."""
        if self._ranker is None:
            return None
        rows = np.repeat(row[None, :], len(row) + 1, axis=0)
        np.fill_diagonal(rows, self._defaults)  # of the last row, nothing
        try:
            scores = self._ranker.score(rows, self._attention(np.full(len(rows), item)))
        except RankerError:  # the answer's own reasons tell of it
            return None
        return np.asarray(scores[-1] - scores[:-1], np.float32)

    def _attention(self, items: Int64) -> Attended | None:
        model = self._model
        if model is None or model.attended is None or self._ranker is None or not self._ranker.attends:
            return None
        return model.attended.attend(self._asked, self._view.index, items)
