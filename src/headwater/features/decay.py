"""Powers of two: ``2^x`` with the same bits on every run of a build, and decayed sums that need no decaying.

The library's ``exp2`` may differ between a scalar and a vectorised loop, so this is our own: split ``x`` into an
integer (exact table), the 64ths (table) and a rest in ``[0, 1/64)`` whose power is a Taylor polynomial of
``exp(r * ln 2)`` in Horner form; relative error below 3e-15.

**Landmarks.** A sum ``S(now) = sum w * 2^(-(now - t) / h)`` changes with every moment, but ``S(now) = 2^(-(now - L) / h) *
sum w * 2^((t - L) / h)`` for any landmark ``L``, and that sum changes only with an event (forward decay, Cormode et al.
2009). A row keeps the sum for the landmark of its clock ``c``: ``L(c) = floor(c / (32 h)) * 32 h``. When the clock passes
into another period the cells are multiplied by a power of two with a whole exponent, which is exact.
"""

from __future__ import annotations

import math

import numpy as np

from headwater.jit import inline

PERIOD = 32  # half-lives from one landmark to the next
FOREVER_MS = 1 << 62  # the period of a half-life of 0: nothing fades

_LN2 = math.log(2.0)
COEFFICIENTS = np.array([_LN2**k / math.factorial(k) for k in range(6)], np.float64)
PARTS = np.array([2.0 ** (j / 64) for j in range(65)], np.float64)  # the last one: a fraction that rounds to 1
LOWEST, HIGHEST = -1022, 1000
POWERS = np.array([2.0**k for k in range(LOWEST, HIGHEST + 1)], np.float64)


@inline
def power(exponent: float) -> float:
    """``2 ** exponent``; exactly 0 below -1,000; the exponent must lie below 1,000."""
    if exponent < -1000.0:
        return 0.0
    whole = math.floor(exponent)
    sixty_fourths = (exponent - whole) * 64.0
    part = int(sixty_fourths)
    rest = (sixty_fourths - part) * (1.0 / 64.0)
    value = COEFFICIENTS[5]
    for k in range(4, -1, -1):
        value = value * rest + COEFFICIENTS[k]
    return float(value * PARTS[part] * POWERS[int(whole) - LOWEST])


@inline
def decay(age_ms: int, per_half_life: float) -> float:
    """``2 ** (-age_ms * per_half_life)``, 1 for ages of zero or less.

    ``per_half_life`` is ``1 / half_life_ms``. Older than 1,000 half-lives is exactly 0.
    """
    if age_ms <= 0:
        return 1.0
    return power(-(age_ms * per_half_life))


@inline
def whole_power(exponent: int) -> float:
    """``2 ** exponent`` for a whole number, exactly; 0 below -1,022."""
    return float(POWERS[exponent - LOWEST]) if exponent >= LOWEST else 0.0


@inline
def since_landmark(clock_ms: int, now_ms: int, per_half_life: float, period_ms: int) -> float:
    """What a sum kept at ``clock_ms`` is multiplied with to give its value at ``now_ms``: ``2^(-(now - L) / h)``.

    A moment before the clock counts as the clock.
    """
    age = max(now_ms, clock_ms) - clock_ms // period_ms * period_ms
    return power(-(age * per_half_life))
