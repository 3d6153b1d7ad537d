"""Fitting everything that a bundle holds, from one stretch of the log: sources, training rows, ranker, sources again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from headwater.features.fold import Unseal
from headwater.features.plan import Plan
from headwater.features.replay import fold_to
from headwater.learning.collecting import MIN_GROUPS, build_rows
from headwater.learning.gbdt import TooFewError
from headwater.learning.lists import ListCollector
from headwater.learning.rankers import FittedRanker, fit_ranker
from headwater.learning.trainingset import LISTS, TrainingSet
from headwater.log.protocol import EventLog
from headwater.offline.fitted import FittedSources
from headwater.offline.tables.history import Lookup, TableOrigins, table_history
from headwater.schema.config import Config
from headwater.serving.view import FoldView

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Fitted:
    """What was fitted, and on what. ``replay_s`` are the seconds that the rows took, ``fit_s`` those of the ranker. ``waiting`` are lists that the
    next ranker will learn from, where somebody follows the log from here.

    The state of ``sources`` stands at the end of what was fitted on.
    """

    rows: TrainingSet
    tables: dict[str, TableOrigins]
    ranker: FittedRanker
    sources: FittedSources
    replay_s: float
    fit_s: float
    waiting: ListCollector | None = None

    @property
    def files(self) -> dict[str, bytes]:
        """The files of the ranker and of the sources."""
        return {**self.ranker.files, **self.sources.files}

    @property
    def view(self) -> FoldView:
        """The state, to go on from."""
        return self.sources.state.view


def fit(
    config: Config, plan: Plan, log: EventLog, *, until: int, start_ms: int, seed: int, threads: int,
    unseal: Unseal | None = None, warm: Mapping[str, bytes], lookup: Lookup | None = None, progress: Progress | None = None,
    follow: bool = False,
) -> Fitted:  # fmt: skip
    """Fit on events received from ``start_ms`` on, up to the offset ``until``; state is folded from the start either way, once.
    ``follow`` as in :func:`~headwater.learning.collecting.build_rows`.

    Raises:
        TooFewError: too few positive events that the sources could have found.
    """
    sources = FittedSources(log, plan, config, until, start_ms, seed, threads, unseal, warm, progress)
    model = None
    if sources.names:
        model, start_ms = sources.before_the_ranker()
    began = time.perf_counter()
    rows, waiting = build_rows(
        log, plan, config, until=until, start_ms=start_ms, seed=seed, view=sources.state.view, model=model,
        progress=None if progress is None else lambda done, total: progress("replay", done, total), follow=follow,
    )  # fmt: skip
    tables = with_tables(config, plan, log, rows, lookup)
    replayed = time.perf_counter()
    if len(rows.groups) < MIN_GROUPS:
        raise _too_few(rows)
    made = fit_ranker(config, plan, sources.columns, rows, warm=warm, seed=seed, threads=threads, progress=progress)
    ranked = time.perf_counter()
    sources.again(attends=made.attends)
    fold_to(log, sources.state.fold, until)  # without sources it stands at the last row
    sources.state.view.refresh()
    sources.choose_indexes()
    return Fitted(rows, tables, made, sources, replayed - began, ranked - replayed, waiting)


def _too_few(rows: TrainingSet) -> TooFewError:
    if rows.learnt_from == LISTS:
        return TooFewError(
            f"only {len(rows.groups)} of {rows.asked} lists can train a ranker (at least {MIN_GROUPS} are needed): of the others nothing "
            'was taken within training.labels. Wait for more, or set ranker.learn_from = "questions"'
        )
    return TooFewError(
        f"only {len(rows.groups)} of {rows.asked} positive events can train a ranker (at least {MIN_GROUPS} "
        "are needed): import more events, or check that [[events]] marks the positive ones"
    )


def with_tables(
    config: Config, plan: Plan, log: EventLog, rows: TrainingSet, lookup: Lookup | None
) -> dict[str, TableOrigins]:
    """Give rows from before a table was loaded the values of its files, in place; returns where rows have them from."""
    history = table_history(config, plan, log, rows.addresses, lookup)
    for _ in history.over([(0, len(rows.features), rows.features[:, : len(plan.columns)])]):
        pass
    return history.origins
