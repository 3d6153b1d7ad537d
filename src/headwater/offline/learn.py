"""Continuous training: round after round on the newest events, warm-started, published through the gate.

A learner is a process of its own that touches nothing but the registry. Servers watch that, so nothing that goes wrong
here reaches a request; and every round makes a whole bundle, so that vectors of two trainings never meet.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import structlog
from msgspec import Struct

from headwater.features.plan import compile_plan
from headwater.offline.learner import Learner, NotYetError, StoppedError
from headwater.registry.controls import ControlsFile
from headwater.registry.registry import Registry
from headwater.schema.config import Config
from headwater.schema.errors import ConfigurationError

log = structlog.get_logger()

LOOK_S = 0.5  # how soon a round begins that is asked for
AGAIN_S = 5.0  # how soon it is tried again while there is too little to learn from
KEEP, HISTORY = 3, 20  # bundles that stay: that never served; that a rollback leads to


class Round(Struct, frozen=True, kw_only=True):
    """What a round came to. ``bundle`` is ``None`` when nothing was published; ``reason`` says why, or why not promoted.

    ``waits``: nothing went wrong, there was too little to learn from, or to judge by. ``refused``: by the gate. ``warm`` is the bundle that the round
    started from, ``last_offset`` how far it has read.
    """

    number: int
    bundle: str | None
    promoted: bool
    waits: bool
    refused: bool
    warm: str | None
    last_offset: int
    seconds: float
    reason: str | None


def learn(
    config: Config, data: Path, *, every_s: float, rounds: int | None, threads: int, stop: threading.Event,
    clock: Callable[[], int], report: Callable[[Round], None], timer: Callable[[], float] = time.monotonic,
) -> int:  # fmt: skip
    """Train round after round until ``stop`` is set, or for ``rounds``; returns how many rounds failed.

    Rounds begin ``every_s`` apart; one that takes longer is followed at once by the next. A round that fails is logged and
    told to ``report``, and the next one tries again. When one is asked for by the controls of ``data``, it begins at once,
    and learns at once what has come. While there is too little of that, or what it made was refused, it goes on being asked for until
    the next round is due anyway: what had changed by then may not have been known yet. Rounds that wait for that are told once.

    Raises:
        ConfigurationError: another learner works on ``data``, or nothing is to be trained.
    """
    if config.ranker.kind == "none":
        raise ConfigurationError('ranker.kind: "none" leaves nothing to train; set it to "lightgbm" or "deep"')
    plan, failed, number, seen = compile_plan(config), 0, 0, 0
    asked = pending = False  # a round was asked for; and what it made, if anything, did not pass
    due = timer()
    controls = ControlsFile(data)
    registry = Registry(data / "models")
    learner = Learner(config, plan, data, threads=threads, stop=stop, clock=clock)
    with learners_lock(data), closing(learner):
        while not stop.is_set() and (rounds is None or number < rounds):
            began_ms, again = clock(), asked and pending
            if not again:
                due = timer() + every_s
            done = _attempt(learner, registry, number + 1, seen, timer, at_once=asked)
            if stop.is_set() and done.bundle is None:
                break
            seen = max(seen, done.last_offset)
            if not (again and done.waits):  # else it waits as it did before
                number += 1
                failed += done.bundle is None and not done.waits
                report(done)
            pending = asked and (done.waits or done.refused)
            if rounds is None or number < rounds:
                until = min(due, timer() + AGAIN_S) if pending else due
                asked = _pause(stop, controls, began_ms, until, timer) or (pending and timer() < due)
    return failed


def _pause(
    stop: threading.Event, controls: ControlsFile, began_ms: int, until: float, timer: Callable[[], float]
) -> bool:  # fmt: skip
    """Wait until ``until``, until ``stop`` is set, or until a round is asked for after ``began_ms``, which is returned."""
    while (left := until - timer()) > 0.0 and not stop.wait(min(left, LOOK_S)):
        controls.poll()
        if controls.now.retrain_asked_ms > began_ms:
            log.info("round_asked_for", asked_ms=controls.now.retrain_asked_ms)
            return True
    return False


def _attempt(
    learner: Learner, registry: Registry, number: int, seen: int, timer: Callable[[], float], *, at_once: bool
) -> Round:  # fmt: skip
    """One round, whatever becomes of it."""
    began, warm, offset = timer(), None, seen
    bundle, promoted, waits, refused, reason = None, False, False, False, None
    try:
        made = learner.round(at_once=at_once)
        bundle, promoted, warm, offset = made.published.bundle, made.published.promoted, made.warm, made.last_offset
        gate = made.published.gate
        refused = gate is not None and not gate.passed
        reason = "; ".join(gate.reasons) if gate is not None and refused else None
        if made.published.frozen:
            reason = f"promotion is frozen: {made.published.frozen}"
        registry.prune(KEEP, history=HISTORY)
    except NotYetError as error:
        waits, reason = True, str(error)
        log.info("round_waits", round=number, reason=reason)
    except StoppedError:
        log.info("round_stopped", round=number)
    except Exception as error:  # whatever it was: the bundle in service goes on, and the next round tries again
        reason = f"{type(error).__name__}: {error}"
        log.exception("round_failed", round=number, error=reason)
    seconds = timer() - began
    if bundle is not None:
        log.info(
            "round_done", round=number, bundle=bundle, promoted=promoted, warm=warm, reason=reason, seconds=seconds
        )
    return Round(
        number=number, bundle=bundle, promoted=promoted, waits=waits, refused=refused, warm=warm, last_offset=offset, seconds=seconds,
        reason=reason,
    )  # fmt: skip


@contextmanager
def learners_lock(data: Path) -> Iterator[None]:
    """Be the one learner of a data directory; the kernel frees the lock when the process dies.

    Raises:
        ConfigurationError: there is one already; its process is named.
    """
    path = data / "run" / "learn.lock"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "another process"
            raise ConfigurationError(f"Process {holder} learns from {data} already; stop it first") from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)
