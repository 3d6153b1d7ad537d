"""Interaction events: what people did."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

Id = Annotated[str, Meta(min_length=1, max_length=128, description="Your identifier, any text")]
Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.:\-]+$")]
Millis = Annotated[int, Meta(ge=0, le=4_102_444_800_000, description="Unix time in milliseconds")]
Scalar = str | int | float | bool
Attributes = dict[Annotated[str, Meta(min_length=1, max_length=64)], Scalar]

MAX_ATTRIBUTES = 32
MAX_TEXT_VALUE = 512
MAX_BATCH = 10_000


class Event(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One interaction of a user with an item.

    ``time`` is when it happened (default: when the server received it). ``event_id`` makes a retry
    harmless: a repeat inside the dedup window changes nothing. ``retract`` takes an earlier
    event of the same user, item and type back; give it the earlier event's ``time``.
    """

    user: Id
    item: Id
    type: Name
    time: Millis | None = None
    event_id: Id | None = None
    value: Annotated[float, Meta(ge=-1e12, le=1e12)] | None = None
    surface: Name | None = None
    request_id: Id | None = None
    position: Annotated[int, Meta(ge=0, le=100_000)] | None = None
    session: Id | None = None
    retract: bool = False
    attributes: Attributes | None = None

    def __post_init__(self) -> None:
        check_attributes(self.attributes)


class EventDetail(Struct, frozen=True, array_like=True, omit_defaults=True):
    """The fields of an event that no kernel reads, as they stand in a record's payload (MessagePack)."""

    event_id: str | None = None
    request_id: str | None = None
    position: int | None = None
    session: str | None = None
    attributes: Attributes | None = None


def check_attributes(attributes: Attributes | None) -> None:
    """Raise ``ValueError`` for too many attributes or an oversized text value."""
    if attributes is None:
        return
    if len(attributes) > MAX_ATTRIBUTES:
        raise ValueError(f"Expected at most {MAX_ATTRIBUTES} attributes, got {len(attributes)}")
    for key, value in attributes.items():
        if isinstance(value, str) and len(value) > MAX_TEXT_VALUE:
            raise ValueError(f"Expected attribute `{key}` of length <= {MAX_TEXT_VALUE}")


class Rejection(Struct, frozen=True, omit_defaults=True):
    """One refused entry of a batch: its position, the field at fault (a JSON path) and why."""

    index: int
    field: str
    reason: str


class IngestReply(Struct, frozen=True):
    """Answer to an ingest call. ``token`` may be sent with a recommend request to see these events."""

    accepted: int
    duplicates: int
    rejected: list[Rejection]
    token: str


def field_of(error: msgspec.ValidationError) -> tuple[str, str]:
    """Split a msgspec message into (field path, reason): ``... - at `$.user``` → (``user``, ...)."""
    text = str(error)
    if " - at `" in text:
        reason, _, path = text.rpartition(" - at `")
        return path.rstrip("`").removeprefix("$").removeprefix(".") or "$", reason
    # "Object missing required field `user`", "Object contains unknown field `usr`", "Expected `expires` at or after…";
    # in "Expected `object`, got `array`" and "Expected `array` of length <= 100" what stands in backquotes is no field
    if "`" in text and ", got `" not in text and "` of length " not in text:
        return text.split("`")[1], text
    return "$", text
