"""``headwater bench memory``: bytes that a user takes, in the state and in the identity store, and what a read takes."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwater.cli.bench.report import SeedOption, show
from headwater.cli.options import JsonOption

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from headwater.cli.bench.activity import Activity
    from headwater.features.plan import Plan
    from headwater.features.rows import User
    from headwater.features.state import LmdbState
    from headwater.schema.config import Config

GIB = 1 << 30
BLOCK = 16_384  # events folded and committed together
ASSIGNED = 2_048  # new users that one commit of the identity store brings
ASSIGNED_LATER = 262_144  # the same for users whose rows are replicated
COPIED = 65_536  # rows of a commit while replicating
TURN = 100  # rows that are read of one state before those of the next
SMALL = 100_000  # users of the state beside the large one
EVENT_TYPES = {
    "impression": 0.5,
    "view": 0.25,
    "click": 0.15,
    "like": 0.04,
    "purchase": 0.02,
    "skip": 0.03,
    "hide": 0.01,
}
NEWS = ("10m", "1h", "6h", "3d")  # half-lives of items on a news site


def register(app: typer.Typer) -> None:
    """Add ``memory``."""
    app.command("memory")(memory)


def memory(
    clicks: Annotated[
        Path | None,
        typer.Option("--globo", metavar="FILE", help="Clicks whose events per user count [default: a table of them]."),
    ] = None,
    users: Annotated[int, typer.Option(min=1_000, help="Users of the state.")] = 1_000_000,
    folded: Annotated[
        int, typer.Option(min=1_000, help="Users whose events are folded; beyond, rows are replicated.")
    ] = 1_000_000,
    reads: Annotated[int, typer.Option(min=100, help="Rows that are read for each figure.")] = 20_000,
    work: Annotated[
        Path | None, typer.Option("--in", metavar="DIR", help="Folder on the disk to use [default: the temporary one].")
    ] = None,
    seed: SeedOption = 7,
    as_json: JsonOption = False,
) -> None:
    """Fold the events of as many users as asked for, as active as those of a news site, and measure what they take.

    Counts pages that users fill in the state and in the identity store, what the fold holds in memory, and
    how long reading a random user takes, from memory and from disk, beside a state of 100,000 users.

    Example: headwater bench memory --users 100000 --json
    """
    from headwater.cli.bench.workload import Size

    with tempfile.TemporaryDirectory(prefix="headwater-memory-", dir=work) as folder:
        figures, events, items = measure(Path(folder), _counts(clicks, min(users, folded), seed), users, reads, seed)
    figures["activity"] = "table" if clicks is None else clicks.name
    show("Memory", figures, Size(seed=seed, users=users, items=items, events=events), events, as_json)


def measure(
    folder: Path, counts: npt.NDArray[np.int64], users: int, reads: int, seed: int, *, small: int = SMALL,
    items: int | None = None,
) -> tuple[dict[str, Any], int, int]:  # fmt: skip
    """All figures for ``users`` users, of whom those of ``counts`` are folded; also how many events and items.

    The state of ``small`` users is what the time of a read is compared with.
    """
    from headwater.cli.bench.activity import ITEMS, activity

    items = ITEMS if items is None else items
    seconds: dict[str, float] = {}
    few = activity(counts[:small], seed, items=items)
    with _timed(seconds, "variants"):
        variants = {name: _variant(few, config, types, seed) for name, (config, types) in _variants().items()}
    plan, sizes = _plan(), {}
    if len(counts) > small:
        sizes[few.users] = folder / "small"
        _folded(folder / "small", few, plan, seed)
    made = activity(counts, seed, items=items) if len(counts) > small else few
    state, ids = folder / "state", folder / "identity"
    with _timed(seconds, "fold"):
        resident = _folded(state, made, plan, seed)
    tables, rows, file_bytes = pages(state), row_sizes(state), _file(state)
    if users > made.users:
        if len(counts) <= small:  # else the small state is there to be compared with
            sizes[made.users] = folder / "small"
            shutil.copytree(state, folder / "small")
        with _timed(seconds, "replicate"):
            replicate(state, plan, made.users, users)
    sizes[users] = state
    with _timed(seconds, "reads"):
        found = reading(sizes, plan, reads, seed)
    with _timed(seconds, "identity"):
        assign(ids, made.users, users)
    identity = pages(ids)
    state_bytes = tables["users"]["bytes"] / made.users
    identity_bytes = sum(table["bytes"] for table in identity.values()) / users
    total = state_bytes + identity_bytes
    figures = {
        "users": users,
        "bytes_per_user": round(total, 1),
        "gib_per_million_users": round(total * 1_000_000 / GIB, 4),
        "state_bytes_per_user": round(state_bytes, 1),
        "identity_bytes_per_user": round(identity_bytes, 1),
        "folded": made.users,
        "replicated": users - made.users,
        "events_per_user": round(len(made) / made.users, 2),
        "packed_row_bytes": rows,
        "tables": {
            "state": tables,
            "state_after_replication": pages(state) if users > made.users else None,
            "identity": identity,
        },
        "file_bytes": {"folded_state": file_bytes, "state": _file(state), "identity": _file(ids)},
        "read_us": {str(count): found[count] for count in sorted(found)},
        "fold_memory": resident,
        "variants": variants,
        "seconds": seconds,
    }
    return figures, len(made), items


def _counts(clicks: Path | None, users: int, seed: int) -> npt.NDArray[np.int64]:
    """Events of each user, drawn from the users of a file or from the built-in table."""
    import numpy as np

    from headwater.cli.bench.activity import clicks_per_user, drawn_counts

    rng = np.random.default_rng([seed, 6])
    return drawn_counts(users, rng) if clicks is None else rng.choice(clicks_per_user(clicks), users)


def _plan() -> Plan:
    from headwater.features.plan import compile_plan
    from headwater.schema.config import Config

    return compile_plan(Config())


def _variants() -> dict[str, tuple[Config, dict[str, float]]]:
    """Other ways to use the same system: a news site's configuration, and events of every type."""
    from headwater.schema.config import Config, CoVisits, EventType, Features

    news = Config(
        clock="log",
        events=(EventType(name="click", positive=True, weight=1.0),),
        features=Features(
            item_half_lives=NEWS, segment_half_life="1h",
            co_visits=CoVisits(window="1h", half_life="6h", fast_half_life="40m"),
        ),
    )  # fmt: skip
    return {"news": (news, {"click": 1.0}), "every_event_type": (Config(), EVENT_TYPES)}


