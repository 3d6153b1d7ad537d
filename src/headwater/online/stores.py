"""What a worker reads: log vocabulary, identities and state, opened once, after the worker has started."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from headwater.breaker import jittered
from headwater.features.packing import CorruptStateError
from headwater.features.paths import state_dir
from headwater.features.plan import Plan
from headwater.features.state import open_store
from headwater.features.store import (
    LogChangedError,
    PartitionsChangedError,
    PlanChangedError,
    State,
    StateReplacedError,
)
from headwater.features.user_rows import PackedRows, UserRows
from headwater.log.environment import StoreError
from headwater.log.identity import LmdbIdentity
from headwater.log.lmdb import LmdbLog
from headwater.online.caches import popular_lists
from headwater.schema.config import Config
from headwater.schema.errors import UnavailableError
from headwater.serving.view import LiveView

log = structlog.get_logger()

OPEN_PAUSE_S, LONGEST_PAUSE_S = 0.02, 0.25

_NEEDS = "the log comes from the role ingest, the state from the role fold; both have to run on this data directory"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StateFile:
    """The file that a state in LMDB was opened from."""

    path: Path
    inode: int

    @classmethod
    def of(cls, folder: Path) -> StateFile:
        """Raises :class:`UnavailableError`: there is none yet."""
        path = folder / "data.mdb"
        try:
            return cls(path, path.stat().st_ino)
        except FileNotFoundError as error:
            raise UnavailableError(f"there is no state in {folder} yet") from error

    def is_there(self) -> bool:
        """Whether the one in the folder is still the same."""
        try:
            return self.path.stat().st_ino == self.inode
        except FileNotFoundError:
            return False


@dataclass(frozen=True, slots=True)
class Stores:
    """Everything that is opened read-only. ``state_file``: what the state was opened from; None in Redis."""

    log: LmdbLog
    identity: LmdbIdentity
    state: State
    view: LiveView
    state_file: StateFile | None

    def check_state(self) -> None:
        """Whether ``state`` is still the one that the fold writes.

        Raises:
            StateReplacedError: it was dropped.
            UnavailableError: that cannot be found out now.
        """
        if self.state_file is None:
            self.state.meta()
        elif not self.state_file.is_there():
            raise StateReplacedError("The state was dropped and is folded anew; this worker starts again to read it")

    def close(self) -> None:
        """Let go of all of them."""
        self.state.close()
        self.identity.close()
        self.log.close()


def open_stores(config: Config, data: Path, plan: Plan) -> Stores:
    """Open what is in ``data``, and the state where ``[state]`` says that it is.

    Raises:
        StoreError: the writer has not made the log yet.
        UnavailableError: the fold has not made the state yet, or Redis cannot be reached.
        PlanChangedError, LogChangedError, PartitionsChangedError, CorruptStateError: the state there cannot be used; the
            fold is about to drop it.
    """
    with contextlib.ExitStack() as opened:  # what is open is closed again when the next one cannot be opened
        event_log = LmdbLog(data / "log", readonly=True)
        opened.callback(event_log.close)
        identity = LmdbIdentity(data / "identity", readonly=True)
        opened.callback(identity.close)
        path = state_dir(data, plan.hash)
        state_file = StateFile.of(path) if config.state.store == "lmdb" else None
        state = open_store(config, path, plan, writable=False, log_id=event_log.log_id)
        opened.callback(state.close)
        rows = None
        if config.cache.user_rows and isinstance(state, PackedRows):
            rows = UserRows(state, plan, config.cache.user_rows)
        view = LiveView(plan, state, rows=rows, lists=popular_lists(config.cache))
        stores = Stores(event_log, identity, state, view, state_file)
        opened.pop_all()
        return stores


async def wait_for(opening: Callable[[], T], stop: asyncio.Event, *, far: bool = False) -> T | None:
    """What ``opening`` gives as soon as writer and fold have made it; None when ``stop`` is set before that. ``far``: what is
    waited for lies on another machine, so it is asked less and less often.
    """
    said, pause = "", OPEN_PAUSE_S
    while not stop.is_set():
        try:
            return opening()
        except (
            StoreError, UnavailableError, PlanChangedError, LogChangedError, PartitionsChangedError, CorruptStateError
        ) as error:  # fmt: skip
            if str(error) != said:
                said = str(error)
                log.info("worker_waits_for_stores", reason=said, hint=_NEEDS)
        await asyncio.sleep(jittered(pause))
        if far:  # the other ones are files of this machine, there in a moment
            pause = min(2.0 * pause, LONGEST_PAUSE_S)
    return None
