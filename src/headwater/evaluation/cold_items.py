"""Cold items: a seeded share of the items with content has no event at all in training, and people's lists of them are judged.

No event of a cold item is learnt from, folded, or stands in anybody's row; what the catalogue says of it is known. Somebody
with an event on a cold item and one on another is asked once: the relevant items are all cold ones of that user. They are
ranked twice: among the cold items alone, and among all items without the user's other ones. An item that ties with a
relevant one counts as ahead of it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from msgspec import Struct, field

from headwater.evaluation.meter import Meter
from headwater.evaluation.metrics import Interval, coverage, mean_interval
from headwater.evaluation.scoring import (
    CONTENT,
    Askable,
    Progress,
    Scorer,
    Training,
    close_all,
    content_scorer,
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
from headwater.log.record import Kind
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError

Bool = npt.NDArray[np.bool_]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

K, WIDE = 10, 20


class ColdMetrics(Struct, frozen=True, kw_only=True):
    """One model over users with several relevant items each; ``ci95`` has an interval [low, high] for every metric.

    ``r@20`` is the share of a user's relevant items among the first 20, ``ndcg@k`` the gain over the ideal one, ``hr@10``
    whether any is among the first 10, ``mrr`` of the first one.
    """

    recall_at_20: float = field(name="r@20")
    ndcg_at_20: float = field(name="ndcg@20")
    hr_at_10: float = field(name="hr@10")
    ndcg_at_10: float = field(name="ndcg@10")
    mrr: float
    coverage: float
    ci95: dict[str, Interval]
    train_s: float
    peak_mb: float
    questions: int
    users: int


class ColdItemsReport(Struct, frozen=True, kw_only=True):
    """What ``headwater evaluate --protocol cold-items --json`` prints. ``models``: among the cold items; ``all_items``: among all."""

    protocol: str
    data: dict[str, int | str]
    n: int
    cold_items: int
    items: int
    relevant: int
    share: float
    training_events: int
    seed: int
    tie_rule: str = "an item that ties with a relevant one counts as ahead of it"
    models: dict[str, ColdMetrics]
    all_items: dict[str, ColdMetrics]
    seconds: float


def choose_cold(items: Int64, has_content: Bool, share: float, seed: int) -> Int64:
    """``share`` of those of ``items`` that have content (``has_content`` by dense item), drawn by ``seed``; ascending."""
    described = items[has_content[items]]
    count = round(share * len(described))
    return np.sort(np.random.default_rng(seed).choice(described, count, replace=False))


def evaluate_cold_items(
    log: EventLog, plan: Plan, config: Config, training: Training, *, share: float = 0.2, until: int | None = None,
    unseal: Unseal | None = None, progress: Progress | None = None,
) -> ColdItemsReport:  # fmt: skip
    """Compare popularity, content and the fitted sources of ``training`` on items that none of them had an event of.

    Raises:
        HeadwaterError: no item has content, or nobody has both kinds of items.
    """
    with Meter() as meter:
        until = log.last_offset if until is None else until
        sequences = read_sequences(log, plan, config, until=until)
        items = np.unique(sequences.items)
        cold = choose_cold(items, _with_content(log, plan, until, unseal), share, training.seed)
        if not len(cold):
            raise HeadwaterError(
                "no item that anybody had has content: import the catalogue before the events (headwater import items)"
            )
        is_cold = np.zeros(int(items.max()) + 1, np.bool_)
        is_cold[cold] = True
        warm = sequences.where(~is_cold[sequences.items])
        fold = fold_without(
            log, plan, lambda records: is_cold[np.minimum(records["item"], len(is_cold) - 1)] & (records["item"] < len(is_cold)),
            until=until, unseal=unseal,
        )  # fmt: skip
        questions = _questions(sequences, is_cold, warm)
        if not questions:
            raise HeadwaterError(
                "no question to ask: nobody has a positive event on a cold item and an event on another"
            )
        state = Askable(plan, fold)
        now_ms = int(warm.time_ms.max())
        scorers = popularity_scorers(config, state, warm)
        scorers[CONTENT] = content_scorer(config, state)
        for name in training.sources:
            scorers[name] = fitted_scorer(name, warm, config, state, training, now_ms=now_ms, progress=progress)
        try:
            among_cold, among_all = _ask_all(questions, items, cold, warm, state, scorers, progress)
        finally:
            close_all(scorers)
    return ColdItemsReport(
        protocol="cold-items", data=version_of(log, until, fold, users=len(sequences.users), events=len(sequences)),
        n=len(questions), cold_items=len(cold), items=len(items), relevant=sum(len(q[1]) for q in questions), share=share,
        training_events=len(warm), seed=training.seed, models=among_cold, all_items=among_all, seconds=meter.seconds,
    )  # fmt: skip


def _with_content(log: EventLog, plan: Plan, until: int, unseal: Unseal | None) -> Bool:
    """Which items have content once the catalogue is folded, by dense item."""
    fold = fold_without(log, plan, lambda records: records["kind"] == Kind.EVENT, until=until, unseal=unseal)
    state = Askable(plan, fold)
    return state.index.has_content[: state.index.table.count].copy()


def _questions(sequences: Sequences, is_cold: Bool, warm: Sequences) -> list[tuple[int, Int64, int, int]]:
    """(dense user, relevant items ascending, moment, position among the users of ``warm``) of everyone who is asked."""
    made = []
    at = np.searchsorted(warm.users, sequences.users)
    for k, user in enumerate(sequences.users.tolist()):
        mine = slice(int(sequences.starts[k]), int(sequences.starts[k + 1]))
        relevant = np.unique(sequences.items[mine][is_cold[sequences.items[mine]] & sequences.positive[mine]])
        if len(relevant) and at[k] < len(warm.users) and warm.users[at[k]] == user:
            made.append((user, relevant, int(sequences.time_ms[mine].max()), int(at[k])))
    return made


def _ask_all(
    questions: list[tuple[int, Int64, int, int]], items: Int64, cold: Int64, warm: Sequences, state: Askable,
    scorers: dict[str, Scorer], progress: Progress | None,
) -> tuple[dict[str, ColdMetrics], dict[str, ColdMetrics]]:  # fmt: skip
    cold_at = np.searchsorted(items, cold)
    values = {(name, part): np.zeros((5, len(questions))) for name in scorers for part in (0, 1)}
    lists = {key: np.zeros((len(questions), K), np.int64) for key in values}
    scores = np.zeros(len(items), np.float32)
    nothing = np.zeros(len(cold), np.bool_)
    for q, (user, relevant_items, now_ms, k) in enumerate(questions):
        relevant, barred = np.zeros(len(items), np.bool_), np.zeros(len(items), np.bool_)
        relevant[np.searchsorted(items, relevant_items)] = True
        barred[np.searchsorted(items, warm.items[warm.starts[k] : warm.starts[k + 1]])] = True
        asked = state.asked(user, now_ms)
        for name, scorer in scorers.items():
            scorer.score(asked, items, scores)
            values[name, 0][:, q] = gains(full_ranks(scores[cold_at], relevant[cold_at], nothing))
            values[name, 1][:, q] = gains(full_ranks(scores, relevant, barred))
            lists[name, 0][q] = first_ten(scores[cold_at], nothing, cold, K)
            lists[name, 1][q] = first_ten(scores, barred, items, K)
        if progress is not None and q % 100 == 0:
            progress("questions", q, len(questions))
    users = np.array([user for user, *_ in questions], np.int64)

    def judged(part: int, eligible: int) -> dict[str, ColdMetrics]:
        return {
            name: _judge(values[name, part], lists[name, part], users, eligible, scorer)
            for name, scorer in scorers.items()
        }

    return judged(0, len(cold)), judged(1, len(items))


def gains(ranks: Int64) -> tuple[float, float, float, float, float]:
    """r@20, ndcg@20, hr@10, ndcg@10 and mrr of a user from the ranks (from 1) of all relevant items."""

    def ndcg(k: int) -> float:
        gain = float(np.sum(1.0 / np.log2(ranks[ranks <= k] + 1.0)))
        ideal = float(np.sum(1.0 / np.log2(np.arange(2.0, min(len(ranks), k) + 2.0))))
        return min(gain / ideal, 1.0)

    recall = float(np.mean(ranks <= WIDE))
    return recall, ndcg(WIDE), float(ranks.min() <= K), ndcg(K), 1.0 / float(ranks.min())


def _judge(values: Float64, lists: Int64, users: Int64, eligible: int, scorer: Scorer) -> ColdMetrics:
    names = ("r@20", "ndcg@20", "hr@10", "ndcg@10", "mrr")
    means, intervals = {}, {}
    for name, row in zip(names, values, strict=True):
        means[name], intervals[name] = mean_interval(row, users)
    covered, intervals["coverage"] = coverage(lists, users, eligible)
    return ColdMetrics(
        recall_at_20=means["r@20"], ndcg_at_20=means["ndcg@20"], hr_at_10=means["hr@10"], ndcg_at_10=means["ndcg@10"],
        mrr=means["mrr"], coverage=covered, ci95=intervals, train_s=scorer.train_s, peak_mb=scorer.peak_mb,
        questions=len(users), users=len(users),
    )  # fmt: skip
