"""User profiles. Everything in them is personal: the log keeps it encrypted with a key per user."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from headwater.schema.events import Attributes, Id, Scalar, check_attributes

ANONYMOUS = r"anon-[0-9a-f]{32}"
"""Ids that pages draw for visitors whom nobody knows: 128 random bits, so that nobody names another's."""


class UserProfile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is known about a user beside their events; sending it again replaces it whole.

    An attribute (or ``country``) that is named in ``[segments]`` of the configuration puts the user
    into that segment. Segments are what was said last, key by key, by profiles and events alike: a profile
    without a key leaves the user where the last profile or event with that key put them.
    """

    id: Id
    country: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    language: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    timezone: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    birth_year: Annotated[int, Meta(ge=1900, le=2100)] | None = None
    gender: Annotated[str, Meta(min_length=1, max_length=32)] | None = None
    attributes: Attributes | None = None

    def __post_init__(self) -> None:
        check_attributes(self.attributes)

    def field_of(self, key: str) -> Scalar | None:
        """A field of that name, else an attribute."""
        value: Scalar | None = None
        if key in self.__struct_fields__ and key not in ("id", "attributes"):
            value = getattr(self, key)
        if value is None and self.attributes is not None:
            value = self.attributes.get(key)
        return value


class Joined(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A login: what the ``anonymous`` id did belongs to ``user`` from now on."""

    anonymous: Id
    user: Id
