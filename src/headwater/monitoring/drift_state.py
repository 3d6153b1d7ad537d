"""What the watch over data remembers between two runs: one file, replaced in one step."""

from __future__ import annotations

from pathlib import Path

import msgspec
import structlog
from msgspec import Struct

from headwater.monitoring.calibration import CalibrationState
from headwater.monitoring.dead import DeadState
from headwater.monitoring.loop import LoopState
from headwater.monitoring.rates import RateState
from headwater.monitoring.reference import State
from headwater.registry.files import read_regular, replace_file

log = structlog.get_logger()

FORMAT = 1
MOST_BYTES = 256 << 20


class DriftState(Struct, kw_only=True, forbid_unknown_fields=True):
    """Where the watch stands in which log, its references, and the counts of each dense event type by hour."""

    log_id: str
    offset: int
    features: State | None
    scores: State | None
    calibration: CalibrationState | None
    seasons: dict[int, dict[int, int]]
    dead: DeadState | None = None
    loop: LoopState | None = None
    by_type: dict[str, CalibrationState] = {}
    rates: dict[str, RateState] = {}
    format: int = FORMAT


def load_state(path: Path, log_id: str) -> DriftState | None:
    """The state at ``path``; None when there is none, it is of another log or release, or cannot be read (which is logged)."""
    try:
        state = msgspec.msgpack.decode(read_regular(path, MOST_BYTES), type=DriftState)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        log.warning("drift_begins_anew", path=str(path), reason=str(error))
        return None
    if state.format != FORMAT or state.log_id != log_id:
        log.warning("drift_begins_anew", path=str(path), reason="of another log or release")
        return None
    return state


def save_state(path: Path, state: DriftState) -> None:
    """Replace the file; only the monitor calls it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    replace_file(path, msgspec.msgpack.encode(state))
