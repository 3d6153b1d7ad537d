"""Flip a bit in a stored file, or tear its end, and read everything: bad bytes must not be served (table row 3).

``python -m tests.reliability.damage --seeds 1000`` prints one JSON object. A log, an identity store and a state are made; for each seed
one of their files is damaged, and a process of its own reads all there is through the code that serves.
What it reads is compared with what was written: equal, refused with an error, or gone; else it was served wrongly.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import lmdb
import msgspec
import numpy as np
from msgspec import Struct

from headwater.cli.options import configure_logging
from headwater.features.assemble import stranger
from headwater.features.fold import Fold
from headwater.features.plan import Plan, compile_plan
from headwater.features.rows import ItemTable
from headwater.features.state import LmdbState
from headwater.log.batch import events_to_batch
from headwater.log.identity import LmdbIdentity
from headwater.log.lmdb import LmdbLog
from headwater.log.record import Namespace
from headwater.log.writer import open_writer
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.schema.users import UserProfile
from tests.reliability.apart import Died, apart

USERS, ITEMS, COMMITS = 200, 150, 60
START_MS = 1_772_000_000_000
STORES = ("log", "identity", "state")
HARMS = ("bit", "bit", "bit", "zeros", "noise", "cut")

Content = dict[str, bytes]  # what was read, by name
_encode = msgspec.msgpack.Encoder().encode


class Outcome(Struct, frozen=True):
    """How many seeds ended how. ``silent``: something that was read differs from what was written. ``gone``: something was not
    there and nothing said so. ``crashed``: the process died of what it read (the page tree led it astray).

    ``by_store`` names store and table of what was silent or gone.
    """

    seed: int
    seeds: int
    unharmed: int
    refused: int
    gone: int
    crashed: int
    hung: int
    silent: int
    by_store: dict[str, int]

    @property
    def good(self) -> bool:
        """Whether no bad record was served."""
        return self.silent == 0 and self.hung == 0


def make(folder: Path, seed: int) -> Plan:
    """Fill ``folder`` with a log, an identity store and a state of it."""
    draw, config = random.Random(seed), Config()
    plan = compile_plan(config)
    with open_writer(folder, clock=lambda: START_MS, segment_keys=config.segments.keys) as writer:
        writer.put_items([Item(id=f"item-{n}", title=f"t{n}" * 9, categories=[f"c{n % 9}"]) for n in range(ITEMS)])
        writer.put_profiles([UserProfile(id=f"user-{n}", country="DE") for n in range(0, USERS, 2)])
        for number in range(COMMITS):
            events = [
                Event(
                    user=f"user-{draw.randrange(USERS)}", item=f"item-{draw.randrange(ITEMS)}", value=draw.random(),
                    type=draw.choice(("view", "click")), event_id=f"{number}.{n}", time=START_MS + 1_000 * number,
                )
                for n in range(draw.choice((1, 10, 60)))
            ]  # fmt: skip
            writer.append_events(events_to_batch(events, config.segments.keys))
    log = LmdbLog(folder / "log", readonly=True)
    state = LmdbState(folder / "state", plan, writable=True, log_id=log.log_id)
    fold = Fold(plan, state)
    while (block := log.read(fold.offset, 200)) is not None:
        fold.apply(block)
        fold.commit(epoch=True)
    state.close()
    log.close()
    return plan


def read_log(folder: Path) -> Content:
    """Every record and every term."""
    log, found, offset = LmdbLog(folder / "log", readonly=True), Content(), 0
    try:
        while (block := log.read(offset, 500)) is not None:
            for row in range(len(block)):
                record = block.records[row : row + 1].copy()
                record["payload_at"] = 0
                found[f"record {block.first_offset + row}"] = record.tobytes() + block.payload(row)
            offset = block.last_offset
        for namespace in Namespace:
            for index, text in enumerate(log.vocabulary().texts(namespace)):
                found[f"term {namespace.name} {index}"] = text.encode()
    finally:
        log.close()
    return found


def read_identity(folder: Path) -> Content:
    """Who every user is, and a payload sealed with each one's key opened again."""
    identity, found = LmdbIdentity(folder / "identity", readonly=True), Content()
    try:
        for n in range(USERS):
            key = identity.lookup(f"user-{n}")
            if key is not None:
                found[f"user {n}"] = _encode(key)
    finally:
        identity.close()
    return found


