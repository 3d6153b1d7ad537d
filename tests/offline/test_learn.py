"""The loop of a learner: what fails is told and tried again, who comes second is turned away, who is stopped leaves nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from headwater.offline import learner
from headwater.offline.learn import AGAIN_S, LOOK_S, Round, learn, learners_lock
from headwater.registry.controls import change_controls
from headwater.schema.config import Config, Ranker
from headwater.schema.errors import ConfigurationError

EVERY_S = 300.0


@pytest.fixture(autouse=True)
def quiet() -> Iterator[list[Any]]:
    with capture_logs() as logs:
        yield logs


class Clock:
    """Seconds that pass only while the learner waits, which it does here without waiting."""

    def __init__(self) -> None:
        self.seconds, self.waits = 0.0, list[float]()

    def __call__(self) -> float:
        return self.seconds


class Stop(threading.Event):
    """An event that does not make anybody wait; it is set in the wait number ``after``."""

    def __init__(self, clock: Clock, after: int | None = None) -> None:
        super().__init__()
        self._clock, self._after = clock, after

    def wait(self, timeout: float | None = None) -> bool:
        self._clock.waits.append(timeout or 0.0)
        self._clock.seconds += timeout or 0.0
        if len(self._clock.waits) == self._after:
            self.set()
        return self.is_set()


def run(
    data: Path, clock: Clock, stop: threading.Event, rounds: int | None, config: Config | None = None
) -> list[Round]:
    told: list[Round] = []
    failed = learn(
        config or Config(), data, every_s=EVERY_S, rounds=rounds, threads=1, stop=stop, clock=lambda: 1, report=told.append,
        timer=clock,
    )  # fmt: skip
    assert failed == sum(made.bundle is None for made in told)
    return told


def test_rounds_that_fail_are_told_and_tried_again(tmp_path: Path, quiet: list[Any]) -> None:
    clock = Clock()
    told = run(tmp_path, clock, Stop(clock), 3)
    assert [made.number for made in told] == [1, 2, 3]
    assert all(made.bundle is None and made.reason for made in told)
    assert sum(clock.waits) == 2 * EVERY_S  # none behind the last
    assert [line["round"] for line in quiet if line["event"] == "round_failed"] == [1, 2, 3]


def test_whatever_goes_wrong_in_a_round_ends_that_round_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Path) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(learner, "open_log", broken)
    clock = Clock()
    assert [made.reason for made in run(tmp_path, clock, Stop(clock), 2)] == ["ZeroDivisionError: a bug"] * 2


def test_a_round_that_takes_longer_is_followed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()

    def slow(_: Path) -> None:
        clock.seconds += 2.5 * EVERY_S
        raise OSError("slow disk")

    monkeypatch.setattr(learner, "open_log", slow)
    run(tmp_path, clock, Stop(clock), 3)
    assert clock.waits == []


def test_it_ends_when_it_is_told(tmp_path: Path) -> None:
    clock = Clock()
    assert len(run(tmp_path, clock, Stop(clock, after=round(1.5 * EVERY_S / LOOK_S)), None)) == 2
    stopped = Stop(clock)
    stopped.set()
    assert run(tmp_path, clock, stopped, None) == []


def test_there_is_one_learner_at_a_time(tmp_path: Path) -> None:
    clock = Clock()
    with learners_lock(tmp_path), pytest.raises(ConfigurationError, match=r"Process \d+ learns from .* already"):
        run(tmp_path, clock, Stop(clock), 1)
    assert len(run(tmp_path, clock, Stop(clock), 1)) == 1
    with pytest.raises(ConfigurationError, match="nothing to train"):
        run(tmp_path, clock, Stop(clock), 1, Config(ranker=Ranker(kind="none")))


def test_a_round_that_is_asked_for_begins_at_once_and_once(tmp_path: Path) -> None:
    clock, began = Clock(), list[float]()

    class Asking(Stop):
        def wait(self, timeout: float | None = None) -> bool:
            if len(self._clock.waits) == 10:
                change_controls(
                    tmp_path, by="alert:drift", reason="scores moved", time_ms=round(1e3 * clock.seconds), retrain_asked_ms=
                    round(1e3 * clock.seconds),
                )  # fmt: skip
            return super().wait(timeout)

    learn(
        Config(), tmp_path, every_s=EVERY_S, rounds=3, threads=1, stop=Asking(clock), timer=clock,
        clock=lambda: round(1e3 * clock.seconds), report=lambda _: began.append(clock.seconds),
    )  # fmt: skip
    assert began == [0.0, 5.5, 5.5 + EVERY_S]


def test_what_was_asked_for_is_tried_again_until_it_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little has come at first, then the gate refuses, then it passes: the last two are told, and the first once."""
    clock, told, rounds = Clock(), list[tuple[float, int, bool]](), list[tuple[str, bool]]()
    outcomes = iter(["fails", "waits", "waits", "waits", "refused", "waits", "serves", "fails"])

    def attempt(_: object, __: object, number: int, *___: object, at_once: bool) -> Round:
        came = next(outcomes)
        rounds.append((came, at_once))
        made = came in {"refused", "serves"}
        return Round(
            number=number, bundle="one" if made else None, promoted=came == "serves", waits=came == "waits",
            refused=came == "refused", warm=None, last_offset=0, seconds=0.0, reason=None,
        )  # fmt: skip

    monkeypatch.setattr("headwater.offline.learn._attempt", attempt)
    change_controls(tmp_path, by="alert:drift", reason="scores moved", time_ms=5, retrain_asked_ms=5)
    learn(
        Config(), tmp_path, every_s=EVERY_S, rounds=5, threads=1, stop=Stop(clock), timer=clock, clock=lambda: round(1e3 * clock.seconds),
        report=lambda made: told.append((clock.seconds, made.number, made.promoted)),
    )  # fmt: skip
    assert [at_once for _, at_once in rounds] == [False] + 6 * [True] + [False]
    first = LOOK_S
    assert told == [
        (0.0, 1, False), (first, 2, False), (first + 3 * AGAIN_S, 3, False), (first + 5 * AGAIN_S, 4, True),
        (first + EVERY_S, 5, False),
    ]  # fmt: skip


def test_what_was_asked_for_in_vain_gives_way_to_the_next_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, began = Clock(), list[tuple[float, bool]]()

    def waits(_: object, __: object, number: int, *___: object, at_once: bool) -> Round:
        began.append((clock.seconds, at_once))
        return Round(
            number=number, bundle=None, promoted=False, waits=True, refused=False, warm=None, last_offset=0, seconds=0.0, reason="too little",
        )  # fmt: skip

    monkeypatch.setattr("headwater.offline.learn._attempt", waits)
    change_controls(tmp_path, by="alert:drift", reason="scores moved", time_ms=5, retrain_asked_ms=5)
    learn(
        Config(), tmp_path, every_s=EVERY_S, rounds=3, threads=1, stop=Stop(clock), timer=clock,
        clock=lambda: round(1e3 * clock.seconds), report=lambda _: None,
    )  # fmt: skip
    assert [at for at, asked in began if not asked] == [0.0, LOOK_S + EVERY_S]
