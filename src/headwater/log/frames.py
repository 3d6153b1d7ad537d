"""What travels over the writer's socket: length-prefixed MessagePack, typed on both ends.

A frame is its length (u32, little-endian) and a MessagePack array. Requests carry a number that the
reply repeats, so many may be under way on one connection. After ``Subscribe`` a connection carries
nothing but offsets: the log's end after each commit, u64 little-endian.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from headwater.log.batch import EventBatch
from headwater.log.commands import (
    Appended,
    AppendEvents,
    AppendExposures,
    AppendServed,
    AppendShadows,
    AppendWire,
    Command,
    DeleteItems,
    EraseUsers,
    Login,
    Ping,
    PutItems,
    PutProfiles,
    PutTable,
    TrimLog,
)
from headwater.log.protocol import RefusedError
from headwater.schema.errors import ConfigurationError, UnavailableError

MAX_FRAME = 64 * 1024 * 1024
LENGTH = struct.Struct("<I")
OFFSET = struct.Struct("<Q")

_LONGEST_SOCKET_PATH = 107


class Subscribe(Struct, frozen=True, array_like=True, tag="subscribe"):
    """From here on the connection carries offsets."""


class Refused(Struct, frozen=True, array_like=True, tag="refused"):
    """The command was not accepted; a repeat would fail the same way."""

    reason: str


class Failed(Struct, frozen=True, array_like=True, tag="failed"):
    """Not durable, and a repeat may be: the writer is going down, or (``reason``) its disk is full."""

    reason: str = ""


Outcome = Appended | Refused | Failed


class _Request(Struct, frozen=True, array_like=True):
    number: int
    command: msgspec.Raw


class _Sent(Struct, frozen=True, array_like=True):
    number: int
    command: object


class Reply(Struct, frozen=True, array_like=True):
    """The outcome of the request with this number."""

    number: int
    outcome: Outcome


WireRequest = (
    AppendWire
    | PutItems
    | DeleteItems
    | PutProfiles
    | PutTable
    | AppendServed
    | AppendExposures
    | AppendShadows
    | EraseUsers
    | TrimLog
    | Login
    | Ping
    | Subscribe
)

_ENCODER = msgspec.msgpack.Encoder()
_REQUEST = msgspec.msgpack.Decoder(_Request)
_COMMAND: msgspec.msgpack.Decoder[WireRequest] = msgspec.msgpack.Decoder(WireRequest)
_REPLY = msgspec.msgpack.Decoder(Reply)


class FrameError(Exception):
    """The other side does not speak this protocol; the connection is of no more use."""


def _frame(body: bytes) -> bytes:
    if len(body) > MAX_FRAME:
        raise RefusedError(f"A request of {len(body)} bytes is above the limit of {MAX_FRAME}; send smaller batches")
    return LENGTH.pack(len(body)) + body


def encode_request(number: int, command: Command | Subscribe) -> bytes:
    """A request as a frame. Raises :class:`RefusedError` when it is too large or no valid text."""
    sent = AppendWire(command.batch.to_wire(), command.source) if isinstance(command, AppendEvents) else command
    try:
        return _frame(_ENCODER.encode(_Sent(number, sent)))
    except UnicodeEncodeError as error:
        raise RefusedError(f"An id is no valid text: {error.reason}") from error


def decode_request(body: bytes | memoryview) -> tuple[int, Command | Subscribe | Refused]:
    """The request in a frame's body; a command that breaks a rule of the schema comes out as ``Refused``."""
    try:
        request = _REQUEST.decode(body)
    except msgspec.DecodeError as error:
        raise FrameError(str(error)) from error
    try:
        command = _COMMAND.decode(request.command)
        if isinstance(command, AppendWire):
            return request.number, AppendEvents(EventBatch.from_wire(command.batch), command.source)
    except (msgspec.DecodeError, RefusedError) as error:
        return request.number, Refused(str(error))
    return request.number, command


def encode_reply(number: int, outcome: Outcome) -> bytes:
    """A reply as a frame."""
    return _frame(_ENCODER.encode(Reply(number, outcome)))


def decode_reply(body: bytes | memoryview) -> Reply:
    """The reply in a frame's body."""
    try:
        return _REPLY.decode(body)
    except msgspec.DecodeError as error:
        raise FrameError(str(error)) from error


def appended(outcome: Outcome) -> Appended:
    """The good outcome, or the exception that stands for the bad one."""
    match outcome:
        case Appended():
            return outcome
        case Refused(reason):
            raise RefusedError(reason)
        case Failed(reason):
            raise UnavailableError(reason or "The writer stopped before this was durable; try again")


class Frames:
    """Puts frames together again from the pieces in which a stream delivers them."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the body of every frame that ``data`` completes. Raises :class:`FrameError` above ``MAX_FRAME``."""
        buffer = self._buffer
        buffer += data
        at = 0
        try:
            while len(buffer) - at >= LENGTH.size:
                (size,) = LENGTH.unpack_from(buffer, at)
                if size > MAX_FRAME:
                    raise FrameError(f"A frame of {size} bytes is above the limit of {MAX_FRAME}")
                start = at + LENGTH.size
                if len(buffer) - start < size:
                    break
                at = start + size
                yield bytes(buffer[start:at])
        finally:
            del buffer[:at]


def check_socket_path(path: Path) -> str:
    """``path`` as text, if a Unix socket can have it (107 bytes at most)."""
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        raise ConfigurationError(
            f"The socket path {path} is longer than {_LONGEST_SOCKET_PATH} bytes; choose a shorter `data_dir`"
        )
    return str(path)
