"""How well probabilities of what follows an impression are told: AUC, AUC inside each user, log loss, calibration.

Intervals are percentile intervals of a bootstrap that draws users with replacement (seeded): rows of one user go together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from msgspec import Struct

Float64 = npt.NDArray[np.float64]
Labels = npt.NDArray[np.integer]
Users = npt.NDArray[np.integer]
Interval = tuple[float, float]

BINS = 15
REPEATS = 200
_TAIL = 2.5  # per cent on each side
_TINY = 1e-7  # probabilities are kept so far from 0 and 1 in the log loss


class HeadMetrics(Struct, frozen=True, kw_only=True):
    """What a model is worth on one label. ``ci95`` has [low, high] for each of the four.

    ``gauc`` is the mean of the AUC inside each user who has both classes, weighted by impressions (NaN: nobody has). ``ece`` is
    ``Σ n_b/n · |mean probability − mean label|`` over 15 bins of equal size; even a perfect model has about
    ``ece_of_perfect`` on so many rows, and ``ece_debiased`` is what is left without that. Log loss and ``ece`` are those of the probabilities; ``logloss_frozen`` and
    ``ece_frozen`` of the calibration as it was at the split.
    """

    auc: float
    gauc: float
    logloss: float
    ece: float
    ece_of_perfect: float
    ece_debiased: float
    logloss_frozen: float
    ece_frozen: float
    ci95: dict[str, Interval]


class ExposureModel(Struct, frozen=True, kw_only=True):
    """One model: metrics by head, seconds of training, MiB of the process at its peak so far."""

    heads: dict[str, HeadMetrics]
    train_s: float
    peak_mb: float


def auc(labels: Labels, scores: Float64, weights: Float64 | None = None) -> float:
    """Probability that a positive scores above a negative, ties count half; NaN with one class only.

    ``labels`` int[n] of 0 and 1; ``weights`` float[n] counts of each row.
    """
    _, tied = np.unique(scores, return_inverse=True)
    w = np.ones(len(labels)) if weights is None else weights
    return _auc_of(tied, labels.astype(np.float64), w, int(tied.max()) + 1 if len(tied) else 0)


def _auc_of(tied: npt.NDArray[np.intp], labels: Float64, weights: Float64, groups: int) -> float:
    positive = np.bincount(tied, weights * labels, groups)
    negative = np.bincount(tied, weights * (1.0 - labels), groups)
    below = np.cumsum(negative) - negative
    pairs = float(positive.sum() * negative.sum())
    return float((positive * (below + 0.5 * negative)).sum() / pairs) if pairs > 0.0 else float("nan")


@dataclass(frozen=True, slots=True)
class UserAucs:
    """``user`` int64[u] positions among all users of those with both classes, their AUC and their impressions."""

    user: npt.NDArray[np.int64]
    auc: Float64
    impressions: Float64

    def mean(self) -> float:
        """Weighted by impressions; NaN when nobody has both classes."""
        total = float(self.impressions.sum())
        return float((self.auc * self.impressions).sum() / total) if total else float("nan")


def user_aucs(labels: Labels, scores: Float64, user: npt.NDArray[np.integer]) -> UserAucs:
    """AUC inside each user with both classes. ``user`` int[n] from 0."""
    order = np.lexsort((scores, user))
    y, s, u = labels[order].astype(np.float64), scores[order], user[order].astype(np.int64)
    users = int(u.max()) + 1 if len(u) else 0
    start = np.ones(len(u), np.bool_)
    start[1:] = (u[1:] != u[:-1]) | (s[1:] != s[:-1])
    tied = np.cumsum(start) - 1
    owner = u[start]
    positive, negative = np.bincount(tied, y), np.bincount(tied, 1.0 - y)
    all_positive, all_negative = np.bincount(owner, positive, users), np.bincount(owner, negative, users)
    below = np.cumsum(negative) - negative  # of everybody before, so what stood before the user's first is taken off
    before = np.zeros(users)
    first = np.ones(len(owner), np.bool_)
    first[1:] = owner[1:] != owner[:-1]
    before[owner[first]] = below[first]
    won = np.bincount(owner, positive * (below - before[owner] + 0.5 * negative), users)
    both = np.flatnonzero((all_positive > 0) & (all_negative > 0))
    sizes = (all_positive + all_negative)[both].astype(np.float64)
    return UserAucs(both, won[both] / (all_positive * all_negative)[both], sizes)


def log_losses(labels: Labels, probabilities: Float64) -> Float64:
    """``−log p`` of what happened, each row: float64[n]."""
    p = np.clip(probabilities, _TINY, 1.0 - _TINY)
    return np.asarray(-np.where(labels > 0, np.log(p), np.log1p(-p)), np.float64)


def bins_of(probabilities: Float64, bins: int = BINS) -> npt.NDArray[np.int64]:
    """The bin of each row: ``bins`` of (nearly) equal size by probability; equal probabilities in order of the rows."""
    out = np.empty(len(probabilities), np.int64)
    out[np.argsort(probabilities, kind="stable")] = np.arange(len(probabilities)) * bins // max(len(probabilities), 1)
    return out


def ece(labels: Labels, probabilities: Float64, bins: int = BINS) -> float:
    """Expected calibration error: ``Σ n_b/n · |mean probability − mean label|`` over bins of equal size."""
    gaps = np.bincount(bins_of(probabilities, bins), probabilities - labels, bins)
    return float(np.abs(gaps).sum() / len(labels))


def ece_of_perfect(probabilities: Float64, bins: int = BINS) -> float:
    """What :func:`ece` is on average when every label is drawn with its probability: ``Σ √(2/π · Σ p(1 − p))/n``."""
    spread = np.bincount(bins_of(probabilities, bins), probabilities * (1.0 - probabilities), bins)
    return float(np.sqrt(2.0 / np.pi * spread).sum() / len(probabilities))


def ece_debiased(labels: Labels, probabilities: Float64, bins: int = BINS) -> float:
    """Root mean square gap of the bins without what chance alone adds: ``√max(0, Σ n_b/n · (gap² − y(1 − y)/(n_b − 1)))``, y the
    mean label of the bin. (A. Kumar, P. Liang, T. Ma, "Verified uncertainty calibration", NeurIPS 2019.)
    """
    at = bins_of(probabilities, bins)
    rows = np.bincount(at, minlength=bins).astype(np.float64)
    some = rows > 1.0
    size = rows[some]
    gap = np.bincount(at, probabilities - labels, bins)[some] / size
    mean = np.bincount(at, labels.astype(np.float64), bins)[some] / size
    return float(np.sqrt(max(0.0, float((size * (gap**2 - mean * (1.0 - mean) / (size - 1.0))).sum()) / len(labels))))


def judge_head(
    labels: Labels, scores: Float64, probabilities: Float64, users: Users, *, seed: int, frozen: Float64 | None = None,
    repeats: int = REPEATS,
) -> HeadMetrics:  # fmt: skip
    """All metrics of one model on one label.

    Args:
        labels: ``int[n]`` of 0 and 1.
        scores: ``float64[n]`` that order the rows.
        probabilities: ``float64[n]`` in [0, 1].
        users: ``int[n]``, any numbers that tell users apart.
        frozen: ``float64[n]`` probabilities of a calibration that did not follow; None: the same.

    Raises:
        ValueError: no rows, or arrays of unequal length, or numbers that are not finite.
    """
    n = len(labels)
    if not n or not len(scores) == len(probabilities) == len(users) == n:
        raise ValueError(f"Expected as many scores, probabilities and users as labels ({n}), and at least one")
    if not (np.isfinite(scores).all() and np.isfinite(probabilities).all()):
        raise ValueError("Expected finite scores and probabilities")
    _, user = np.unique(users, return_inverse=True)
    count = int(user.max()) + 1
    y = labels.astype(np.float64)
    still = probabilities if frozen is None else frozen
    _, tied = np.unique(scores, return_inverse=True)
    groups = int(tied.max()) + 1
    inside = user_aucs(labels, scores, user)
    losses = np.bincount(user, log_losses(labels, probabilities), count)
    rows = np.bincount(user, minlength=count).astype(np.float64)
    gaps = np.zeros((count, BINS))
    np.add.at(gaps, (user, bins_of(probabilities)), probabilities - y)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1.0 / count), repeats).astype(np.float64)
    sizes = draws @ rows
    drawn_inside = draws[:, inside.user]
    with np.errstate(invalid="ignore"):
        samples = {
            "auc": np.array([_auc_of(tied, y, draw[user], groups) for draw in draws]),
            "gauc": (drawn_inside @ (inside.auc * inside.impressions)) / (drawn_inside @ inside.impressions),
            "logloss": (draws @ losses) / sizes,
            "ece": np.abs(draws @ gaps).sum(1) / sizes,
        }
    return HeadMetrics(
        auc=_auc_of(tied, y, np.ones(n), groups),
        gauc=inside.mean(),
        logloss=float(losses.sum() / n),
        ece=ece(labels, probabilities),
        ece_of_perfect=ece_of_perfect(probabilities),
        ece_debiased=ece_debiased(labels, probabilities),
        logloss_frozen=float(log_losses(labels, still).mean()),
        ece_frozen=ece(labels, still),
        ci95={name: _interval(values) for name, values in samples.items()},
    )


def _interval(samples: Float64) -> Interval:
    known = samples[~np.isnan(samples)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.percentile(known, [_TAIL, 100.0 - _TAIL])
    return float(low), float(high)
