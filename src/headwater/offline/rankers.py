"""Fitting the configured ranker on the rows of a training set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from headwater.learning.gbdt import GbdtParams, fit_gbdt
from headwater.learning.trainingset import TrainingSet
from headwater.ranking.gbdt import MODEL_FILE
from headwater.schema.config import Config
from headwater.schema.errors import ConfigurationError

Progress = Callable[[str, int, int], None]
CHOSEN = "chosen"  # the one head of a ranker that learns which candidate was taken


@dataclass(frozen=True, slots=True)
class FittedRanker:
    """The files of a ranker, and how its training went: ``trees`` of LightGBM or ``epochs`` of the deep ranker.

    ``attends``: it knows the vectors of the sources that it was trained with.
    """

    files: dict[str, bytes]
    attends: bool
    trees: int
    epochs: int
    holdout_ndcg10: float | None
    gain: dict[str, float]


def fit_ranker(
    config: Config, columns: tuple[str, ...], rows: TrainingSet, *, warm: Mapping[str, bytes] | None, seed: int,
    threads: int, progress: Progress | None,
) -> FittedRanker:  # fmt: skip
    """The ranker that ``config`` names, trained to put the item of each event before the other candidates.

    Raises:
        ConfigurationError: the deep ranker needs what is not installed.
        TrainingError: the rows cannot train it.
    """
    ranker = config.ranker
    if ranker.kind == "deep":
        return _fit_deep(config, columns, rows, seed=seed, threads=threads, progress=progress)
    text, report = fit_gbdt(
        rows.features, rows.labels, rows.groups, rows.weights, columns=columns,
        params=GbdtParams(trees=ranker.trees, leaves=ranker.leaves, learning_rate=ranker.learning_rate),
        seed=seed, num_threads=threads, warm=None if warm is None else warm.get(MODEL_FILE),
        progress=None if progress is None else lambda tree, trees, _: progress("fit", tree, trees),
    )  # fmt: skip
    return FittedRanker({MODEL_FILE: text}, False, report.trees, 0, report.holdout_ndcg10, report.gain)


def _fit_deep(
    config: Config, columns: tuple[str, ...], rows: TrainingSet, *, seed: int, threads: int, progress: Progress | None
) -> FittedRanker:
    try:
        from headwater.learning.deep.fit import fit_deep
        from headwater.learning.deep.rows import Histories, RankingRows
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"ranker.kind: \"deep\" needs {error.name} for training: pip install 'headwater[train]'"
        ) from error
    histories = None
    if rows.attending is not None:
        vectors, items, types, age_s = rows.attending
        known = np.where(rows.addresses.item < len(vectors), rows.addresses.item, 0)
        histories = Histories(vectors, known, items, types, age_s)
    files, report = fit_deep(
        RankingRows(
            rows.features, rows.labels.astype(np.float32)[:, None], rows.groups, weights=rows.weights, histories=histories
        ),
        config.models.deep, columns=columns, heads=(CHOSEN,), objective="listwise", seed=seed, threads=threads,
        progress=None if progress is None else lambda epoch, epochs, _: progress("fit", epoch, epochs),
    )  # fmt: skip
    return FittedRanker(files, histories is not None, 0, report.epochs, None, {})
