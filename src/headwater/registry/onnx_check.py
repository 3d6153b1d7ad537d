"""What an ONNX file may hold, checked on its bytes: nothing that leads out of the file, no foreign operators, no NaN.

The Protocol Buffers wire format is walked here, field by field, because the package ``onnx`` is no part of what serves.
A file is refused rather than interpreted: wherever two readers could disagree about what it says (a field twice, a
field of another wire type, a length that leads past the end), it is damaged.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from headwater.registry.errors import BundleError

MAX_BYTES = (1 << 31) - 1  # the format itself ends here
MAX_DEPTH = 32
MAX_FIELDS = 2_000_000
MAX_ELEMENTS = 1 << 31
MAX_RANK = 64

# Operators that come with ONNX Runtime. Those of `com.microsoft` are built in too (quantisation, fused attention).
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
LEADING_OUT = frozenset(
    {"EPContext", "PythonOp", "PyOp", "PythonOpGrad"}
)  # load a file, or run what is not in the model

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_ORT_MAGIC = b"ORTM"

# Fields by message: number → the message that it holds. What is not named here is skipped.
_MODEL = {7: "graph", 8: "opset", 20: "training", 25: "function"}
_HOLDS: dict[str, dict[int, str]] = {
    "model": _MODEL,
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "function": {7: "node", 9: "opset", 11: "attribute"},
    "tensor": {},
    "opset": {},
}
# Fields that a message has once. Readers merge repeats, each in its own way.
_ONCE: dict[str, frozenset[int]] = {
    "model": frozenset({7}),
    "training": frozenset({1, 2}),
    "node": frozenset({4, 7}),
    "attribute": frozenset({2, 5, 6, 22}),
    "sparse": frozenset({1, 2}),
    "function": frozenset({1, 10}),
    "tensor": frozenset({2, 9, 14}),
    "opset": frozenset({1, 2}),
}

_FLOATS: dict[int, npt.DTypeLike] = {1: "<f4", 10: "<f2", 11: "<f8", 16: "<u2"}  # by TensorProto.DataType; 16: bfloat16
_WIDTHS = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 14: 8, 15: 16, 16: 2}
_FLOAT16, _BFLOAT16, _COMPLEX64, _COMPLEX128 = 10, 16, 14, 15

Value = int | memoryview


@dataclass(slots=True)
class _Walk:
    """What was found on the way."""

    name: str
    fields: int = 0
    opsets: int = 0
    outputs: int = 0
    graphs: int = 0
    used: set[str] = field(default_factory=set)
    defined: set[str] = field(default_factory=set)

    def refuse(self, why: str) -> BundleError:
        return BundleError(f"{self.name} {why}")

    def damaged(self, why: str) -> BundleError:
        return self.refuse(f"is no whole ONNX model: {why}. Export and publish it again.")


def check_onnx(name: str, data: bytes) -> None:
    """Refuse an ONNX file that must not be opened; ``name`` is for the message.

    Raises:
        BundleError: external data, operators of a domain that ONNX Runtime does not come with, weights that are NaN or
            infinite, or bytes that are not one whole model.
    """
    walk = _Walk(name)
    if len(data) > MAX_BYTES:
        raise walk.refuse(f"has {len(data)} bytes; an ONNX file has at most {MAX_BYTES}.")
    if data[4:8] == _ORT_MAGIC:
        raise walk.refuse("is a model in ONNX Runtime's own format. Export it as ONNX.")
    _message(walk, "model", memoryview(data), 0)
    if not walk.graphs:
        raise walk.damaged("it has no graph")
    if not walk.opsets:
        raise walk.damaged("it does not say which operator set it needs")
    if not walk.outputs:
        raise walk.damaged("its graph has no output")
    if foreign := sorted(walk.used - walk.defined - DOMAINS):
        raise walk.refuse(
            f"has operators of {', '.join(map(repr, foreign))}, which ONNX Runtime does not come with. "
            "Export it with the standard ones."
        )


def _message(walk: _Walk, kind: str, data: memoryview, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise walk.damaged(f"it is nested deeper than {MAX_DEPTH}")
    if kind == "tensor":
        _tensor(walk, data)
        return
    holds, once, seen = _HOLDS[kind], _ONCE.get(kind, frozenset()), set[int]()
    for number, wire, value in _fields(walk, data):
        if number in once:
            if number in seen:
                raise walk.damaged(f"field {number} of a {kind} stands there twice")
            seen.add(number)
        if number in holds:
            _message(walk, holds[number], _bytes(walk, kind, number, wire, value), depth + 1)
        if kind == "model":
            walk.graphs += number == 7
            walk.opsets += number == 8
        elif kind == "graph" and depth == 1:
            walk.outputs += number == 12
        elif kind == "node" and number in (4, 7):
            _operator(walk, number, _text(walk, kind, number, wire, value))
        elif kind == "function" and number == 10:
            walk.defined.add(_text(walk, kind, number, wire, value))
        elif kind == "attribute" and number in (2, 7):
            _attribute_floats(walk, number, wire, value)


def _operator(walk: _Walk, number: int, text: str) -> None:
    if number == 7:
        walk.used.add(text)
    elif text in LEADING_OUT:
        raise walk.refuse(f"has an operator {text}, which leads out of the model. Export it without.")


def _attribute_floats(walk: _Walk, number: int, wire: int, value: Value) -> None:
    """``f`` and ``floats``: a bound may be infinite (of a clip, say), but nothing is NaN."""
    if wire == _FIXED32:
        found = np.array([value], np.uint32).view(np.float32)
    elif number == 7 and wire == _BYTES and not isinstance(value, int) and len(value) % 4 == 0:
        found = np.frombuffer(value, "<f4")
    else:
        raise walk.damaged(f"field {number} of an attribute is not what it should be")
    if np.isnan(found).any():
        raise walk.refuse("has an attribute that is NaN. It was not published; look at how the training ended.")


def _tensor(walk: _Walk, data: memoryview) -> None:
    dims: list[int] = []
    kind, raw, seen = 0, None, set[int]()
    typed: dict[int, list[Value]] = {4: [], 5: [], 10: []}
    name = ""
    for number, wire, value in _fields(walk, data):
        if number in _ONCE["tensor"]:
            if number in seen:
                raise walk.damaged(f"field {number} of a tensor stands there twice")
            seen.add(number)
        if number == 13 or (number == 14 and value != 0):
            raise walk.refuse("keeps weights outside itself (external data). Export it with all weights inside.")
        if number == 1:
            dims += [value] if isinstance(value, int) and wire == _VARINT else _varints(walk, value)
        elif number == 2:
            if not isinstance(value, int) or wire != _VARINT:
                raise walk.damaged("the type of a tensor is not a number")
            kind = value
        elif number == 8:
            name = _text(walk, "tensor", number, wire, value)
        elif number == 9:
            raw = _bytes(walk, "tensor", number, wire, value)
        elif number in typed:
            typed[number].append(value)
    if len(dims) > MAX_RANK:
        raise walk.damaged(f"the tensor {name!r} has {len(dims)} dimensions")
    count = 1
    for size in dims:
        if size >= MAX_ELEMENTS:
            raise walk.damaged(f"the tensor {name!r} has a dimension of {size}")
        count *= size
    if count > MAX_ELEMENTS:
        raise walk.damaged(f"the tensor {name!r} has {count} values")
    if raw is not None and kind in _WIDTHS and len(raw) != count * _WIDTHS[kind]:
        raise walk.damaged(f"the tensor {name!r} has {len(raw)} bytes for {count} values")
    _finite(walk, name, kind, _floats(walk, kind, raw, typed))


def _floats(walk: _Walk, kind: int, raw: memoryview | None, typed: dict[int, list[Value]]) -> npt.NDArray[np.floating]:
    """The values of a tensor of floating-point numbers; none for those of other types."""
    if kind in (_COMPLEX64, _COMPLEX128):
        raise walk.refuse("has complex weights, which no model of ours has. Export it with real ones.")
    if kind not in _FLOATS:
        return np.zeros(0, np.float32)
    if raw is not None:
        stored = np.frombuffer(raw, _FLOATS[kind])
    elif kind in (_FLOAT16, _BFLOAT16):
        numbers = [n for v in typed[5] for n in ([v] if isinstance(v, int) else _varints(walk, v))]
        stored = np.array([n & 0xFFFF for n in numbers], np.uint16)
    else:
        place, width, code = (4, 4, "<I") if kind == 1 else (10, 8, "<Q")
        parts = [struct.pack(code, v) if isinstance(v, int) else bytes(v) for v in typed[place]]
        joined = b"".join(parts)
        if len(joined) % width or any(isinstance(v, int) and v >= 1 << 8 * width for v in typed[place]):
            raise walk.damaged("the values of a tensor have another length than their type")
        stored = np.frombuffer(joined, _FLOATS[kind])
    if kind == _BFLOAT16:
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.view(np.float16) if kind == _FLOAT16 else stored


def _finite(walk: _Walk, name: str, kind: int, values: npt.NDArray[np.floating]) -> None:
    """No NaN; −inf in a mask (zeros and −inf alone) or as a bound of its own (one value), as exporters write them."""
    if kind not in _FLOATS or np.isfinite(values).all():
        return
    wrong = int(np.isnan(values).sum())
    if not wrong and (values.size == 1 or ((values == 0) | (values == -math.inf)).all()):
        return
    wrong = wrong or int(np.isinf(values).sum())
    raise walk.refuse(
        f"has {wrong} of {values.size} weights in {name!r} that are NaN or infinite. It was not published; look at how "
        "the training ended."
    )


# -- the wire format -------------------------------------------------------------------------------------------------


def _fields(walk: _Walk, data: memoryview) -> Iterator[tuple[int, int, Value]]:
    """(field number, wire type, value) of a message, in the order of its bytes."""
    at, end = 0, len(data)
    while at < end:
        walk.fields += 1
        if walk.fields > MAX_FIELDS:
            raise walk.damaged(f"it has more than {MAX_FIELDS} fields")
        key, at = _varint(walk, data, at)
        number, wire = key >> 3, key & 7
        if not 0 < number < 1 << 29:
            raise walk.damaged(f"there is no field {number}")
        if wire == _VARINT:
            value, at = _varint(walk, data, at)
            yield number, wire, value
            continue
        if wire == _BYTES:
            size, at = _varint(walk, data, at)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise walk.damaged(f"field {number} has wire type {wire}")
        if size > end - at:
            raise walk.damaged(f"it is truncated: field {number} has {size} bytes and {end - at} are left")
        part = data[at : at + size]
        at += size
        yield number, wire, part if wire == _BYTES else int.from_bytes(part, "little")


def _varint(walk: _Walk, data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data):
            raise walk.damaged("it is truncated in the middle of a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 1 << 64:
                raise walk.damaged("a number is longer than 64 bits")
            return value, at
        shift += 7
        if shift > 63:
            raise walk.damaged("a number is longer than 64 bits")


def _varints(walk: _Walk, packed: Value) -> list[int]:
    if isinstance(packed, int):
        raise walk.damaged("a list of numbers is not one")
    found, at = [], 0
    while at < len(packed):
        value, at = _varint(walk, packed, at)
        found.append(value)
    return found


def _bytes(walk: _Walk, kind: str, number: int, wire: int, value: Value) -> memoryview:
    if wire != _BYTES or isinstance(value, int):
        raise walk.damaged(f"field {number} of a {kind} is not what it should be")
    return value


def _text(walk: _Walk, kind: str, number: int, wire: int, value: Value) -> str:
    try:
        return bytes(_bytes(walk, kind, number, wire, value)).decode()
    except UnicodeDecodeError as error:
        raise walk.damaged(f"field {number} of a {kind} is no text") from error
