"""What the sequence model is given: one definition, which the training and the source that serves both read."""

from __future__ import annotations

from typing import TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
_Seconds = TypeVar("_Seconds", int, Int64)

FORMAT = 1
META_FILE = "sequence.json"
ENCODER_FILE = "sequence.encoder.onnx"
TOWER_FILE = "sequence.tower.onnx"
VOCABULARY_FILE = "sequence.vocabulary.npy"  # int64[v]: the dense item of each row
IDS_FILE = "sequence.ids.npy"  # float32[v + 1, d]: what training knows of each item beside its content; last: of an unknown one
AGES_FILE = "sequence.ages.npy"  # float32[AGE_SLOTS, d]: what an age adds to a vector; only with `item_age`
WEIGHTS_FILE = "sequence.weights.npy"  # float32[n]: all other weights, for the next training to begin with
FILES = (META_FILE, ENCODER_FILE, TOWER_FILE, VOCABULARY_FILE, IDS_FILE)  # those that serving needs

# Seconds from an event to the next one, in buckets with a weight each. Bucket 0: there is none before.
_GAPS_S = np.array(
    [2, 5, 10, 20, 40, 90, 180, 400, 900, 1_800, 3_600, 7_200, 21_600, 86_400, 259_200, 604_800, 2_592_000]
)
GAP_SLOTS = len(_GAPS_S) + 2
# Seconds from the last event to the question. Training asks at the moment of the next event, serving somewhat earlier: what
# belongs to one visit is one bucket.
_IDLE_S = np.array([1_800, 7_200, 43_200, 129_600, 345_600, 1_209_600, 5_184_000])
IDLE_SLOTS = len(_IDLE_S) + 1
TYPE_SLOTS = 16
# Seconds since an item was published or first seen. The last bucket is of items of which that is not known.
_NEVER, _FOREVER = -(2**61), 2**60
_AGES_S = np.array(
    [600, 1_800, 3_600, 7_200, 14_400, 28_800, 57_600, 86_400, 172_800, 345_600, 604_800, 1_209_600, 2_592_000, 7_776_000,
     31_536_000, _FOREVER]
)  # fmt: skip
AGE_SLOTS = len(_AGES_S) + 1
_AGE_STEP_S = 60
_AGE_SPANS_S = np.concatenate([[-(2**62)], _AGES_S, [2**62]])


class Shape(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Sizes of the network: vectors of ``size``, ``blocks`` layers of ``heads``, ``length`` events, ``content`` numbers an item.

    ``item_age``: whether the vector of an item changes with its age. Bundles of before that was possible do not say it.
    """

    size: int
    blocks: int
    heads: int
    length: int
    content: int
    item_age: bool = False


class Meta(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``sequence.json``. ``weights`` names the parts of the weights file with their shapes, in order."""

    format: int
    shape: Shape
    event_types: tuple[str, ...]
    items: int
    weights: list[tuple[str, list[int]]]


def read_meta(data: bytes) -> Meta:
    """Read ``sequence.json``.

    Raises:
        msgspec.ValidationError, msgspec.DecodeError: it is no such file.
    """
    return msgspec.json.decode(data, type=Meta)


def gap_slots(times_s: Int64) -> Int64:
    """``int64[..., l]``: bucket of the seconds since the event before, along the last axis; 0 for the first."""
    slots = np.zeros(times_s.shape, np.int64)
    slots[..., 1:] = 1 + np.searchsorted(_GAPS_S, times_s[..., 1:] - times_s[..., :-1], side="right")
    return slots


def idle_slots(seconds: Int64) -> Int64:
    """``int64[...]``: bucket of the seconds between the last event and the question."""
    return np.searchsorted(_IDLE_S, seconds, side="right").astype(np.int64)


def age_moment(now_s: _Seconds) -> _Seconds:
    """The second at which ages are taken for what is asked at ``now_s``, the end of its minute.

    So a vector is a function of the item and the minute, whenever it was made: a replay finds the same.
    """
    return (now_s // _AGE_STEP_S + 1) * _AGE_STEP_S


def born_seconds(born_ms: Int64) -> Int64:
    """``int64[n]``: seconds of births in ms (``Columns.born``; 0: not known), for :func:`age_slots`."""
    return np.where(born_ms > 0, born_ms // 1_000, _NEVER)


def age_slots(born_s: Int64, moment_s: Int64 | int) -> Int64:
    """``int64[...]``: bucket of the seconds from ``born_s`` to ``moment_s``; an item that is not born yet is as young as can be."""
    return np.searchsorted(_AGES_S, moment_s - born_s, side="right").astype(np.int64)


def age_spans(born_s: Int64, slots: Int64) -> tuple[Int64, Int64]:
    """From which moment on, and until before which one, items are in their ``slots``: int64[n] each."""
    return born_s + _AGE_SPANS_S[slots], born_s + _AGE_SPANS_S[slots + 1]


def age_bounds() -> Int64:
    """``int64[AGE_SLOTS]``: the age in seconds at which each bucket begins, 0 for the first."""
    return np.concatenate([[0], _AGES_S])


def price_input(price: Float32) -> Float32:
    """``float32[n, 1]`` of prices ``float32[n]``: logarithms, because prices differ by factors; 0 for none."""
    return np.log1p(np.maximum(price, np.float32(0.0)))[:, None].astype(np.float32)
