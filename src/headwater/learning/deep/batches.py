"""Rows of whole groups as tensors, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headwater.learning.deep.rows import Histories, RankingRows

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """``rows`` int64[b] of the training rows; ``group`` (b,) 0 … groups - 1; ``attended`` is what target attention takes."""

    rows: Int64
    features: Tensor
    labels: Tensor
    weights: Tensor
    group: Tensor
    groups: int
    position: Tensor | None
    attended: tuple[Tensor, ...] | None


def batches(rows: RankingRows, groups: Int64, size: int) -> Iterator[Batch]:
    """Batches of whole groups, in the order of ``groups``, of at least ``size`` rows each but for the last one."""
    starts = rows.starts
    ends = np.cumsum(rows.groups[groups].astype(np.int64))
    at = 0
    while at < len(groups):
        done = ends[at - 1] if at else 0
        stop = min(int(np.searchsorted(ends, done + size)) + 1, len(groups))
        yield _batch(rows, starts, groups[at:stop])
        at = stop


def _batch(rows: RankingRows, starts: Int64, groups: Int64) -> Batch:
    sizes = rows.groups[groups].astype(np.int64)
    first = np.cumsum(sizes) - sizes
    at = np.arange(int(sizes.sum())) - np.repeat(first - starts[groups], sizes)
    group = torch.from_numpy(np.repeat(np.arange(len(groups)), sizes))
    weights = np.ones(len(at), np.float32) if rows.weights is None else rows.weights[at].astype(np.float32)
    return Batch(
        rows=at,
        features=torch.from_numpy(rows.features[at]),
        labels=torch.from_numpy(rows.labels[at]),
        weights=torch.from_numpy(weights),
        group=group,
        groups=len(groups),
        position=None if rows.position is None else torch.from_numpy(rows.position[at].astype(np.int64)),
        attended=None if rows.histories is None else attended(rows.histories, at, groups, group),
    )


def attended(histories: Histories, rows: Int64, groups: Int64, group: Tensor) -> tuple[Tensor, ...]:
    """Candidates (B, E), recent items (G, L, E), types, ages and whether they are there (G, L), and the group of each row."""
    recent = histories.recent[groups]
    return (
        torch.from_numpy(histories.vectors[histories.item[rows]]),
        torch.from_numpy(histories.vectors[recent]),
        torch.from_numpy(histories.types[groups].astype(np.int64)),
        torch.from_numpy(histories.age_s[groups].astype(np.float32)),
        torch.from_numpy((recent > 0).astype(np.float32)),
        group,
    )
