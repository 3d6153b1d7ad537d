"""A figure at a moment, and what has some to give."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol


class Sample(NamedTuple):
    """One value of one series. ``name`` is a metric of ``docs/metrics.md``, ``labels`` are sorted by key."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


def sample(name: str, value: float, **labels: str) -> Sample:
    """A sample; labels may come in any order."""
    return Sample(name, tuple(sorted(labels.items())), value)


Details = dict[tuple[str, str], str]
"""Why a figure is what it is, in words, by metric and group: what a number cannot say."""


class Watch(Protocol):
    """Something that the monitor looks at in each round."""

    name: str

    def look(self, now_ms: int) -> Iterable[Sample]:
        """What it finds at ``now_ms``; nothing, when it is not its time. It may raise: the round goes on without it, and says so."""
