"""Arrays and settings in the files of a bundle: written by training, read by a fitted source."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from headwater.retrieval.fitted import SourceError

_Settings = TypeVar("_Settings")
_Number = TypeVar("_Number", bound=np.generic)

AGAIN = "Train and publish again."


def array_bytes(array: npt.NDArray[np.generic]) -> bytes:
    """``array`` as a ``.npy`` file, C order."""
    out = io.BytesIO()
    np.save(out, np.ascontiguousarray(array), allow_pickle=False)
    return out.getvalue()


def read_array(files: Mapping[str, bytes], name: str, kind: type[_Number], dimensions: int) -> npt.NDArray[_Number]:
    """The array in the file ``name``.

    Raises:
        SourceError: the file is missing, cannot be read, or holds another type or number of dimensions.
    """
    try:
        array = np.load(io.BytesIO(file_of(files, name)), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise SourceError(f"{name} is not an array: {error}. {AGAIN}") from error
    if not isinstance(array, np.ndarray) or array.dtype != np.dtype(kind) or array.ndim != dimensions:
        raise SourceError(f"{name} is no {dimensions}-dimensional array of {np.dtype(kind).name}. {AGAIN}")
    return np.ascontiguousarray(array)


def read_settings(files: Mapping[str, bytes], name: str, kind: type[_Settings]) -> _Settings:
    """The settings in the JSON file ``name``.

    Raises:
        SourceError: the file is missing or does not hold a ``kind``.
    """
    try:
        return msgspec.json.decode(file_of(files, name), type=kind)
    except msgspec.DecodeError as error:
        raise SourceError(f"{name} is damaged: {error}. {AGAIN}") from error


def file_of(files: Mapping[str, bytes], name: str) -> bytes:
    """The bytes of the file ``name``.

    Raises:
        SourceError: the bundle does not hold it.
    """
    found = files.get(name)
    if found is None:
        raise SourceError(f"the bundle has no file {name}. {AGAIN}")
    return found
