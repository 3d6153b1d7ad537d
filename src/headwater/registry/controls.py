"""The file of controls: read, changed with an entry in the audit log, and followed by every process that obeys it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import structlog

from headwater.registry.audit import AuditEntry, pass_by, record
from headwater.registry.files import Stamp, read_regular, replace_file, stamp, writers_lock
from headwater.schema.controls import CONTROLS_FILE, Controls
from headwater.schema.errors import ConfigurationError
from headwater.schema.strict import key_and_reason, nearest

_MAX_FILE = 64 * 1024
_decode = msgspec.json.Decoder(Controls).decode

log = structlog.get_logger()


def read_controls(data: Path) -> Controls:
    """The controls of ``data``; the defaults when nobody ever changed them.

    Raises:
        ConfigurationError: the file is there and cannot be read.
    """
    path = data / CONTROLS_FILE
    try:
        return _decode(read_regular(path, _MAX_FILE))
    except FileNotFoundError:
        return Controls()
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{path}: Cannot read the controls: {error}. Remove it to have the defaults"
        ) from error


def change_controls(data: Path, *, by: str, reason: str, time_ms: int, **changes: Any) -> Controls:
    """Set the ``changes`` (fields of :class:`Controls`), durably and audited; returns all controls. What changes nothing leaves no entry.

    Raises:
        ConfigurationError: there is no such control, or a value is none for it.
    """
    return changed_controls(data, changes, by=by, reason=reason, time_ms=time_ms)[0]


def changed_controls(
    data: Path, changes: Mapping[str, Any], *, by: str, reason: str, time_ms: int, undoes: str | None = None,
    expect: Mapping[str, Any] | None = None, intent: str | None = None, passing: Callable[[str], None] = pass_by,
) -> tuple[Controls, AuditEntry | None]:  # fmt: skip
    """As :func:`change_controls`, with the entry in the audit log (None: nothing changed). ``expect``: values that must stand there
    now; ``undoes``: the audit entry that this takes back; ``intent``: as of entries; ``passing`` is called between entry and change.

    Raises:
        ConfigurationError: there is no such control, a value is none for it, or something else stands there than is expected.
    """
    known = Controls.__struct_fields__
    for name in changes:
        if name not in known:
            raise ConfigurationError(f'controls: There is no control "{name}"{nearest(name, known)}')
    (data / "run").mkdir(parents=True, exist_ok=True, mode=0o700)
    with writers_lock(data / "run" / "controls.lock"):
        now = read_controls(data)
        for name, value in (expect or {}).items():
            if (stands := getattr(now, name)) != value:
                raise ConfigurationError(f"controls.{name}: It was changed since: Expected {value!r}, it is {stands!r}")
        try:
            wanted = msgspec.convert({**msgspec.to_builtins(now), **changes}, Controls)
        except msgspec.ValidationError as error:
            key, why = key_and_reason(error)
            raise ConfigurationError(f"controls.{key}: {why}") from error
        differing = [name for name in known if getattr(now, name) != getattr(wanted, name)]
        if not differing:
            return now, None
        entry = record(
            data, time_ms=time_ms, by=by, action="controls.change", subject=", ".join(differing), reason=reason,
            undoes=undoes, before={name: getattr(now, name) for name in differing},
            after={name: getattr(wanted, name) for name in differing}, intent=intent,
        )  # fmt: skip
        passing("entry")
        _write(data, wanted)
    return wanted, entry


def finish_controls(data: Path, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Make a change whose entry is in the audit log, if whoever wrote it died before the change: only where ``before`` still stands."""
    (data / "run").mkdir(parents=True, exist_ok=True, mode=0o700)
    with writers_lock(data / "run" / "controls.lock"):
        now = read_controls(data)
        if all(getattr(now, name) == value for name, value in before.items()):
            _write(data, msgspec.convert({**msgspec.to_builtins(now), **after}, Controls))


def _write(data: Path, wanted: Controls) -> None:
    content = msgspec.json.format(msgspec.json.encode(wanted), indent=2) + b"\n"
    replace_file(data / CONTROLS_FILE, content, mode=0o600)


class ControlsFile:
    """The controls as a process follows them: a file that is wrong changes nothing."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._seen: Stamp | None = None
        self.now = Controls()
        self.poll()

    def poll(self) -> bool:
        """Take the file up if it changed since the last call (else this costs one ``stat``); whether the controls changed."""
        mark = stamp(self._data / CONTROLS_FILE)  # before reading: a change in between is seen by the next call
        if mark == self._seen:
            return False
        self._seen = mark
        try:
            read = read_controls(self._data)
        except ConfigurationError as error:
            log.error("controls_refused", reason=str(error), hint="those from before stay in force")
            return False
        before, self.now = self.now, read
        if read != before:
            log.info("controls_in_force", **msgspec.to_builtins(read))
        return read != before
