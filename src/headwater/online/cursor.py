"""Cursors of pages: which items the pages before showed, in the token itself, so that any worker can go on.

A cursor holds dense item numbers (uint32, little-endian, base64 without padding). It grants nothing: who makes one up
leaves items out of their own list.
"""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode

import numpy as np
import numpy.typing as npt

from headwater.features.layout import MAX_ITEMS
from headwater.online.errors import RefusalError
from headwater.schema.requests import MAX_PAGED
from headwater.serving.request import NO_ITEMS

Int64 = npt.NDArray[np.int64]


def shown_before(cursor: str | None) -> Int64:
    """The items of the pages before. Raises :class:`RefusalError` 400 for what no answer gave as ``next``."""
    if cursor is None:
        return NO_ITEMS
    try:
        packed = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    except (binascii.Error, ValueError):
        packed = b""
    if not packed or len(packed) % 4 or len(packed) > 4 * MAX_PAGED:
        raise RefusalError(400, "Not a cursor; pass the `next` of an answer, or none for the first page", "cursor")
    items = np.frombuffer(packed, "<u4").astype(np.int64)
    if int(items.max()) > MAX_ITEMS:
        raise RefusalError(400, "Not a cursor; pass the `next` of an answer, or none for the first page", "cursor")
    return items


def next_cursor(before: Int64, shown: Int64) -> str | None:
    """The cursor behind a page that showed ``shown``; None when a cursor cannot hold what was shown by then."""
    items = np.concatenate([before, shown]) if len(before) else shown
    if len(items) > MAX_PAGED:
        return None
    return urlsafe_b64encode(items.astype("<u4").tobytes()).rstrip(b"=").decode()
