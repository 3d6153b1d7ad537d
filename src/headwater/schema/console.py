"""``[console]``: the pages for people, in the same server."""

from __future__ import annotations

from msgspec import Struct


class Console(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``enabled``: servers that recommend show the console below ``/console``."""

    enabled: bool = True
