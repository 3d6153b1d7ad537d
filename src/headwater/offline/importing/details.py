"""``EventDetail`` for many rows at once.

Every different value is encoded once, by ``msgspec``; a kernel then joins the pieces row by row. The
result is byte for byte what :func:`headwater.log.batch.encode_detail` gives for one event (a test holds it to that).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from headwater.jit import kernel
from headwater.offline.importing.columns import Coded

# event_id, request_id, position, session: the fields of EventDetail before `attributes`
PLAIN_FIELDS = ("event_id", "request_id", "position", "session")

_ENCODER = msgspec.msgpack.Encoder()
_NIL = 0xC0
_ARRAY_OF_5 = 0x95
_FIXED_MAP = 0x80
_LONGEST_FIXED_MAP = 15
_MAP_16 = 0xDE


def encode_details(
    plain: Mapping[str, Coded], attributes: Mapping[str, Coded], n: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint32]]:
    """MessagePack of ``n`` details, back to back, and the size of each (0: all fields None).

    ``plain`` holds columns named as in ``PLAIN_FIELDS``, ``attributes`` one column per attribute.
    """
    pieces: list[bytes] = []
    plain_codes = np.full((n, len(PLAIN_FIELDS)), -1, np.int64)
    for column, name in enumerate(PLAIN_FIELDS):
        if name in plain:
            plain_codes[:, column] = _place(plain[name], b"", pieces)
    attribute_codes = np.full((n, len(attributes)), -1, np.int64)
    for column, (name, coded) in enumerate(attributes.items()):
        attribute_codes[:, column] = _place(coded, _ENCODER.encode(name), pieces)
    sizes = np.fromiter((len(piece) for piece in pieces), np.int64, len(pieces))
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    heap = np.frombuffer(b"".join(pieces), np.uint8)
    detail_size = np.zeros(n, np.uint32)
    total = _measure(plain_codes, attribute_codes, starts, detail_size)
    detail = np.zeros(total, np.uint8)
    _join(plain_codes, attribute_codes, starts, heap, detail_size, detail)
    return detail, detail_size


def _place(coded: Coded, prefix: bytes, pieces: list[bytes]) -> npt.NDArray[np.int64]:
    """Append the encoded values to ``pieces``; the codes as positions there, −1 for none."""
    base = len(pieces)
    pieces.extend([prefix + piece for piece in map(_ENCODER.encode, coded.values)])
    return np.where(coded.codes >= 0, coded.codes + base, -1)


@kernel
def _measure(
    plain: npt.NDArray[np.int64],
    attributes: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.uint32],
) -> int:
    """Fill ``sizes`` (``uint32[n]``) with the length of each row's detail; returns their sum."""
    total = 0
    for row in range(len(sizes)):
        size, filled, pairs = 1, 0, 0
        for column in range(plain.shape[1]):
            piece = plain[row, column]
            if piece < 0:
                size += 1
            else:
                size += starts[piece + 1] - starts[piece]
                filled += 1
        for column in range(attributes.shape[1]):
            piece = attributes[row, column]
            if piece >= 0:
                size += starts[piece + 1] - starts[piece]
                pairs += 1
        size += 3 if pairs > _LONGEST_FIXED_MAP else 1
        if filled + pairs == 0:
            size = 0
        sizes[row] = size
        total += size
    return total


@kernel
def _join(
    plain: npt.NDArray[np.int64],
    attributes: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    heap: npt.NDArray[np.uint8],
    sizes: npt.NDArray[np.uint32],
    out: npt.NDArray[np.uint8],
) -> None:
    """Write the details of all rows into ``out`` (``uint8[sum(sizes)]``)."""
    at = 0
    for row in range(len(sizes)):
        if sizes[row] == 0:
            continue
        out[at] = _ARRAY_OF_5
        at += 1
        for column in range(plain.shape[1]):
            piece = plain[row, column]
            if piece < 0:
                out[at] = _NIL
                at += 1
            else:
                for byte in range(starts[piece], starts[piece + 1]):
                    out[at] = heap[byte]
                    at += 1
        pairs = 0
        for column in range(attributes.shape[1]):
            pairs += attributes[row, column] >= 0
        if pairs == 0:
            out[at] = _NIL
            at += 1
        elif pairs <= _LONGEST_FIXED_MAP:
            out[at] = _FIXED_MAP | pairs
            at += 1
        else:
            out[at], out[at + 1], out[at + 2] = _MAP_16, 0, pairs
            at += 3
        for column in range(attributes.shape[1]):
            piece = attributes[row, column]
            if piece >= 0:
                for byte in range(starts[piece], starts[piece + 1]):
                    out[at] = heap[byte]
                    at += 1


def as_codes(values: Sequence[object]) -> Coded:
    """Values that are all different, one a row."""
    return Coded(list(values), np.arange(len(values), dtype=np.int64))
