"""Opening a state to fold into: one that cannot be trusted is dropped, and the log has it all."""

from __future__ import annotations

import shutil
from pathlib import Path

import structlog

from headwater.features.packing import CorruptStateError
from headwater.features.paths import snapshot_file, state_dir
from headwater.features.plan import Plan
from headwater.features.redis_states import drop_after_restore
from headwater.features.snapshot import SnapshotError, read_snapshot, snapshot_header
from headwater.features.state import LmdbState, open_for_fold, open_wire
from headwater.features.store import LogChangedError, PartitionsChangedError, PlanChangedError, State
from headwater.log.protocol import EventLog
from headwater.schema.config import Config

log = structlog.get_logger()

BOOT_MARK = "boot"
DAMAGED = "damaged"

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def open_fold_state(config: Config, data: Path, plan: Plan, event_log: EventLog) -> State:
    """The state to fold into, in the store that ``[state]`` names. One that cannot be trusted is dropped and folded anew.

    Raises:
        UnavailableError: Redis cannot be reached.
        ConfigurationError: Redis would throw rows away, or its client is not installed.
    """
    state: State
    if config.state.store == "lmdb":
        state = open_state(state_dir(data, plan.hash), plan, event_log)
    else:
        state = _open_in_redis(config, data, plan, event_log)
    try:
        begin_with_snapshot(state, data, event_log)
    except BaseException:
        state.close()
        raise
    return state


def begin_with_snapshot(state: State, data: Path, event_log: EventLog) -> None:
    """Make an empty ``state`` that of the snapshot which a restore has put there, if it did; the fold goes on from that."""
    path = snapshot_file(data, state.plan.hash)
    if not path.exists():
        return
    if state.offset == 0:
        try:
            header = snapshot_header(path)
            if header.offset > event_log.last_offset:
                raise SnapshotError(f"{path} stands at offset {header.offset}, the log ends at {event_log.last_offset}")
            read_snapshot(path, state)
            log.info("state_begins_with_snapshot", snapshot=path.name, offset=header.offset)
        except (SnapshotError, PlanChangedError, LogChangedError) as error:
            log.warning("snapshot_not_used", reason=str(error), hint="the state is folded anew from the log")
    path.unlink()  # from here on it would only grow old, and hold rows of those who are erased


def mark_damaged(state: State) -> None:
    """Have the next one who opens the state to fold into it drop it."""
    if isinstance(state, LmdbState):
        (state.path / BOOT_MARK).write_text(DAMAGED)
        return
    from headwater.features.state_redis import RedisState

    if isinstance(state, RedisState):
        state.condemn()


def open_state(path: Path, plan: Plan, event_log: EventLog) -> LmdbState:
    """The state in LMDB to fold into. One that cannot be trusted is dropped and folded anew from the log.

    That is a state of another plan or another log, an unreadable one, one that is ahead of the log, one that a process found
    damaged, and one that was written before the machine last started: state is not synced, so a power cut may
    have left it half-written, and may have lost the mark that says when it was written.
    """
    boot = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""
    mark = path / BOOT_MARK
    dropped: str | None = None
    if mark.exists() and mark.read_text() == DAMAGED:
        shutil.rmtree(path)
        dropped = "it was found damaged"
    elif (path / "data.mdb").exists() and not (mark.exists() and mark.read_text() == boot):
        shutil.rmtree(path)
        dropped = "the machine was restarted since it was written"
    state, why = open_for_fold(path, plan, event_log.log_id)
    dropped = dropped or why
    if state.offset > event_log.last_offset:
        dropped = _ahead(state, event_log)
        state.close()
        shutil.rmtree(path)
        state, _ = open_for_fold(path, plan, event_log.log_id)
    if dropped is not None:
        _say_dropped(dropped)
    mark.write_text(boot)
    return state


def _open_in_redis(config: Config, data: Path, plan: Plan, event_log: EventLog) -> State:
    """The same in Redis: of another log, in other partitions, unreadable, condemned, torn apart, or ahead of the log."""
    wire = open_wire(config)
    from headwater.features.state_redis import RedisState, drop_redis_state

    def opened() -> RedisState:
        return RedisState(
            wire, plan, writable=True, log_id=event_log.log_id, partitions=config.state.partitions
        )  # fmt: skip

    try:
        drop_after_restore(wire, data, event_log.log_id)
        try:
            state = opened()
            dropped = _ahead(state, event_log) if state.offset > event_log.last_offset else None
        except (PlanChangedError, LogChangedError, PartitionsChangedError, CorruptStateError) as error:
            dropped = str(error)
        if dropped is not None:
            _say_dropped(dropped)
            drop_redis_state(wire, plan.hash)
            state = opened()
    except BaseException:
        wire.close()
        raise
    return state


def _ahead(state: State, event_log: EventLog) -> str:
    return f"it stands at offset {state.offset}, the log ends at {event_log.last_offset}"


def _say_dropped(reason: str) -> None:
    log.warning("state_dropped", reason=reason, hint="it is folded anew from the log")
