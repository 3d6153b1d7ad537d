"""Sums of very many numbers, in two ``float32`` cells: the sum, and what its rounding left of it.

A ``float32`` stops growing at 2^24 times what is added to it, and the row of everybody takes in every event. So the sums of
item rows have a rest: their value is ``cell + rest``, about 48 bits of it (an unevaluated sum, Dekker 1971).
Readers take the cell alone, which is the sum rounded once. Both cells are multiplied by powers of two when a row's clock
passes into another period, which is exact. A user has few events: rows of users have no rests.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headwater.features.bounded import left
from headwater.jit import inline

Float32 = npt.NDArray[np.float32]


@inline
def held(f4: Float32, at: int, rest: int, rests: bool) -> float:
    """The sum in cell ``at``, with its rest in cell ``rest`` if the row has rests (a literal: no branch is left of it)."""
    return np.float64(f4[at]) + np.float64(f4[rest]) if rests else np.float64(f4[at])


@inline
def hold(f4: Float32, at: int, rest: int, rests: bool, total: float) -> None:
    """Keep ``total`` in cell ``at``, and in cell ``rest`` what the rounding leaves."""
    f4[at] = np.float32(total)
    if rests:
        f4[rest] = np.float32(total - np.float64(f4[at]))


@inline
def add(f4: Float32, at: int, rest: int, amount: float, sign: float, rests: bool) -> None:
    """Add ``amount`` to a sum of ones, or take it off where ``sign`` is below 0 (``amount`` is below 0 then, too)."""
    total = held(f4, at, rest, rests) + amount
    hold(f4, at, rest, rests, left(total, amount) if sign < 0 else total)
