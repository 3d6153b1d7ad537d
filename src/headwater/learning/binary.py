"""LightGBM for probabilities: one binary model a label, stopped and calibrated on the last groups in time."""

from __future__ import annotations

from dataclasses import dataclass

import lightgbm
import numpy as np
import numpy.typing as npt

from headwater.learning.deep.calibration import fit_calibration
from headwater.learning.deep.fit import HOLDOUT
from headwater.learning.deep.rows import RankingRows
from headwater.ranking.calibration import Calibration

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class BinaryTrees:
    """A booster and a calibration for each head."""

    boosters: tuple[lightgbm.Booster, ...]
    calibration: tuple[Calibration, ...]
    trees: tuple[int, ...]

    def probabilities(self, features: Float32) -> Float64:
        """``float64[n, h]``."""
        return np.stack(
            [
                calibration.apply(_raw(booster, features, trees)).astype(np.float64)
                for booster, calibration, trees in zip(self.boosters, self.calibration, self.trees, strict=True)
            ],
            1,
        )


def _raw(booster: lightgbm.Booster, features: Float32, trees: int) -> Float64:
    return np.asarray(booster.predict(features, raw_score=True, num_iteration=trees), np.float64)


def fit_binary(
    rows: RankingRows, *, trees: int, leaves: int, learning_rate: float, patience: int = 30, seed: int, threads: int
) -> BinaryTrees:
    """Grow up to ``trees`` trees a head on all but the last tenth of the groups, which says when to stop and calibrates."""
    cut = int(rows.starts[len(rows.groups) - int(len(rows.groups) * HOLDOUT)])
    boosters, calibration, kept = [], [], []
    for h in range(rows.labels.shape[1]):
        label = rows.labels[:, h].copy()  # LightGBM warns of strides
        train = lightgbm.Dataset(rows.features[:cut], label[:cut], params={"verbosity": -1, "num_threads": threads})
        judge = lightgbm.Dataset(rows.features[cut:], label[cut:], reference=train)
        booster = lightgbm.train(
            {
                "objective": "binary", "metric": "binary_logloss", "num_leaves": leaves, "learning_rate": learning_rate,
                "min_data_in_leaf": 100, "lambda_l2": 5.0, "feature_fraction": 0.5, "seed": seed, "num_threads": threads,
                "deterministic": True, "force_row_wise": True, "verbosity": -1,
            },
            train, trees, valid_sets=[judge], callbacks=[lightgbm.early_stopping(patience, verbose=False)],
        )  # fmt: skip
        raw = _raw(booster, rows.features[cut:], booster.best_iteration)
        boosters.append(booster)
        kept.append(booster.best_iteration)
        calibration.append(fit_calibration(raw, label[cut:]))
    return BinaryTrees(tuple(boosters), tuple(calibration), tuple(kept))
