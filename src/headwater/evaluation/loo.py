"""Leave-one-out: each user's last positive event is the test, the one before it the validation, the rest is learnt from.

Every item that any event names is ranked, without those of the user's history; a target that the user had before is a miss
for every model. **Ties:** an item that scores the same as the target counts as ahead of it. The user row is made by the
production fold of everything before the target (so the validation event stands in it when the test is asked), and fitted
sources are asked through :meth:`FittedSource.score`, as a server would ask them. Events of other users that lie later in
time are known, as the protocol wants it: figures compare models, they do not forecast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from headwater.evaluation.meter import Meter
from headwater.evaluation.metrics import ModelMetrics, judge
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
from headwater.features.fold import Unseal
from headwater.features.plan import Plan
from headwater.learning.sequences import Sequences, read_sequences
from headwater.log.protocol import EventLog
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError

Int64 = npt.NDArray[np.int64]
Part = Literal["test", "validation"]

LEAST = 3  # positive events of a user who is asked: a test, a validation, and one to learn from


class LooReport(Struct, frozen=True, kw_only=True):
    """What ``headwater evaluate --protocol loo --json`` prints. ``seen_targets`` are targets that the user had before."""

    protocol: str
    part: Part
    data: dict[str, int | str]
    n: int
    items: int
    training_events: int
    seed: int
    tie_rule: str = "an item that ties with the target counts as ahead of it"
    models: dict[str, ModelMetrics]
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
        targets = out.test if part == "test" else out.validation
        fold = fold_without(log, plan, _from_target_on(sequences, targets), until=until, unseal=unseal)
        state = Askable(plan, fold)
        now_ms = int(out.training.time_ms.max())
        scorers = popularity_scorers(config, state, out.training)
        for name in training.sources:
            scorers[name] = fitted_scorer(name, out.training, config, state, training, now_ms=now_ms, progress=progress)
        try:
            items = np.unique(sequences.items)
            models, seen = _ask_all(sequences, targets, items, state, scorers, progress)
        finally:
            close_all(scorers)
    return LooReport(
        protocol="loo", part=part, data=version_of(log, until, fold, users=len(sequences.users), events=len(sequences)),
        n=len(targets), items=len(items), training_events=len(out.training), seed=training.seed, models=models,
        seen_targets=seen, seconds=meter.seconds,
    )  # fmt: skip


def _ask_all(
    sequences: Sequences, targets: Int64, items: Int64, state: Askable, scorers: dict[str, Scorer],
    progress: Progress | None,
) -> tuple[dict[str, ModelMetrics], int]:  # fmt: skip
    """Metrics of every model, and how many targets the user had before."""
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
        name: judge(
            ranks[name], users, lists[name], eligible=len(items), train_s=scorer.train_s, peak_mb=scorer.peak_mb
        )
        for name, scorer in scorers.items()
    }, seen


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
