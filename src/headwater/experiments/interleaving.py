"""What interleaved lists say: who wins the clicks. The fast first look before an A/B test.

Radlinski, Kurup & Joachims, "How does clickthrough data reflect retrieval quality?" (CIKM 2008); Chapelle, Joachims, Radlinski & Yue,
"Large-scale validation and analysis of interleaved search evaluation" (TOIS 2012). Each user compares the rankings for themselves, so
what differs between users does not blur the comparison: far fewer users are needed, for a preference and not an effect.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from scipy.stats import binomtest, ttest_1samp

from headwater.experiments.sequences import FIRST_LOOK, always_valid_p, look_positions, mixture, sequence

Float64 = npt.NDArray[np.float64]


class Preference(Struct, frozen=True, kw_only=True):
    """Which ranking users prefer. ``lists`` with their ``wins`` of the second ranking, ``losses`` and ``ties``; ``users`` who took part.

    ``score``: mean over users of their mean result a list (1: the second won, −1: the first did, 0: a tie); half of it is Δ of
    Chapelle et al. with ties as halves. ``interval`` and ``t_p``: Student's t over users, for one look. ``sign_p``: exact sign test over
    users who prefer one. ``sequence`` and ``p_value``: valid at every look; None and 1 below 100 users.
    """

    lists: int
    users: int
    wins: int
    losses: int
    ties: int
    score: float
    interval: tuple[float, float]
    t_p: float
    sign_p: float
    sequence: tuple[float | None, float | None]
    p_value: float


def preference(
    user: npt.NDArray[np.integer], first: npt.NDArray[np.integer], second: npt.NDArray[np.integer], *,
    alpha: float = 0.05, planned_users: int = 2_000, looks: int = 50,
) -> Preference:  # fmt: skip
    """Analyse interleaved lists in the order in which they were shown.

    A list is won by the ranking with more credited clicks. Lists of a user hang together, so users are the unit; they come in, for
    the confidence sequence, in the order of their first list.

    Args:
        user: ``int[n]`` who saw each list.
        first, second: ``int[n]`` clicks credited to each ranking (:func:`headwater.experiments.drafts.credit`).

    Raises:
        ValueError: fewer than two users.
    """
    outcome = np.sign(second.astype(np.int64) - first.astype(np.int64))
    _, first_at, position = np.unique(user, return_index=True, return_inverse=True)
    counts = np.bincount(position)
    if len(counts) < 2:
        raise ValueError(f"Expected lists of at least two users, got {len(counts)}")
    scores = (np.bincount(position, outcome) / counts)[np.argsort(first_at)]
    test = ttest_1samp(scores, 0.0) if scores.std() > 0.0 else None
    mean = float(scores.mean())
    low, high = (mean, mean) if test is None else test.confidence_interval(1.0 - alpha)
    sided = np.count_nonzero(scores)
    sign = binomtest(int(np.count_nonzero(scores > 0.0)), int(sided)).pvalue if sided else 1.0
    bounds, p_value = _anytime(scores, alpha, planned_users, looks)
    return Preference(
        lists=len(outcome), users=len(scores), wins=int((outcome > 0).sum()), losses=int((outcome < 0).sum()),
        ties=int((outcome == 0).sum()), score=mean, interval=(float(low), float(high)),
        t_p=1.0 if test is None else float(test.pvalue), sign_p=float(sign), sequence=bounds, p_value=p_value,
    )  # fmt: skip


def _anytime(
    scores: Float64, alpha: float, planned: int, looks: int
) -> tuple[tuple[float | None, float | None], float]:  # fmt: skip
    ends = look_positions(len(scores), looks)
    ends = ends[ends >= FIRST_LOOK]
    if not len(ends):
        return (None, None), 1.0
    users = ends.astype(np.float64)
    mean = np.cumsum(scores)[ends - 1] / users
    spread = np.maximum(np.cumsum(scores**2)[ends - 1] / users - mean**2, 0.0) * users / (users - 1.0)
    error = np.sqrt(spread / users)
    rho2 = mixture(alpha, planned)
    low, high = sequence(mean, error, users, rho2, alpha)
    statistic = np.where(error > 0.0, mean / np.where(error > 0.0, error, 1.0), np.nan)
    p_value = float(always_valid_p(statistic, users, rho2)[-1])
    return (_end(low[-1]), _end(high[-1])), p_value


def _end(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
