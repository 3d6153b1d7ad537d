"""A drift of tastes in the demo, seen through: people turn to something else, an alert fires, a training is asked for, a new bundle serves."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Protocol, Self

import msgspec
from msgspec import Struct

from headwater.cli.local import Site, StepFailedError, TomlTable, command
from headwater.schema.durations import parse_delay
from headwater.simulator.scenario import Scenario, TasteDrift

ALERTS = frozenset({"calibration-off", "label-drift"})  # those that tell of falling quality, and ask for a training
EVENTS_PER_S = 300.0  # so that half a minute says something
DAY_S = 80.0  # a day of the scenario: what the bundle is held against is to be whole before tastes drift
PATIENCE_S = 330.0  # from the drift on
AFTERWARDS_S = 60.0  # of lists of the new bundle, to see what people make of them
_BEFORE_S = 40.0  # of lists before the drift, to see what people make of them then
_TRAINING_S = 1_200.0  # two minutes on an idle machine
_STOP_S = 20.0

TABLES: Mapping[str, TomlTable] = {
    # A minute of this demo is what a day (of the reference) and an hour (of a window) are elsewhere.
    "monitoring": {"every": "1s"},
    "monitoring.drift": {"reference": "1m", "window": "1m", "outcome_window": "10s"},
    "monitoring.online": {"window": "1m", "attribution": "10s"},
    # The learner trains when it is asked to, and what is held out is as new as what it learns.
    "learn": {"every": "1d"},
    "gate": {"holdout": "10s", "questions": 200, "slower": 10.0},
    # few enough rows for those of the last minutes to count
    "ranker": {"trees": 120, "max_rows": 80_000},
}


def drift_s(scenario: Scenario) -> float | None:
    """When tastes drift first, seconds of a world that runs ``DAY_S`` a day; None: never."""
    at = [parse_delay(change.at) for change in scenario.changes if isinstance(change, TasteDrift)]
    return min(at) / 86_400_000 * DAY_S if at else None


class Course(Struct, kw_only=True):
    """What came of it, in seconds since tastes drifted; None: not yet. Rates are clicks a place: ``before`` the drift, ``fallen`` from there to the new
    bundle, ``after`` with it for ``AFTERWARDS_S``.
    """

    bundle: str = ""
    renewed: str = ""
    false_alarm: bool = False
    fired_s: float | None = None
    asked_s: float | None = None
    promoted_s: float | None = None
    resolved_s: float | None = None
    before: float | None = None
    fallen: float | None = None
    after: float | None = None

    @property
    def recovered(self) -> bool:
        """Whether all came about, and people click more again than before the new bundle."""
        done = None not in (self.fired_s, self.asked_s, self.promoted_s, self.resolved_s, self.fallen, self.after)
        return done and not self.false_alarm and (self.after or 0.0) > (self.fallen or 0.0)


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
    """Traffic that counts what was shown and what of it was clicked."""

    places: int
    clicks: int


class Watch:
    """Looks once a second at how alerts stand, what they did and which bundle serves, and says what is new.

    ``at`` is when tastes drift, by ``timer``; ``in_service`` says which bundle serves.
    """

    def __init__(
        self, site: Site, traffic: Counted, say: Callable[[str], None], *, at: float, in_service: Callable[[], str],
        timer: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._data, self._traffic, self._say = site.data, traffic, say
        self._serves, self._at, self._timer = in_service, at, timer
        self._settled: tuple[int, int] | None = None
        self._drifted: tuple[int, int] | None = None
        self._renewed: tuple[int, int] | None = None
        self._firing = set[tuple[str, str]]()
        self._entries = set[str]()
        self.course = Course(bundle=self._serves())

    def over(self) -> bool:
        """Whether there is nothing more to wait for."""
        return None not in (self.course.after, self.course.resolved_s) or self._timer() > self._at + PATIENCE_S

    def look(self) -> None:
        """See what is new."""
        course, since = self.course, round(self._timer() - self._at, 1)
        counted = (self._traffic.places, self._traffic.clicks)
        if self._settled is None and since > -_BEFORE_S:
            self._settled = counted
        if since >= 0.0 and self._drifted is None:
            self._drifted = counted
            course.before = _rate(self._settled or (0, 0), counted)
            self._say(f"tastes drift now; people clicked {_percent(course.before)} of what they saw")
        self._alerts(since)
        self._actions(since)
        if course.promoted_s is None and (serves := self._serves()) != course.bundle and self._drifted is not None:
            course.renewed, course.promoted_s, self._renewed = serves, since, counted
            course.fallen = _rate(self._drifted, counted)
            self._say(f"model {serves} serves; since the drift people clicked {_percent(course.fallen)}")
        if self._renewed is not None and course.after is None and since >= (course.promoted_s or 0.0) + AFTERWARDS_S:
            course.after = _rate(self._renewed, counted)
            self._say(f"with it people clicked {_percent(course.after)}")

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


def _rate(before: tuple[int, int], now: tuple[int, int]) -> float | None:
    places, clicks = (b - a for a, b in zip(before, now, strict=True))
    return round(clicks / places, 4) if places else None


def _percent(rate: float | None) -> str:
    return "nothing" if rate is None else f"{100 * rate:.1f}%"
