"""Fitting the configured ranker on training rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headwater.features.plan import Plan
from headwater.learning.gbdt import GbdtParams, TrainingError, fit_gbdt
from headwater.learning.giveaways import withheld
from headwater.learning.trainingset import QUESTIONS, TrainingSet
from headwater.ranking.gbdt import MODEL_FILE
from headwater.schema.config import Config
from headwater.schema.errors import ConfigurationError

Progress = Callable[[str, int, int], None]
CHOSEN = "chosen"  # the one head of a ranker that learns which candidate was taken, whatever was done with it


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
    config: Config, plan: Plan, columns: tuple[str, ...], rows: TrainingSet, *, warm: Mapping[str, bytes] | None, seed: int,
    threads: int, progress: Progress | None,
) -> FittedRanker:  # fmt: skip
    """The ranker that ``config`` names, trained to put what was taken before the rest of its group.

    A deep ranker with ``models.deep.heads`` does so for each of these types of events by a head of its own. From questions, columns that would
    give the answer away are withheld (:mod:`headwater.learning.giveaways`); of lists, a deep ranker learns beside what the place explains.

    Raises:
        ConfigurationError: the deep ranker needs what is not installed.
        TrainingError: the rows cannot train it.
    """
    with withheld(rows.features, plan, config) if rows.learnt_from == QUESTIONS else nullcontext():
        if config.ranker.kind == "deep":
            return _fit_deep(config, columns, rows, seed=seed, threads=threads, progress=progress)
        return _fit_gbdt(config, columns, rows, warm=warm, seed=seed, threads=threads, progress=progress)


def _fit_gbdt(
    config: Config, columns: tuple[str, ...], rows: TrainingSet, *, warm: Mapping[str, bytes] | None, seed: int, threads: int,
    progress: Progress | None,
) -> FittedRanker:  # fmt: skip
    ranker = config.ranker
    text, report = fit_gbdt(
        rows.features, rows.labels, rows.groups, rows.weights, columns=columns,
        params=GbdtParams(
            trees=ranker.trees, leaves=ranker.leaves, learning_rate=ranker.learning_rate, column_share=ranker.column_share
        ),
        seed=seed, num_threads=threads, positions=_places(config, rows),
        warm=None if warm is None else warm.get(MODEL_FILE),
        progress=None if progress is None else lambda tree, trees, _: progress("fit", tree, trees),
    )  # fmt: skip
    return FittedRanker({MODEL_FILE: text}, False, report.trees, 0, report.holdout_ndcg10, report.gain)


def _places(config: Config, rows: TrainingSet) -> npt.NDArray[np.int16] | None:
    """Where rows were shown, if the ranker is to learn beside what the place explains."""
    return rows.position if config.ranker.position_bias and np.any(rows.position >= 0) else None


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
    heads, labels = _heads(config, rows)
    placed = RankingRows(
        rows.features, labels, rows.groups, weights=rows.weights, histories=histories,
        position=rows.position if np.any(rows.position >= 0) else None,
    )  # fmt: skip
    files, report = fit_deep(
        placed,
        config.models.deep, columns=columns, heads=heads, objective="listwise", seed=seed, threads=threads,
        value={t.name: t.weight for t in config.events},
        progress=None if progress is None else lambda epoch, epochs, _: progress("fit", epoch, epochs),
    )  # fmt: skip
    return FittedRanker(files, histories is not None, 0, report.epochs, None, {})


def _heads(config: Config, rows: TrainingSet) -> tuple[tuple[str, ...], npt.NDArray[np.float32]]:
    """The heads, and the labels of each, ``float32[n, h]``: what was taken, for the heads of what was done with it."""
    wanted = config.models.deep.heads
    if not wanted:
        return (CHOSEN,), rows.labels.astype(np.float32)[:, None]
    positive = {t.name: place for place, t in enumerate(config.events) if t.positive}
    for name in wanted:
        if name not in positive:
            raise ConfigurationError(
                f'models.deep.heads: "{name}" is no positive event type (these are {", ".join(positive)})'
            )
    labels = np.stack([rows.outcomes >> positive[name] & 1 for name in wanted], 1).astype(np.float32)
    for h, name in enumerate(wanted):
        if not labels[:, h].any():
            raise TrainingError(
                f'models.deep.heads: In none of the {len(rows.groups)} {rows.learnt_from} there was a "{name}", so that its head would learn '
                "nothing. Train on a longer window or on more rows, or take the head out"
            )
    return wanted, labels
