"""False alarms of the judgements of drift on sites that are well (``healthy``), and how often a fault is found: the rest of #27 (``drift`` runs it).

Each judgement is the class that the monitor has, given what the monitor gives it: dead columns, labels and calibration of a bundle (a new one each week), the random slice, and ADWIN by
surface. A window is what the class calls one; of ADWIN, which has none, it is an hour of a stream. Windows of one site are not independent, so intervals (Clopper-Pearson) are a little too narrow.
"""

from __future__ import annotations

import copy
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import structlog
from msgspec import Struct

from headwater.monitoring.by_type import ByType
from headwater.monitoring.calibration import Calibration, CalibrationState
from headwater.monitoring.changes import Changes
from headwater.monitoring.dead import Alive, DeadState
from headwater.monitoring.left import LeftReferences
from headwater.monitoring.loop import LoopState, LoopWatch
from headwater.monitoring.outcomes import Waiting
from headwater.monitoring.reservoir import Cells
from headwater.schema.drift import Drift
from tests.reliability.healthy import CLICK, COLUMNS, DAY_MS, HOUR_MS, PURCHASE, SURFACES, Fault, Kind, Served, Site

STEP_MS = 300_000  # between two looks at whether a window is over
WEEK = 7
TYPES = {CLICK: "click", PURCHASE: "purchase"}
SETTINGS = Drift()

SMALL = Kind(name="small")
LARGE = Kind(name="large", lists=20_000, people=20_000)
NEWS = Kind(name="news", lists=4_000, people=4_000, evening=0.25, fades_days=1.0, turnover=0.3)
QUIET = Kind(name="quiet", lists=500, people=300)
SHARP = Kind(name="sharp", steered=1.0)
BLIND = Kind(name="blind", steered=0.0)  # a policy that is no better than chance, which is no fault of the loop


class Found(Struct, frozen=True):
    """``found`` of ``trials`` within a day (of the random slice: two)."""

    found: int
    trials: int


class Counted(Struct, frozen=True):
    """A judgement: its windows where nothing is wrong, those with an alarm, their share with its 95% interval, how often a month of a site an alarm began, and
    the faults found, by fault and kind of site.
    """

    windows: int
    alarms: int
    rate: float
    low: float
    high: float
    a_month: float
    found: dict[str, dict[str, Found]]


class Watch(ABC):
    """One or more judgements of a site."""

    @abstractmethod
    def add(self, waiting: Waiting) -> None:
        """Take in a list whose outcomes are in."""

    @abstractmethod
    def close(self, now_ms: int) -> Iterator[tuple[str, bool]]:
        """The windows that are over at ``now_ms``: of which judgement, and whether there is an alarm."""

    def promote(self, version: str) -> None:  # noqa: B027  (most know of no bundle)
        """Another bundle serves."""


class OfBundle(Watch):
    """Calibration, labels and heads."""

    def __init__(self) -> None:
        self._by_type = ByType(tuple(TYPES.values()), SETTINGS, {}, LeftReferences(None))
        self.promote("0")

    def promote(self, version: str) -> None:
        self._by_type.serve(version)
        self._calibration = Calibration(CalibrationState(key=version), SETTINGS)

    def add(self, waiting: Waiting) -> None:
        if waiting.uniform:
            return
        values = np.column_stack((np.array(waiting.scores, np.float32), waiting.places().astype(np.float32)))
        self._calibration.add(Cells(values, np.full(len(values), waiting.group, np.int64), waiting.time_ms))
        self._by_type.add(waiting, {TYPES[type_]: places for type_, places in waiting.clicked.items()})

    def close(self, now_ms: int) -> Iterator[tuple[str, bool]]:
        if (found := self._calibration.close(now_ms)) is not None:
            yield "calibration", found.off
        yield from ((name, found.off) for name, found in self._by_type.close(now_ms).items())


