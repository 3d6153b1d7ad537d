"""Measurements beside the load: percentiles, processor time, metrics of the server, the machine."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import msgspec
import numpy as np

from headwater.cli.bench.schedule import Outcome, Plan
from headwater.schema.errors import UnavailableError

_PACKAGES = ("headwater", "numpy", "numba", "lightgbm", "litestar", "uvicorn", "granian", "msgspec", "lmdb", "uvloop")
_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)(?: \d+)?$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def send(plan: Plan) -> list[Outcome]:
    """Run ``plan`` in a load process of its own.

    Raises:
        UnavailableError: the load process failed.
    """
    with tempfile.TemporaryDirectory(prefix="headwater-load-") as folder:
        given, made = Path(folder) / "plan", Path(folder) / "outcomes"
        given.write_bytes(msgspec.msgpack.encode(plan))
        command = [sys.executable, "-m", "headwater.cli.bench.load", str(given), str(made)]
        done = subprocess.run(command, check=False)  # noqa: S603
        if done.returncode:
            raise UnavailableError(f"The load process failed with exit code {done.returncode}")
        return msgspec.msgpack.decode(made.read_bytes(), type=list[Outcome])


def percentile_ms(outcomes: Sequence[Outcome], percent: float) -> float | None:
    """A percentile of the latencies of ``outcomes``, failures included; ``None`` when there are none."""
    if not outcomes:
        return None
    return round(float(np.percentile([o.latency_ms for o in outcomes], percent)), 3)


def lag_p99_ms(outcomes: Sequence[Outcome]) -> float | None:
    """P99 of how late the load process itself was: the part of the latencies that is not the server's."""
    return round(float(np.percentile([o.lag_ms for o in outcomes], 99)), 3) if outcomes else None


def failures(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """How often each reason for a failure stands in ``outcomes``; digits are left out, so that equal reasons meet."""
    counts: dict[str, int] = {}
    for outcome in outcomes:
        if not outcome.ok:
            reason = re.sub(r"\d+", "#", outcome.note)[:120] if outcome.status else outcome.note[:120]
            counts[reason] = counts.get(reason, 0) + 1
    return dict(sorted(counts.items(), key=lambda entry: -entry[1])[:5])


def processor_seconds(root: int, proc: Path = Path("/proc")) -> dict[int, float]:
    """User and system time of process ``root`` and everything below it, by process id."""
    ticks = os.sysconf("SC_CLK_TCK")
    parents: dict[int, int] = {}
    spent: dict[int, float] = {}
    for stat in proc.glob("[0-9]*/stat"):
        try:
            text = stat.read_text(encoding="utf-8", errors="replace")
        except OSError:  # it ended meanwhile
            continue
        pid = int(stat.parent.name)
        fields = text.rpartition(")")[2].split()  # the name before may hold anything
        parents[pid] = int(fields[1])
        spent[pid] = (int(fields[11]) + int(fields[12])) / ticks
    inside = {root}
    while grown := {pid for pid, parent in parents.items() if parent in inside} - inside:
        inside |= grown
    return {pid: spent[pid] for pid in sorted(inside) if pid in spent}


def part_of(pid: int, proc: Path = Path("/proc")) -> str:
    """What a process of the server does: its ``--part``; "supervisor" without one, "ended" if it is gone."""
    try:
        words = (proc / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "ended"
    return words[words.index("--part") + 1] if "--part" in words[:-1] else "supervisor"


def seconds_by_part(root: int, proc: Path = Path("/proc")) -> dict[str, float]:
    """:func:`processor_seconds`, summed by part."""
    parts: dict[str, float] = {}
    for pid, seconds in processor_seconds(root, proc).items():
        part = part_of(pid, proc)
        parts[part] = parts.get(part, 0.0) + seconds
    return parts


def pin_part(root: int, part: str, core: int, proc: Path = Path("/proc")) -> None:
    """Have all threads of the processes of a part below ``root`` run on ``core`` alone."""
    for pid in processor_seconds(root, proc):
        if part_of(pid, proc) == part:
            for thread in (proc / str(pid) / "task").iterdir():
                os.sched_setaffinity(int(thread.name), {core})


@contextmanager
def one_core() -> Iterator[int | None]:
    """A processor that this process, and what it starts, leaves alone meanwhile; None where there is only one."""
    if not hasattr(os, "sched_setaffinity") or len(cores := os.sched_getaffinity(0)) < 2:
        yield None
        return
    core = max(cores)
    os.sched_setaffinity(0, cores - {core})
    try:
        yield core
    finally:
        os.sched_setaffinity(0, cores)


def growth(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """``after - before`` by key; a key that was not there before counts from 0."""
    return {key: value - before.get(key, 0.0) for key, value in after.items()}


class Metrics:
    """Samples of a Prometheus text page."""

    def __init__(self, text: str) -> None:
        self.samples: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        for line in text.splitlines():
            found = _SAMPLE.match(line)
            if found is not None:
                labels = tuple(sorted(_LABEL.findall(found["labels"] or "")))
                self.samples[found["name"], labels] = float(found["value"])

    def growth_since(self, before: Metrics, name: str, label: str | None = None) -> dict[str, float]:
        """How much a counter grew, by the value of ``label`` (None: of its only label; "" without one)."""
        grown: dict[str, float] = {}
        for (sample, labels), value in self.samples.items():
            if sample == name:
                key = (labels[0][1] if labels else "") if label is None else dict(labels).get(label, "")
                grown[key] = grown.get(key, 0.0) + value - before.samples.get((sample, labels), 0.0)
        return grown

    def means_since(self, before: Metrics, name_ends: str, label: str | None) -> dict[str, float]:
        """Mean of each histogram or summary whose name ends so, by value of ``label`` ("" without one)."""
        totals: dict[str, list[float]] = {}
        for (name, labels), value in self.samples.items():
            for part, suffix in enumerate(("_sum", "_count")):
                if name.endswith(name_ends + suffix):
                    key = dict(labels).get(label, "") if label is not None else ""
                    if label is None or key:
                        totals.setdefault(key, [0.0, 0.0])[part] += value - before.samples.get((name, labels), 0.0)
        return {key: total / count for key, (total, count) in totals.items() if count > 0}


def machine() -> Mapping[str, str | int]:
    """The machine that figures were measured on."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:  # not Linux: the platform's own name has to do
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"cpu": model, "cores": cores, "python": platform.python_version(), "system": platform.platform()}


def versions() -> dict[str, str]:
    """Versions of what does the work."""
    return {name: metadata.version(name) for name in _PACKAGES if _is_installed(name)}


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
