"""The one door to numba: typed, cached by source, never fast-math.

Numba's own cache does not notice when a kernel in *another* file changes, so the cache folder is
named by a hash over every kernel source. Equal sources share compiled kernels across processes;
any edit gets a fresh folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

_ROOT = Path(__file__).parent


def _kernel_sources() -> list[Path]:
    return sorted(p for p in _ROOT.rglob("*.py") if b"headwater.jit" in p.read_bytes())


def cache_dir() -> Path:
    """Folder of the compiled kernels: ``$HEADWATER_CACHE`` or the user's cache, plus the source hash."""
    base = os.environ.get("HEADWATER_CACHE")
    root = Path(base) if base else Path.home() / ".cache" / "headwater"
    digest = hashlib.sha256()
    for path in _kernel_sources():
        digest.update(path.read_bytes())
    return root / "kernels" / digest.hexdigest()[:16]


os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_dir()))

import numba  # noqa: E402  (the cache folder must be set before numba is imported)
from llvmlite import ir  # noqa: E402
from numba.core import cgutils, types  # noqa: E402
from numba.extending import intrinsic  # noqa: E402

_OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "fastmath": False, "error_model": "numpy"}
_NO_REFERENCE_COUNTS: dict[str, Any] = {"_nrt": False}

_F = TypeVar("_F", bound=Callable[..., object])


def kernel(function: _F) -> _F:
    """Compile ``function`` on first call: releases the GIL, cached on disk, exact IEEE arithmetic.

    Without Numba's reference counts: a kernel may not make arrays (its caller brings the memory), and gets no slower by
    the arrays that it takes out of tuples. The fold ran five times as fast without them.
    """
    return cast(_F, numba.njit(**_OPTIONS, **_NO_REFERENCE_COUNTS)(function))


def allocating_kernel(function: _F) -> _F:
    """A :func:`kernel` that may make arrays of its own, with Numba's reference counts."""
    return cast(_F, numba.njit(**_OPTIONS)(function))


def inline(function: _F) -> _F:
    """Compile a small helper that kernels call; LLVM inlines it always: a plan's arrays are too many to hand over.

    Without reference counts by its own word, not by that of the kernel that happens to be compiled first: the cache would keep
    what an :func:`allocating_kernel` made of it, and others would count.
    """
    return cast(_F, numba.njit(**_OPTIONS, **_NO_REFERENCE_COUNTS, forceinline=True)(function))


_code: Any = cgutils  # it says nothing of types


def _prefetch(_typing: Any, array: Any, _row: Any, _column: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kind = signature.args[0]
        at = _code.get_item_pointer(
            context, builder, kind, context.make_array(kind)(context, builder, given[0]), given[1:]
        )
        address, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        asks = ir.FunctionType(ir.VoidType(), [address, number, number, number])
        function = _code.get_or_insert_function(builder.module, asks, "llvm.prefetch.p0")
        read, soon, data = (ir.Constant(number, value) for value in (0, 3, 1))
        builder.call(function, [builder.bitcast(at, address), read, soon, data])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), generate


prefetch = cast(Callable[[Any, int, int], None], intrinsic(_prefetch))
"""In a kernel: fetch the line of memory around ``array[row, column]`` of a two-dimensional array, and do not wait for it.

For rows in no order that are read soon: the processor guesses none of them, and each would be waited for by itself."""


@inline
def prefetch_row(array: Any, row: int) -> None:
    """In a kernel: :func:`prefetch` all lines (64 bytes each) of ``array[row]``."""
    for at in range(0, array.shape[1], 64 // array.itemsize):
        prefetch(array, row, at)


AHEAD = 16  # rows whose memory is under way while a loop works on one


@inline
def ahead(array: Any, rows: Any, r: int, column: int) -> None:
    """In a loop over ``rows``, numbers of rows of ``array``, that is at the ``r``-th: :func:`prefetch` what it reads of a later one."""
    if r + AHEAD < len(rows):
        prefetch(array, rows[r + AHEAD], column)
