"""Content vectors: what an item says about itself, as ``content_size`` numbers of unit length.

Every word, tag and category is a hashed direction of ±1 entries (a random projection, so cosines between
vectors approximate cosines between the bags of words; Achlioptas 2003). No fitting: a new item
has its vector when its upsert is folded. A vector that the caller supplies is projected the same way.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
import xxhash

from headwater.schema.items import Item

CATEGORY_WEIGHT, TAG_WEIGHT, TITLE_WEIGHT, TEXT_WEIGHT = 2.0, 1.5, 1.0, 0.5
_WORD = re.compile(r"[^\W_]{2,}")
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def content_vector(item: Item, size: int) -> npt.NDArray[np.float32] | None:
    """The vector of ``item``, ``float32[size]`` of unit length; ``None`` when nothing is known of its content."""
    if item.vector is not None:
        given = np.asarray(item.vector, np.float64)
        return _unit(given @ _directions(np.arange(len(given), dtype=np.uint64), size))
    tokens: dict[int, float] = {}
    title, text = _words(item.title), _words(item.text)
    for prefix, words, weight in (
        ("c:", item.categories, CATEGORY_WEIGHT),
        ("t:", item.tags, TAG_WEIGHT),
        ("w:", title, TITLE_WEIGHT),
        ("w:", text, TEXT_WEIGHT),
    ):
        for word in words:
            key = xxhash.xxh64_intdigest(f"{prefix}{word}".encode())
            # a long text must not drown the categories: each field weighs as much as its name says
            tokens[key] = tokens.get(key, 0.0) + weight / np.sqrt(len(words))
    if not tokens:
        return None
    weights = np.fromiter(tokens.values(), np.float64, len(tokens))
    return _unit(weights @ _directions(np.fromiter(tokens, np.uint64, len(tokens)), size))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _directions(keys: npt.NDArray[np.uint64], size: int) -> npt.NDArray[np.float64]:
    """``(len(keys), size)`` entries of ±1, from splitmix64 of key and position."""
    with np.errstate(over="ignore"):
        z = keys[:, None] + (np.arange(size, dtype=np.uint64)[None, :] + np.uint64(1)) * _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits: npt.NDArray[np.float64] = ((z ^ (z >> np.uint64(31))) & np.uint64(1)).astype(np.float64)
    return 1.0 - 2.0 * bits


def _unit(vector: npt.NDArray[np.float64]) -> npt.NDArray[np.float32] | None:
    norm = float(np.sqrt(np.sum(vector * vector)))
    return (vector / norm).astype(np.float32) if norm > 0.0 else None
