"""The backfill: the state of a plan from the log, while another plan serves, and the request to serve it.

It is the fold of the nearline plane, driven to the log's end. Rows and log offset are stored together, so one that was
killed goes on where it stood. What arrives afterwards the fold process of that plan takes in when it starts.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
from msgspec import Struct

from headwater.features.fold import Fold
from headwater.features.paths import BUILDING, Current, building_dir, read_current, state_dir, write_current
from headwater.features.plan import Plan
from headwater.features.profiles import Profiles
from headwater.features.recovery import begin_with_snapshot, open_fold_state, open_state
from headwater.features.redis_states import drop_state_in_redis
from headwater.log.protocol import EventLog
from headwater.registry.registry import Registry
from headwater.schema.config import Config
from headwater.schema.errors import ConfigurationError, HeadwaterError

log = structlog.get_logger()

Progress = Callable[[int, int], None]

STORE_S = 1.0  # rows and offset are stored this often: what a kill costs at most


class NoBundleError(HeadwaterError):
    """The plan in service ranks with a bundle and the new one has none: flipping would lose the ranker."""


class Built(Struct, frozen=True, kw_only=True):
    """What a backfill did: state of ``plan`` from offset ``first`` (behind which it was found) to ``offset``."""

    plan: str
    first: int
    offset: int
    seconds: float

    @property
    def records(self) -> int:
        """How many it folded."""
        return self.offset - self.first


@contextmanager
def one_backfill(data: Path) -> Iterator[None]:
    """Hold the lock that allows one backfill a data directory.

    Raises:
        ConfigurationError: another one runs.
    """
    path = data / "run" / "backfill.lock"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(f"Another backfill runs on {data}; wait for it or stop it") from error
        yield
    finally:
        os.close(handle)


def build_state(
    config: Config,
    data: Path,
    plan: Plan,
    event_log: EventLog,
    *,
    progress: Progress | None = None,
    seconds: Callable[[], float] = time.monotonic,
) -> Built:
    """Bring the state of ``plan``, which nobody serves, to the end of the log; :func:`one_backfill` is held.

    It is built in ``state/<hash>.building``, which gets its final name at the log's end; a finished one is brought up
    to date in place. In Redis it is built where it will stand, for no server looks at it yet, and that folder, empty, says that it
    is not finished. ``progress`` gets (offset, last offset of the log); ``seconds`` is a monotonic clock.

    Raises:
        StateConflictError: (Redis) a server was started with this plan meanwhile, and folds for itself.
        UnavailableError: Redis cannot be reached; what was stored stays.
    """
    began = seconds()
    final, building = state_dir(data, plan.hash), building_dir(data, plan.hash)
    path: Path | None = None
    if config.state.store == "lmdb":
        path = final if (final / "data.mdb").exists() else building
    if path != final:
        _drop_given_up(config, data, building)
    state = open_fold_state(config, data, plan, event_log) if path is None else open_state(path, plan, event_log)
    try:
        begin_with_snapshot(state, data, event_log)
        if path is None and state.offset == 0:
            building.mkdir(parents=True, exist_ok=True, mode=0o700)
        fold = Fold(plan, state, unseal=Profiles(data))
        first, stored_s = fold.offset, seconds()
        while (block := event_log.read(fold.offset)) is not None:
            fold.apply(block)
            if seconds() - stored_s >= STORE_S or fold.users.used > 2 * fold.cache_users:
                fold.commit(epoch=False)
                stored_s = seconds()
            if progress is not None:
                progress(fold.offset, event_log.last_offset)
        fold.commit(epoch=False)
    finally:
        state.close()
    if path is None:
        shutil.rmtree(building, ignore_errors=True)
    elif path != final:
        if final.exists():  # a server was started with this plan meanwhile, and folds for itself
            shutil.rmtree(path)
        else:
            path.rename(final)
    return Built(plan=plan.hash, first=first, offset=fold.offset, seconds=seconds() - began)


def _drop_given_up(config: Config, data: Path, building: Path) -> None:
    """Remove unfinished states of other plans, but for those that a server has taken over in the meantime."""
    current = read_current(data)
    served = set() if current is None else {current.plan, current.before}
    for other in (data / "state").glob(f"*{BUILDING}"):
        if other == building:
            continue
        if other.stem not in served and not (other / "data.mdb").exists():
            drop_state_in_redis(config, other.stem)
        log.warning("state_dropped", reason=f"{other.name} is of a plan that another backfill gave up")
        shutil.rmtree(other)


def check_promoted(models: Path, serving: str, plan: str) -> None:
    """Whether serving ``plan`` in the place of ``serving`` keeps a ranker.

    Raises:
        NoBundleError: it would not.
    """
    registry = Registry(models)
    ranked = registry.current(serving)
    if ranked is not None and registry.current(plan) is None:
        raise NoBundleError(
            f"Plan {serving} ranks with bundle {ranked}, plan {plan} has no promoted bundle yet. Its state is built and "
            "stays: train on the new plan (`headwater train` with the same configuration; it promotes for this plan "
            "only), then run `headwater features backfill` again, or add --without-ranker"
        )


def request_flip(data: Path, plan: str, config_path: Path | None, digest: str) -> str:
    """Ask the server of ``data`` to serve ``plan``, of the configuration in ``config_path``; returns the request's name.

    ``digest`` is what the file came to when the plan was compiled (:func:`headwater.features.pinned.config_digest`).
    """
    before = read_current(data)
    wanted = Current(
        plan=plan,
        before=None if before is None else before.plan,
        config=None if config_path is None else str(config_path.resolve()),
        digest=digest,
        request=secrets.token_hex(8),
    )
    write_current(data, wanted)
    return wanted.request
