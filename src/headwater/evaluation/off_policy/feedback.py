"""Logged bandit feedback: one action a row, with the probabilities that two policies gave it; and whether it can say anything."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from headwater.schema.errors import HeadwaterError

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

_SURE = 5.0  # standard errors of the mean weight from what it has to be, beyond which chance is no explanation
_SLACK = 0.01


class OverlapError(HeadwaterError):
    """The evaluated policy does what the logging policy hardly ever did: its value is not in the log."""


class Overlap(Struct, frozen=True, kw_only=True):
    """What is asked of a log before it may say anything.

    ``least_ess``: effective sample size. ``most_uncovered``: the share of the evaluated policy's probability that lies on what the
    logging policy never shows.
    """

    least_ess: float = 100.0
    most_uncovered: float = 0.01


@dataclass(frozen=True, slots=True)
class Feedback:
    """n logged rows.

    ``rewards``, ``propensities`` (of the logged action under the logging policy, in (0, 1]), ``evaluation`` (of the same action under
    the evaluated policy, in [0, 1]): float64[n]. ``users`` int64[n] are what was sampled (None: rows are). ``uncovered`` float64[n] is the evaluated policy's probability
    of the actions that the logging policy gives 0 (None: it gives none 0).
    """

    rewards: Float64
    propensities: Float64
    evaluation: Float64
    users: Int64 | None = None
    uncovered: Float64 | None = None

    @property
    def weights(self) -> Float64:
        """``evaluation / propensities``, float64[n]."""
        return self.evaluation / self.propensities

    def check(self) -> None:
        """Raises HeadwaterError: names the first row that no policy can have logged."""
        n = len(self.rewards)
        if not n:
            raise HeadwaterError("there is no logged row to judge a policy by")
        for name in ("propensities", "evaluation", "users", "uncovered"):
            column = getattr(self, name)
            if column is not None and len(column) != n:
                raise HeadwaterError(f"{n} rewards, but {len(column)} {name}: every row needs one of each")
        _refuse(~np.isfinite(self.rewards), "a reward", self.rewards, "a finite number")
        _refuse(
            ~((self.propensities > 0.0) & (self.propensities <= 1.0)),
            "a propensity",
            self.propensities,
            "above 0, at most 1",
        )
        _refuse(
            ~((self.evaluation >= 0.0) & (self.evaluation <= 1.0)),
            "an evaluation probability",
            self.evaluation,
            "in [0, 1]",
        )


def effective_sample_size(weights: Float64) -> float:
    """``(Σw)² / Σw²`` (Kish 1965): so many rows of equal weight say as much. 0 when all weights are 0."""
    squares = float(np.sum(weights**2))
    return float(np.sum(weights)) ** 2 / squares if squares > 0.0 else 0.0


def check_overlap(weights: Float64, uncovered: Float64 | None, overlap: Overlap) -> None:
    """Whether weights float64[n] can carry an estimate: :func:`check_covered` and :func:`check_weights`.

    Raises:
        OverlapError: why not, and what to do.
    """
    check_covered(uncovered, overlap)
    check_weights(weights, overlap, mean=1.0 if uncovered is None else 1.0 - float(uncovered.mean()))


def check_covered(uncovered: Float64 | None, overlap: Overlap) -> None:
    """Whether the evaluated policy does what the log can show; ``uncovered`` float64[n] as in :class:`Feedback`.

    Raises:
        OverlapError: it does not.
    """
    missing = 0.0 if uncovered is None else float(uncovered.mean())
    if missing > overlap.most_uncovered:
        raise OverlapError(
            f"the evaluated policy puts {missing:.1%} of its probability on what the logging policy never shows (at most "
            f"{overlap.most_uncovered:.1%} may lie there): no estimate can know what that would earn. Explore more widely first "
            "(a higher temperature, more candidates), or judge a policy that is nearer to the logged one"
        )


def check_weights(weights: Float64, overlap: Overlap, *, mean: float = 1.0, what: str = "rows") -> None:
    """Whether weights float64[n] are many enough, and have the ``mean`` that they have to have: the share of the evaluated policy that the log covers.

    Raises:
        OverlapError: they are not.
    """
    ess = effective_sample_size(weights)
    if ess < overlap.least_ess:
        raise OverlapError(
            f"the effective sample size is {ess:.1f} of {len(weights):,} {what}, and at least {overlap.least_ess:g} are needed: the two "
            "policies hardly ever agree, so a few rows decide everything. Log more, explore at a higher temperature, or judge a "
            "policy that is nearer to the logged one"
        )
    found, error = float(weights.mean()), float(weights.std()) / np.sqrt(len(weights))
    if abs(found - mean) > _SURE * error + _SLACK:
        raise OverlapError(
            f"weights have the mean {found:.3f} and should have {mean:.3f} (standard error {error:.3f}): the propensities are not "
            "those that the log was drawn with, or the evaluated policy does what the logging policy never does. Check how both "
            "were computed"
        )


def _refuse(wrong: npt.NDArray[np.bool_], what: str, values: Float64, expected: str) -> None:
    rows = np.flatnonzero(wrong)
    if len(rows):
        row = int(rows[0])
        raise HeadwaterError(
            f"row {row}: {what} of {float(values[row])!r}, and it has to be {expected} ({len(rows):,} rows are wrong). Leave out "
            "what was not drawn by lot"
        )
