"""Debian's ``hey`` as a generator for rates that a Python process cannot send: its command line and its figures."""

from __future__ import annotations

import csv
import subprocess
from pathlib import Path

from msgspec import Struct


class Sent(Struct, frozen=True):
    """A request that was answered: milliseconds to the last byte, and the status."""

    latency_ms: float
    status: int


class Flood:
    """``hey`` on ``url`` from ``start`` to ``answers``: POST ``body`` at ``per_s`` over ``connections``, each on its own beat.

    A connection whose answer is late sends less, so the rate that came about counts, not the one that was asked for.
    """

    def __init__(
        self, hey: str, url: str, body: bytes, *, per_s: float, duration_s: float, connections: int, folder: Path,
        headers: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        given = folder / "flood.json"
        given.write_bytes(body)
        self._out = folder / "flood.csv"
        self._command = [
            hey, "-z", f"{duration_s:g}s", "-c", str(connections), "-q", f"{per_s / connections:g}", "-t", "10",
            "-m", "POST", "-T", "application/json", "-D", str(given), "-o", "csv", "-cpus", "1",
        ]  # fmt: skip
        for header in headers:
            self._command += ["-H", header]
        self._command.append(url)
        self.duration_s = duration_s

    def start(self) -> None:
        with self._out.open("wb") as out:
            self._process = subprocess.Popen(self._command, stdout=out, stdin=subprocess.DEVNULL)

    def answers(self) -> list[Sent]:
        """All answers, once it has ended."""
        if self._process.wait(self.duration_s + 30.0):
            raise RuntimeError(f"hey ended with exit code {self._process.returncode}: {self._out.read_text()[-500:]}")
        with self._out.open(newline="") as out:
            return [
                Sent(float(row["response-time"]) * 1e3, int(row["status-code"]))
                for row in csv.DictReader(out)
                if row["response-time"]
            ]
