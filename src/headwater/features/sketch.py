"""Numbers in 32 bits that zero means "none" for, and HyperLogLog registers inside a row."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from headwater.jit import inline

UInt32 = npt.NDArray[np.uint32]

_HALF_LN2 = 0.5 / math.log(2.0)
_INVERSE = np.array([2.0**-k for k in range(256)], np.float64)


@inline
def encode_number(value: float) -> np.uint32:
    """``float32`` as an integer of the same order; 0 for NaN, which is "none". -0 counts as 0."""
    if np.isnan(value):
        return np.uint32(0)
    if value == 0.0:
        return np.uint32(0x80000000)
    bits = np.float32(value).view(np.uint32)
    # positive numbers get the top bit, negative ones are turned round, so that integers compare as the numbers do
    return np.uint32(~bits) if bits & np.uint32(0x80000000) else np.uint32(bits | np.uint32(0x80000000))


@inline
def decode_number(code: np.uint32) -> float:
    """The number behind :func:`encode_number`; NaN for 0."""
    if code == 0:
        return np.nan
    bits = np.uint32(code ^ np.uint32(0x80000000)) if code & np.uint32(0x80000000) else np.uint32(~code)
    return np.float64(np.uint32(bits).view(np.float32))


@inline
def mixed(key: int) -> np.uint64:
    """64 bits that look random for each integer (splitmix64)."""
    z = np.uint64(key) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@inline
def register(u4: UInt32, at: int, registers: int, key: int) -> None:
    """Show ``key`` to the sketch: one byte a register, four to a word, from ``u4[at]`` on."""
    z = mixed(key)
    place = np.int64(z & np.uint64(registers - 1))
    rest = z >> np.uint64(12)  # 52 bits that choosing the register (2^12 at most) does not use
    rank = np.uint32(1)
    while rest & np.uint64(1) == 0 and rank < 53:
        rank += np.uint32(1)
        rest >>= np.uint64(1)
    shift = np.uint32(8 * (place % 4))
    word = u4[at + place // 4]
    if (word >> shift) & np.uint32(0xFF) < rank:
        u4[at + place // 4] = (word & ~(np.uint32(0xFF) << shift)) | (rank << shift)


@inline
def estimate(u4: UInt32, at: int, registers: int) -> float:
    """How many different keys a sketch was shown: one formula for all sizes (Ertl 2017, the improved raw estimator)."""
    total, empty = 0.0, 0
    for place in range(registers):
        rank = (u4[at + place // 4] >> np.uint32(8 * (place % 4))) & np.uint32(0xFF)
        if rank == 0:
            empty += 1
        else:
            total += _INVERSE[rank]
    if empty == registers:
        return 0.0
    share = empty / registers
    weight, missing, before = 1.0, share, -1.0  # share + sum of 2^(k-1) share^(2^k): what empty registers say
    while missing != before:
        share *= share
        before = missing
        missing += share * weight
        weight += weight
    return float(_HALF_LN2 * registers * registers / (total + registers * missing))
