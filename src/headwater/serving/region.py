"""Where a user is, when the request does not say: the country that their row knows."""

from __future__ import annotations

from headwater.features.layout import U_SEGMENT
from headwater.features.rows import User
from headwater.log.protocol import Vocabulary
from headwater.log.record import Namespace
from headwater.schema.config import MAX_SEGMENT_KEYS

REGION_KEY = "country"


class StoredRegion:
    """Dense REGION of a user row: the one that is named like the row's last known segment of key ``country``.

    0 when the row knows no country, or no item is limited to it. A log whose terms are mirrored in memory
    answers without a read; regions that come up later are found.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def __call__(self, user: User) -> int:
        for segment in user.u4[U_SEGMENT : U_SEGMENT + MAX_SEGMENT_KEYS].tolist():
            key, _, value = (self._vocabulary.text(Namespace.SEGMENT, segment) or "").partition("=")
            if key == REGION_KEY:
                return self._vocabulary.index(Namespace.REGION, value)
        return 0


def nowhere(_user: User) -> int:
    """The region of a pipeline without a vocabulary: unknown."""
    return 0
