"""References of bundles that no longer serve: a rollback goes on with the one of the bundle that comes back, instead of beginning anew.

One file for each, ``references/<what>-<key>.msgpack``, replaced in one step; the newest ``KEPT`` of each kind stay.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import structlog
from msgspec import Struct

from headwater.monitoring.calibration import CalibrationState
from headwater.monitoring.reference import State
from headwater.monitoring.reservoir import Sampled
from headwater.registry.files import read_regular, replace_file

log = structlog.get_logger()

KEPT = 8
MOST_BYTES = 64 << 20
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}")


class _Left(Struct, kw_only=True, forbid_unknown_fields=True):
    compared: State | None = None
    calibration: CalibrationState | None = None


class LeftReferences:
    """What is put is there again for whoever comes back. ``folder`` None: only for as long as this process lives."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._held: dict[tuple[str, str], bytes] = {}

    def put(self, what: str, state: State | CalibrationState) -> None:
        """Keep a whole reference; the window that was open is let go of, what its last one found as well."""
        if isinstance(state, State):
            if not state.columns:
                return  # not there yet: what is missing would come from another time
            state.window_ms, state.window, state.outside, state.latest = 0, [], [], None
            left = _Left(compared=state)
        else:
            if not state.complete:
                return
            state.window_ms, state.window, state.latest = 0, Sampled(), None
            left = _Left(calibration=state)
        data = msgspec.msgpack.encode(left)
        self._held.pop((what, state.key), None)
        self._held[what, state.key] = data
        ours = [at for at in self._held if at[0] == what]
        for old in ours[:-KEPT]:
            del self._held[old]
        if self._folder is None or not _KEY.fullmatch(f"{what}-{state.key}"):
            return
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(self._folder / f"{what}-{state.key}.msgpack", data)
        files = sorted(self._folder.glob(f"{what}-*.msgpack"), key=lambda path: path.stat().st_mtime_ns)
        for path in files[:-KEPT]:
            path.unlink()

    def compared(self, what: str, key: str) -> State | None:
        """The reference of columns under ``key``, if it was kept."""
        left = self._found(what, key)
        return None if left is None else left.compared

    def calibration(self, what: str, key: str) -> CalibrationState | None:
        """The reference of outcomes under ``key``, if it was kept."""
        left = self._found(what, key)
        return None if left is None else left.calibration

    def _found(self, what: str, key: str) -> _Left | None:
        data = self._held.get((what, key))
        try:
            if data is None and self._folder is not None and _KEY.fullmatch(f"{what}-{key}"):
                data = read_regular(self._folder / f"{what}-{key}.msgpack", MOST_BYTES)
            left = None if data is None else msgspec.msgpack.decode(data, type=_Left)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("reference_begins_anew", what=what, key=key, reason=str(error))
            return None
        return left
