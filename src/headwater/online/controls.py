"""Following the controls: what a person or an alert changes holds from the next request on."""

from __future__ import annotations

import asyncio
from pathlib import Path

from headwater.online.recommender import Recommender
from headwater.registry.controls import ControlsFile

POLL_S = 0.5


class ControlsWatch:
    """Hands ``recommender`` the controls of ``data``, and each change of them."""

    def __init__(self, data: Path, recommender: Recommender) -> None:
        self._file = ControlsFile(data)
        self._recommender = recommender
        recommender.controls = self._file.now

    async def run(self) -> None:
        """Follow the file until cancelled: one ``stat`` each half second."""
        while True:
            await asyncio.sleep(POLL_S)
            if self._file.poll():
                self._recommender.controls = self._file.now
