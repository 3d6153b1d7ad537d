"""Sources that are trained: they come with a bundle, offer candidates, and say what they think of any item."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from headwater.features.plan import Plan
from headwater.retrieval.index import ItemIndex
from headwater.retrieval.sources import Asked, Source
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Files = Mapping[str, bytes]
Open = Callable[[Files, Config, Plan], "FittedSource"]


class SourceError(HeadwaterError):
    """A fitted source cannot be opened, or cannot answer."""


class Attended(NamedTuple):
    """What target attention looks at: vectors of the recent items, the newest last, and of the candidates.

    ``recent`` float32[l, e] (l may be 0), ``types`` int64[l] type slots, ``age_s`` float32[l] ages in seconds at the
    moment of the request, ``candidates`` float32[n, e].
    """

    recent: Float32
    types: Int64
    age_s: Float32
    candidates: Float32


class Recent(NamedTuple):
    """The latest events of a user, the newest last: items int64[l], type slots int64[l], ages in seconds float32[l]."""

    items: Int64
    types: Int64
    age_s: Float32


class FittedSource(Source, Protocol):
    """A source of a bundle. It belongs to one worker, which calls it from one thread."""

    def prepare(self, index: ItemIndex) -> None:
        """Take over all items of ``index``; in any thread, before the source serves. Later changes are followed by stamps."""
        ...

    def score(self, asked: Asked, index: ItemIndex, items: Int64, out: Float32) -> None:
        """What the model thinks of each of ``items`` int64[n], whoever offered it, into ``out`` float32[n].

        Higher is better; 0 for an item that it knows nothing of. After ``fetch`` with the same ``asked`` nothing is
        computed twice.
        """
        ...

    def close(self) -> None:
        """Let go of the model; calling it again changes nothing."""
        ...


@runtime_checkable
class SearchedSource(FittedSource, Protocol):
    """A fitted source that finds items by the inner product of a user's vector with theirs."""

    size: int

    def vectors(self, index: ItemIndex, now_ms: int | None = None) -> Float32:
        """The vectors of all items of ``index``, ``float32[items, size]``; zeros for one that the model knows nothing of.

        With ``now_ms`` they are those that are searched at that moment, else without what changes with time.
        """
        ...

    def query(self, asked: Asked, index: ItemIndex) -> Float32 | None:
        """The vector of the user of ``asked``, ``float32[size]``; ``None``: the model knows nothing of the user."""
        ...


@runtime_checkable
class VectorSource(SearchedSource, Protocol):
    """A searched source that a ranker can attend to. It looks at up to ``length`` recent events."""

    length: int

    def recent(self, asked: Asked, index: ItemIndex) -> Recent:
        """The recent events of the user of ``asked`` that the model looks at."""
        ...

    def attend(self, asked: Asked, index: ItemIndex, items: Int64) -> Attended:
        """What target attention needs for the user of ``asked`` and the candidates ``items`` int64[n]."""
        ...


def score_column(source: str) -> str:
    """The name of the column in which a ranker gets the score of a fitted source."""
    return f"{source}_score"


def open_sources(names: tuple[str, ...], files: Files, config: Config, plan: Plan) -> tuple[FittedSource, ...]:
    """The fitted sources of a bundle, in the order of ``names``.

    Raises:
        SourceError: an unknown name, a missing file, or a model that cannot be read.
    """
    opened = []
    for name in names:
        if name not in OPENERS:
            raise SourceError(f"The bundle has a source {name!r}; this version knows {', '.join(OPENERS)}. Update it.")
        opened.append(OPENERS[name](files, config, plan))
    return tuple(opened)


def _sequence(files: Files, config: Config, plan: Plan) -> FittedSource:
    from headwater.retrieval.sequence import SequenceSource

    return SequenceSource(files, config, plan)


def _item_knn(files: Files, config: Config, plan: Plan) -> FittedSource:
    from headwater.retrieval.neighbours import open_item_knn

    return open_item_knn(files, config, plan)


def _ease(files: Files, config: Config, plan: Plan) -> FittedSource:
    from headwater.retrieval.neighbours import open_ease

    return open_ease(files, config, plan)


def _als(files: Files, config: Config, plan: Plan) -> FittedSource:
    from headwater.retrieval.als import open_als

    return open_als(files, config, plan)


# Imported when they are opened: the modules of the sources import this one.
OPENERS: dict[str, Open] = {
    "sequence": _sequence,
    "item_knn": _item_knn,
    "ease": _ease,
    "als": _als,
}
