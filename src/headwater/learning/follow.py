"""A calibration that follows the days: its shift is refitted every quarter of an hour on what has become known since.

The level of a probability drifts with weekdays and seasons while the order of items stays. A bundle that is trained again every few
minutes follows by itself; an evaluation that trains once does not, so it can ask for this.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headwater.ranking.calibration import sigmoid

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

HOUR_MS = 3_600_000
EVERY_MS = HOUR_MS // 4
WINDOW_MS = 6 * HOUR_MS
PRIOR_ROWS = 200.0  # that say "no shift"
_STEPS = 25


def follow(
    logits: Float64, labels: Float64, now_ms: Int64, closed_after_ms: int, *, every_ms: int = EVERY_MS,
    window_ms: int = WINDOW_MS,
) -> Float64:  # fmt: skip
    """The shift of each row's logit, ``float64[n]``, from rows of the last ``window_ms`` whose labels were closed by then.

    Args:
        logits: ``float64[n]`` calibrated before.
        labels: ``float64[n]`` of 0 and 1.
        now_ms: ``int64[n]``, in any order; a label is known ``closed_after_ms`` later.
    """
    shifts = np.zeros(len(logits))
    order = np.argsort(now_ms, kind="stable")
    times = now_ms[order]
    blocks = times // every_ms
    for block in np.unique(blocks).tolist():
        start_ms = block * every_ms
        rows = order[np.searchsorted(blocks, block) : np.searchsorted(blocks, block, "right")]
        low, high = np.searchsorted(times, [start_ms - window_ms, start_ms - closed_after_ms])
        if high > low:
            known = order[low:high]
            shifts[rows] = fit_shift(logits[known], labels[known])
    return shifts


def fit_shift(logits: Float64, labels: Float64) -> float:
    """The shift c with ``Σ (σ(z + c) − y) = −prior · c``: as many expected positives as there were, a little less far."""
    shift = 0.0
    for _ in range(_STEPS):
        p = sigmoid(logits + shift)
        spread = float((p * (1.0 - p)).sum())
        prior = PRIOR_ROWS * max(spread / len(logits), 1e-6)
        move = (float((p - labels).sum()) + prior * shift) / (spread + prior)
        shift -= float(np.clip(move, -1.0, 1.0))
        if abs(move) < 1e-9:
            break
    return shift
