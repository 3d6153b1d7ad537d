"""Candidates that the caller brings, in place of what the sources find."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from headwater.retrieval.merge import Candidates
from headwater.serving.lists import Origin

GIVEN = Origin("given", "from the list that was asked about")


def given_candidates(
    items: npt.NDArray[np.int64], may_show: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.bool_]]
) -> Candidates:
    """``items`` that may be shown, each once, in the caller's order, which is the merged order: scores fall with it."""
    _, first = np.unique(items, return_index=True)
    distinct = items[np.sort(first)]
    kept = distinct[may_show(distinct)]
    scores = (1.0 / (1.0 + np.arange(len(kept)))).astype(np.float32)
    return Candidates(kept, scores, np.zeros(len(kept), np.int64))
