"""Exponential decay: ``2 ** (-age / half_life)``, the same bits on every run of a build.

The library's ``exp2`` may differ between a scalar and a vectorised loop, so this is our own: split the
exponent into an integer (exact table of powers of two) and a fraction in ``[0, 1)`` whose power is a
Taylor polynomial of ``exp(f * ln 2)`` in Horner form, relative error below 1e-15.
"""

from __future__ import annotations

import math

import numpy as np

from headwater.jit import inline

_LN2 = math.log(2.0)
COEFFICIENTS = np.array([_LN2**k / math.factorial(k) for k in range(16)], np.float64)
POWERS = np.array([2.0**-k for k in range(1080)], np.float64)


@inline
def decay(age_ms: int, per_half_life: float) -> float:
    """``2 ** (-age_ms * per_half_life)``, 1 for ages of zero or less.

    ``per_half_life`` is ``1 / half_life_ms``. Older than 1,000 half-lives is exactly 0.
    """
    if age_ms <= 0:
        return 1.0
    exponent = age_ms * per_half_life
    if exponent >= 1000.0:
        return 0.0
    # 2^-x = 2^-(n + 1) * 2^(1 - f), with x = n + f
    whole = math.floor(exponent)
    fraction = 1.0 - (exponent - whole)
    power = COEFFICIENTS[15]
    for k in range(14, -1, -1):
        power = power * fraction + COEFFICIENTS[k]
    return float(power * POWERS[int(whole) + 1])
