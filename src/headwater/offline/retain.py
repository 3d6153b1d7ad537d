"""Retention: old records leave the log once they are archived, and old files leave the lake.

What leaves the log stays readable from the lake. What leaves the lake is gone: states that were folded from it live
on, new ones begin without it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from msgspec import Struct

from headwater.log.archived import check_same, open_log
from headwater.log.dedup import LOOKED_AT
from headwater.log.lake import LakeLog, lake_dir, lake_schema, open_table
from headwater.log.lmdb import LmdbLog
from headwater.log.seek import last_before
from headwater.offline.archive import lake_lock, sync_table
from headwater.offline.importing.run import connect
from headwater.offline.states import all_offsets
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError


class RetainReport(Struct, frozen=True, kw_only=True):
    """What was removed, and how far what is left reaches back.

    ``held_by`` says what kept older records in the log ("": nothing did). ``lost`` says what cannot be rebuilt any
    more because the lake let go of its source.
    """

    log_removed: int
    log_first_offset: int
    held_by: str
    lake_removed: int
    lake_files_removed: int
    first_offset: int
    lost: list[str]


class NotCoveredError(HeadwaterError):
    """The lake was to let go of records that no state has in it."""


def retain(
    data: Path, config: Config, *, log_ms: int | None, lake_ms: int | None, now_ms: int, force: bool = False
) -> RetainReport:
    """Remove records older than ``log_ms`` from the log and files older than ``lake_ms`` from the lake (None: nothing).

    From the log goes only what the lake holds, every state has passed, and the dedup window is not rebuilt from. The
    lake lets go of what every state has passed; ``force``: of anything that is old enough.

    Raises:
        NotCoveredError: the lake was to let go of records that a state still needs, or there is no state.
        StoreError: there is no log, or the lake is another one's.
    """
    with lake_lock(data):
        removed, held_by = _retain_log(data, config, now_ms - log_ms) if log_ms is not None else (0, "")
        records, files, lost = (
            _retain_lake(data, config, now_ms - lake_ms, force) if lake_ms is not None else (0, 0, [])
        )
        with contextlib.closing(LmdbLog(data / "log", readonly=True)) as log:
            first = log.first_offset
        with contextlib.closing(open_log(data)) as whole:
            return RetainReport(
                log_removed=removed, log_first_offset=first, held_by=held_by, lake_removed=records,
                lake_files_removed=files, first_offset=whole.first_offset, lost=lost,
            )  # fmt: skip


def _retain_log(data: Path, config: Config, before_ms: int) -> tuple[int, str]:
    """Trim the log; how many records went, and what held it back from removing all that is old enough."""
    with contextlib.closing(open_log(data)) as whole:
        old = last_before(whole, before_ms)[0]
        last, log_id = whole.last_offset, whole.log_id
    limits = {
        "the archive": _archived(data),
        "the dedup window (log.dedup_window)": last - LOOKED_AT * config.log.dedup_window,
        **{f"the state {name}": offset for name, offset in all_offsets(data, config, log_id).items()},
    }
    reason = min(limits, key=lambda name: limits[name])
    upto = max(0, min(old, limits[reason]))
    removed = 0
    if upto:
        sync_table(lake_dir(data))  # the archive may have ended right behind its commit
        with contextlib.closing(connect(data, config)) as writer:
            while part := writer.trim_log(upto).accepted:
                removed += part
    held = f"{reason} stands at offset {max(0, limits[reason])}" if limits[reason] < old else ""
    return removed, held


def _archived(data: Path) -> int:
    if not (lake_dir(data) / "_delta_log").is_dir():
        return 0
    lake = LakeLog(lake_dir(data))
    with contextlib.closing(LmdbLog(data / "log", readonly=True)) as log:
        check_same(log, lake)
    return lake.last_offset


def _retain_lake(data: Path, config: Config, before_ms: int, force: bool) -> tuple[int, int, list[str]]:
    from deltalake import CommitProperties
    from deltalake.transaction import RemoveAction

    path = lake_dir(data)
    if not (path / "_delta_log").is_dir():
        return 0, 0, []
    lake = LakeLog(path)
    old = [file for file in lake.files[:-1] if file.last_received_ms < before_ms]
    if not old:
        return 0, 0, []
    last = old[-1].last
    with contextlib.closing(LmdbLog(data / "log", readonly=True)) as log:
        check_same(log, lake)
        begins, log_id = min(log.first_offset, last + 1), log.log_id  # what then can be read
    is_lost = begins > old[0].first
    states = all_offsets(data, config, log_id)
    behind = {name: offset for name, offset in states.items() if offset < begins - 1}
    if is_lost and not force and (behind or not states):
        named = ", ".join(f"{name} at offset {offset}" for name, offset in behind.items()) or "there is no state at all"
        raise NotCoveredError(
            f"Records up to offset {begins - 1} are old enough to leave the lake, but not all is folded: {named}. Let the "
            "fold catch up (`headwater serve`), remove states that are of no use, or say --force"
        )
    open_table(path).create_write_transaction(
        [RemoveAction(path=file.path, data_change=True, deletion_timestamp=max(before_ms, 0)) for file in old],
        "append",
        lake_schema(),
        commit_properties=CommitProperties(custom_metadata={"retained_from": str(last + 1)}),
    )
    sync_table(path)
    for file in old:
        (path / file.path).unlink(missing_ok=True)
    lost = _lost(begins, sorted(states)) if is_lost else []
    return last - old[0].first + 1, len(old), lost


def _lost(begins: int, states: list[str]) -> list[str]:
    kept = ", ".join(states) or "none"
    anew = (
        f"a state folded from the start: the log begins with offset {begins}, and items, profiles and events that were "
        "recorded before it are in no state but those there are"
    )
    lost = (
        f"the states there are ({kept}) if they are lost: the fold drops a state after the machine was restarted; back "
        "them up (`headwater backup --state`)"
    )
    return [anew, lost, "training rows, evaluations and checks of served rows from before that offset"]
