"""What a worker reads: log vocabulary, identities and state, opened once, after the worker has started."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from pathlib import Path

import structlog

from headwater.features.packing import CorruptStateError
from headwater.features.paths import state_dir
from headwater.features.plan import Plan
from headwater.features.state import LmdbState, LogChangedError, PlanChangedError
from headwater.log.environment import StoreError
from headwater.log.identity import LmdbIdentity
from headwater.log.lmdb import LmdbLog
from headwater.schema.errors import UnavailableError
from headwater.serving.view import LiveView

log = structlog.get_logger()

OPEN_PAUSE_S = 0.02


class StateReplacedError(UnavailableError):
    """The fold dropped the state that this worker reads and folds a new one."""


@dataclass(frozen=True, slots=True)
class Stores:
    """Everything that is opened read-only."""

    log: LmdbLog
    identity: LmdbIdentity
    state: LmdbState
    view: LiveView
    state_file: Path
    state_inode: int

    def check_state(self) -> None:
        """Raise :class:`StateReplacedError` when the files behind ``state`` are not the ones in the folder any more."""
        try:
            inode = self.state_file.stat().st_ino
        except FileNotFoundError:
            inode = -1
        if inode != self.state_inode:
            raise StateReplacedError("The state was dropped and is folded anew; this worker starts again to read it")

    def close(self) -> None:
        """Let go of all of them."""
        self.state.close()
        self.identity.close()
        self.log.close()


def open_stores(data: Path, plan: Plan) -> Stores:
    """Open what is in ``data``.

    Raises:
        StoreError: the writer has not made the log yet.
        UnavailableError: the fold has not made the state yet.
        PlanChangedError, LogChangedError: the state there is of another plan or log; the fold is about to drop it.
    """
    with contextlib.ExitStack() as opened:  # what is open is closed again when the next one cannot be opened
        event_log = LmdbLog(data / "log", readonly=True)
        opened.callback(event_log.close)
        identity = LmdbIdentity(data / "identity", readonly=True)
        opened.callback(identity.close)
        path = state_dir(data, plan.hash)
        state_file = path / "data.mdb"
        if not state_file.exists():
            raise UnavailableError(f"there is no state in {path} yet")
        inode = state_file.stat().st_ino
        state = LmdbState(path, plan, writable=False, log_id=event_log.log_id)
        opened.callback(state.close)
        stores = Stores(event_log, identity, state, LiveView(plan, state), state_file, inode)
        opened.pop_all()
        return stores


async def wait_for_stores(data: Path, plan: Plan, stop: asyncio.Event) -> Stores | None:
    """:func:`open_stores` as soon as writer and fold have made them; None when ``stop`` is set before that."""
    said = ""
    while not stop.is_set():
        try:
            return open_stores(data, plan)
        except (StoreError, UnavailableError, PlanChangedError, LogChangedError, CorruptStateError) as error:
            if str(error) != said:
                said = str(error)
                log.info("worker_waits_for_stores", reason=said)
        await asyncio.sleep(OPEN_PAUSE_S)
    return None
