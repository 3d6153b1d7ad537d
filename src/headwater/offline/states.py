"""The states of a data directory as others see them: how far each is, without the plan that folded it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import lmdb
import msgspec

from headwater.features.packing import CorruptStateError
from headwater.features.paths import BUILDING, SNAPSHOT
from headwater.features.redis_states import states_in_redis
from headwater.features.snapshot import snapshot_header
from headwater.features.store import Meta, unchecked
from headwater.log.environment import open_environment
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError

_META = b"meta"
_USERS = b"users"


def all_states(data: Path) -> list[Path]:
    """Every state in LMDB, finished or being built."""
    return sorted(path.parent for path in (data / "state").glob("*/data.mdb"))


def all_offsets(data: Path, config: Config, log_id: str) -> dict[str, int]:
    """How far every state is that was folded from a log, wherever it lies, by a name for messages.

    Raises:
        HeadwaterError: (see :func:`state_offset`) one cannot be read. UnavailableError: Redis cannot be reached.
    """
    return {
        **{path.name: state_offset(path) for path in all_states(data)},
        **{path.name: snapshot_header(path).offset for path in sorted((data / "state").glob(f"*{SNAPSHOT}"))},
        **{f"{plan} in Redis": offset for plan, offset in states_in_redis(config, data, log_id).items()},
    }


def state_offset(path: Path) -> int:
    """The log offset at which the state in folder ``path`` stands; 0 when it was just begun.

    Raises:
        HeadwaterError: it cannot be read; drop it, it is folded anew.
    """
    try:
        with (
            contextlib.closing(open_environment(path, readonly=True)) as shared,
            shared.lmdb.begin(db=shared.lmdb.open_db(_META, create=False)) as txn,
        ):
            stored = txn.get(_META)
        return 0 if stored is None else msgspec.msgpack.decode(unchecked(stored, "position"), type=Meta).offset
    except (CorruptStateError, msgspec.DecodeError, lmdb.Error) as error:
        if path.suffix == BUILDING:
            return 0
        raise HeadwaterError(f"The state in {path} cannot be read: {error}. Remove it; it is folded anew") from error
