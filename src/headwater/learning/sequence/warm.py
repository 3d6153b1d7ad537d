"""Weights as files of a bundle, and back: where the next training begins."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from headwater.learning.gbdt import TrainingError
from headwater.learning.sequence.model import TwoTower
from headwater.retrieval.sequence_inputs import (
    AGES_FILE,
    FORMAT,
    IDS_FILE,
    META_FILE,
    VOCABULARY_FILE,
    WEIGHTS_FILE,
    Meta,
    Shape,
    read_meta,
)

IDS = "ids"
_NEW_ITEM = 0.02  # standard deviation around the unknown item


class Earlier(NamedTuple):
    """What an earlier bundle knows: ``items`` int64[v], ``ids`` float32[v + 1, d], the other weights by name."""

    items: npt.NDArray[np.int64]
    ids: npt.NDArray[np.float32]
    weights: dict[str, npt.NDArray[np.float32]]


def weight_files(
    model: TwoTower, shape: Shape, items: npt.NDArray[np.int64], event_types: tuple[str, ...]
) -> dict[str, bytes]:
    """Everything that was trained, as plain arrays with a JSON text that names them."""
    named = [(name, value.detach().numpy()) for name, value in model.named_parameters() if name != IDS]
    meta = Meta(
        format=FORMAT,
        shape=shape,
        event_types=event_types,
        items=len(items),
        weights=[(name, list(value.shape)) for name, value in named],
    )
    return {
        META_FILE: msgspec.json.format(msgspec.json.encode(meta)),
        VOCABULARY_FILE: _array_bytes(items),
        IDS_FILE: _array_bytes(model.ids.detach().numpy()),
        **({} if model.ages is None else {AGES_FILE: _array_bytes(model.ages.detach().numpy())}),
        WEIGHTS_FILE: _array_bytes(np.concatenate([value.ravel() for _, value in named])),
    }


def read_earlier(files: Mapping[str, bytes], shape: Shape, event_types: tuple[str, ...]) -> Earlier | None:
    """What ``files`` know; ``None`` when they are of another shape or of other event types.

    Raises:
        TrainingError: a file is missing or is not what ``sequence.json`` says.
    """
    try:
        meta = read_meta(files[META_FILE])
        if (meta.format, meta.shape, meta.event_types) != (FORMAT, shape, event_types):
            return None
        items, ids, flat = (
            np.load(io.BytesIO(files[name]), allow_pickle=False) for name in (VOCABULARY_FILE, IDS_FILE, WEIGHTS_FILE)
        )
        sizes = [int(np.prod(of)) for _, of in meta.weights]
        if items.shape != (meta.items,) or ids.shape != (meta.items + 1, shape.size) or flat.shape != (sum(sizes),):
            raise ValueError("arrays of other sizes than it says")
        parts = np.split(flat, np.cumsum(sizes)[:-1])
        weights = {name: part.reshape(of) for (name, of), part in zip(meta.weights, parts, strict=True)}
    except (KeyError, ValueError, EOFError, msgspec.MsgspecError) as error:
        raise TrainingError(
            f"The sequence model to begin with cannot be read: {error!r}. Train without it, or from another bundle."
        ) from error
    return Earlier(items, ids, weights)


def take_over(model: TwoTower, earlier: Earlier) -> None:
    """Begin with ``earlier``: its rows stand first in the vocabulary; a new item begins near the unknown one."""
    known = len(earlier.items)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name != IDS:
                value.copy_(torch.from_numpy(earlier.weights[name]))
        unknown = torch.from_numpy(earlier.ids[-1])
        model.ids.normal_(std=_NEW_ITEM).add_(unknown)
        model.ids[:known] = torch.from_numpy(earlier.ids[:-1])
        model.ids[-1] = unknown


def _array_bytes(array: npt.NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
