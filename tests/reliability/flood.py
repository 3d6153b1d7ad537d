"""The generator for rates that a Python process cannot keep: ``flood.mjs`` in Node, its plan and its figures."""

from __future__ import annotations

import csv
import subprocess
from pathlib import Path

import msgspec
from msgspec import Struct

SCRIPT = Path(__file__).with_name("flood.mjs")
PATIENCE_S = 60.0


class Sent(Struct, frozen=True):
    """An arrival: milliseconds from its scheduled time to the last byte of the answer, and the status (0: none came)."""

    latency_ms: float
    status: int


class FloodPlan(Struct, frozen=True, kw_only=True):
    """Poisson arrivals of one ``request`` (its bytes as text) over at most ``connections``."""

    host: str
    port: int
    request: str
    per_s: float
    duration_s: float
    seed: int
    connections: int = 512


class Flood:
    """A run of ``plan``, from ``start`` to ``answers``."""

    def __init__(self, node: str, plan: FloodPlan, folder: Path) -> None:
        given = folder / "flood.json"
        given.write_bytes(msgspec.json.encode(plan))
        self._out = folder / "flood.csv"
        self._command = [node, str(SCRIPT), str(given), str(self._out)]
        self._until_s = plan.duration_s + PATIENCE_S

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL)

    def answers(self) -> list[Sent]:
        """What came of every arrival, once it has ended."""
        if self._process.wait(self._until_s):
            raise RuntimeError(f"{SCRIPT.name} ended with exit code {self._process.returncode}")
        with self._out.open(newline="") as out:
            return [Sent(float(latency), int(status)) for latency, status in csv.reader(out)]
