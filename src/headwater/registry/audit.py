"""The audit log: who changed what of a running system, when, why, and how it is taken back.

``audit.jsonl`` in the data directory has a line of JSON for each change, and is only ever appended to. An entry is written
before the change that it tells of: one that has no entry cannot happen, and one that failed is in the log all the same.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, BinaryIO, NamedTuple

import msgspec
import structlog
from msgspec import Meta, Struct

from headwater.schema.errors import HeadwaterError
from headwater.schema.events import Millis, Scalar

AUDIT_FILE = "audit.jsonl"  # in the data directory
LONGEST_REASON = 2_000
_BLOCK = 1 << 16

log = structlog.get_logger()


class Undo(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a change replaced and what it put there, by field. It is taken back only while ``after`` still stands there."""

    before: dict[str, Scalar]
    after: dict[str, Scalar]


class AuditEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One change. ``by``: ``alert:NAME``, ``console``, ``key:ID``, ``cli``, or ``learn``, which is continuous training.

    ``action`` is what was done (``controls.change``, ``bundle.rollback``, ...), ``subject`` what it was done to. ``undoes``
    is the id of the entry that this one takes back; ``undo`` says how (None: it cannot be taken back, as a message that was sent).
    ``intent`` names what an alert meant to do, once: by it the next monitor knows whether one that died came so far.
    """

    id: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}$")]
    time_ms: Millis
    by: Annotated[str, Meta(min_length=1, max_length=200)]
    action: Annotated[str, Meta(min_length=1, max_length=64)]
    subject: Annotated[str, Meta(max_length=500)]
    reason: Annotated[str, Meta(max_length=LONGEST_REASON)]
    undoes: str | None = None
    undo: Undo | None = None
    intent: Annotated[str, Meta(max_length=500)] | None = None


class Author(NamedTuple):
    """Who makes a change, by which clock (the wall's, Unix ms) it is dated, and the reason that they gave."""

    by: str
    clock: Callable[[], int]
    reason: str = ""


_decode = msgspec.json.Decoder(AuditEntry).decode


def pass_by(point: str) -> None:
    """Nobody looks on. Whoever changes something calls such a function at each point where dying must do no harm; tests die there."""


def record(
    data: Path, *, time_ms: int, by: str, action: str, subject: str, reason: str, undoes: str | None = None,
    before: Mapping[str, Scalar] | None = None, after: Mapping[str, Scalar] | None = None, intent: str | None = None,
    entropy: Callable[[int], bytes] = secrets.token_bytes,
) -> AuditEntry:  # fmt: skip
    """Write that something is about to change, durably; a longer ``reason`` is cut. ``before`` and ``after`` make it one that can be
    taken back. ``entropy`` gives so many random bytes, for the id.

    Raises:
        HeadwaterError: a field is not what an entry may hold.
        OSError: the disk did not take it; then nothing may be changed.
    """
    fields = {
        "id": entropy(8).hex(), "time_ms": time_ms, "by": by, "action": action, "subject": subject,
        "reason": reason if len(reason) <= LONGEST_REASON else f"{reason[: LONGEST_REASON - 1]}…",
        "undoes": undoes, "undo": None if before is None or after is None else {"before": dict(before), "after": dict(after)},
        "intent": intent,
    }  # fmt: skip
    try:
        entry = msgspec.convert(fields, AuditEntry)
    except msgspec.ValidationError as error:
        raise HeadwaterError(f"audit: {error}") from error
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(data / AUDIT_FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        line = msgspec.json.encode(entry) + b"\n"
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":  # somebody died in the middle of a line
            line = b"\n" + line
        written = os.write(descriptor, line)
        if written != len(line):
            raise OSError(28, f"only {written} of {len(line)} bytes of an audit entry were written", AUDIT_FILE)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    log.info("audit", by=by, action=action, subject=subject, reason=entry.reason, entry=entry.id)
    return entry


def read_audit(data: Path, limit: int = 100) -> list[AuditEntry]:
    """The last ``limit`` entries, newest first. A line that was cut short by a crash is passed over, and said in the log."""
    try:
        with (data / AUDIT_FILE).open("rb") as file:
            lines = _last_lines(file, limit)
    except FileNotFoundError:
        return []
    entries: list[AuditEntry] = []
    for line in reversed(lines):
        if len(entries) == limit:
            break
        try:
            entries.append(_decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("audit_line_unreadable", reason=str(error))
    return entries


def _last_lines(file: BinaryIO, at_least: int) -> list[bytes]:
    """``at_least`` whole lines at the end of ``file`` (all, when there are fewer), in their order."""
    size, wanted = file.seek(0, os.SEEK_END), _BLOCK
    while True:
        start = max(0, size - wanted)
        file.seek(start)
        lines = file.read(size - start).splitlines()
        if start == 0:
            return lines
        if len(lines) > at_least:
            return lines[1:]  # the first may be half of one
        wanted *= 2
