"""What the console is told by a running server: its keys, and how it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headwater.online.access import Access
from headwater.online.console_cards import Cards
from headwater.online.console_past import ConsolePast
from headwater.online.console_play import ConsolePlay
from headwater.online.console_pulse import ConsolePulse
from headwater.online.service import Service
from headwater.schema.keys import ApiKey


class ConsoleKeys:
    """The keys that ``access`` follows, as the console asks for them."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def needed(self) -> bool:
        """Whether there are keys; without them everybody on this machine may do everything."""
        return self._access.has_keys

    def by_text(self, text: str) -> ApiKey | None:
        """The good key with that text; None: there is none."""
        return self._access.key_of(text.encode())

    def by_id(self, number: str) -> ApiKey | None:
        """The key of that id if it is still good; None: there is none."""
        return self._access.key_with(number)


class ConsoleLive:
    """A worker's service, as the console asks for it."""

    def __init__(self, service: Service, data: Path) -> None:
        self._service = service
        cards = Cards(service)
        self.play = ConsolePlay(service, data, cards)
        self.past = ConsolePast(service, cards)
        self.pulses = ConsolePulse(service, data)

    def health(self) -> Mapping[str, Any]:
        """What ``/healthz`` says."""
        return self._service.health()

    async def why_not_ready(self) -> list[str]:
        """What ``/readyz`` says: reasons, none when all is well. A writer that hangs holds up one page, not each."""
        return list(await self._service.why_not_ready(waiting=False))
