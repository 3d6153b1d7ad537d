"""What the protocols that hold events out share: the state without them, models that score every item, and full ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from headwater.evaluation.meter import Meter
from headwater.features.assemble import forget_idle, stranger
from headwater.features.fold import Fold, Unseal
from headwater.features.layout import U_SEGMENT
from headwater.features.plan import Plan
from headwater.learning.fitting import FitJob, fit_source
from headwater.learning.sequences import Sequences
from headwater.log.protocol import EventLog
from headwater.log.record import Kind, RecordBlock
from headwater.retrieval.fitted import FittedSource, open_sources
from headwater.retrieval.index import ItemIndex
from headwater.retrieval.sources import Asked, Content, Trending
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.serving.view import FoldView

Bool = npt.NDArray[np.bool_]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Hide = Callable[[npt.NDArray[np.void]], Bool]
Progress = Callable[[str, int, int], None]
Score = Callable[[Asked, Int64, Float32], None]

RECENT_POPULARITY, POPULARITY, CONTENT = "recent_popularity", "popularity", "content"


class Training(Struct, frozen=True, kw_only=True):
    """How the fitted sources are trained: their names, and what no configuration says."""

    sources: tuple[str, ...]
    seed: int
    threads: int = 1
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Scorer:
    """A model that says what it thinks of any item, what its training took, the source that it is if it is one, and how to let go of it."""

    score: Score
    train_s: float = 0.0
    peak_mb: float = 0.0
    source: FittedSource | None = None
    close: Callable[[], None] = field(default=lambda: None)


def fold_without(log: EventLog, plan: Plan, hide: Hide, *, until: int, unseal: Unseal | None = None) -> Fold:
    """The production fold up to ``until`` as if the events that ``hide`` marks had not been: bool[n] of records ``(n,)``."""
    fold = Fold(plan, unseal=unseal)
    while fold.offset < until and (block := log.read(fold.offset)) is not None:
        if block.last_offset > until:
            block = block.head(until - block.first_offset + 1)
        records = block.records
        # items keep their rows, so that models can be asked about those that only hidden events name
        fold.items.reserve(int(records["item"][records["kind"] == Kind.EVENT].max(initial=0)) + 1)
        hidden = (records["kind"] == Kind.EVENT) & hide(records)
        if hidden.any():
            records = records.copy()
            records["user"][hidden] = records["item"][hidden] = 0  # of nobody and nothing: offsets stay contiguous
            block = RecordBlock(records, block.heap)
        fold.apply(block)
    return fold


class Askable:
    """The state of a fold as questions see it."""

    def __init__(self, plan: Plan, fold: Fold) -> None:
        self.plan, self.fold = plan, fold
        self.view = FoldView(plan, fold)
        self._row = stranger(plan)

    @property
    def index(self) -> ItemIndex:
        return self.view.index

    def asked(self, user: int, now_ms: int) -> Asked:
        """The question of a dense user at ``now_ms``; the row is used again by the next question."""
        self.view.read_user(user, self._row)
        forget_idle(self._row, now_ms, self.plan)
        own = self._row.u4
        return Asked(self._row, (int(own[U_SEGMENT]), int(own[U_SEGMENT + 1])), now_ms)


def _fixed(scores: Float32) -> Score:
    def score(_: Asked, items: Int64, out: Float32) -> None:
        out[:] = scores[items]

    return score


def popularity_scorers(config: Config, state: Askable, training: Sequences) -> dict[str, Scorer]:
    """Decayed popularity of the item rows at the end of the log (shortest half-life), and positive events counted."""
    plan = state.plan
    life = Trending(config).half_life
    recent = state.index.weights(plan.popular_cells[life], plan.popular_lives[life], state.fold.received_ms)
    counts = np.bincount(training.items[training.positive], minlength=len(recent)).astype(np.float32)
    return {RECENT_POPULARITY: Scorer(_fixed(recent)), POPULARITY: Scorer(_fixed(counts))}


def content_scorer(config: Config, state: Askable) -> Scorer:
    """Likeness of content to the user's recent items: the source ``content``, asked about everything."""
    source = Content(config, state.plan)
    source.width = state.index.table.count
    scores = np.zeros(state.index.table.count, np.float32)

    def score(asked: Asked, items: Int64, out: Float32) -> None:
        ranked = source.fetch(asked, state.index).ranked
        scores[:] = 0.0
        scores[ranked.items] = ranked.scores
        out[:] = scores[items]

    return Scorer(score)


