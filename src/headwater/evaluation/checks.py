"""The last check of each plan's features, kept with the data, and what it forbids.

``verify/<plan hash>.json`` is the newest report of ``headwater features verify`` that compared anything.
A plan whose report has bytes that differ trains nothing until a later check finds none, or a person says otherwise.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from headwater.evaluation.verify import Verification
from headwater.registry.files import read_regular, replace_file, writers_lock
from headwater.schema.errors import HeadwaterError

_MOST_BYTES = 16 << 20
_NAMED = 8


class MismatchError(HeadwaterError):
    """Serving and replay disagree on features that a model would be trained on."""


def checks_dir(data: Path) -> Path:
    """Where a data directory keeps the reports."""
    return data / "verify"


def store_check(checks: Path, report: Verification) -> Path | None:
    """Replace the plan's last report in one step; returns its path.

    A report that compared nothing proves nothing: it is not stored, and None is returned.
    """
    if not report.requests:
        return None
    checks.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = _path(checks, report.plan)
    with writers_lock(checks / "LOCK"):
        replace_file(path, msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    return path


def last_check(checks: Path, plan: str) -> Verification | None:
    """The last report about the plan with that hash; None when there is none.

    Raises:
        HeadwaterError: the file cannot be read.
    """
    path = _path(checks, plan)
    try:
        return msgspec.json.decode(read_regular(path, _MOST_BYTES), type=Verification)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HeadwaterError(f"{path} cannot be read: {error}. `headwater features verify` writes it again") from error


def mismatches(checks: Path, plan: str, columns: tuple[str, ...], *, allowed: bool = False) -> tuple[str, ...]:
    """Which of ``columns`` the last check of the plan found to differ, when that is ``allowed``.

    Raises:
        MismatchError: some differ, and it is not allowed.
        HeadwaterError: the report cannot be read.
    """
    report = last_check(checks, plan)
    if report is None:
        return ()
    wrong = tuple(name for name in columns if report.by_feature.get(name))
    if wrong and not allowed:
        names = ", ".join(wrong[:_NAMED]) + (f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else "")
        raise MismatchError(
            f"serving and replay disagree on {names}: {report.mismatched_bytes} bytes in {report.mismatched_requests} "
            f"of {report.requests} requests at offsets {report.first_offset} to {report.last_offset}, says "
            f"{_path(checks, plan)}. A model trained now would meet other numbers when it serves. Find out why, serve "
            f"again and check what was served since (headwater features verify --since {report.last_offset + 1}), or "
            "train with --allow-mismatch, which the bundle's manifest will say"
        )
    return wrong


def _path(checks: Path, plan: str) -> Path:
    return checks / f"{plan}.json"
