"""Eligibility: hidden, expired, not yet published, outside the region, seen, or excluded items never show."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headwater.jit import kernel

Int64 = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]
UInt32 = npt.NDArray[np.uint32]


@kernel
def eligible(
    items: Int64, flags: UInt32, hidden: int, published_ms: Int64, expires_ms: Int64, regions: UInt32,
    region: int, now_ms: int, barred: UInt8, out: UInt8,
) -> int:  # fmt: skip
    """Write 1 into ``out[:n]`` for each of ``items`` (``int64[n]``) that may be shown; returns how many.

    ``flags``, ``published_ms``, ``expires_ms`` (0: never) and ``regions`` (``uint32[items, r]``, 0 fills up,
    all 0: everywhere) are columns of the item table. ``region`` 0 is an unknown place: only items that
    are shown everywhere. ``barred`` (``uint8[items]``) marks what this user must not get.
    """
    count = 0
    for k in range(len(items)):
        i = items[k]
        out[k] = 0
        if barred[i] or flags[i] & hidden or published_ms[i] > now_ms:
            continue
        if expires_ms[i] != 0 and expires_ms[i] <= now_ms:
            continue
        if regions[i, 0] != 0:
            inside = False
            for r in range(regions.shape[1]):
                inside |= region != 0 and regions[i, r] == region
            if not inside:
                continue
        out[k] = 1
        count += 1
    return count
