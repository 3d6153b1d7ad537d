"""Matrix factors (implicit ALS): the user is folded in from the recent sequence at request time.

Hu, Koren and Volinsky 2008: with item factors ``Y``, the factors of a user whose items are ``I`` with confidences ``c``
are ``(YᵀY + λ·1 + Σ_I (c_i - 1) y_i y_iᵀ)⁻¹ Σ_I c_i y_i``: one system of ``size`` equations. So a user is never stale and
needs no training.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct
from scipy.linalg import cho_factor, cho_solve

from headwater.features.plan import Plan
from headwater.retrieval.arrays import AGAIN, array_bytes, read_array, read_settings
from headwater.retrieval.fitted import Files, FittedSource, SourceError
from headwater.retrieval.index import NOTHING, ItemIndex, Ranked
from headwater.retrieval.latest import Latest, Recency
from headwater.retrieval.sources import Asked, Offer
from headwater.retrieval.vectors.choice import EXACT, empty_index, read_choice
from headwater.schema.config import Config

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


class AlsSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """``als.json``: confidence of the latest item, regularisation, and how recency lowers the confidence."""

    alpha: float
    l2: float
    depth: int
    discount: float
    gap_s: int
    across: float


def als_files(factors: Float32, alpha: float, l2: float, recency: Recency) -> dict[str, bytes]:
    """The files of the source: ``factors`` float32[items, size] by dense item, rows of zeros for items without any."""
    return {
        "als.json": msgspec.json.encode(AlsSettings(alpha, l2, *recency)),
        "als_factors.npy": array_bytes(factors.astype(np.float32)),
    }


class Als:
    """A :class:`FittedSource` over item factors."""

    name = "als"
    weight = 0.8
    reason = "people with your taste"

    def __init__(self, files: Mapping[str, bytes], config: Config, plan: Plan) -> None:
        self.width = config.sources.als.width
        settings = read_settings(files, "als.json", AlsSettings)
        self._factors = read_array(files, "als_factors.npy", np.float32, 2)
        if self._factors.shape[0] < 1 or self._factors.shape[1] < 1 or not np.isfinite(self._factors).all():
            raise SourceError(f"als_factors.npy is empty or holds numbers that are not finite. {AGAIN}")
        if not (settings.alpha > 0.0 and settings.l2 >= 0.0 and settings.depth >= 1):
            raise SourceError(f"als.json has no usable settings. {AGAIN}")
        self._alpha = settings.alpha
        self._latest = Latest(plan.layout, Recency(settings.depth, settings.discount, settings.gap_s, settings.across))
        self._known: npt.NDArray[np.bool_] = (self._factors != 0.0).any(axis=1)
        self._known[0] = False
        exact = self._factors.astype(np.float64)
        self._system = exact.T @ exact + max(settings.l2, 1e-9) * np.eye(exact.shape[1])
        self.size = self._factors.shape[1]
        self._index = empty_index(read_choice(files, self.name), self.size, len(self._factors))
        items = np.flatnonzero(self._known)
        self._index.set(items, self._factors[items])
        self._allowed = np.zeros(0, np.uint8)
        self._user: Float32 = np.zeros(self._factors.shape[1], np.float32)
        self._asked: Asked | None = None
        self._key: bytes = b""
        self._closed = False

    def prepare(self, index: ItemIndex) -> None:
        """See :meth:`FittedSource.prepare`: the factors came with the bundle, later items have none."""
        self._bar_unknown(index.table.count)

    def fetch(self, asked: Asked, index: ItemIndex) -> Offer:
        """The items with the largest inner product with the folded-in user."""
        latest = self._fold_in(asked)
        if not latest:
            return Offer(NOTHING, "no recent items")
        if not self._user.any():
            return Offer(NOTHING, "the recent items have no factors")
        self._bar_unknown(index.table.count)
        ranked = self._index.search(self._user, self.width * 2 + latest, self._allowed)
        positive = int(np.count_nonzero(ranked.scores > 0.0))
        if not positive:
            return Offer(NOTHING, "nothing is near the recent items")
        return Offer(Ranked(ranked.items[:positive], ranked.scores[:positive]))

    def score(self, asked: Asked, index: ItemIndex, items: Int64, out: Float32) -> None:
        """See :meth:`FittedSource.score`."""
        self._fold_in(asked)
        out[:] = 0.0
        here = np.flatnonzero((items > 0) & (items < min(len(self._known), index.table.count)))
        here = here[self._known[items[here]]]
        if len(here) and self._user.any():
            out[here] = self._index.scores_of(items[here], self._user)

    def vectors(self, index: ItemIndex, now_ms: int | None = None) -> Float32:  # noqa: ARG002
        """The factors of all items of ``index``; zeros for one that came after the training."""
        made = np.zeros((index.table.count, self.size), np.float32)
        here = min(len(made), len(self._factors))
        made[:here] = self._factors[:here]
        return made

    def query(self, asked: Asked, index: ItemIndex) -> Float32 | None:  # noqa: ARG002
        """The folded-in factors of the user."""
        return self._user.copy() if self._fold_in(asked) and self._user.any() else None

    def close(self) -> None:
        """See :meth:`FittedSource.close`."""
        self._closed = True
        self._factors = np.zeros((1, 1), np.float32)
        self._index = empty_index(EXACT, 1, 1)
        self._known = np.zeros(0, np.bool_)

    def _fold_in(self, asked: Asked) -> int:
        """The user's factors, unless they are those of this request already; returns how many recent items there are."""
        if self._closed:
            raise SourceError("the source als is closed")
        latest, recency = self._latest.of(asked.user)
        key = latest.tobytes() + recency.tobytes()
        if asked is not self._asked or key != self._key:
            inside = latest < len(self._known)
            known = inside.copy()
            known[inside] = self._known[latest[inside]]
            self._user = self._solve(latest[known], recency[known])
            self._asked, self._key = asked, key
        return len(latest)

    def _solve(self, items: Int64, recency: Float64) -> Float32:
        if not len(items):
            return np.zeros(self._factors.shape[1], np.float32)
        vectors = self._factors[items].astype(np.float64)
        confidence = self._alpha * recency
        system = self._system + vectors.T @ (confidence[:, None] * vectors)
        solved = cho_solve(cho_factor(system, check_finite=False), (1.0 + confidence) @ vectors, check_finite=False)
        return np.asarray(solved, np.float32)

    def _bar_unknown(self, count: int) -> None:
        """Only items that the table has may be offered."""
        size = min(count, len(self._known))
        if len(self._allowed) != size:
            self._allowed = self._known[:size].astype(np.uint8)


def open_als(files: Files, config: Config, plan: Plan) -> FittedSource:
    """The source ``als`` of a bundle."""
    return Als(files, config, plan)
