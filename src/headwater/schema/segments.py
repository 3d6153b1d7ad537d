"""Segments: which attributes split popularity, and what a segment is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from msgspec import Meta, Struct

from headwater.schema.errors import ConfigurationError

JOIN = "+"


class Segments(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The attributes that split popularity: of the event, the request or the profile, in this order of preference.

    A key ``a+b`` joins attributes: each combination of their values is a segment of its own.
    """

    keys: tuple[Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[^=]+$")], ...] = ("country", "device")

    def __post_init__(self) -> None:
        for index, key in enumerate(self.keys):
            parts = parts_of(key)
            if "" in parts or len(set(parts)) < len(parts):
                raise ConfigurationError(
                    f'segments.keys[{index}]: Expected an attribute, or different ones joined by "{JOIN}", got "{key}"'
                )


def parts_of(key: str) -> tuple[str, ...]:
    """The attributes that a segment key is made of: one, or those that it joins."""
    return tuple(key.split(JOIN))


def segment_of(key: str, value_of: Callable[[str], object | None]) -> str | None:
    """The text of a segment, ``"key=value"``; ``value_of`` gives the value of one attribute, None where it is unknown.

    A joined key has the values of all its attributes, ``"os+referrer=17+2"``, and no segment when one of them is unknown.
    """
    values = [value_of(part) for part in parts_of(key)]
    return None if None in values else f"{key}={JOIN.join(map(str, values))}"
