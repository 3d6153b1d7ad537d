"""Exploration: lists that are drawn by lot, with the probability of every draw.

Place by place one of the candidates that may still stand there is drawn, with probability ``w_i / Σ w`` over those
(Plackett 1975, Luce 1959), where ``w = exp(relevance / temperature)``. What may stand there is what caps, pins and quotas leave,
so the product over the places is the exact probability of the list under them. Each place draws anew: noise that is
added to the scores once and sorted by (Gumbel top-k) gives the same lists where nothing constrains them, and others where something
does, because a candidate that could not have been taken before would keep noise that was never compared.

Some places may be promised to new items (:class:`Promise`): such a place goes to one of these with the probability that each was given, and else to
whom it would have gone. The probability of what stands there is that of both ways together.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headwater.jit import inline
from headwater.policy.diversity import relevance

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

NOTHING: Float64 = np.zeros(0)


@dataclass(frozen=True, slots=True)
class Lottery:
    """How a list is drawn: from the best ``candidates``, with ``temperature`` (see :func:`weights`), by the numbers of ``seed``.

    With ``follow`` int64[k], positions of candidates (-1: none of them), nothing is drawn: the list is this one, and its log-propensities say how likely
    it would have come about. From the first place on that could not have been so, they are -inf and nothing is placed.
    """

    candidates: int
    temperature: float
    seed: int
    follow: Int64 | None = None


@dataclass(frozen=True, slots=True)
class Promise:
    """At each of ``places`` (int64[m], from 0, ascending) stands one of the ``candidates`` (int64[g]) with the probability that each of them has
    by ``chances`` (float64[g], together at most 1), if it may stand there; by the numbers of ``seed``.
    """

    places: Int64
    candidates: Int64
    chances: Float64
    seed: int


class Lot(NamedTuple):
    """What a request drew: the seed of its lottery, and whether its list is a ``uniform`` one."""

    seed: int
    uniform: bool


def drawn_lot(request_id: str, share: float, uniform: float = 0.0) -> Lot | None:
    """The lot of ``request_id``: a uniform list with probability ``uniform``, another one that is drawn with ``share``; None: neither.

    The same for the same id: a replay draws the same list.
    """
    if share + uniform <= 0.0:
        return None
    digest = hashlib.blake2b(request_id.encode(), digest_size=16, key=b"exploration").digest()
    number = int.from_bytes(digest[:8], "big") / 2.0**64
    if number >= share + uniform:
        return None
    return Lot(int.from_bytes(digest[8:], "big"), number >= share)


def seed_of(request_id: str, what: bytes) -> int:
    """64 bits for what else is drawn by lot for ``request_id``: other ones for each ``what``."""
    return int.from_bytes(hashlib.blake2b(request_id.encode(), digest_size=8, key=what).digest(), "big")


def promised_places(k: int, share: float) -> tuple[Int64, float]:
    """The places of a list of ``k`` that may be promised, and the most that one of them may be given away with: their number times
    that is ``share · k``. They lie evenly, none is the first where ``share`` is at most a half (unless it is the only one).
    """
    count = math.ceil(share * k - 1e-9)
    middles = np.ceil((np.arange(count) + 0.5) * k / max(count, 1)).astype(np.int64)
    return np.minimum(middles, k - 1), share * k / max(count, 1)


def weights(ranked: Float64, lottery: Lottery) -> Float64:
    """What each of the best candidates weighs in the draw, float64[m], from all scores, best first, float64[n].

    ``exp((relevance - 1) / temperature)``, relevance 1 for the best score and 0 for the last of the m that are drawn from, so that a
    temperature means the same whatever the scale of the scores. All are above 0: the temperature is at least 0.01.
    """
    return np.asarray(np.exp((relevance(ranked[: lottery.candidates]) - 1.0) / lottery.temperature))


@inline
def uniform(seed: np.uint64, place: int) -> float:
    """The number in [0, 1) that decides about a place: SplitMix64 (Steele, Lea and Flood 2014), the upper 53 bits."""
    z = seed + np.uint64(place + 1) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return float(z >> np.uint64(11)) * 2.0**-53
