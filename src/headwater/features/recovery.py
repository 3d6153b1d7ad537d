"""Opening a state to fold into: one that cannot be trusted is dropped, and the log has it all."""

from __future__ import annotations

import shutil
from pathlib import Path

import structlog

from headwater.features.plan import Plan
from headwater.features.state import LmdbState, open_for_fold
from headwater.log.protocol import EventLog

log = structlog.get_logger()

BOOT_MARK = "boot"
DAMAGED = "damaged"

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def open_state(path: Path, plan: Plan, event_log: EventLog) -> LmdbState:
    """The state to fold into. One that cannot be trusted is dropped and folded anew from the log.

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
        dropped = f"it stands at offset {state.offset}, the log ends at {event_log.last_offset}"
        state.close()
        shutil.rmtree(path)
        state, _ = open_for_fold(path, plan, event_log.log_id)
    if dropped is not None:
        log.warning("state_dropped", reason=dropped, hint="it is folded anew from the log")
    mark.write_text(boot)
    return state


def mark_damaged(path: Path) -> None:
    """Have the next one who opens the state in ``path`` drop it."""
    (path / BOOT_MARK).write_text(DAMAGED)
