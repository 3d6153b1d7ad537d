"""Leave-one-out: each user's last positive event is the test, the one before it the validation, the rest is learnt from.

Every item that any event names is ranked, without those of the user's history; a target that the user had before is a miss
for every model. **Ties:** an item that scores the same as the target counts as ahead of it. The user row is made by the
production fold of everything before the target (so the validation event stands in it when the test is asked), and fitted
sources are asked through :meth:`FittedSource.score`, as a server would ask them. Events of other users that lie later in
time are known, as the protocol wants it: figures compare models, they do not forecast.

The whole system, ``ranker``, is the pipeline with all sources and a ranker that learnt from the validation questions
(:mod:`headwater.evaluation.loo_system`); when these are what is asked about, each half of the users is answered by a ranker that learnt from
the other. An item that is not in its list is a miss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from headwater.evaluation.loo_system import LooRanker, LooSystem, questions_at
from headwater.evaluation.meter import Meter
from headwater.evaluation.metrics import Difference, ModelMetrics, compare, judge, ranks_in
from headwater.evaluation.scoring import (
    Askable,
    Hide,
    Progress,
    Scorer,
    Training,
    close_all,
    first_ten,
    fitted_scorer,
    fold_without,
    full_ranks,
    popularity_scorers,
    version_of,
)
from headwater.evaluation.temporal import RANKER
from headwater.features.fold import Unseal
from headwater.features.plan import Plan
from headwater.learning.gbdt import TooFewError
from headwater.learning.sequences import Sequences, read_sequences
from headwater.log.protocol import EventLog
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError

Int64 = npt.NDArray[np.int64]
Part = Literal["test", "validation"]

LEAST = 3  # positive events of a user who is asked: a test, a validation, and one to learn from


class LooReport(Struct, frozen=True, kw_only=True):
    """What ``headwater evaluate --protocol loo --json`` prints. ``seen_targets`` are targets that the user had before.

    ``rankers``: one that learnt from the validation questions, or two from half of them each; none with ``ranker.kind = "none"``, and where
    ``left_out`` says why.
    """

    protocol: str
    part: Part
    data: dict[str, int | str]
    n: int
    items: int
    training_events: int
    seed: int
    tie_rule: str = "an item that ties with the target counts as ahead of it"
    models: dict[str, ModelMetrics]
    ranker_over: dict[str, Difference]
    rankers: list[LooRanker]
    left_out: str
    seen_targets: int
    seconds: float


@dataclass(frozen=True, slots=True)
class LastOut:
    """``test`` and ``validation`` int64[u]: positions of these events of each asked user, ``training`` what may be learnt from."""

    test: Int64
    validation: Int64
    training: Sequences


def last_out(sequences: Sequences) -> LastOut:
    """Hold out the last two positive events of everyone who has at least three, and all that follows the first of the two."""
    positive = np.flatnonzero(sequences.positive)
    owner = sequences.owner
    counts = np.bincount(owner[positive], minlength=len(sequences.users))
    ends = np.cumsum(counts)
    asked = np.flatnonzero(counts >= LEAST)
    test, validation = positive[ends[asked] - 1], positive[ends[asked] - 2]
    before = np.full(len(sequences.users), len(sequences), np.int64)  # of the others all may be learnt
    before[asked] = validation
    return LastOut(test, validation, sequences.where(np.arange(len(sequences)) < before[owner]))


def evaluate_loo(
    log: EventLog, plan: Plan, config: Config, training: Training, *, part: Part = "test", until: int | None = None,
    unseal: Unseal | None = None, progress: Progress | None = None,
) -> LooReport:  # fmt: skip
    """Compare recent popularity, popularity and the fitted sources of ``training`` by leave-one-out.

    Raises:
        HeadwaterError: nobody has three positive events.
    """
    with Meter() as meter:
        until = log.last_offset if until is None else until
        sequences = read_sequences(log, plan, config, until=until)
        out = last_out(sequences)
        if not len(out.test):
            raise HeadwaterError(
                "no question to ask: nobody has three positive events (a test, a validation, one to learn)"
            )

        def before(targets: Int64) -> Askable:
            return Askable(
                plan, fold_without(log, plan, _from_target_on(sequences, targets), until=until, unseal=unseal)
            )

        targets = out.test if part == "test" else out.validation
        state = before(targets)
        now_ms = int(out.training.time_ms.max())
        scorers = popularity_scorers(config, state, out.training)
        for name in training.sources:
            scorers[name] = fitted_scorer(name, out.training, config, state, training, now_ms=now_ms, progress=progress)
        items = np.unique(sequences.items)
        rankers: list[LooRanker] = []
        left_out = ""
        try:
            answers, seen = _ask_all(sequences, targets, items, state, scorers, progress)
            if config.ranker.kind != "none":
                sources = [scorer.source for scorer in scorers.values() if scorer.source is not None]
                system = LooSystem(log, plan, config, sources, items, training, progress)
                learning = state if part == "validation" else before(out.validation)
                try:
                    lists, rankers = _ask_system(log, sequences, out, part, system, learning, state, training.seed)
                except TooFewError as error:
                    left_out = f"{RANKER}: {error}"
                else:
                    train_s = sum(each.train_s for each in answers.values()) + sum(each.train_s for each in rankers)
                    ranks = ranks_in(lists, sequences.items[targets])
                    answers[RANKER] = _Answers(ranks, lists, train_s, max(each.peak_mb for each in rankers))
        finally:
            close_all(scorers)
        users = sequences.users[sequences.owner[targets]]
        models = {
            name: judge(each.ranks, users, each.lists, eligible=len(items), train_s=each.train_s, peak_mb=each.peak_mb)
            for name, each in answers.items()
        }
        over = {
            name: compare("ndcg@10", answers[RANKER].ranks, each.ranks, users)
            for name, each in answers.items()
            if RANKER in answers and name != RANKER
        }
    return LooReport(
        protocol="loo", part=part, data=version_of(log, until, state.fold, users=len(sequences.users), events=len(sequences)),
        n=len(targets), items=len(items), training_events=len(out.training), seed=training.seed, models=models,
        ranker_over=over, rankers=rankers, left_out=left_out, seen_targets=seen, seconds=meter.seconds,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Answers:
    """Ranks int64[n] of the targets, what stood first int64[n, at least 10], and what training took."""

    ranks: Int64
    lists: Int64
    train_s: float
    peak_mb: float


def _ask_all(
    sequences: Sequences, targets: Int64, items: Int64, state: Askable, scorers: dict[str, Scorer],
    progress: Progress | None,
) -> tuple[dict[str, _Answers], int]:  # fmt: skip
    """What every model answered, and how many targets the user had before."""
    owner = sequences.owner[targets]
    users = sequences.users[owner]
    place = np.searchsorted(items, sequences.items)
    ranks = {name: np.zeros(len(targets), np.int64) for name in scorers}
    lists = {name: np.zeros((len(targets), 10), np.int64) for name in scorers}
    scores = np.zeros(len(items), np.float32)
    barred, relevant = np.zeros(len(items), np.bool_), np.zeros(len(items), np.bool_)
    seen = 0
    for q, (target, user, k) in enumerate(zip(targets.tolist(), users.tolist(), owner.tolist(), strict=True)):
        barred[:] = relevant[:] = False
        barred[place[sequences.starts[k] : target]] = True
        relevant[place[target]] = True
        seen += int(barred[place[target]])
        asked = state.asked(user, int(sequences.time_ms[target]))
        for name, scorer in scorers.items():
            scorer.score(asked, items, scores)
            ranks[name][q] = full_ranks(scores, relevant, barred)[0]
            lists[name][q] = first_ten(scores, barred, items)
        if progress is not None and q % 100 == 0:
            progress("questions", q, len(targets))
    return {
        name: _Answers(ranks[name], lists[name], scorer.train_s, scorer.peak_mb) for name, scorer in scorers.items()
    }, seen


def _ask_system(
    log: EventLog, sequences: Sequences, out: LastOut, part: Part, system: LooSystem, learning: Askable, state: Askable,
    seed: int,
) -> tuple[Int64, list[LooRanker]]:  # fmt: skip
    """The lists of the whole system, and its rankers: ``learning`` is the state of the validation questions, ``state`` that of ``part``."""
    order = np.random.default_rng(seed).permutation(len(out.test))

    def questions(targets: Int64) -> npt.NDArray[np.void]:
        return questions_at(log, sequences.offset[targets], sequences.time_ms[targets])

    if part == "validation":
        return system.cross_fitted(learning, questions(out.validation), order)
    ranker, said = system.learn(learning, questions(out.validation[order]))
    return system.answers(ranker, state, questions(out.test)), [said]


def _from_target_on(sequences: Sequences, targets: Int64) -> Hide:
    """Which records are a user's target or lie behind it, in time and then in the log."""
    users = sequences.users[sequences.owner[targets]]
    size = int(users.max()) + 1
    time_ms, offset = np.full(size, np.iinfo(np.int64).max), np.full(size, np.iinfo(np.int64).max)
    time_ms[users], offset[users] = sequences.time_ms[targets], sequences.offset[targets]

    def hide(records: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
        user = np.minimum(records["user"].astype(np.int64), size)  # position `size`: asked nothing
        limit_ms, limit = np.append(time_ms, np.iinfo(np.int64).max)[user], np.append(offset, 0)[user]
        at = np.minimum(records["time_ms"], records["received_ms"]).astype(np.int64)
        later: npt.NDArray[np.bool_] = (at > limit_ms) | ((at == limit_ms) & (records["offset"] >= limit))
        return later

    return hide
