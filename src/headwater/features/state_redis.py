"""State in Redis: users spread over partitions, everything else in one of its own, all of it at one offset.

Keys carry the plan and the partition in their hash tag, so a partition lies on one node of a Redis Cluster and a script
may move it as one step. A commit over several partitions is a redo log: (1) every partition stages its new rows under
the position to come, after checking that it stands where this process left it; (2) the meta partition moves the
position, together with item rows, catalogue and epoch: that is the commit; (3) every partition applies what it
staged. Who opens the state for writing finishes (3) for a process that died in between.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from headwater.breaker import Breaker, RetryBudget
from headwater.features.fold import Delta
from headwater.features.packing import packed_clock
from headwater.features.plan import Plan
from headwater.features.redis_frozen import HeldState
from headwater.features.redis_keys import WIDTH, Description, Keys, batches, decode_description
from headwater.features.redis_scripts import APPLY, COMMIT, EPOCH, FENCE, MARK, READ, STAGE, TAKE
from headwater.features.redis_wire import Command, Wire, script
from headwater.features.rows import CorruptStateError, ItemTable, User, unpack_user
from headwater.features.store import (
    KEPT_EPOCHS,
    NO_ITEMS,
    TABLES,
    UNFINISHED,
    Frozen,
    Meta,
    PartitionsChangedError,
    Row,
    StateConflictError,
    StateReplacedError,
    apply_epochs,
    catalogue_values,
    check_origin,
    checked,
    decode_meta,
    decode_record,
    encode_meta,
    epoch_value,
    fill_table,
    item_values,
    missed_epochs,
    moved_meta,
    moved_on,
    not_empty,
    read_only,
    unchecked,
)
from headwater.log.batch import ItemRecord
from headwater.schema.errors import UnavailableError

__all__ = ["RedisState", "Wire", "drop_redis_state"]

PART = 1 << 20  # bytes that one command brings, about
_FILLED_AT_ONCE = 4096  # rows a round trip
_TRIES = 5
_EMPTY = "0:0"
_LOADING = UNFINISHED.decode()
_U4 = struct.Struct(">I")


class RedisState:
    """A state behind ``wire``. ``writable`` for the one fold, read-only for everyone else; the state closes the wire.

    ``log_id`` as in :class:`headwater.features.state.LmdbState`. ``place`` stands in the keys (default: the plan's
    hash). A commit that ended in :class:`UnavailableError` may be tried again: whether it had come through is found out first.
    """

    def __init__(
        self, wire: Wire, plan: Plan, *, writable: bool, log_id: str = "", partitions: int = 8, place: str | None = None
    ) -> None:
        self.plan, self.log_id, self.partitions = plan, log_id, partitions
        self._wire, self._keys, self._writable = wire, Keys(place or plan.hash, partitions), writable
        self._where = f"the state {self._keys.place} in Redis at {wire.name}"
        self._token = secrets.token_hex(8)  # this process as a writer
        self._held = False  # nobody else can commit: the first commit takes that right
        self._target: str | None = None  # of a commit whose outcome is not known
        self._made = ""
        at, described = self._head()
        if at is None:
            if not writable:
                raise UnavailableError(f"{self._where} is not there yet")
            wire.trip([("HSETNX", self._keys.key("m", "head"), "at", _EMPTY)])
        meta = self._meta_of(described)
        check_origin(meta, plan, log_id, self._where)
        if described is not None and described.partitions != partitions:
            raise PartitionsChangedError(
                f"{self._where} has {described.partitions} partitions, the configuration says {partitions} "
                "(state.partitions): set it back, or drop the state and fold it anew"
            )
        self._described = described or Description(b"", secrets.token_hex(8), partitions)
        self._meta, self._at = meta, at or _EMPTY
        self.offset, self.received_ms = meta.offset, meta.received_ms
        if writable:
            self._finish()

    @property
    def breaker(self) -> Breaker:
        """That of the connection."""
        return self._wire.breaker

    @property
    def budget(self) -> RetryBudget:
        """That of the connection."""
        return self._wire.budget

    def close(self) -> None:
        self._wire.close()

    # -- writing -------------------------------------------------------------------------------------

    def commit(self, delta: Delta) -> None:
        """Stage everywhere, move the position, apply everywhere: three round trips.

        Raises:
            StateConflictError: the state is not where this process left it, or another one may write it.
            UnavailableError: Redis cannot be reached. The same commit, or a later one, may be tried again.
        """
        if not self._writable:
            raise read_only(self._where)
        if not self._held:
            self._take()
        elif self._target is not None:
            self._settle()
        meta = moved_meta(self._meta, delta, self.log_id)
        target = self._target = f"{delta.offset}:{_number(self._at) + 1}"
        items = {b"i" + _U4.pack(item): value for item, value in item_values(delta)}
        items |= {b"c" + _U4.pack(item): value for item, value in catalogue_values(delta)}
        users: list[dict[bytes, bytes]] = [{} for _ in range(self.partitions)]
        for user, packed in delta.users:
            users[user % self.partitions][b"u" + _U4.pack(user)] = packed or b""
        epoch = b"" if delta.epoch is None else epoch_value(delta, delta.epoch)
        described = msgspec.structs.replace(
            self._described,
            meta=encode_meta(meta),
            users_end=max([self._described.users_end, *(user + 1 for user, _ in delta.users)]),
            items_end=max([self._described.items_end, meta.items, *(_U4.unpack(field[1:])[0] + 1 for field in items)]),
        )
        staging = [command for p, rows in enumerate(users) for command in self._stage(p, rows, target)]
        staging += self._stage("m", items, target)
        chunks = [epoch[at : at + PART] for at in range(0, len(epoch), PART)]
        for k, chunk in enumerate(chunks):
            pair = self._keys.key("m", "head"), self._keys.epoch(meta.epoch)
            staging.append(script(EPOCH, pair, self._token, self._at, _flag(k == 0), chunk))
        self._run(staging)
        labels = sorted({self._keys.label(field, "m") for field in items})
        keys = (
            self._keys.key("m", "head"), self._keys.key("m", "stage"), self._keys.epoch(meta.epoch),
            self._keys.epoch(max(meta.epoch - KEPT_EPOCHS, 0)), *(self._keys.key("m", label) for label in labels),
        )  # fmt: skip
        body = checked(msgspec.msgpack.encode(described))
        self._run([script(COMMIT, keys, self._token, self._at, target, body, WIDTH, len(chunks), *labels)])
        self._run([self._apply(p, rows, target) for p, rows in enumerate(users)])
        self._moved(target, described, meta)

    def fill(self, meta: Meta, rows: Iterable[Row]) -> None:
        """See :meth:`headwater.features.store.State.fill`; the position comes last."""
        if not self._writable:
            raise read_only(self._where)
        check_origin(meta, self.plan, self.log_id, "what is to be filled in")
        head = self._keys.key("m", "head")
        if self._wire.trip([script(MARK, (head,), _LOADING)])[0][0] != b"ok":
            raise not_empty(self._where)
        users_end = items_end = 1
        rows = iter(rows)
        while part := list(islice(rows, _FILLED_AT_ONCE)):
            buckets: dict[tuple[int | str, str], list[bytes]] = {}
            for table, key, value in part:
                field = table[:1].encode() + _U4.pack(key)
                p: int | str = key % self.partitions if table == "users" else "m"
                buckets.setdefault((p, self._keys.label(field, p)), []).extend((field[1:], bytes(value)))
            self._wire.trip([("HSET", self._keys.key(p, label), *pairs) for (p, label), pairs in buckets.items()])
            users_end = max([users_end, *(key + 1 for table, key, _ in part if table == "users")])
            items_end = max([items_end, *(key + 1 for table, key, _ in part if table != "users")])
        at = f"{meta.offset}:1"
        described = msgspec.structs.replace(
            self._described, meta=encode_meta(meta), users_end=users_end, items_end=max(items_end, meta.items)
        )
        self._wire.trip([("HSET", self._keys.key(p, "head"), "at", at) for p in range(self.partitions)])
        self._wire.trip([("HSET", head, "at", at, "body", checked(msgspec.msgpack.encode(described)))])
        self._moved(at, described, meta)
        self._held = False

    def condemn(self) -> None:
        """Have the state refused by whoever opens it: it was found damaged."""
        self._wire.trip([("HSET", self._keys.key("m", "head"), "at", _LOADING)])

    def _moved(self, at: str, described: Description, meta: Meta) -> None:
        self._target, self._at, self._described, self._meta = None, at, described, meta
        self.offset, self.received_ms = meta.offset, meta.received_ms

    def _take(self) -> None:
        """Be the only one that can commit from now on; what others have staged is dropped."""
        self._run([script(TAKE, (self._keys.key("m", "head"),), self._token, self._at)])
        everywhere = [*range(self.partitions), "m"]
        keys = [(self._keys.key(p, "head"), self._keys.key(p, "stage")) for p in everywhere]
        self._run([script(FENCE, pair, self._token, self._at) for pair in keys])
        self._held = True

    def _settle(self) -> None:
        """Find out whether the commit whose answer was lost came through; if so, finish it."""
        at, described = self._head()
        if at is not None and at == self._target and described is not None:
            self._finish()
            self._moved(at, described, self._meta_of(described))
        elif at != self._at:
            raise moved_on(self._where, self.offset, _offset(at or _EMPTY))
        self._target = None

    def _finish(self) -> None:
        """Bring every partition to the committed position: what a process that died had staged is applied.

        Raises:
            CorruptStateError: a partition stands elsewhere and has no stage for the way: its server lost writes.
        """
        for _ in range(_TRIES):
            at = self._head()[0] or _EMPTY
            if at == _LOADING:
                decode_meta(UNFINISHED, self.plan)
            heads = self._wire.trip([("HGET", self._keys.key(p, "head"), "at") for p in range(self.partitions)])
            behind = [p for p, found in enumerate(heads) if _text(found) != at]
            if not behind:
                return
            stages = self._wire.trip([("HGET", self._keys.key(p, "stage"), "to") for p in behind])
            if all(found is not None and found.decode() == at for found in stages):
                fields = self._wire.trip([("HKEYS", self._keys.key(p, "stage")) for p in behind])
                applied = [
                    self._apply(p, [field for field in staged if field != b"to"], at)
                    for p, staged in zip(behind, fields, strict=True)
                ]
                if all(answer[0] == b"ok" for answer in self._wire.trip(applied)):
                    return
            # a fold that is alive may have moved on meanwhile
        where = ", ".join(f"{p} at {_text(heads[p])}" for p in behind)
        raise CorruptStateError(
            f"{self._where} stands at {at}, but partition {where} (offset:commit): a server of it lost writes; "
            "drop the state and fold it anew from the log"
        )

    def _stage(self, p: int | str, rows: dict[bytes, bytes], target: str) -> Iterator[Command]:
        keys = self._keys.key(p, "head"), self._keys.key(p, "stage")
        parts = list(_parts(rows))
        for k, part in enumerate(parts):
            total = len(rows) if k == len(parts) - 1 else ""
            yield script(STAGE, keys, self._token, self._at, target, _flag(k == 0), total, *part)

    def _apply(self, p: int, fields: Iterable[bytes], target: str) -> Command:
        labels = sorted({self._keys.label(field, p) for field in fields})
        keys = self._keys.key(p, "head"), self._keys.key(p, "stage"), *(self._keys.key(p, label) for label in labels)
        return script(APPLY, keys, target, self._keys.width(p), *labels)

    def _run(self, commands: list[Command]) -> None:
        """Scripts that must all answer ``ok``."""
        for verdict, at in self._wire.trip(commands):
            if at == UNFINISHED:
                raise StateReplacedError(f"{self._where} was found damaged or is being dropped; open it again")
            if verdict == b"moved":
                raise moved_on(self._where, self.offset, _offset(at.decode()))
            if verdict != b"ok":
                raise StateConflictError(
                    f"{self._where} was taken over ({verdict.decode()}, it stands at {at.decode()}): another process "
                    "folds into it; stop one of the two"
                )

    # -- reading -------------------------------------------------------------------------------------

    def meta(self) -> Meta:
        """Where the state stands now.

        Raises:
            StateReplacedError: the state was dropped, or another one took its place; open it again.
        """
        return self._meta_of(self._head()[1])

    def types(self) -> dict[int, str]:
        return self.meta().types

    def clocks(self, after: int, limit: int) -> list[tuple[int, int]]:
        """See :class:`~headwater.features.fold.StateStore`."""
        _, described = self._head()
        end = 0 if described is None else described.users_end
        while after + 1 < end:
            numbers = list(range(after + 1, min(after + 1 + limit, end)))
            found = zip(numbers, self.users(numbers), strict=True)
            clocks = [(user, packed_clock(packed)) for user, packed in found if packed is not None]
            if clocks:
                return clocks
            after = numbers[-1]
        return []

    def user(self, user: int) -> bytes | None:
        """The packed row of a dense user."""
        row: bytes | None = self._row(user)[1]
        return row

    def users(self, users: list[int]) -> list[bytes | None]:
        """The packed rows of many users, in one round trip."""
        where: dict[str, list[int]] = {}
        for k, user in enumerate(users):
            where.setdefault(self._bucket(user), []).append(k)
        asked: list[Command] = [("HMGET", key, *(_U4.pack(users[k]) for k in some)) for key, some in where.items()]
        found: list[bytes | None] = [None] * len(users)
        for places, rows in zip(where.values(), self._wire.trip(asked, patient=True), strict=True):
            for k, row in zip(places, rows, strict=True):
                found[k] = row
        return found

    def packed(self, user: int) -> tuple[int, bytes | None]:
        """The offset that the row of ``user`` stands at, and the row; None: there is none (of 0 there never is)."""
        at, found = self._row(user)
        if at == _EMPTY.encode() and self._made:  # nothing was committed there: is it still the state that was opened?
            self.meta()
        return _offset(at.decode()), found if user else None

    def read_user(self, user: int, into: User) -> int:
        """Unpack the row of ``user`` (0 or unknown: zeros) into ``into``; returns the offset it stands at."""
        offset, found = self.packed(user)
        if found is None:
            for part in into:
                part[:] = 0
        else:
            unpack_user(found, into, self.plan.layout)
        return offset

    def item_record(self, item: int) -> ItemRecord | None:
        """What the catalogue says of a dense item."""
        field = _U4.pack(item)
        return decode_record(
            self._wire.trip([("HGET", self._keys.key("m", self._keys.label(b"c" + field, "m")), field)])[0]
        )

    def load_items(self, table: ItemTable) -> None:
        """Fill ``table`` with all item rows."""
        self._load(table)

    def refresh_items(self, table: ItemTable, epoch: int) -> tuple[int, int, npt.NDArray[np.int64] | None]:
        """See :meth:`headwater.features.store.State.refresh_items`."""
        meta = self.meta()
        if epoch == meta.epoch:
            return epoch, meta.offset, NO_ITEMS
        missed = missed_epochs(meta, epoch)
        if missed is not None:
            found = self._wire.trip([("LRANGE", self._keys.epoch(number), 0, -1) for number in missed], patient=True)
            if all(found):  # an epoch never changes; it may have gone meanwhile
                return meta.epoch, *apply_epochs(table, [b"".join(chunks) for chunks in found])
        meta = self._load(table)
        return meta.epoch, meta.offset, None

    @contextmanager
    def frozen(self) -> Iterator[Frozen]:
        """All rows of one moment, while the fold goes on. See :class:`~headwater.features.redis_frozen.HeldState`."""
        meta = self.meta()
        if self._at == _EMPTY and self._head()[1] is None:
            yield Frozen(meta, dict.fromkeys(TABLES, 0), iter(()))
            return
        with HeldState(self._wire, self._keys.place).frozen() as frozen:
            yield frozen

    def dump(self) -> Iterator[Row]:
        """Every stored row as (table, key, bytes), ordered: two equal states dump the same."""
        with self.frozen() as frozen:
            yield from frozen.rows

    def _load(self, table: ItemTable) -> Meta:
        """Fill ``table``; returns the position that its rows have. At leisure if nobody commits, else in one step."""
        before, described = self._head()
        items: list[dict[bytes, bytes]] = []
        for keys in batches(self._item_buckets(described), 16):
            items.extend(self._wire.trip([("HGETALL", key) for key in keys], patient=True))
        after, described = self._head()
        for _ in range(_TRIES):
            if before == after:
                break
            keys = self._item_buckets(described)
            head, *items = self._wire.trip(
                [("HMGET", self._keys.key("m", "head"), "at", "body"), *(("HGETALL", key) for key in keys)],
                together=True,
                patient=True,
            )
            before, described = _text(head[0]), self._describe(head[1])
            after = before if self._item_buckets(described) == keys else None  # else there are more by now
        else:
            raise UnavailableError(f"{self._where} grows faster than its items can be read; try again")
        meta = self._meta_of(described)
        fill_table(table, meta, ((_U4.unpack(field)[0], value) for bucket in items for field, value in bucket.items()))
        return meta

    def _head(self) -> tuple[str | None, Description | None]:
        at, body = self._wire.trip([("HMGET", self._keys.key("m", "head"), "at", "body")])[0]
        if at == UNFINISHED:
            decode_meta(UNFINISHED, self.plan)
        described = self._describe(body)
        if described is not None and _offset(_text(at)) != self._meta_of(described).offset:
            raise CorruptStateError(f"{self._where} contradicts itself about its offset; drop it and fold it anew")
        return (None if at is None else at.decode()), described

    def _describe(self, body: bytes | None) -> Description | None:
        try:
            return None if body is None else decode_description(unchecked(body, "position"))
        except (CorruptStateError, msgspec.DecodeError) as error:
            raise CorruptStateError(f"the position of {self._where} is unreadable; fold it anew: {error}") from error

    def _meta_of(self, described: Description | None) -> Meta:
        made = "" if described is None else described.made
        if self._made not in ("", made):
            raise StateReplacedError(f"{self._where} was dropped or replaced; open it again")
        self._made = made
        return decode_meta(None if described is None else described.meta, self.plan)

    def _item_buckets(self, described: Description | None) -> list[str]:
        return self._keys.items("i", 1 if described is None else described.items_end)

    def _row(self, user: int) -> tuple[bytes, Any]:
        at, row = self._wire.trip([self._read(user)])[0]
        return at, row

    def _read(self, user: int) -> Command:
        return script(READ, (self._keys.key(user % self.partitions, "head"), self._bucket(user)), _U4.pack(user))

    def _bucket(self, user: int) -> str:
        p = user % self.partitions
        return self._keys.key(p, self._keys.label(b"u" + _U4.pack(user), p))


def drop_redis_state(wire: Wire, place: str) -> None:
    """Remove the state. Ended half-way it is refused when opened, and may be dropped again."""
    head = Keys(place, 0).key("m", "head")
    wire.trip([("HSET", head, "at", _LOADING)])
    for keys in batches([key for key in wire.keys(f"{{hw:{place}:*") if key != head.encode()], 1000):
        wire.trip([("UNLINK", key) for key in keys])
    wire.trip([("UNLINK", head)])


def _parts(rows: dict[bytes, bytes]) -> Iterator[list[bytes]]:
    """Fields and values, cut into commands of moderate size; at least one, perhaps empty."""
    part: list[bytes] = []
    size = 0
    for field, value in rows.items():
        if size + len(value) > PART and part:
            yield part
            part, size = [], 0
        part += (field, value)
        size += len(field) + len(value)
    yield part


def _flag(value: bool) -> str:
    return "1" if value else ""


def _text(at: bytes | None) -> str:
    return _EMPTY if at is None else at.decode()


def _offset(at: str) -> int:
    return int(at.partition(":")[0])


def _number(at: str) -> int:
    return int(at.partition(":")[2])