def read_state(folder: Path, plan: Plan) -> Content:
    """Every row of users and items, the catalogue and the position."""
    state, found = LmdbState(folder / "state", plan, writable=False), Content()
    try:
        found["position"] = _encode([state.offset, state.received_ms, state.meta().epoch, state.types()])
        row = stranger(plan)
        for user in range(1, USERS + 1):
            state.read_user(user, row)
            found[f"user {user}"] = b"".join(np.asarray(part).tobytes() for part in row)
        table = ItemTable(plan.layout)
        state.load_items(table)
        for item in range(table.count):
            found[f"item {item}"] = b"".join(part[item].tobytes() for part in table.rows)
            record = state.item_record(item)
            if record is not None:
                found[f"catalogue {item}"] = _encode(record)
    finally:
        state.close()
    return found


def harm(path: Path, kind: str, draw: random.Random) -> None:
    """Damage a file: flip one bit, or make zeros, noise or nothing of its end."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        if kind == "bit":
            at = draw.randrange(size)
            file.seek(at)
            (byte,) = file.read(1)
            file.seek(at)
            file.write(bytes((byte ^ 1 << draw.randrange(8),)))
            return
        at = draw.randrange(size * 3 // 4, size)
        file.seek(at)
        if kind == "cut":
            file.truncate()
        else:
            file.write(bytes(size - at) if kind == "zeros" else draw.randbytes(size - at))


def judge(read: Callable[[], Content], good: Content) -> tuple[str, list[str]]:
    """How a read of damaged files ended, and the tables at fault."""
    try:
        found = read()
    except (HeadwaterError, lmdb.Error) as error:
        return "refused", [type(error).__name__]
    wrong = {name.split(" ")[0] for name, content in found.items() if good.get(name) != content}
    if wrong:
        return "silent", sorted(wrong)
    gone = {name.split(" ")[0] for name in good if name not in found}
    return ("gone", sorted(gone)) if gone else ("unharmed", [])


def run(folder: Path, *, seeds: int, seed: int) -> Outcome:
    """Damage a copy of the same files ``seeds`` times in ``folder``."""
    whole, copy = folder / "whole", folder / "copy"
    plan = make(whole, seed)
    readers: dict[str, Callable[[Path], Content]] = {
        "log": read_log, "identity": read_identity, "state": lambda path: read_state(path, plan),
    }  # fmt: skip
    good = {store: readers[store](whole) for store in STORES}
    ends, tables = Counter[str](), Counter[str]()
    for number in range(seed, seed + seeds):
        draw = random.Random(number)
        store, kind = STORES[number % len(STORES)], draw.choice(HARMS)
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(whole / store, copy / store)
        harm(copy / store / "data.mdb", kind, draw)
        said = apart(partial(judge, partial(readers[store], copy), good[store]), tuple[str, list[str]])
        end, at = said if not isinstance(said, Died) else (said.value, [])
        ends[end] += 1
        if end in ("silent", "gone"):
            tables.update(f"{end}: {store} {kind} {table}" for table in at)
    return Outcome(
        seed=seed, seeds=seeds, unharmed=ends["unharmed"], refused=ends["refused"], gone=ends["gone"],
        crashed=ends["crashed"], hung=ends["hung"], silent=ends["silent"], by_store=dict(sorted(tables.items())),
    )  # fmt: skip


def main() -> int:
    """Run from the command line."""
    configure_logging("error")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headwater-damage-") as folder:
        outcome = run(Path(folder), seeds=given.seeds, seed=given.seed)
    sys.stdout.write(msgspec.json.encode(outcome).decode() + "\n")
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
