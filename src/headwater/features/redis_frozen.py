"""A whole state in Redis at one moment, while the fold goes on; and which states there are, whatever their plans.

Who reads all rows names a moment and has every partition note the name at one position (``redis_scripts``): from then on
the first change of a bucket leaves a copy of it behind, and the reader takes the copies. Neither the fold nor a request
waits. The note is good for ``HELD_S`` seconds and renewed while rows are taken, so a reader that died costs copies
for no longer than that; the next one removes them.
"""

from __future__ import annotations

import secrets
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec

from headwater.features.redis_keys import Description, Keys, batches, decode_description
from headwater.features.redis_scripts import HOLD, LET_GO, LOOK, RENEW
from headwater.features.redis_wire import Wire, script
from headwater.features.rows import CorruptStateError
from headwater.features.store import TABLES, UNFINISHED, Frozen, Meta, Row, StateMovedError, unchecked

HELD_S = 60
TRIES, PAUSE_S = 100, 0.02  # a moment is between two commits: it is looked for so often
AT_ONCE = 1024  # keys a round trip

_U4 = struct.Struct(">I")
_decode_meta = msgspec.msgpack.Decoder(Meta).decode


class Standing(NamedTuple):
    """How far a state is. ``log``: the log it was folded from, "" when not known."""

    offset: int
    log: str
    partitions: int  # 0: not known


def standings(wire: Wire, places: Sequence[str] | None = None) -> dict[str, Standing]:
    """The states ``places`` (default: all) by the hashes of their plans.

    One that is not there, was only begun or dropped half-way, or is unreadable stands at 0.
    """
    prefix, suffix = "{hw:", ":m}:head"
    places = (
        places
        if places is not None
        else sorted(key.decode()[len(prefix) : -len(suffix)] for key in wire.keys(f"{prefix}*{suffix}"))
    )
    found = wire.trip([("HMGET", Keys(place, 0).key("m", "head"), "at", "body") for place in places])
    return {place: _standing(at, body) for place, (at, body) in zip(places, found, strict=True)}


def _standing(at: bytes | None, body: bytes | None) -> Standing:
    try:
        described = None if body is None else decode_description(unchecked(body, "position"))
        meta = None if described is None else _decode_meta(unchecked(described.meta, "position"))
    except (CorruptStateError, msgspec.DecodeError):
        return Standing(0, "", 0)
    if described is None or meta is None:
        return Standing(0, "", 0)
    return Standing(0 if at == UNFINISHED else meta.offset, meta.log, described.partitions)


