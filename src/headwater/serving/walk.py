"""The share of live traffic that walks the lower tiers: they are known to work, and what they cost is measured."""

from __future__ import annotations

import hashlib

from headwater.serving.stages import TIERS

_LOWER = len(TIERS) - 1


def drawn_tier(request_id: str, share: float, seed: int = 0) -> int:
    """The lower tier that ``request_id`` walks, each with probability ``share``; 0: none. The same for the same id and seed."""
    if share <= 0.0:
        return 0
    digest = hashlib.blake2b(request_id.encode(), digest_size=8, key=seed.to_bytes(8, "big")).digest()
    draw = int.from_bytes(digest, "big") / 2.0**64
    return 1 + int(draw / share) if draw < _LOWER * share else 0
