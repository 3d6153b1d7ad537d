"""Where a user is, when the request does not say: the country that their row knows."""

from __future__ import annotations

from headwater.features.layout import U_SEGMENT
from headwater.features.rows import User
from headwater.log.protocol import Vocabulary
from headwater.log.record import Namespace
from headwater.schema.config import MAX_SEGMENT_KEYS

REGION_KEY = "country"


class Regions:
    """Dense REGIONs of texts, 0 for one that no item is limited to.

    The log is asked for new ones when the item columns have moved on: a region is a term before an item can name it. Most texts are
    no regions, and to ask for each anew would cost every request a read.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._offset = -1

    def index(self, text: str, item_offset: int) -> int:
        """The region of that name, as of the item columns at ``item_offset``."""
        if item_offset != self._offset:
            self._vocabulary.refresh(Namespace.REGION)
            self._offset = item_offset
        return self._vocabulary.known(Namespace.REGION).get(text, 0)


class StoredRegion:
    """Dense REGION of a user row: the one that is named like the row's last known segment of key ``country``.

    0 when the row knows no country, or no item is limited to it.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary, self.regions = vocabulary, Regions(vocabulary)

    def __call__(self, user: User, item_offset: int) -> int:
        for segment in user.u4[U_SEGMENT : U_SEGMENT + MAX_SEGMENT_KEYS].tolist():
            key, _, value = (self._vocabulary.text(Namespace.SEGMENT, segment) or "").partition("=")
            if key == REGION_KEY:
                return self.regions.index(value, item_offset)
        return 0


def nowhere(_user: User, _item_offset: int) -> int:
    """The region of a pipeline without a vocabulary: unknown."""
    return 0
