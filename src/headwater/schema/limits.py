"""How much one caller may ask, one user may say, and a worker takes on."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from headwater.schema.durations import Duration
from headwater.schema.errors import ConfigurationError
from headwater.schema.events import Name

_Share = Annotated[float, Meta(ge=0.0, le=1.0)]


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of each API process, which counts on its own.

    ``requests_per_s`` (0: no limit) is what a key may ask in the long run, ``burst`` what it may ask at once.
    ``user_events_per_hour``: the most events of a type that count of one user in an hour; a type that is not named has no cap.
    ``hosts``: the hosts besides this machine that URLs of the configuration may lead to.
    """

    requests_per_s: Annotated[float, Meta(ge=0.0, le=1e6)] = 0.0
    burst: Annotated[int, Meta(ge=1, le=1_000_000)] = 100
    user_events_per_hour: dict[Name, Annotated[int, Meta(ge=1, le=1_000_000_000)]] = {}
    hosts: tuple[Annotated[str, Meta(min_length=1, max_length=255)], ...] = ()


class Overload(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a worker does with more requests than it can answer: who waits for how long, and who is turned away at once.

    ``target_ms`` 0: ``ladder.deadline_ms``. A share is that part of the target (``write_target_ms`` for what writes)
    which a request of the priority may expect to wait: with less than 1, hardly any is let in and then turned away late.
    """

    target_ms: Annotated[float, Meta(ge=0.0, le=10_000.0)] = 0.0
    write_target_ms: Annotated[float, Meta(ge=1.0, le=60_000.0)] = 1_000.0
    high_share: _Share = 0.9
    normal_share: _Share = 0.8
    low_share: _Share = 0.2
    min_concurrency: Annotated[int, Meta(ge=1, le=65_536)] = 4
    max_concurrency: Annotated[int, Meta(ge=1, le=65_536)] = 256
    body_timeout: Duration = "5s"
    header_timeout: Duration = "8s"

    def __post_init__(self) -> None:
        if self.min_concurrency > self.max_concurrency:
            raise ConfigurationError(
                f"overload.min_concurrency: Expected at most overload.max_concurrency ({self.max_concurrency}), got {self.min_concurrency}"
            )
        if not self.high_share >= self.normal_share >= self.low_share:
            raise ConfigurationError("overload.low_share: Expected low_share <= normal_share <= high_share")
