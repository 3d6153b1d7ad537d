"""What a ``.npy`` file may hold: a plain array of its stated size, without NaN and without infinities."""

from __future__ import annotations

import io
import math
import tokenize

import numpy as np
from numpy.lib import format as npy

from headwater.registry.errors import BundleError

# What numpy's reader of headers raises for bytes that it did not expect: it evaluates them as a Python literal.
_UNREADABLE = (ValueError, EOFError, OSError, SyntaxError, TypeError, KeyError, OverflowError, MemoryError,
               RecursionError, tokenize.TokenError)  # fmt: skip


def check_array(name: str, data: bytes) -> None:
    """Refuse an array file that must not be opened; ``name`` is for the message.

    The size is checked before the array is read, so that a header cannot ask for more memory than the file has.

    Raises:
        BundleError: Python objects or fields instead of plain values, another size than stated, NaN or infinite values.
    """
    try:
        file = io.BytesIO(data)
        version = npy.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"format {version[0]}.{version[1]} is not supported")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(file)
        if dtype.hasobject or dtype.fields is not None:
            raise ValueError(f"values of type {dtype} are not plain")
        expected, left = math.prod(shape) * dtype.itemsize, len(data) - file.tell()
        if min(shape, default=0) < 0 or expected != left:
            raise ValueError(f"{expected} bytes of values are stated and {left} are there")
        values = np.frombuffer(data, dtype, offset=file.tell())
    except _UNREADABLE as error:
        raise BundleError(
            f"{name} is not an array that can be read without pickle: {error}. Save it with a plain dtype."
        ) from error
    if dtype.kind in "fc" and not np.isfinite(values).all():
        raise BundleError(
            f"{name} has {int((~np.isfinite(values)).sum())} of {values.size} values that are NaN or infinite. It was not "
            "published; look at how the training ended."
        )
