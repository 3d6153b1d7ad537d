"""How the alerts stand, in a file that others read and the next monitor goes on from; and who has taken notice."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
import structlog
from msgspec import Struct

from headwater.monitoring.alerts import AlertState
from headwater.registry.audit import AuditEntry, record
from headwater.registry.files import read_regular, replace_file, writers_lock
from headwater.schema.errors import HeadwaterError

STANDING_FILE = Path("monitoring", "alerts.json")  # in the data directory
LATE_ROUNDS = 6
_MAX_FILE = 16 << 20

log = structlog.get_logger()


class Ack(Struct, frozen=True, kw_only=True):
    """Somebody has taken notice of ``incident``: of it nobody is told again."""

    incident: str
    by: str
    time_ms: int
    reason: str = ""


class Standing(Struct, frozen=True, kw_only=True):
    """How all rules stood after the round at ``time_ms``."""

    time_ms: int = 0
    states: tuple[AlertState, ...] = ()


def read_standing(data: Path) -> Standing:
    """The last round's; an empty one when there was none. One that cannot be read is said and passed over: it is written in each round."""
    try:
        return msgspec.json.decode(read_regular(data / STANDING_FILE, _MAX_FILE), type=Standing)
    except FileNotFoundError:
        return Standing()
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        log.warning("alerts_unreadable", reason=str(error))
        return Standing()


def is_late(standing: Standing, every_ms: int, now_ms: int) -> bool:
    """Whether the monitor, which looks every ``every_ms``, has stopped looking."""
    return now_ms - standing.time_ms > LATE_ROUNDS * every_ms


def write_standing(data: Path, time_ms: int, states: Sequence[AlertState], *, durably: bool = False) -> None:
    """Replace it in one step; not to the disk, whose syncs belong to the log: after a power cut the next round writes it. ``durably``: to the
    disk all the same, as before something is done.
    """
    path = data / STANDING_FILE
    if durably:
        replace_file(path, msgspec.json.encode(Standing(time_ms=time_ms, states=tuple(states))))
        return
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(msgspec.json.encode(Standing(time_ms=time_ms, states=tuple(states))))
    os.replace(fresh, path)  # noqa: PTH105  (one system call, named as what it is)


def acknowledge(data: Path, alert: str, *, by: str, reason: str, now_ms: int) -> list[AuditEntry]:
    """Take notice of every incident of ``alert`` (a rule, or ``rule/group``) that goes on; audited.

    Raises:
        HeadwaterError: nothing of that name is firing.
    """
    firing = [
        state for state in read_standing(data).states
        if state.state == "firing" and alert in (state.alert, f"{state.alert}/{state.group}")
    ]  # fmt: skip
    if not firing:
        raise HeadwaterError(f'alert "{alert}" is not firing: there is nothing to take notice of')
    entries = []
    with writers_lock(data / "monitoring" / "acks.lock"):
        for state in firing:
            entries.append(
                record(data, time_ms=now_ms, by=by, action="alert.ack", subject=state.incident, reason=reason)
            )
            ack = Ack(incident=state.incident, by=by, time_ms=now_ms, reason=reason)
            path = _ack_file(data, state.incident)
            path.parent.mkdir(exist_ok=True, mode=0o700)
            replace_file(path, msgspec.json.encode(ack))
    return entries


def read_ack(data: Path, incident: str) -> Ack | None:
    """Who took notice of ``incident``; None: nobody, or the file cannot be read, which is said: better told twice than not at all."""
    try:
        return msgspec.json.decode(read_regular(_ack_file(data, incident), _MAX_FILE), type=Ack)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        log.warning("ack_unreadable", incident=incident, reason=str(error))
        return None


def drop_ack(data: Path, incident: str) -> None:
    """It is over."""
    _ack_file(data, incident).unlink(missing_ok=True)


def _ack_file(data: Path, incident: str) -> Path:
    return data / "monitoring" / "acks" / f"{hashlib.sha256(incident.encode()).hexdigest()[:32]}.json"
