"""What is compared: an event table, questions about moments in it, and features whose values are fixed to the bit.

**Events** stand in log order: times never fall, equal times keep their order. **Questions** ask about one user and one
item as of just before the event at ``position``: events at lower positions count, that one and later ones do not.
A positive event is a question together with sampled items at its own moment, so many questions share a user.

**Features** (``feature_table``), for the user and for the item of a question, over positive events only:

- ``count``: how many ever; ``since_s``: seconds since the latest, -1 without one; ``last_item`` (user only): dense item
  of the latest by position, -1 without one; ``min``/``max`` of ``value`` ever, 0 without an event;
- ``count``/``sum``/``mean`` of ``value`` in a window of tiles: events at ``t`` with
  ``floor(t / tile) > floor(now / tile) - tiles``; without an event 0 (the mean as well);
- ``decayed`` (item only): ``sum 2^(-(now - t) / half_life)``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from headwater.schema.errors import HeadwaterError

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
# name, length, tiles
WINDOWS = (("1h", HOUR_MS, 12), ("1d", DAY_MS, 24), ("7d", 7 * DAY_MS, 28))
HALF_LIVES = (("30m", HOUR_MS // 2), ("6h", 6 * HOUR_MS), ("3d", 3 * DAY_MS))
# Forward-decayed sums hold 2^((t - middle) / half_life) in a double: its exponents end at 1,023, and sums need room.
MOST_HALF_LIVES = 1_900

Entity = Literal["user", "item"]
Kind = Literal["count", "since_s", "last_item", "min", "max", "sum", "mean", "decayed"]
Ints = npt.NDArray[np.int64]


class WorkloadError(HeadwaterError):
    """The workload cannot be made or asked as wanted."""


class Feature(NamedTuple):
    """A feature: ``span_ms`` is the window or the half-life (0: ever), ``tiles`` those of the window."""

    name: str
    entity: Entity
    kind: Kind
    span_ms: int = 0
    tiles: int = 0

    @property
    def exact(self) -> bool:
        """Whether answers must be the same number, not only close."""
        return self.kind in ("count", "last_item")


def feature_table() -> tuple[Feature, ...]:
    """All features of the comparison, users first."""
    table: list[Feature] = []
    entities: tuple[Entity, Entity] = ("user", "item")
    for entity in entities:
        ever: tuple[Kind, ...] = ("count", "since_s", "min", "max")
        table += [Feature(f"{entity}_{kind}", entity, kind) for kind in ever]
        windowed: tuple[Kind, ...] = ("count", "sum", "mean")
        for name, length, tiles in WINDOWS:
            table += [Feature(f"{entity}_{kind}_{name}", entity, kind, length, tiles) for kind in windowed]
    table.append(Feature("user_last_item", "user", "last_item"))
    table += [Feature(f"item_decayed_{name}", "item", "decayed", length) for name, length in HALF_LIVES]
    return tuple(table)


class Events(NamedTuple):
    """The log, one row an event, in log order: epoch ms, dense ids from 0, type slot."""

    time_ms: Ints
    user: Ints
    item: Ints
    type: npt.NDArray[np.uint8]
    value: npt.NDArray[np.float32]


class Asked(NamedTuple):
    """The questions, by ascending ``position``; ``now_ms`` is the time of the event at ``position``."""

    user: Ints
    item: Ints
    now_ms: Ints
    position: Ints


@dataclass(frozen=True)
class Workload:
    """Events, questions, and which type slots are positive."""

    name: str
    events: Events
    questions: Asked
    positive: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse what the peers cannot answer exactly.

        Raises:
            WorkloadError: no events, times or positions that fall, a question from another moment, or a log longer than
                doubles can decay.
        """
        times, asked = self.events.time_ms, self.questions
        if len(times) == 0:
            raise WorkloadError(f"workload {self.name}: it has no events; give it at least one")
        if np.any(times[1:] < times[:-1]):
            raise WorkloadError(f"workload {self.name}: event times fall; sort the events by time")
        if np.any(asked.position[1:] < asked.position[:-1]):
            raise WorkloadError(f"workload {self.name}: positions fall; sort the questions by position")
        if np.any(asked.now_ms != times[asked.position]):
            raise WorkloadError(f"workload {self.name}: a question is asked at another time than its event's")
        longest = MOST_HALF_LIVES * min(length for _, length in HALF_LIVES)
        if times[-1] - times[0] > longest:
            raise WorkloadError(
                f"workload {self.name}: {(times[-1] - times[0]) / DAY_MS:.0f} days, more than the "
                f"{longest / DAY_MS:.0f} that a double can decay over; take fewer events"
            )

    def sample(self, questions: int) -> tuple[Workload, Ints]:
        """The same events with at most so many questions, evenly spread, and which ones (rows)."""
        count = len(self.questions.position)
        rows = np.unique(np.linspace(0, count - 1, min(questions, count)).astype(np.int64))
        return replace(self, questions=Asked(*(column[rows] for column in self.questions))), rows


