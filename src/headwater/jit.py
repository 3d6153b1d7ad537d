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
