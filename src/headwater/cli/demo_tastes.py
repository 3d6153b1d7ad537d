"""A drift of tastes in the demo, seen through: people turn to something else, an alert fires, a training is asked for, a new bundle serves."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from headwater.cli.local import Site, StepFailedError, TomlTable, command
from headwater.schema.durations import parse_delay
from headwater.simulator.scenario import Scenario, TasteDrift
from headwater.simulator.traffic import Shown

Float64 = npt.NDArray[np.float64]

ALERTS = frozenset({"calibration-off", "label-drift"})  # those that tell of falling quality, and ask for a training
EVENTS_PER_S = 300.0  # so that half a minute says something
DAY_S = 80.0  # a day of the scenario: what the bundle is held against is to be whole before tastes drift
PEOPLE = 700  # so that they come about once a day of the scenario: what somebody turned to is not known before they come again
VISITS_PER_DAY = 3.0  # in the history, so that 700 people make enough of it
PATIENCE_S = 900.0  # from the drift on
AFTERWARDS = 1_500  # lists of the new bundle, to see what people make of them: a minute and a half on an idle machine
_BEFORE_S = 40.0  # of lists before the drift, to see what people make of them then
_TRAINING_S = 1_200.0  # two minutes on an idle machine
_STOP_S = 20.0

TABLES: Mapping[str, TomlTable] = {
    # A minute of this demo is what a day (of the reference) and an hour (of a window) are elsewhere.
    "monitoring": {"every": "1s"},
    "monitoring.drift": {"reference": "1m", "window": "1m", "outcome_window": "10s"},
    "monitoring.online": {"window": "1m", "attribution": "10s"},
    # The learner trains when it is asked to, on the whole history at first; a minute is the longest that such a round waits for lists.
    "learn": {"every": "1d", "window": "4d"},
    "gate": {"holdout": "1m", "questions": 200, "slower": 10.0},
    # few enough rows for those of the last minutes to be most of them
    "ranker": {"trees": 120, "max_rows": 20_000},
    # A list teaches when its labels are closed: a quarter of a minute, not the 35 minutes of the defaults.
    "training": {"watermark": "3s"},
    "[training.labels]": {"name": "taken", "types": ["click", "like", "purchase"], "window": "12s"},
    # One machine plays the visitors, serves and trains: below the first tiers there is no ranker that could be better or worse.
    "[alerts]": {"name": "slow-answers", "actions": []},
}


def drift_s(scenario: Scenario) -> float | None:
    """When tastes drift first, seconds of a world that runs ``DAY_S`` a day; None: never."""
    at = [parse_delay(change.at) for change in scenario.changes if isinstance(change, TasteDrift)]
    return min(at) / 86_400_000 * DAY_S if at else None


class Rate(Struct, frozen=True, kw_only=True):
    """Clicks a place of ``lists``, or a difference of two such rates, with its 95% interval (people as clusters)."""

    value: float
    low: float
    high: float
    lists: int

    def __str__(self) -> str:
        return f"{100 * self.value:.1f}% [{100 * self.low:.1f}, {100 * self.high:.1f}]"


class Course(Struct, kw_only=True):
    """What came of it, in seconds since tastes drifted; None: not yet. Clicks a place: ``before`` the drift, ``fallen`` from there to the new
    bundle, ``after`` with it for ``AFTERWARDS`` lists. ``lost`` is what ``fallen`` is above ``before`` (below 0: lost), ``regained`` what ``after`` is above
    ``fallen``; both are of the same people as far as they came in both. ``refused`` bundles came before the one that serves.
    """

    bundle: str = ""
    renewed: str = ""
    false_alarm: bool = False
    fired_s: float | None = None
    asked_s: float | None = None
    promoted_s: float | None = None
    resolved_s: float | None = None
    refused: int = 0
    before: Rate | None = None
    fallen: Rate | None = None
    after: Rate | None = None
    lost: Rate | None = None
    regained: Rate | None = None

    @property
    def recovered(self) -> bool:
        """Whether all came about, and people click more again than before the new bundle, by more than chance."""
        done = None not in (self.fired_s, self.asked_s, self.promoted_s, self.resolved_s)
        return done and not self.false_alarm and self.regained is not None and self.regained.low > 0.0


class _Told(Struct):
    """A line of ``headwater learn --json``."""

    bundle: str | None
    promoted: bool
    seconds: float
    reason: str | None


class Learner:
    """``headwater learn`` on a site, beside whatever else works on it; ``__enter__`` waits for its first bundle.

    Raises:
        StepFailedError: the first training came to nothing; the message says where its log is.
    """

    def __init__(self, site: Site, on_round: Callable[[str], None]) -> None:
        self._site, self._on_round = site, on_round
        self._log = site.config.parent / "learn.log"
        self._first = threading.Event()
        self._serves = ""
        self.refused = 0

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603
                command(self._site, "learn", "--json"), stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL,
                text=True, start_new_session=True,
            )  # fmt: skip
        self._reader = threading.Thread(target=self._read, name="learner", daemon=True)
        self._reader.start()
        self._first.wait(_TRAINING_S)
        if not self._serves:
            self.stop()
            raise StepFailedError(f"`headwater learn` did not make a first bundle: see {self._log}")
        return self

    def _read(self) -> None:
        lines = self._process.stdout
        for line in lines if lines is not None else ():
            if not line.startswith("{"):
                continue
            told = msgspec.json.decode(line, type=_Told)
            if told.promoted and told.bundle:
                self._serves = self._serves or told.bundle
            self.refused += bool(told.bundle) and not told.promoted
            what = (
                f"model {told.bundle} {'serves' if told.promoted else 'was not promoted'}" if told.bundle else "waits"
            )
            self._on_round(f"{what}, {told.seconds:.0f} s{f': {told.reason}' if told.reason else ''}")
            self._first.set()
        self._first.set()

    def stop(self) -> None:
        """End it: politely, and after some seconds not so."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._reader.join(_STOP_S)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