def _variant(made: Activity, config: Config, types: Mapping[str, float], seed: int) -> dict[str, Any]:
    """What users take in another configuration, without a store: packed rows and the index of the arena."""
    from headwater.cli.bench.activity import blocks
    from headwater.features.fold import Fold
    from headwater.features.plan import compile_plan

    fold = Fold(compile_plan(config))
    for block in blocks(made, types, seed, BLOCK):
        fold.apply(block)
    used = fold.users.copy().memory()  # a copy leaves behind what has been replaced
    return {
        "users": made.users,
        "packed_bytes_per_user": round(used["packed"] / made.users, 1),
        "arena_bytes_per_user": round(fold.users.memory()["packed"] / made.users, 1),
        "index_bytes_per_user": round(used["index"] / made.users, 1),
    }


def _folded(path: Path, made: Activity, plan: Plan, seed: int) -> dict[str, int]:
    """Fold a log of clicks into a state at ``path``; returns what the fold holds in memory.

    Commits as the fold of a server does that is behind its log: when so many users are in use.
    """
    from headwater.cli.bench.activity import blocks
    from headwater.features.fold import Fold
    from headwater.features.state import LmdbState

    before = resident_bytes()
    store = LmdbState(path, plan, writable=True)
    try:
        fold = Fold(plan, store)
        for block in blocks(made, {"click": 1.0}, seed, BLOCK):
            fold.apply(block)
            if fold.users.used > 2 * fold.cache_users:
                fold.commit(epoch=False)
        fold.commit(epoch=True)
        held = fold.users.memory()
        return {
            "process": max(resident_bytes() - before, 0),
            "users_hot": held["hot"],
            "users_index": held["index"],
            "items": sum(part.nbytes for part in fold.items.rows),
        }
    finally:
        store.close()


def replicate(path: Path, plan: Plan, have: int, want: int) -> None:
    """Store the rows of users ``1 … have`` once more under the numbers ``have + 1 … want``."""
    import numpy as np

    from headwater.features.fold import Delta
    from headwater.features.rows import ItemTable
    from headwater.features.state import LmdbState

    store = LmdbState(path, plan, writable=True)
    try:
        meta, none = store.meta(), np.zeros(0, np.int64)
        rows = ItemTable(plan.layout, 1).rows
        for start in range(have + 1, want + 1, COPIED):
            numbers = range(start, min(start + COPIED, want + 1))
            store.commit(
                Delta(
                    meta.offset, meta.received_ms, [(n, store.user((n - 1) % have + 1)) for n in numbers],
                    none, rows, meta.items, [], meta.types, None,
                )
            )  # fmt: skip
    finally:
        store.close()


def assign(path: Path, folded: int, users: int) -> None:
    """Give numbers to ``users`` people with ids of 16 characters, in small commits for the first ``folded``."""
    from headwater.log.identity import LmdbIdentity

    identity = LmdbIdentity(path)
    try:
        start = 0
        while start < users:
            count = min(ASSIGNED, folded - start) if start < folded else min(ASSIGNED_LATER, users - start)
            identity.assign([f"reader-{number:09d}" for number in range(start, start + count)])
            start += count
    finally:
        identity.close()


