"""The LightGBM ranker: trained by ``headwater.learning.gbdt``, scored without LightGBM.

A serving process therefore neither imports LightGBM nor starts its threads.
"""

from __future__ import annotations

import numpy as np

from headwater.ranking.ranker import Attention, Features, RankerError, Scores
from headwater.ranking.trees import Trees, parse_trees, score_rows

MODEL_FILE = "ranker.lgb.txt"


class GbdtRanker:
    """Boosted trees over the columns of a plan.

    Scores are raw scores (the sum of leaf values, before any link function): equal to
    ``Booster.predict(rows, raw_score=True)`` rounded to ``float32``. NaN in a feature is a missing value,
    and goes where LightGBM sends it. Thread-safe: a call keeps its scratch to itself, and the
    GIL is released while it computes.

    Args:
        text: the model in LightGBM's text format.
        columns: names of the feature columns the model was trained on, in order.

    Raises:
        RankerError: the text is damaged or not supported, or it has another number of columns.
    """

    def __init__(self, text: bytes, columns: tuple[str, ...]) -> None:
        trees = parse_trees(text)
        if trees.features != len(columns):
            raise RankerError(
                f"The model was trained on {trees.features} columns, its bundle names {len(columns)}. Train and publish it again."
            )
        self._columns = columns
        self._trees: Trees | None = trees
        self.score(np.zeros((1, len(columns)), np.float32))  # compiled, or loaded from cache, before the first request

    @property
    def columns(self) -> tuple[str, ...]:
        return self._columns

    @property
    def attends(self) -> bool:
        return False

    def score(self, features: Features, attention: Attention | None = None) -> Scores:  # noqa: ARG002
        """Score rows: ``float32[n, len(columns)]``, C order → ``float32[n]``. See :meth:`Ranker.score`."""
        trees = self._trees
        if trees is None:
            raise RankerError("This ranker was closed; take the current one.")
        if features.dtype != np.float32 or features.ndim != 2 or features.shape[1] != len(self._columns):
            raise RankerError(
                f"The ranker expects float32[n, {len(self._columns)}], got {features.dtype}{list(features.shape)}. "
                "The features come from another plan than the model: train again or roll back."
            )
        out = np.empty(len(features), np.float32)
        bad = score_rows(
            np.ascontiguousarray(features),
            trees.lane_column,
            trees.lane_missing,
            trees.first,
            trees.split_lane,
            trees.thresholds,
            trees.masks,
            trees.leaves,
            trees.multiplier,
            trees.shift,
            out,
        )
        if bad:
            raise RankerError(
                f"The model gave {bad} of {len(out)} rows a score that is not finite. Roll the bundle back."
            )
        return out

    def close(self) -> None:
        self._trees = None
