"""Training of the LightGBM ranker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import lightgbm
import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

from headwater.ranking.trees import MAX_LEAVES
from headwater.schema.errors import HeadwaterError

Progress = Callable[[int, int, float | None], None]

MAX_LABEL = 30
_MIN_HOLDOUT_GROUPS = 10
_LAST_PLACE = 50


class TrainingError(HeadwaterError):
    """The training rows cannot train a model."""


class TooFewError(TrainingError):
    """There is too little to train on as yet: the same on a log that has gone on may do. The message says what there is and what it takes."""


class GbdtParams(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the trees grow. ``objective`` is the listwise loss, both optimise NDCG.

    Growing stops when the holdout's NDCG@10 has not risen for ``patience`` trees; ``holdout`` is the share of
    groups, the last ones in time, that judges and is not trained on (0: grow all trees). ``position_regularization``
    pulls what the place explains towards nothing, where places are known. ``column_share`` of the columns, drawn anew for each tree, may split it.
    """

    objective: Literal["lambdarank", "rank_xendcg"] = "lambdarank"
    trees: Annotated[int, Meta(ge=1, le=10_000)] = 200
    leaves: Annotated[int, Meta(ge=2, le=MAX_LEAVES)] = 31
    learning_rate: Annotated[float, Meta(gt=0, le=1)] = 0.08
    min_rows_per_leaf: Annotated[int, Meta(ge=1)] = 50
    l2: Annotated[float, Meta(ge=0)] = 1.0
    column_share: Annotated[float, Meta(gt=0, le=1)] = 1.0
    position_regularization: Annotated[float, Meta(ge=0)] = 0.0
    holdout: Annotated[float, Meta(ge=0, lt=1)] = 0.1
    patience: Annotated[int, Meta(ge=1)] = 25


class FitReport(Struct, frozen=True, kw_only=True):
    """What training did. ``gain`` is the total loss reduction by column, largest first."""

    trees: int
    rows: int
    groups: int
    holdout_groups: int
    holdout_ndcg10: float | None
    gain: dict[str, float]


