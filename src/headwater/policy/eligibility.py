"""Eligibility: hidden, expired, not yet published, outside the region, seen, or excluded items never show."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headwater.jit import kernel

Int64 = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]
UInt32 = npt.NDArray[np.uint32]

# Why an item may not be shown; the first that holds. The first four are marks that the caller sets in ``barred``.
MAY_SHOW, SEEN, EXCLUDED, ABOUT, TIRED, HIDDEN, UNPUBLISHED, EXPIRED, ELSEWHERE = range(9)


@kernel
def mark(barred: UInt8, tired: Int64, seen: UInt32, excluded: Int64, about: Int64, bar: bool) -> None:
    """Note in ``barred`` (``uint8[items]``) why a user must not get these items, the last reason where there are several; or, with ``bar``
    False, take that back.
    """
    for item in tired:
        barred[item] = TIRED if bar else MAY_SHOW
    for item in seen:
        barred[item] = SEEN if bar else MAY_SHOW
    for item in excluded:
        barred[item] = EXCLUDED if bar else MAY_SHOW
    for item in about:
        barred[item] = ABOUT if bar else MAY_SHOW


@kernel
def why_ineligible(
    items: Int64, limited: UInt8, flags: UInt32, hidden: int, published_ms: Int64, expires_ms: Int64, regions: UInt32,
    region: int, now_ms: int, barred: UInt8, out: UInt8,
) -> int:  # fmt: skip
    """Write into ``out[:n]`` why each of ``items`` (``int64[n]``) may not be shown, 0 (``MAY_SHOW``) for one that may; returns
    how many may.

    ``limited`` (``uint8[items]``) is 0 for an item that is not hidden, never expires and is shown everywhere: the columns that say so are not
    read then, most of what there is to fetch from memory. ``flags``, ``published_ms``, ``expires_ms`` (0: never) and ``regions`` (``uint32[items, r]``, 0 fills up,
    all 0: everywhere) are columns of the item table. ``region`` 0 is an unknown place: only items that
    are shown everywhere. ``barred`` (``uint8[items]``) marks what this user must not get: why, 0 for nothing.
    """
    count = 0
    for k in range(len(items)):
        i = items[k]
        out[k] = MAY_SHOW
        if barred[i]:
            out[k] = barred[i]
        elif limited[i] and flags[i] & hidden:
            out[k] = HIDDEN
        elif published_ms[i] > now_ms:
            out[k] = UNPUBLISHED
        elif not limited[i]:
            pass
        elif expires_ms[i] != 0 and expires_ms[i] <= now_ms:
            out[k] = EXPIRED
        elif regions[i, 0] != 0:
            inside = False
            for r in range(regions.shape[1]):
                inside |= region != 0 and regions[i, r] == region
            if not inside:
                out[k] = ELSEWHERE
        if out[k] == MAY_SHOW:
            count += 1
    return count
