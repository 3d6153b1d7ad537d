"""``[monitoring]``: what is watched."""

from __future__ import annotations

from msgspec import Struct

from headwater.schema.online_metrics import OnlineMetrics
from headwater.schema.traces import Traces


class Monitoring(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is watched; ``online``: what people do with lists, ``traces``: what requests are traced."""

    online: OnlineMetrics = OnlineMetrics()
    traces: Traces = Traces()