class HeldState:
    """The state under ``place`` (its plan's hash) behind ``wire``, for those who read all of it and do not know the plan."""

    def __init__(self, wire: Wire, place: str, *, seconds: Callable[[], float] = time.monotonic,
                 pause: Callable[[float], object] = time.sleep) -> None:  # fmt: skip
        self._wire, self._place = wire, place
        self._head = Keys(place, 0).key("m", "head")
        self._where = f"the state {place} in Redis at {wire.name}"
        self._seconds, self._pause = seconds, pause
        self._renewed_s = 0.0

    @contextmanager
    def frozen(self) -> Iterator[Frozen]:
        """All rows of one moment. The fold goes on meanwhile.

        Raises:
            StateMovedError: no moment was found at which all partitions stand together, somebody else reads all rows, or
                nobody took rows for a minute.
            CorruptStateError: the state was found damaged, is being dropped or filled, or there is none.
        """
        moment, described = self._hold()
        keys = Keys(self._place, described.partitions)
        try:
            for some in batches(self._wire.keys(f"{{hw:{self._place}:*@*"), AT_ONCE):
                left = [key for key in some if not key.endswith(b"@" + moment.encode())]
                self._wire.trip([("UNLINK", key) for key in left])  # of readers that died, and of tries in vain
            buckets = {
                "users": keys.users(described.users_end),
                "items": [[key] for key in keys.items("i", described.items_end)],
                "catalogue": [[key] for key in keys.items("c", described.items_end)],
            }
            counts = {name: self._count(keys, buckets[name], moment) for name in TABLES}
            yield Frozen(_decode_meta(unchecked(described.meta, "position")), counts, self._rows(keys, buckets, moment))
        finally:
            self._let_go(keys, moment)
            for some in batches(self._wire.keys(f"{{hw:{self._place}:*@{moment}"), AT_ONCE):
                self._wire.trip([("UNLINK", key) for key in some])

    def _hold(self) -> tuple[str, Description]:
        """Have every partition note a moment at one position; returns its name and the description of the state there."""
        said: list[Any] = []
        for _ in range(TRIES):
            moment = secrets.token_hex(4)  # what a try in vain leaves must not be taken for a copy of the next one's
            at, body = self._wire.trip([("HMGET", self._head, "at", "body")])[0]
            if at is None or at == UNFINISHED or body is None:
                raise CorruptStateError(f"{self._where} is not there, damaged, or not filled yet")
            described = decode_description(unchecked(body, "position"))
            keys = Keys(self._place, described.partitions)
            said = self._wire.trip([script(HOLD, (self._head,), moment, at, HELD_S, "1")])
            if said[0][0] == b"ok":
                body = said[0][2]
                said += self._wire.trip(
                    [script(HOLD, (keys.key(p, "head"),), moment, at, HELD_S, "") for p in range(keys.partitions)]
                )
                if all(answer[0] == b"ok" for answer in said):
                    self._renewed_s = self._seconds()
                    return moment, decode_description(unchecked(body, "position"))
                self._let_go(keys, moment)
            self._pause(PAUSE_S)
        verdicts = {answer[0] for answer in said}
        if b"busy" in verdicts:
            raise StateMovedError(f"{self._where} is being read as a whole by somebody else; wait for it")
        places = sorted({answer[1].decode() for answer in said})
        raise StateMovedError(
            f"{self._where} moved on whenever all of it was to be read, or a commit was not finished (it stands at "
            f"{', '.join(places)}, offset:commit); try again, with a fold that runs or after the next one has started"
        )

    def _heads(self, keys: Keys) -> list[str]:
        return [self._head, *(keys.key(p, "head") for p in range(keys.partitions))]

    def _let_go(self, keys: Keys, moment: str) -> None:
        self._wire.trip([script(LET_GO, (head,), moment) for head in self._heads(keys)])

    def _look(self, keys: Keys, buckets: list[str], moment: str, how: str) -> list[Any]:
        """What ``how`` answers of each bucket as of the moment."""
        if self._seconds() - self._renewed_s > HELD_S / 4:
            self._renewed_s = self._seconds()
            self._checked(self._wire.trip([script(RENEW, (head,), moment, HELD_S) for head in self._heads(keys)]))
        pairs = [(bucket.rpartition(":")[0] + ":head", bucket) for bucket in buckets]
        answers = self._wire.trip([script(LOOK, pair, moment, how) for pair in pairs], patient=True)
        self._checked(answers)
        return [answer[2] for answer in answers]

    def _checked(self, answers: list[Any]) -> None:
        if any(answer[0] != b"ok" for answer in answers):
            raise StateMovedError(
                f"{self._where} was dropped while all of it was read, or nobody took rows for {HELD_S} s; try again"
            )

    def _count(self, keys: Keys, groups: list[list[str]], moment: str) -> int:
        every = (key for group in groups for key in group)
        return sum(sum(self._look(keys, some, moment, "HLEN")) for some in batches(every, AT_ONCE))

    def _rows(self, keys: Keys, buckets: dict[str, list[list[str]]], moment: str) -> Iterator[Row]:
        for name in TABLES:
            for group in buckets[name]:
                found: list[tuple[bytes, bytes]] = []
                for flat in self._look(keys, group, moment, "HGETALL"):
                    found.extend(zip(flat[::2], flat[1::2], strict=True))
                for field, value in sorted(found):
                    yield name, _U4.unpack(field)[0], value