def _file(path: Path) -> int:
    return (path / "data.mdb").stat().st_size


def pages(path: Path) -> dict[str, dict[str, Any]]:
    """Pages in use of every table of an LMDB environment: leaves, branches and overflow, in bytes."""
    import lmdb

    found: dict[str, dict[str, Any]] = {}
    with lmdb.open(str(path), readonly=True, lock=False, max_dbs=16) as env:
        with env.begin() as txn:
            names = [bytes(name) for name in txn.cursor().iternext(values=False)]
        for name in names:
            table = env.open_db(name, create=False)
            with env.begin() as txn:
                stat = txn.stat(table)
            count = stat["leaf_pages"] + stat["branch_pages"] + stat["overflow_pages"]
            found[name.decode()] = {
                "entries": stat["entries"],
                "bytes": count * stat["psize"],
                "leaf_pages": stat["leaf_pages"],
                "branch_pages": stat["branch_pages"],
                "overflow_pages": stat["overflow_pages"],
            }
    return found


def row_sizes(path: Path) -> dict[str, float]:
    """Bytes of the stored user rows."""
    import lmdb
    import numpy as np

    with lmdb.open(str(path), readonly=True, lock=False, max_dbs=16) as env:
        table = env.open_db(b"users", create=False)
        with env.begin(db=table, buffers=True) as txn:
            sizes = np.fromiter((len(value) for value in txn.cursor().iternext(keys=False)), np.int64)
    return {
        "mean": round(float(sizes.mean()), 1),
        "p50": float(np.percentile(sizes, 50)),
        "p99": float(np.percentile(sizes, 99)),
        "most": float(sizes.max()),
    }


def reading(states: Mapping[int, Path], plan: Plan, reads: int, seed: int) -> dict[int, dict[str, Any]]:
    """Microseconds of ``read_user`` for random users of states by their size: from disk first, then from memory.

    The states take turns, so that other work on the machine meets all of them.
    """
    import numpy as np

    from headwater.features.rows import User, new_rows
    from headwater.features.state import LmdbState

    rng, layout = np.random.default_rng([seed, 8]), plan.layout
    chosen = {users: rng.integers(1, users + 1, reads).tolist() for users in states}
    rows = new_rows(1, layout.user_i8, layout.user_f4, layout.user_u4)
    into = User(rows.i8[0], rows.f4[0], rows.u4[0])
    dropped = {users: _forget_pages(path / "data.mdb") for users, path in states.items()}
    disk: dict[int, list[int]] = {users: [] for users in states}
    memory: dict[int, list[int]] = {users: [] for users in states}
    stores = {users: LmdbState(path, plan, writable=False) for users, path in states.items()}
    try:
        for users, store in stores.items():
            store.read_user(chosen[users][-1], into)  # the kernel is there, most pages are not
        few = max(reads // 10, 100)
        for start in range(0, few, TURN):
            for users, store in stores.items():
                disk[users] += _timings(store, chosen[users][start : min(start + TURN, few)], into)
        for users, store in stores.items():
            _timings(store, chosen[users], into)
        before = resident_bytes()
        for start in range(0, reads, TURN):
            for users, store in stores.items():
                memory[users] += _timings(store, chosen[users][start : start + TURN], into)
        grown = resident_bytes() - before
    finally:
        for store in stores.values():
            store.close()
    return {
        users: {
            "memory_p50": _percentile(memory[users], 50),
            "memory_p99": _percentile(memory[users], 99),
            "disk_p50": _percentile(disk[users], 50) if dropped[users] else None,
            "disk_p99": _percentile(disk[users], 99) if dropped[users] else None,
            "reader_grew_bytes": grown,
        }
        for users in states
    }


def _timings(store: LmdbState, users: list[int], into: User) -> list[int]:
    """Nanoseconds of reading each."""
    taken: list[int] = []
    for user in users:
        began = time.perf_counter_ns()
        store.read_user(user, into)
        taken.append(time.perf_counter_ns() - began)
    return taken


def _percentile(taken: list[int], percent: float) -> float:
    import numpy as np

    return round(float(np.percentile(taken, percent)) / 1_000, 1)


def _forget_pages(file: Path) -> bool:
    """Write a file out and have the system drop its pages from memory; whether the system knows how."""
    if not hasattr(os, "posix_fadvise"):
        return False
    handle = os.open(file, os.O_RDWR)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)
    return True


def resident_bytes() -> int:
    """Memory of this process that belongs to no file (0 where the system does not say)."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - began, 1)
