"""``[monitoring.traces]``: whether requests are traced, and where the traces go."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from headwater.schema.urls import check_url


class Traces(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``endpoint``: where an OpenTelemetry collector takes traces over HTTP ("": nothing is traced), on this machine or a host of
    ``limits.hosts``. A ``share`` of the requests is traced, and those whose caller traces them.
    """

    endpoint: Annotated[str, Meta(max_length=2_048)] = ""
    share: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.01

    def __post_init__(self) -> None:
        if self.endpoint:
            check_url("monitoring.traces.endpoint", self.endpoint, ("http://", "https://"))
