"""What happens in a simulated world, as the event log takes it."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from headwater.log.batch import EventBatch
from headwater.schema.events import EventDetail
from headwater.simulator import EVENT_TYPES, History
from headwater.simulator.people import COUNTRIES, DEVICES, user_id
from headwater.simulator.world import Populated

_encode = msgspec.msgpack.Encoder().encode


def list_id(listing: int) -> str:
    """The request id of a list of a world."""
    return f"list-{listing}"


def list_number(request_id: str) -> int:
    """The number of the list with that request id."""
    return int(request_id.removeprefix("list-"))


def history_batch(
    world: Populated, part: History, segment_keys: tuple[str, ...], *, lists: bool = True, received_from_time: bool = True
) -> EventBatch:  # fmt: skip
    """A part of a history as the log takes it. ``lists``: events say on which list, at which place of it and in which visit they
    came. ``received_from_time``: every event is received at its own time, else when it is appended.
    """
    users, user = np.unique(part.user, return_inverse=True)
    items, item = np.unique(part.item, return_inverse=True)
    values = {"country": COUNTRIES, "device": DEVICES}
    columns: dict[str, npt.NDArray[np.integer]] = {
        "country": world.people.country[part.user],
        "device": part.device,
    }
    segments = [""]
    segment = np.zeros((len(part), 2), np.uint16)
    for place, key in enumerate(segment_keys):
        if key in values:
            segment[:, place] = len(segments) + columns[key]
            segments += [f"{key}={value}" for value in values[key]]
    details = _details(part) if lists else [b""] * len(part)
    return EventBatch(
        users=[user_id(int(u)) for u in users],
        items=[world.catalogue.items[int(i)].id for i in items],
        types=list(EVENT_TYPES),
        surfaces=["", "home"],
        segments=segments,
        user=user.astype(np.uint32),
        item=item.astype(np.uint32),
        type=part.type.astype(np.uint16),
        surface=np.ones(len(part), np.uint16),
        segment=segment,
        time_ms=part.time_ms,
        value=part.value,
        event_key=np.zeros(len(part), np.uint64),
        flags=np.zeros(len(part), np.uint16),
        detail=np.frombuffer(b"".join(details), np.uint8),
        detail_size=np.array([len(detail) for detail in details], np.uint32),
        received_from_time=received_from_time,
    )


def _details(part: History) -> list[bytes]:
    """Empty for what came of no list (a negative number)."""
    columns = zip(part.listing.tolist(), part.position.tolist(), part.session.tolist(), strict=True)
    return [
        _encode(EventDetail(request_id=list_id(listing), position=position, session=f"visit-{session}"))
        if listing >= 0
        else b""
        for listing, position, session in columns
    ]
