"""What a load process is to send, and when: arrivals that are fixed before the first request is sent."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from msgspec import Struct


class Arrival(Struct, frozen=True, array_like=True, omit_defaults=True):
    """One request at ``at_s`` after the start: ``raw`` is the whole HTTP request, ``stream`` names its kind.

    With ``probe_user`` it is a freshness probe instead (``raw`` is empty): shortly before ``at_s`` the user asks
    for a list; at ``at_s`` a click on its first item is posted, and at once a new list is asked for with
    the token of the click.
    """

    at_s: float
    stream: str
    raw: bytes = b""
    probe_user: str | None = None


class Plan(Struct, frozen=True, array_like=True):
    """The arrivals, in order of time. ``closed`` > 0: times don't count, so many requests are under way at any time."""

    host: str
    port: int
    arrivals: list[Arrival]
    connections: int = 128
    closed: int = 0
    stop_after_s: float = 3_600.0


class Outcome(Struct, frozen=True, array_like=True):
    """What came of ``arrivals[index]``.

    ``latency_ms`` counts from the scheduled time (closed loop: from sending) to the last byte of the answer;
    ``lag_ms`` is the part of it before this process had sent the request. ``accepted`` is what an ingest reply
    said. ``ok``: a 2xx answer that holds what it should; if not, ``note`` says why.
    """

    index: int
    stream: str
    at_s: float
    lag_ms: float
    latency_ms: float
    status: int
    ok: bool
    accepted: int = 0
    note: str = ""


def poisson_times(rng: np.random.Generator, per_s: float, start_s: float, duration_s: float) -> list[float]:
    """Times of a Poisson process of rate ``per_s`` in [start_s, start_s + duration_s), in order."""
    if per_s <= 0 or duration_s <= 0:
        return []
    count = int(rng.poisson(per_s * duration_s))
    return [float(at) for at in start_s + np.sort(rng.random(count)) * duration_s]


def http_request(method: str, path: str, body: bytes = b"", host: str = "127.0.0.1") -> bytes:
    """The bytes of an HTTP/1.1 request with a JSON body."""
    head = f"{method} {path} HTTP/1.1\r\nhost: {host}\r\n"
    if body:
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


def in_order(*streams: list[Arrival]) -> list[Arrival]:
    """Join streams into one, by time."""
    return sorted((arrival for stream in streams for arrival in stream), key=lambda arrival: arrival.at_s)


def drawn(rng: np.random.Generator, upper: int, count: int) -> Iterator[int]:
    """``count`` positions below ``upper``."""
    return (int(at) for at in rng.integers(0, upper, count))
