"""Continuous training: round after round on the newest events, warm-started, published through the gate.

A learner is a process of its own that touches nothing but the registry. Servers watch that, so nothing that goes wrong
here reaches a request; and every round makes a whole bundle, so that vectors of two trainings never meet.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import structlog
from msgspec import Struct

from headwater.evaluation.checks import checks_dir
from headwater.features.plan import Plan, compile_plan
from headwater.features.profiles import Profiles
from headwater.learning.fitting import enabled_sources
from headwater.log.archived import open_log
from headwater.log.identity import LmdbIdentity
from headwater.log.protocol import EventLog
from headwater.offline.tables.history import Lookup
from headwater.offline.train import TrainReport, train
from headwater.ranking.gbdt import MODEL_FILE
from headwater.registry.registry import Registry
from headwater.retrieval.fitted import score_column
from headwater.schema.config import Config
from headwater.schema.errors import ConfigurationError, HeadwaterError

log = structlog.get_logger()

KEEP, HISTORY = 3, 20  # bundles that stay: that never served; that a rollback leads to


class StoppedError(HeadwaterError):
    """The round was cut short because the learner is to end; nothing was published."""


class Round(Struct, frozen=True, kw_only=True):
    """What a round came to. ``bundle`` is ``None`` when nothing was published; ``reason`` says why, or why not promoted."""

    number: int
    bundle: str | None
    promoted: bool
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
    told to ``report``, and the next one tries again.

    Raises:
        ConfigurationError: another learner works on ``data``, or nothing is to be trained.
    """
    if config.ranker.kind == "none":
        raise ConfigurationError('ranker.kind: "none" leaves nothing to train; set it to "lightgbm" or "deep"')
    plan, failed, number, seen = compile_plan(config), 0, 0, 0
    with learners_lock(data):
        while not stop.is_set() and (rounds is None or number < rounds):
            number, began = number + 1, timer()
            done = _attempt(config, plan, data, number, seen, threads, stop, clock, timer)
            if stop.is_set() and done.bundle is None:
                break
            seen = max(seen, done.last_offset)
            failed += done.bundle is None
            report(done)
            if rounds is None or number < rounds:
                stop.wait(max(0.0, began + every_s - timer()))
    return failed


def _attempt(
    config: Config, plan: Plan, data: Path, number: int, seen: int, threads: int, stop: threading.Event,
    clock: Callable[[], int], timer: Callable[[], float],
) -> Round:  # fmt: skip
    """One round, whatever becomes of it."""
    began, warm, offset = timer(), None, seen
    bundle, promoted, reason = None, False, None
    try:
        with closing(open_log(data)) as event_log:
            if event_log.last_offset <= seen:
                raise HeadwaterError(f"nothing new was logged since offset {seen}")
            offset = event_log.last_offset
            registry = Registry(data / "models")
            warm, files = _warm(registry, config, plan)
            made = _train(config, data, event_log, files, threads, stop, clock)
        bundle, promoted = made.bundle, made.promoted
        reason = None if made.gate is None or made.gate.passed else "; ".join(made.gate.reasons)
        registry.prune(KEEP, history=HISTORY)
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
        number=number, bundle=bundle, promoted=promoted, warm=warm, last_offset=offset, seconds=seconds, reason=reason
    )


def _train(
    config: Config, data: Path, event_log: EventLog, files: Mapping[str, bytes] | None, threads: int, stop: threading.Event,
    clock: Callable[[], int],
) -> TrainReport:  # fmt: skip
    def progress(*_: object) -> None:
        if stop.is_set():
            raise StoppedError("the learner is to end")

    window = config.learn.window
    with _lookup(config, data) as lookup:
        return train(
            config, event_log, data / "models", window=None if window == "never" else window, threads=threads, warm=files,
            created_ms=clock(), checks=checks_dir(data), unseal=Profiles(data), lookup=lookup, progress=progress,
        )  # fmt: skip


@contextmanager
def _lookup(config: Config, data: Path) -> Iterator[Lookup | None]:
    if not any(table.entity == "user" for table in config.tables):
        yield None
        return
    with closing(LmdbIdentity(data / "identity", readonly=True)) as identity:
        yield identity.lookup


def _warm(registry: Registry, config: Config, plan: Plan) -> tuple[str | None, Mapping[str, bytes] | None]:
    """The bundle in service and its files; none when there is none, or it cannot be read: then training starts cold.

    Trees over other columns than the next ranker will have (another source was enabled) are left out.
    """
    try:
        version = registry.current(plan.hash)
        if version is None:
            return None, None
        bundle = registry.load(version, plan_hash=plan.hash)
        same = bundle.manifest.columns == (*plan.columns, *map(score_column, enabled_sources(config)))
        return version, {name: data for name, data in bundle.files.items() if same or name != MODEL_FILE}
    except HeadwaterError as error:
        log.warning("cold_start", reason=str(error))
        return None, None


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
