"""``[monitoring]``: how often the monitor looks, what it keeps, and whom it tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated
from urllib.parse import urlsplit

from msgspec import Meta, Struct

from headwater.schema.alerts import Severity
from headwater.schema.drift import Drift
from headwater.schema.durations import Duration, parse_duration
from headwater.schema.errors import ConfigurationError
from headwater.schema.online_metrics import OnlineMetrics
from headwater.schema.traces import Traces
from headwater.schema.urls import check_host, check_url

_Url = Annotated[str, Meta(min_length=1, max_length=2_048)]


LEAST_WINDOW_MS = 10_000  # of experiments_window


class Monitoring(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The monitor process.

    ``default_alerts``: the rules of :mod:`headwater.schema.default_alerts` are on. ``webhooks`` are told of alerts from
    ``notify_from`` up and of every action. ``experiments_every``: how often running experiments are judged; each time the log is read. ``experiments_window``: how long after a
    user's first exposure what they do counts there.
    ``online``: what people do with lists; ``traces``: which requests are traced.
    ``drift``: when what is served counts as drifted.
    """

    enabled: bool = True
    every: Duration = "5s"
    history_mb: Annotated[float, Meta(ge=1.0, le=1e6)] = 256.0
    default_alerts: bool = True
    webhooks: Annotated[tuple[_Url, ...], Meta(max_length=16)] = ()
    notify_from: Severity = "warning"
    experiments_every: Duration = "5m"
    experiments_window: Duration = "1h"
    online: OnlineMetrics = OnlineMetrics()
    traces: Traces = Traces()
    drift: Drift = Drift()

    def __post_init__(self) -> None:
        if parse_duration(self.experiments_window) < LEAST_WINDOW_MS:
            raise ValueError(
                f'experiments_window: "{self.experiments_window}" leaves nothing to judge, for its first 5 s are kept for lists that are recorded late; take 10 s at least'
            )


def check_webhooks(webhooks: Sequence[str], hosts: Sequence[str]) -> None:
    """Raises :class:`ConfigurationError`: a webhook that is neither https to a host of ``limits.hosts`` nor on this machine."""
    for index, url in enumerate(webhooks):
        key = f"monitoring.webhooks[{index}]"
        check_url(key, url, ("https://", "http://"))
        check_host(key, url, hosts)
        if url.startswith("http://") and urlsplit(url).hostname not in ("localhost", "127.0.0.1", "::1"):
            raise ConfigurationError(
                f"{key}: Expected https:// to another machine: an alert says what is wrong with this one"
            )
