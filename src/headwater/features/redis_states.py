"""The states that a data directory has in Redis, one a plan, for those who do not know the plans.

A Redis outlives the data directory: what it holds when an older log was restored is of a future that did not happen. The
restore leaves a mark, and the first fold that opens a state drops them all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from headwater.features.state import open_wire
from headwater.schema.config import Config

if TYPE_CHECKING:
    from headwater.features.redis_wire import Wire

log = structlog.get_logger()

_POLL_S = 0.05


def restored_mark(data: Path) -> Path:
    """The file that says that ``data`` was restored and no state in Redis is known to belong to it."""
    return data / "state" / "RESTORED"


@contextlib.contextmanager
def redis_of(config: Config) -> Iterator[Wire | None]:
    """The connection to the Redis that holds the states; None when they lie elsewhere.

    Raises:
        UnavailableError: it cannot be reached.
    """
    if config.state.store != "redis":
        yield None
        return
    with contextlib.closing(open_wire(config)) as wire:
        yield wire


def states_in_redis(config: Config, data: Path, log_id: str) -> dict[str, int]:
    """How far the states of a log are, by plan; one that cannot be read, or of which nothing is known, is at 0."""
    with redis_of(config) as wire:
        if wire is None or restored_mark(data).exists():
            return {}
        from headwater.features.redis_frozen import standings

        return {plan: found.offset for plan, found in standings(wire).items() if found.log in ("", log_id)}


def has_state_in_redis(config: Config, plan: str) -> bool:
    """Whether there is a state of the plan with that hash."""
    with redis_of(config) as wire:
        if wire is None:
            return False
        from headwater.features.redis_frozen import standings

        return standings(wire, [plan])[plan].offset > 0


def drop_other_states_in_redis(config: Config, keep: Collection[str]) -> list[str]:
    """Remove the states of all plans but ``keep`` that were folded from the log of one of those; returns their hashes."""
    with redis_of(config) as wire:
        if wire is None:
            return []
        from headwater.features.redis_frozen import standings

        found = standings(wire)
        logs = {found[plan].log for plan in keep if plan in found} - {""}
        others = [plan for plan, standing in found.items() if plan not in keep and standing.log in logs]
        _drop(wire, others)
        return others


def drop_state_in_redis(config: Config, plan: str) -> None:
    """Remove the state of one plan."""
    with redis_of(config) as wire:
        if wire is not None:
            _drop(wire, [plan])


def drop_after_restore(wire: Wire, data: Path, log_id: str) -> None:
    """If ``data`` was restored, drop every state of its log: it may stand where this log never was."""
    if not restored_mark(data).exists():
        return
    from headwater.features.redis_frozen import standings

    found = [plan for plan, standing in standings(wire).items() if standing.log == log_id]
    _drop(wire, found)
    log.warning("states_dropped", plans=found, reason="the data directory was restored from a backup")
    restored_mark(data).unlink()


def write_snapshots_of_redis(config: Config, data: Path, log_id: str, folder: Path) -> list[Path]:
    """A snapshot of each state of a log, as ``<plan>.snapshot`` in ``folder``. Folds and requests go on meanwhile.

    Raises:
        StateMovedError, CorruptStateError: (see :class:`headwater.features.redis_frozen.HeldState`) a state cannot be read.
    """
    made = []
    with redis_of(config) as wire:
        if wire is None or restored_mark(data).exists():
            return []
        from headwater.features.paths import SNAPSHOT
        from headwater.features.redis_frozen import HeldState, standings
        from headwater.features.snapshot import write_snapshot

        for plan, standing in standings(wire).items():
            if standing.log == log_id and standing.offset > 0:
                made.append(folder / f"{plan}{SNAPSHOT}")
                write_snapshot(HeldState(wire, plan), made[-1])
    return made


def forget_in_redis(
    wire: Wire, log_id: str, users: Sequence[int], offset: int, may_wait: Callable[[], bool] | None,
    pause: Callable[[float], object],
) -> tuple[dict[str, int], int]:  # fmt: skip
    """Wait until the states of a log have passed ``offset``, where ``users`` were erased, as long as ``may_wait`` says.

    From a state that has not, rows are deleted: nobody folds it now, and when somebody does, the records of the erased make
    rows that their erasure ends. Returns (offsets by plan, rows that are left).
    """
    from headwater.features.redis_frozen import standings
    from headwater.features.redis_keys import Keys, user_field

    plans = [plan for plan, found in standings(wire).items() if found.log == log_id]
    while may_wait is not None and may_wait() and any(s.offset < offset for s in standings(wire, plans).values()):
        pause(_POLL_S)
    offsets, left = {}, 0
    for plan, found in standings(wire, plans).items():
        keys, offsets[plan] = Keys(plan, found.partitions), found.offset
        fields = [(user % found.partitions, user_field(user)) for user in users] if found.partitions else []
        if found.offset < offset:
            wire.trip([("HDEL", keys.key(p, keys.label(field, p)), field[1:]) for p, field in fields])
            wire.trip([("HDEL", keys.key(p, "stage"), field) for p, field in fields])
        held = [("HEXISTS", keys.key(p, keys.label(field, p)), field[1:]) for p, field in fields]
        rows = sum(wire.trip(held))
        while rows and found.offset >= offset and may_wait is not None and may_wait():
            pause(_POLL_S)  # a commit moves the position first; rows follow a round trip later
            rows = sum(wire.trip(held))
        left += rows
    return offsets, left


def _drop(wire: Wire, plans: Sequence[str]) -> None:
    from headwater.features.state_redis import drop_redis_state

    for plan in plans:
        drop_redis_state(wire, plan)