def fitted_scorer(
    name: str, sequences: Sequences, config: Config, state: Askable, training: Training, *, now_ms: int,
    progress: Progress | None = None,
) -> Scorer:  # fmt: skip
    """Train the source ``name`` on ``sequences`` and open it as a server would."""
    with Meter() as meter:
        source = trained(name, sequences, config, state.plan, state.index, training, now_ms=now_ms, progress=progress)
    source.prepare(state.index)

    def score(asked: Asked, items: Int64, out: Float32) -> None:
        source.score(asked, state.index, items, out)

    return Scorer(score, meter.seconds, meter.peak_mb, source, source.close)


def trained(
    name: str, sequences: Sequences, config: Config, plan: Plan, index: ItemIndex, training: Training, *, now_ms: int,
    progress: Progress | None = None,
) -> FittedSource:  # fmt: skip
    """The source ``name``, trained on ``sequences`` and opened from its files; content, prices and births are those of ``index``."""
    count = index.table.count
    job = FitJob(
        now_ms=now_ms, event_types=plan.event_types, content=index.content[:count], price=index.price[:count],
        born_ms=index.columns.born[:count],
        seed=training.seed, threads=training.threads, device=training.device,
        progress=None if progress is None else lambda done, total: progress(f"train {name}", done, total),
    )  # fmt: skip
    (source,) = open_sources((name,), fit_source(name, sequences, config, job), config, plan)
    return source


def full_ranks(scores: Float32, relevant: Bool, barred: Bool) -> Int64:
    """Ranks of the relevant items among all, from 1: int64[number of relevant], ascending; 0 (first) for a barred one.

    ``scores`` float32[m], ``relevant`` and ``barred`` bool[m]. An item that ties with a relevant one counts as ahead of it.

    Raises:
        HeadwaterError: a score is not finite.
    """
    if not np.isfinite(scores).all():
        raise HeadwaterError("a model gave a score that is not finite; train it again, or look at its data")
    open_others = np.sort(scores[~barred & ~relevant])
    found = np.sort(scores[relevant & ~barred])[::-1]
    ahead = len(open_others) - np.searchsorted(open_others, found, side="left")
    missed = np.zeros(int((relevant & barred).sum()), np.int64)
    return np.concatenate([missed, ahead + 1 + np.arange(len(found))])


def first_ten(scores: Float32, barred: Bool, items: Int64, k: int = 10) -> Int64:
    """The ``k`` items (int64[m], ascending) of the highest scores, ties by the lower number; filled up with 0."""
    made = np.zeros(k, np.int64)
    open_ = np.flatnonzero(~barred)
    if len(open_) > k:
        least = np.partition(scores[open_], len(open_) - k)[len(open_) - k]
        open_ = open_[scores[open_] >= least]
    order = open_[np.lexsort((open_, -scores[open_]))[:k]]
    made[: len(order)] = items[order]
    return made


def version_of(log: EventLog, until: int, fold: Fold, **more: int | str) -> dict[str, int | str]:
    """The data version that a report states: which log, up to where, and its sizes."""
    made: dict[str, int | str] = {
        "log": log.log_id, "first_offset": log.first_offset, "last_offset": until, "last_ms": fold.received_ms,
    }  # fmt: skip
    return made | more


def close_all(scorers: Mapping[str, Scorer]) -> None:
    """Let go of all models."""
    for scorer in scorers.values():
        scorer.close()
