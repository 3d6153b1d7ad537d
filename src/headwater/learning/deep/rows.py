"""What a deep ranker learns from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headwater.learning.gbdt import TrainingError

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Histories:
    """What target attention looks at, for the rows of :class:`RankingRows`.

    ``vectors`` float32[m, e], row 0 is nothing; ``item`` int64[n] and ``recent`` int64[g, l] are rows of it, the recent ones
    padded with 0 at the front, the newest last. ``types`` int64[g, l] type slots, ``age_s`` float32[g, l] at the moment of the
    group.
    """

    vectors: Float32
    item: Int64
    recent: Int64
    types: Int64
    age_s: Float32


@dataclass(frozen=True, slots=True)
class RankingRows:
    """Rows in groups that compete: a question and its candidates, or what one person was shown on a day.

    ``features`` float32[n, d], NaN is missing; ``labels`` float32[n, h], NaN is unknown for that head; ``groups`` int32[g] rows of
    each, rows of a group together, groups in the order of time. ``weights`` float32[n] or None. ``position`` int16[n] where
    each was shown, -1 unknown; None: never logged. ``histories`` None: nothing to attend to.
    """

    features: Float32
    labels: Float32
    groups: npt.NDArray[np.int32]
    weights: Float32 | None = None
    position: npt.NDArray[np.int16] | None = None
    histories: Histories | None = None

    def __len__(self) -> int:
        return len(self.features)

    @property
    def starts(self) -> Int64:
        """``int64[g + 1]``: the rows of group k are ``starts[k] … starts[k + 1] - 1``."""
        return np.concatenate([[0], np.cumsum(self.groups)]).astype(np.int64)

    @property
    def group_of(self) -> Int64:
        """``int64[n]``: the group of each row."""
        return np.repeat(np.arange(len(self.groups)), self.groups).astype(np.int64)

    def take(self, groups: Int64) -> RankingRows:
        """The rows of these groups, in their order."""
        starts, sizes = self.starts[groups], self.groups[groups].astype(np.int64)
        first = np.cumsum(sizes) - sizes
        rows = np.arange(int(sizes.sum())) - np.repeat(first - starts, sizes)
        histories = self.histories
        return RankingRows(
            self.features[rows], self.labels[rows], self.groups[groups],
            None if self.weights is None else self.weights[rows],
            None if self.position is None else self.position[rows],
            None if histories is None else Histories(
                histories.vectors, histories.item[rows], histories.recent[groups], histories.types[groups],
                histories.age_s[groups],
            ),
        )  # fmt: skip

    def check(self, columns: tuple[str, ...], heads: tuple[str, ...]) -> None:
        """Raise :class:`TrainingError` for shapes that do not fit together, or values that mean nothing."""
        n, g = len(self.features), len(self.groups)
        if self.features.dtype != np.float32 or self.features.shape != (n, len(columns)):
            raise TrainingError(
                f"Expected features float32[n, {len(columns)}], got {self.features.dtype}{list(self.features.shape)}."
            )
        if not n or not g:
            raise TrainingError("There are no training rows. Import events with positive types first.")
        if not heads or self.labels.dtype != np.float32 or self.labels.shape != (n, len(heads)):
            raise TrainingError(
                f"Expected labels float32[{n}, {len(heads)}], one column for each of the heads {', '.join(heads) or '(none)'}, "
                f"got {self.labels.dtype}{list(self.labels.shape)}."
            )
        if int(self.groups.sum()) != n or self.groups.min() < 1:
            raise TrainingError(
                f"Expected group sizes of at least 1 that add up to {n}, they add up to {self.groups.sum()}."
            )
        known = self.labels[~np.isnan(self.labels)]
        if known.size and (known.min() < 0 or known.max() > 1):
            raise TrainingError("Expected labels from 0 to 1; NaN where a head's label is not known.")
        if np.isinf(self.features).any():
            column = columns[int(np.flatnonzero(np.isinf(self.features).any(axis=0))[0])]
            raise TrainingError(f"Feature column {column!r} has an infinite value. Verify the features of this plan.")
        if self.weights is not None and (
            self.weights.shape != (n,) or not np.isfinite(self.weights).all() or self.weights.min() < 0
        ):
            raise TrainingError(f"Expected {n} finite weights of at least 0.")
        if self.position is not None and self.position.shape != (n,):
            raise TrainingError(f"Expected {n} positions, got {list(self.position.shape)}.")
        if self.histories is not None:
            _check_histories(self.histories, n, g)


def _check_histories(histories: Histories, n: int, g: int) -> None:
    vectors, recent = histories.vectors, histories.recent
    if vectors.dtype != np.float32 or vectors.ndim != 2 or not vectors.size or not np.isfinite(vectors).all():
        raise TrainingError("Expected vectors float32[m, e], all finite.")
    shape = (g, recent.shape[1] if recent.ndim == 2 else -1)
    if histories.item.shape != (n,) or any(a.shape != shape for a in (recent, histories.types, histories.age_s)):
        raise TrainingError(f"Expected item[{n}] and recent, types and age_s [{g}, l] of one shape.")
    for rows in (histories.item, recent):
        if rows.size and (rows.min() < 0 or rows.max() >= len(vectors)):
            raise TrainingError(
                f"Expected rows of vectors from 0 to {len(vectors) - 1}, got {rows.min()} … {rows.max()}."
            )
