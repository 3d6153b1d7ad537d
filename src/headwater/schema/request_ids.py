"""Ids of requests: when, and 80 random bits.

An id of 32 hexadecimal digits begins with its time (48 bits of Unix milliseconds, as UUIDv7 of RFC 9562 has it), so that the list of
a request is found in a long log without reading it, and an id that no request can have had is known at once.
"""

from __future__ import annotations

import os

_TIME_DIGITS, _RANDOM_BYTES = 12, 10


def new_request_id(now_ms: int) -> str:
    """An id for a request at ``now_ms``, Unix milliseconds of the request clock."""
    return f"{now_ms % (1 << 4 * _TIME_DIGITS):0{_TIME_DIGITS}x}{os.urandom(_RANDOM_BYTES).hex()}"


def request_ms(request_id: str) -> int | None:
    """When the request of that id came, Unix milliseconds; None: it is no id of :func:`new_request_id`."""
    digits = request_id[:_TIME_DIGITS]
    if len(request_id) != _TIME_DIGITS + 2 * _RANDOM_BYTES or set(request_id) - set("0123456789abcdef"):
        return None
    return int(digits, 16)
