"""Items as the console shows them."""

from __future__ import annotations

from collections.abc import Sequence

from headwater.log.record import Namespace
from headwater.online.service import Service
from headwater.schema.errors import UnavailableError
from headwater.schema.seen import Card


class Cards:
    """The catalogue of ``service``. Where the state is away a card has the id alone."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def of(self, items: Sequence[str]) -> dict[str, Card]:
        """A card for each of ``items``, by id."""
        return {item: self._card(item) for item in items}

    def _card(self, item: str) -> Card:
        stores = self._service.stores
        dense = stores.log.vocabulary().index(Namespace.ITEM, item)
        try:
            record = stores.state.item_record(dense) if dense else None
        except UnavailableError:  # the page tells by what else it lacks; an id is better than no list
            record = None
        if record is None:
            return Card(item, item, [])
        return Card(item, record.item.title or item, record.item.categories)