def fit_gbdt(
    features: npt.NDArray[np.float32],
    labels: npt.NDArray[np.integer],
    group_sizes: npt.NDArray[np.integer],
    weights: npt.NDArray[np.floating] | None,
    *,
    columns: tuple[str, ...],
    params: GbdtParams,
    seed: int,
    num_threads: int,
    positions: npt.NDArray[np.integer] | None = None,
    warm: bytes | None = None,
    progress: Progress | None = None,
) -> tuple[bytes, FitReport]:
    """Train a ranker on groups of rows that compete for the same request.

    The same rows, parameters, seed, threads and LightGBM build give the same bytes.

    Args:
        features: ``float32[n, d]``, C order; rows of a group stand together, groups in order of time.
        labels: ``int[n]``, relevance grade 0 … 30; a grade ``g`` is worth ``2**g − 1``.
        group_sizes: ``int[g]``, rows of each group; they add up to ``n``.
        weights: ``float[n]`` weight of each row, or ``None``.
        columns: names of the ``d`` columns.
        num_threads: threads of LightGBM.
        positions: ``int[n]`` the place where each row was shown, or ``None``. What the place alone explains is learnt beside the trees, a
            number for each place that is added to their score in training and left out when they serve ("lambdarank" only; LightGBM's
            treatment of position bias by an additive model). Places from 50 on share one.
        warm: an earlier model over the same columns (its text) to go on from: its first ``trees // 2`` trees stay, and
            grow by up to ``trees`` in all, so that models do not get longer from one warm start to the next.
        progress: called as ``progress(tree, trees, holdout_ndcg10 or None)`` after every tree.

    Returns:
        The model in LightGBM's text format (for ``ranker.lgb.txt``), and a report.

    Raises:
        TrainingError: shapes that do not fit together, values out of range, or no positive row to learn from.
    """
    _check(features, labels, group_sizes, weights, columns)
    if positions is not None and (len(positions) != len(labels) or params.objective != "lambdarank"):
        raise TrainingError(f'Expected {len(labels)} positions, one a row, and the objective "lambdarank".')
    try:
        msgspec.convert(msgspec.to_builtins(params), GbdtParams)
    except msgspec.ValidationError as error:
        raise TrainingError(f"The ranker's training parameters are out of range: {error}. Correct [ranker].") from error
    ends = np.cumsum(group_sizes)
    held = int(len(group_sizes) * params.holdout)
    held = held if held >= _MIN_HOLDOUT_GROUPS else 0
    groups = len(group_sizes) - held
    cut = int(ends[groups - 1])
    if not np.any(labels[:cut] > 0):
        raise TrainingError(
            "None of the training rows is positive. Import more events, or mark an event type `positive`."
        )

    places = None if positions is None else np.clip(positions, -1, _LAST_PLACE).astype(np.int32)

    def dataset(start: int, stop: int, sizes: npt.NDArray[np.integer], of: lightgbm.Dataset | None) -> lightgbm.Dataset:
        return lightgbm.Dataset(
            features[start:stop],
            label=labels[start:stop],
            group=sizes,
            weight=None if weights is None else weights[start:stop],
            position=None if places is None or of is not None else places[start:stop],
            reference=of,
            params={"verbosity": -1, "max_bin": 255, "data_random_seed": seed, "num_threads": num_threads},
        )

    train = dataset(0, cut, group_sizes[:groups], None)
    watcher = _Watcher(params.trees, params.patience, progress)
    before = _start(warm, params.trees // 2, columns)
    booster = lightgbm.train(
        {
            "objective": params.objective,
            "num_leaves": params.leaves,
            "learning_rate": params.learning_rate,
            "min_data_in_leaf": params.min_rows_per_leaf,
            "lambda_l2": params.l2,
            "feature_fraction": params.column_share,
            "lambdarank_position_bias_regularization": params.position_regularization,
            "metric": "ndcg",
            "eval_at": [10],
            "label_gain": [2**grade - 1 for grade in range(MAX_LABEL + 1)],
            "seed": seed,
            "num_threads": num_threads,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        },
        train,
        num_boost_round=params.trees - (0 if before is None else before.current_iteration()),
        init_model=before,
        valid_sets=[dataset(cut, len(labels), group_sizes[groups:], train)] if held else [],
        callbacks=[watcher],
    )
    trees = watcher.best_tree if held else booster.current_iteration()
    gain = booster.feature_importance("gain", iteration=trees)
    order = np.argsort(-gain, kind="stable")
    report = FitReport(
        trees=trees,
        rows=cut,
        groups=groups,
        holdout_groups=held,
        holdout_ndcg10=watcher.best if held else None,
        gain={columns[c]: float(gain[c]) for c in order if gain[c] > 0},
    )
    return booster.model_to_string(num_iteration=trees).encode(), report


def _start(warm: bytes | None, trees: int, columns: tuple[str, ...]) -> lightgbm.Booster | None:
    """The first ``trees`` trees of an earlier model; ``None``: there is none, or none of its trees is to stay."""
    if warm is None or trees == 0:
        return None
    whole = lightgbm.Booster(model_str=warm.decode())
    if whole.num_feature() != len(columns):
        raise TrainingError(
            f"The model to start from has {whole.num_feature()} columns, the rows have {len(columns)}. Start without it."
        )
    return lightgbm.Booster(model_str=whole.model_to_string(num_iteration=trees))


class _Watcher:
    """Reports every tree, and stops when the holdout has not become better for ``patience`` trees."""

    order = 10
    before_iteration = False

    def __init__(self, trees: int, patience: int, progress: Progress | None) -> None:
        self.best, self.best_tree = -np.inf, 0
        self._trees, self._patience, self._progress = trees, patience, progress

    def __call__(self, env: lightgbm.callback.CallbackEnv) -> None:
        tree = env.iteration + 1
        results = env.evaluation_result_list
        ndcg = float(results[0][2]) if results else None
        if self._progress is not None:
            self._progress(tree, self._trees, ndcg)
        if ndcg is None:
            return
        if ndcg > self.best:
            self.best, self.best_tree = ndcg, tree
        elif tree - self.best_tree >= self._patience:
            raise lightgbm.callback.EarlyStopException(self.best_tree - 1, results or [])


def _check(
    features: npt.NDArray[np.float32],
    labels: npt.NDArray[np.integer],
    group_sizes: npt.NDArray[np.integer],
    weights: npt.NDArray[np.floating] | None,
    columns: tuple[str, ...],
) -> None:
    if features.dtype != np.float32 or features.ndim != 2 or features.shape[1] != len(columns):
        raise TrainingError(
            f"Expected features float32[n, {len(columns)}], got {features.dtype}{list(features.shape)}."
        )
    rows = len(features)
    if not rows or not len(group_sizes):
        raise TrainingError("There are no training rows. Import events with positive types first.")
    if len(labels) != rows or (weights is not None and len(weights) != rows):
        raise TrainingError(f"Expected {rows} labels and weights, one a row.")
    if int(np.sum(group_sizes)) != rows or np.min(group_sizes) < 1:
        raise TrainingError(
            f"Expected group sizes of at least 1 that add up to {rows}, they add up to {np.sum(group_sizes)}."
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() > MAX_LABEL:
        raise TrainingError(f"Expected whole-numbered labels from 0 to {MAX_LABEL}.")
    if weights is not None and not (np.isfinite(weights).all() and np.min(weights) >= 0):
        raise TrainingError("Expected finite weights of at least 0.")
    if np.isinf(features).any():
        column = columns[int(np.flatnonzero(np.isinf(features).any(axis=0))[0])]
        raise TrainingError(f"Feature column {column!r} has an infinite value. Verify the features of this plan.")