class Counted(Protocol):
    """Traffic that remembers what was shown and what of it was clicked."""

    lists: list[Shown]


class Watch:
    """Looks once a second at how alerts stand, what they did and which bundle serves, and says what is new.

    ``at`` is when tastes drift, by ``timer``; ``in_service`` says which bundle serves, ``refused`` how many did not pass so far.
    """

    def __init__(
        self, site: Site, traffic: Counted, say: Callable[[str], None], *, at: float, in_service: Callable[[], str],
        refused: Callable[[], int], timer: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._data, self._traffic, self._say = site.data, traffic, say
        self._serves, self._refused, self._at, self._timer = in_service, refused, at, timer
        self._settled: int | None = None  # lists by then
        self._drifted: int | None = None
        self._renewed: int | None = None
        self._firing = set[tuple[str, str]]()
        self._entries = set[str]()
        self.course = Course(bundle=self._serves())

    def over(self) -> bool:
        """Whether there is nothing more to wait for."""
        return None not in (self.course.after, self.course.resolved_s) or self._timer() > self._at + PATIENCE_S

    def look(self) -> None:
        """See what is new."""
        course, since = self.course, round(self._timer() - self._at, 1)
        shown = self._traffic.lists
        counted = len(shown)
        if self._settled is None and since > -_BEFORE_S:
            self._settled = counted
        if since >= 0.0 and self._drifted is None:
            self._drifted = counted
            course.before = rate(shown[self._settled or 0 : counted])
            self._say(f"tastes drift now; people clicked {course.before or 'nothing'} of what they saw")
        self._alerts(since)
        self._actions(since)
        if course.promoted_s is None and (serves := self._serves()) != course.bundle and self._drifted is not None:
            course.renewed, course.promoted_s, self._renewed = serves, since, counted
            course.refused = self._refused()
            fell = shown[self._drifted : counted]
            course.fallen, course.lost = rate(fell), gained(fell, shown[self._settled or 0 : self._drifted])
            self._say(f"model {serves} serves; since the drift people clicked {course.fallen or 'nothing'}")
        if self._renewed is not None and course.after is None and counted >= self._renewed + AFTERWARDS:
            late = shown[self._renewed : counted]
            course.after, course.regained = rate(late), gained(late, shown[self._drifted or 0 : self._renewed])
            self._say(f"with it people clicked {course.after or 'nothing'}, {course.regained or 'nothing'} more")

    def _alerts(self, since: float) -> None:
        from headwater.monitoring.standing import read_standing

        firing = {
            (state.alert, state.group) for state in read_standing(self._data).states if state.state == "firing"
        }  # fmt: skip
        for alert, group in sorted(firing - self._firing):
            self._say(f"alert {alert}{f' ({group})' if group else ''} fires")
        for alert, group in sorted(self._firing - firing):
            self._say(f"alert {alert}{f' ({group})' if group else ''} is over")
        course, was = self.course, any(alert in ALERTS for alert, _ in self._firing)
        now = any(alert in ALERTS for alert, _ in firing)
        if now and course.fired_s is None:
            course.fired_s, course.false_alarm = since, since < 0.0
        if was and not now and course.resolved_s is None:
            course.resolved_s = since
        self._firing = firing

    def _actions(self, since: float) -> None:
        from headwater.registry.audit import read_audit

        for entry in reversed(read_audit(self._data)):
            if entry.id in self._entries or not entry.by.startswith("alert:"):
                continue
            self._entries.add(entry.id)
            self._say(f"{entry.by}: {entry.action} {entry.subject}: {entry.reason}")
            if entry.by.removeprefix("alert:") in ALERTS and self.course.asked_s is None:
                self.course.asked_s = since


def in_service(site: Site) -> str:
    """The version that serves on a site; "" when none does."""
    from headwater.cli.monitor import plan_in_service
    from headwater.registry.registry import Registry

    plan = plan_in_service(site.data)
    return (Registry(site.data / "models").current(plan) if plan is not None else None) or ""


def rate(shown: Sequence[Shown]) -> Rate | None:
    """Clicks a place of these lists; None: there are none."""
    from headwater.evaluation.metrics import ratio_interval

    if not shown:
        return None
    (clicks, places), _ = _by_person(shown, shown)
    value, (low, high) = ratio_interval(clicks, places)
    return _rounded(value, low, high, len(shown))


def gained(after: Sequence[Shown], before: Sequence[Shown]) -> Rate | None:
    """What the click rate of ``after`` is above that of ``before``, paired where a person came in both; None: one of the two has no list."""
    from headwater.evaluation.metrics import ratio_difference

    if not after or not before:
        return None
    ours, theirs = _by_person(after, before)
    value, (low, high) = ratio_difference(*ours, *theirs)
    return _rounded(value, low, high, len(after))


def _rounded(value: float, low: float, high: float, lists: int) -> Rate:
    return Rate(value=round(value, 4), low=round(low, 4), high=round(high, 4), lists=lists)


def _by_person(*of: Sequence[Shown]) -> list[tuple[Float64, ...]]:
    """Clicks and places of each person, the same people in the same order for each of ``of``."""
    people = {user: n for n, user in enumerate({shown.user: None for each in of for shown in each})}
    sums = []
    for each in of:
        who = np.array([people[shown.user] for shown in each])
        clicks = np.array([shown.clicks for shown in each], np.float64)
        places = np.array([shown.places for shown in each], np.float64)
        sums.append(tuple(np.bincount(who, what, len(people)).astype(np.float64) for what in (clicks, places)))
    return sums
