"""State rows of one entity, side by side."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Rows(NamedTuple):
    """``int64[n, a]``, ``float32[n, b]``, ``uint32[n, c]``."""

    i8: npt.NDArray[np.int64]
    f4: npt.NDArray[np.float32]
    u4: npt.NDArray[np.uint32]
