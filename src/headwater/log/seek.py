"""Finding a place in the log by time."""

from __future__ import annotations

from headwater.log.protocol import EventLog


def last_before(log: EventLog, time_ms: int) -> tuple[int, int]:
    """The last (offset, ``received_ms``) received before ``time_ms``; ``(first_offset - 1, 0)`` when there is none.

    ``received_ms`` never decreases with the offset, so the place is found by halving.
    """
    low, high, at = log.first_offset - 1, log.last_offset, 0
    while low < high:
        middle = (low + high + 1) // 2
        block = log.read(middle - 1, 1)
        received = int(block.records["received_ms"][0]) if block is not None else 0
        if received < time_ms:
            low, at = middle, received
        else:
            high = middle - 1
    return low, at