def globo(path: Path, limit_events: int, questions: int, negatives: int, seed: int) -> Workload:
    """The first clicks of a real news site, all of them positive; the value is the size of the session.

    ``path``: ``clicks.parquet``. Items next to a click are those of random clicks shortly before it.

    Raises:
        WorkloadError: the file is not there.
    """
    import pyarrow.parquet as pq

    if not path.exists():
        raise WorkloadError(f"no clicks at {path}; name the Parquet file of the clicks, or use the synthetic workload")
    wanted = {"click_timestamp": "time", "user_id": "user", "click_article_id": "item", "session_size": "value"}
    table = pq.read_table(path, columns=list(wanted))
    time, user, item, value = (table[name].to_numpy() for name in wanted)
    order = np.argsort(time, kind="stable")[:limit_events]
    events = Events(
        time[order].astype(np.int64),
        np.unique(user[order], return_inverse=True)[1].astype(np.int64),
        np.unique(item[order], return_inverse=True)[1].astype(np.int64),
        np.zeros(len(order), np.uint8),
        value[order].astype(np.float32),
    )
    asked = _asked(events, (0,), questions, negatives, np.random.default_rng([seed, 1]))
    return Workload(f"globo-{len(order)}", events, asked, (0,))


def synthetic(
    events: int, users: int, items: int, seed: int, *, questions: int = 200_000, negatives: int = 9, days: float = 14.0
) -> Workload:
    """Visits in bursts over ``days``: busy and rare users, Zipf items, five event types of which two are positive.

    Visits start by a daily rhythm and hold about 8 events, seconds apart; values are log-normal. About 70 bytes of memory
    an event at the peak.
    """
    rng = np.random.default_rng([seed, 2])
    lengths = rng.geometric(1 / 8, max(events // 8, 1))
    if (missing := events - int(lengths.sum())) > 0:
        lengths = np.append(lengths, missing)
    visit = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)[:events]
    starts = rng.random(len(lengths)) * days
    starts -= 0.12 * np.sin(2 * np.pi * starts)  # the density follows 1 / (1 - 0.24 pi cos): busy noons, quiet nights
    visitor = _zipf(rng, users, 0.5, len(lengths))
    steps = rng.exponential(20_000.0, events)
    first = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    steps = np.cumsum(steps)
    steps -= steps[first[first < events]][visit]
    time = 1_772_409_600_000 + (starts * DAY_MS)[visit] + steps
    del steps
    order = np.argsort(time, kind="stable")
    made = Events(
        time[order].astype(np.int64),
        visitor[visit[order]].astype(np.int64),
        _zipf(rng, items, 1.0, events),
        rng.choice(5, events, p=(0.6, 0.22, 0.1, 0.05, 0.03)).astype(np.uint8),
        rng.lognormal(1.0, 0.75, events).astype(np.float32),
    )
    asked = _asked(made, (1, 2), questions, negatives, np.random.default_rng([seed, 3]))
    return Workload(f"synthetic-{events}", made, asked, (1, 2))


def _zipf(rng: np.random.Generator, count: int, exponent: float, draws: int) -> Ints:
    """Numbers below ``count`` by a power law, the heavy ones anywhere."""
    weights = np.cumsum(np.arange(1, count + 1, dtype=np.float64) ** -exponent)
    ranks = np.searchsorted(weights, rng.random(draws) * weights[-1])
    drawn: Ints = rng.permutation(count)[np.minimum(ranks, count - 1)].astype(np.int64)
    return drawn


def _asked(
    events: Events, positive: tuple[int, ...], questions: int, negatives: int, rng: np.random.Generator
) -> Asked:
    """About ``questions`` rows: positive events drawn evenly, each with ``negatives`` items of recent events."""
    chances = np.flatnonzero(np.isin(events.type, positive))
    count = min(max(questions // (1 + negatives), 1), len(chances))
    at = np.sort(rng.choice(chances, count, replace=False))
    back = 1 + (rng.random((count, negatives)) * np.minimum(at, 50_000)[:, None]).astype(np.int64)
    others = events.item[np.maximum(at[:, None] - back, 0)]
    item = np.concatenate([events.item[at][:, None], others], axis=1).ravel()
    position = np.repeat(at, 1 + negatives).astype(np.int64)
    return Asked(events.user[position], item, events.time_ms[position], position)
