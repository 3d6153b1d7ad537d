"""Items: what can be recommended."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from headwater.schema.events import Attributes, Id, Millis, check_attributes

Label = Annotated[str, Meta(min_length=1, max_length=128)]

MAX_CATEGORIES = 8
MAX_REGIONS = 8


class Item(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One item of the catalogue; sending it again replaces it whole.

    ``available=False`` hides it at once. It is eligible from ``published`` until ``expires``.
    ``regions`` empty means everywhere. ``vector`` is your own content embedding, if you have one.
    """

    id: Id
    title: Annotated[str, Meta(max_length=512)] = ""
    text: Annotated[str, Meta(max_length=20_000)] = ""
    categories: Annotated[list[Label], Meta(max_length=MAX_CATEGORIES)] = []
    tags: Annotated[list[Label], Meta(max_length=64)] = []
    price: Annotated[float, Meta(ge=0, le=1e12)] | None = None
    available: bool = True
    regions: Annotated[list[Label], Meta(max_length=MAX_REGIONS)] = []
    published: Millis | None = None
    expires: Millis | None = None
    attributes: Attributes | None = None
    vector: Annotated[list[Annotated[float, Meta(ge=-1e6, le=1e6)]], Meta(min_length=1, max_length=1024)] | None = None

    def __post_init__(self) -> None:
        check_attributes(self.attributes)
        if self.published is not None and self.expires is not None and self.expires < self.published:
            raise ValueError("Expected `expires` at or after `published`")
