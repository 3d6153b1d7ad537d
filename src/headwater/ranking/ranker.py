"""What every ranker can do, and how one is opened from the files of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from headwater.schema.errors import HeadwaterError

Features = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float32]


class RankerError(HeadwaterError):
    """A ranker cannot be opened, or cannot score what it was given."""


class UnreachableError(RankerError):
    """A ranker that is elsewhere gave no answer that can be used: it is away, late, or speaks for another model."""


class Attention(Protocol):
    """What target attention looks at (``headwater.retrieval.fitted.Attended`` is one): vectors of the recent items, newest
    last, and of the candidates. ``recent`` float32[l, e], ``types`` int64[l] type slots, ``age_s`` float32[l], ``candidates``
    float32[n, e].
    """

    @property
    def recent(self) -> Features: ...
    @property
    def types(self) -> npt.NDArray[np.int64]: ...
    @property
    def age_s(self) -> Features: ...
    @property
    def candidates(self) -> Features: ...


class Ranker(Protocol):
    """Scores the candidates of a request; a higher score comes first.

    Implementations are deterministic (a row's score depends on that row alone, never on its
    neighbours in the call), may be called from several threads at once, and release the GIL while
    they compute. They never write into what they are given.
    """

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the feature columns, in the order in which ``score`` expects them."""
        ...

    @property
    def attends(self) -> bool:
        """Whether ``score`` needs the vectors of a sequence source (``attention``)."""
        ...

    def score(self, features: Features, attention: Attention | None = None) -> Scores:
        """Score rows: ``float32[n, len(columns)]`` → ``float32[n]``, all finite.

        Raises:
            RankerError: another shape or dtype, a score that is not finite, or a closed ranker.
        """
        ...

    def close(self) -> None:
        """Let go of the model; calling it again changes nothing."""
        ...


@runtime_checkable
class Interruptible(Protocol):
    """A ranker whose calls can be ended from another thread."""

    def interrupt(self) -> None:
        """End the calls that are under way: they raise :class:`RankerError`. Later calls are not touched."""
        ...


@runtime_checkable
class Multihead(Protocol):
    """A ranker whose score is put together from several heads (click, purchase, …)."""

    @property
    def head_names(self) -> tuple[str, ...]:
        """What each head is about."""
        ...

    def heads(self, features: Features, attention: Attention | None = None) -> Scores:
        """What each head says, ``float32[n, h]``. Raises as :meth:`Ranker.score`."""
        ...


@runtime_checkable
class Headed(Multihead, Protocol):
    """One whose heads can be weighed otherwise."""

    def weighing(self, objective: Mapping[str, float]) -> Ranker:
        """The same model, whose score is ``Σ objective[head] · head``; heads that are not named count nothing.

        Raises:
            RankerError: there is no such head.
        """
        ...


@runtime_checkable
class Timed(Protocol):
    """A ranker that waits for somebody else, and is told for how long."""

    def score_within(self, features: Features, attention: Attention | None, limit_s: float) -> Scores:
        """:meth:`Ranker.score` within ``limit_s`` seconds.

        Raises:
            UnreachableError: no answer in that time, or none that can be used.
        """
        ...


def open_ranker(kind: str, files: Mapping[str, bytes], columns: tuple[str, ...]) -> Ranker | None:
    """The ranker of a bundle: ``kind`` and ``columns`` from its manifest, ``files`` its contents.

    Returns ``None`` for the kind ``none`` (candidates then keep their retrieval order).

    Raises:
        RankerError: an unknown kind, a missing file, or a model that cannot be read.
    """
    from headwater.ranking.deep import DEEP_FILE, DESCRIPTION_FILE, DeepRanker
    from headwater.ranking.gbdt import MODEL_FILE, GbdtRanker

    if kind == "none":
        return None
    if kind not in ("lightgbm", "deep"):
        raise RankerError(
            f"The bundle's ranker is of kind {kind!r}; this version knows 'lightgbm', 'deep' and 'none'. Update it."
        )
    for name in (MODEL_FILE,) if kind == "lightgbm" else (DEEP_FILE, DESCRIPTION_FILE):
        if name not in files:
            raise RankerError(f"The bundle names a {kind} ranker but holds no {name}. Publish it again.")
    if kind == "deep":
        return DeepRanker(files[DEEP_FILE], files[DESCRIPTION_FILE], columns)
    return GbdtRanker(files[MODEL_FILE], columns)


def ranker_attends(kind: str, files: Mapping[str, bytes]) -> bool:
    """Whether the ranker of a bundle needs vectors of a sequence source, without opening it.

    Raises:
        RankerError: its description is missing or damaged.
    """
    if kind != "deep":
        return False
    from headwater.ranking.deep import DESCRIPTION_FILE, describe

    if DESCRIPTION_FILE not in files:
        raise RankerError(f"The bundle names a deep ranker but holds no {DESCRIPTION_FILE}. Publish it again.")
    return describe(files[DESCRIPTION_FILE]).size > 0


def open_light(files: Mapping[str, bytes], columns: tuple[str, ...]) -> Ranker | None:
    """The light ranker of a bundle, for the lower tier; ``None`` when it has none.

    Raises:
        RankerError: a missing file, or a model that cannot be read.
    """
    from headwater.ranking.deep import DESCRIPTION_FILE, LIGHT_FILE, LightRanker

    if LIGHT_FILE not in files:
        return None
    if DESCRIPTION_FILE not in files:
        raise RankerError(f"The bundle holds a light ranker but no {DESCRIPTION_FILE}. Publish it again.")
    return LightRanker(files[LIGHT_FILE], files[DESCRIPTION_FILE], columns)