class OfSlice(Watch):
    """The random slice beside the policy."""

    def __init__(self) -> None:
        self._loop = LoopWatch(LoopState(), SETTINGS.alpha)

    def add(self, waiting: Waiting) -> None:
        self._loop.add(waiting)

    def close(self, now_ms: int) -> Iterator[tuple[str, bool]]:
        if (found := self._loop.close(now_ms)) is not None:
            yield "slice-lead", found.lead_off
            if found.crowding is not None:
                yield "slice-crowding", found.crowding_off


class OfSurfaces(Watch):
    """ADWIN over the streams of surfaces, read every hour."""

    def __init__(self) -> None:
        self._changes, self._hour = Changes(SURFACES), 0

    def add(self, waiting: Waiting) -> None:
        self._changes.add(waiting, PURCHASE, steered=not waiting.uniform)

    def close(self, now_ms: int) -> Iterator[tuple[str, bool]]:
        if (hour := now_ms // HOUR_MS) != self._hour:
            self._hour = hour
            yield from (
                (f"surface-{change.of}@{change.surface}", change.changed) for change in self._changes.read(now_ms)
            )


class Trial(NamedTuple):
    """What is watched on which sites for how many days, and what goes wrong at the end of every other week, for so many days: its name, and the judgements that are to find it."""

    watch: Callable[[], Watch]
    kinds: Sequence[tuple[Kind, int]]
    faults: Sequence[tuple[str, Fault, tuple[str, ...]]]
    fault_days: int = 1


A_THIRD_DOWN = ("clicks and purchases a third down", Fault(clicks=2 / 3))
TRIALS = (
    Trial(OfBundle, ((SMALL, 168), (LARGE, 7), (NEWS, 28)), ((*A_THIRD_DOWN, ("label-click", "label-purchase", "calibration")),)),
    Trial(OfSlice, ((SMALL, 350), (QUIET, 280), (SHARP, 280), (BLIND, 210), (NEWS, 70)), (
        ("slice better", Fault(policy=0.4), ("slice-lead",)), ("policy crowds", Fault(crowd=3.0), ("slice-crowding",)),
    ), 2),
    Trial(OfSurfaces, ((SMALL, 42), (LARGE, 14), (NEWS, 28)), (
        ("clicks of a surface a fifth down", Fault(clicks=0.8, surface="item"), ("surface-click@item",)),
        ("clicks of a surface halved", Fault(clicks=0.5, surface="item"), ("surface-click@item",)),
    )),
)  # fmt: skip
DEAD = tuple(
    (strangers, lists, hours)
    for strangers in (0.0, 0.5, 0.9, 0.97)
    for lists in (500, 4_000)
    for hours in (range(24), range(18, 21))
)
SITE_DAYS = 70  # then another site, whose first looks are the ones at which an alarm takes least


class Tally:
    """What was seen of each judgement."""

    def __init__(self) -> None:
        self.windows, self.alarms, self.begun = Counter[str](), Counter[str](), Counter[str]()
        self.days = Counter[str]()
        self.found: dict[str, dict[tuple[str, str], list[bool]]] = {}

    def counted(self) -> dict[str, Counted]:
        """By judgement."""
        made = {}
        for name, windows in sorted(self.windows.items()):
            alarms = self.alarms[name]
            low, high = clopper_pearson(alarms, windows)
            found: dict[str, dict[str, Found]] = {}
            for (fault, kind), hits in self.found.get(name, {}).items():
                found.setdefault(fault, {})[kind] = Found(sum(hits), len(hits))
            made[name] = Counted(
                windows, alarms, alarms / windows, low, high, 30.0 * self.begun[name] / self.days[name], found
            )
        return made


def clopper_pearson(hits: int, n: int) -> tuple[float, float]:
    """The 95% interval of a share (C. Clopper, E. Pearson, 1934)."""
    from scipy.special import betaincinv

    low = float(betaincinv(hits, n - hits + 1, 0.025)) if hits else 0.0
    return low, float(betaincinv(hits + 1, n - hits, 0.975)) if hits < n else 1.0


def _day(watch: Watch, lists: Sequence[Waiting]) -> list[tuple[str, bool]]:
    """What a day brings."""
    seen, step = list[tuple[str, bool]](), lists[0].time_ms // STEP_MS
    for waiting in lists:
        if (now := waiting.time_ms // STEP_MS) != step:
            step = now
            seen += watch.close(step * STEP_MS)
        watch.add(waiting)
    return seen


def watched(trial: Trial, kind: Kind, days: int, seed: int, tally: Tally) -> None:
    """A site of ``kind``: so many days without a fault, and each fault on a copy of it as it is at the end of a week."""
    site, watch = Site(kind, seed), trial.watch()
    standing: dict[str, bool] = {}
    seen_names = set[str]()
    for day in range(days):
        if day % WEEK == 0 and day:
            watch.promote(str(day))
            standing.clear()
        for at, off in _day(watch, site.day()):
            name = at.partition("@")[0]
            tally.windows[name] += 1
            tally.alarms[name] += off
            tally.begun[name] += off and not standing.get(at, False)
            standing[at] = off
            seen_names.add(name)
        if day % (2 * WEEK) == WEEK - 1:
            for fault_name, fault, judgements in trial.faults:
                ill, ill_watch = copy.deepcopy((site, watch))
                seen = [one for _ in range(trial.fault_days) for one in _day(ill_watch, ill.day(fault))]
                for judgement in judgements:
                    of = tally.found.setdefault(judgement.partition("@")[0], {})
                    of.setdefault((fault_name, kind.name), []).append(
                        any(off for name, off in seen if name == judgement)
                    )
    for name in seen_names:
        tally.days[name] += days


def dead(strangers: float, lists: int, asked: Sequence[int], hours: int, seed: int, tally: Tally) -> None:
    """A bundle whose gate asked in the hours ``asked``, then so many hours of what it serves; each column is dead at the end in turn."""
    site, name = Served(lists, strangers, seed), "feature-dead"
    alive = Alive(DeadState(key=""), site.reference(asked), SETTINGS)
    share, off, rng = (
        min(1.0, 3_600 / lists),
        False,
        np.random.default_rng(seed),
    )  # of lists that are recorded with their rows

    def after(judge: Alive, hour: int, gone: int | None = None) -> tuple[bool, tuple[str, ...]]:
        for one in site.hour(hour):
            if rng.random() < share:
                rows, scores = site.rows(one)
                if gone is not None:
                    rows[:, gone] = 0.0
                judge.add(rows, scores, one.user, one.time_ms)
        looks = judge.state.looks
        found = judge.close((hour + 1) * HOUR_MS)
        return judge.state.looks > looks, found

    start = 2 * DAY_MS // HOUR_MS
    for hour in range(start, start + hours):
        judged, found = after(alive, hour)
        tally.windows[name] += judged
        tally.alarms[name] += bool(found)
        if judged:
            tally.begun[name] += bool(found) and not off
            off = bool(found)
    tally.days[name] += hours / 24  # type: ignore[assignment]
    for column in ("noise", "history", "counter", "new_item"):
        ill = copy.deepcopy(alive)
        hits = any(column in after(ill, start + hours + n, COLUMNS.index(column))[1] for n in range(24))
        of = tally.found.setdefault(name, {})
        of.setdefault((f"{column} dead", f"{strangers:.0%} strangers"), []).append(hits)


def counted(*, scale: float, seed: int) -> dict[str, Counted]:
    """All of it, with ``scale`` times the days."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    tally = Tally()
    for trial in TRIALS:
        for kind, days in trial.kinds:
            left = max(int(days * scale), 1)
            while left > 0:
                seed += 1
                watched(trial, kind, min(left, SITE_DAYS), seed, tally)
                left -= SITE_DAYS
    for strangers, lists, asked in DEAD:
        seed += 1
        dead(strangers, lists, asked, max(int(150 * scale * (3 if lists < 1_000 else 1)), 4), seed, tally)
    return tally.counted()
