"""What is in the log, for people: titles, categories, and what is clicked most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from headwater.log.archived import open_log
from headwater.log.batch import ItemRecord
from headwater.log.record import Kind, Namespace, of_people
from headwater.schema.errors import ConfigurationError
from headwater.schema.items import Item

_CHUNK = 65_536
_MOST_OF_LIST = 0.2  # a taste that fills more of a list than this is not beside it


@dataclass(frozen=True)
class Shelf:
    """The catalogue of a log. ``popular`` holds ids of items that can be shown, most events first.

    ``events`` counts the interactions, ``last_ms`` is when the newest record was received.
    """

    items: dict[str, Item]
    popular: list[str]
    events: int
    last_ms: int

    def title(self, item: str) -> str:
        """The title, or the id where there is none."""
        known = self.items.get(item)
        return known.title if known is not None and known.title else item

    def with_titles(self, text: str) -> str:
        """``text`` with titles in the place of item ids."""
        return " ".join(f"“{self.title(word)}”" if word in self.items else word for word in text.split(" "))

    def categories(self, item: str) -> Sequence[str]:
        known = self.items.get(item)
        return known.categories if known is not None else ()

    def has(self, item: str, taste: str) -> bool:
        """Whether ``taste`` is among the categories of the item."""
        return taste in self.categories(item)

    def best_of(self, taste: str, count: int) -> list[str]:
        """The ``count`` items that say most clearly ``taste``: its own first, with few other categories, then popular.

        Only the more popular half of the taste's items is looked at: nobody clicks what nobody knows.
        """
        own = [item for item in self.popular if self.categories(item)[:1] == [taste]]
        known = own[: max(count, len(own) // 2)]
        return sorted(known, key=lambda item: len(self.categories(item)))[:count]

    def taste_beside(self, shown: Sequence[str], at_least: int) -> str:
        """A category that a list hardly shows, the most popular one of them; it has ``at_least`` items to click.

        Raises:
            ConfigurationError: no category has so many items.
        """
        in_list = Counter(category for item in shown for category in self.categories(item))
        rank = {item: place for place, item in enumerate(self.popular)}
        tastes = Counter(self.categories(item)[0] for item in self.popular if self.categories(item))
        enough = [taste for taste, count in tastes.items() if count >= at_least]
        if not enough:
            raise ConfigurationError(f"No category has {at_least} items, so no taste can be clicked")
        beside = [taste for taste in enough if in_list[taste] <= _MOST_OF_LIST * len(shown)] or enough
        return min(beside, key=lambda taste: (in_list[taste], rank[self.best_of(taste, at_least)[-1]], taste))


def read_shelf(data: Path) -> Shelf:
    """Read the log in ``data`` once."""
    log = open_log(data)
    try:
        decode = msgspec.msgpack.Decoder(ItemRecord).decode
        ids = log.vocabulary().texts(Namespace.ITEM)
        items: dict[str, Item] = {}
        counts = np.zeros(len(ids) + 1, np.int64)
        events = offset = 0
        while (block := log.read(offset, _CHUNK)) is not None:
            offset = block.last_offset
            kinds = block.records["kind"]
            for row in np.flatnonzero(kinds == Kind.ITEM):
                item = decode(block.payload(int(row))).item
                items[item.id] = item
            for row in np.flatnonzero(kinds == Kind.ITEM_DELETED):
                items.pop(ids[int(block.records["item"][row])], None)
            chosen = block.records["item"][of_people(block.records, Kind.EVENT)]
            events += len(chosen)
            counts += np.bincount(chosen, minlength=len(counts))
        last_ms = log.last_received_ms
    finally:
        log.close()
    position = {item: place for place, item in enumerate(ids)}
    shown = [
        item.id
        for item in items.values()
        if item.available and not item.regions and (item.expires is None or item.expires > last_ms)
    ]
    popular = sorted(shown, key=lambda item: (-int(counts[position[item]]), item))
    return Shelf(items, popular, events, last_ms)
