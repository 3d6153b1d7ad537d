"""Held-out lists as they were shown, scored at their address by the systems that are compared: did they put first what was taken?

A question just before a click (:mod:`headwater.evaluation.heldout`) favours who learnt from such questions. A list that was shown later favours
nobody: every system scores the items that stood in it, from the state that it was made from, and what became of them is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headwater.evaluation.metrics import Interval, ratio_difference, ratio_interval
from headwater.evaluation.off_policy.feedback import effective_sample_size
from headwater.evaluation.walk import Before
from headwater.features.plan import Plan
from headwater.learning.shown import ShownLists, read_shown
from headwater.log.protocol import EventLog
from headwater.log.record import Kind, RecordBlock
from headwater.ranking.ranker import RankerError
from headwater.registry.card import CANDIDATE, Estimate, HeldLists, OnLists, Weighting
from headwater.retrieval.fitted import SourceError
from headwater.schema.config import Config
from headwater.schema.requests import MAX_K
from headwater.serving.model import Model
from headwater.serving.pipeline import Pipeline
from headwater.serving.request import Query
from headwater.serving.served import served_at
from headwater.serving.view import FoldView

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

MOST_LISTS = 2_000  # more are not scored: the intervals are narrow enough
MOST_WEIGHT = 10.0  # times the median
STRENGTH = 10.0  # rows that the mean rate weighs in the rate of a place


class Shown(NamedTuple):
    """``n`` shown rows of ``l`` lists, list by list.

    ``of`` int64[n]: the list of each row, from 0, ascending; ``taken`` bool[n]; ``weights`` float64[n], of which those of taken rows count;
    ``users`` int64[l]. Every list has a taken row and one that is not.
    """

    of: Int64
    taken: Bools
    weights: Float64
    users: Int64


class Sums(NamedTuple):
    """By list, float64[l] each: discounted gain and the best possible one; won comparisons and the most that could be won."""

    gain: Float64
    ideal: Float64
    won: Float64
    most: Float64


class ScoredLists:
    """Scores the lists of a stretch on the walk over it (a :class:`~headwater.evaluation.walk.Before`), in which ``before`` has its turn too.

    Lists count of which something was taken by the end of the stretch, and something else that was seen was not: what is still to be taken is
    missing for all systems alike. ``seed`` draws ``MOST_LISTS`` of them, or ``gate.lists`` where that is more. Rankers see all their columns:
    a list was about to be shown, so no impression of its own is in its state.
    """

    def __init__(
        self, log: EventLog, plan: Plan, config: Config, systems: Mapping[str, tuple[Pipeline, Model]], *, split: int,
        until: int, seed: int, before: Before | None = None,
    ) -> None:  # fmt: skip
        self._log, self._plan, self._config, self._systems, self._before = log, plan, config, systems, before
        self._lists = read_shown(log, config, since=split, until=until)
        judging = _judging(self._lists)
        which = _that_judge(self._lists, judging, split)
        most = max(MOST_LISTS, config.gate.lists)
        if len(which) > most:
            which = np.sort(np.random.default_rng(seed).choice(which, most, replace=False))
        self._judging = judging
        self._at: dict[int, list[int]] = {}
        for each in which.tolist():
            self._at.setdefault(int(self._lists.offset[each]), []).append(each)
        self._stops = np.array(sorted(self._at), np.int64) + 1
        self._assembled = np.zeros((MAX_K, len(plan.columns)), np.float32)
        self._scores: dict[int, dict[str, Float32]] = {}
        self.problem = "" if _ranked(systems) else "one of the two bundles has no ranker that could score a list"

    def wanted(self, block: RecordBlock) -> Bools:
        """Before which records the state has to stop."""
        stops: Bools = np.isin(block.records["offset"].astype(np.int64), self._stops)
        return stops if self._before is None else stops | self._before.wanted(block)

    def look(self, block: RecordBlock, i: int, view: FoldView) -> None:
        """Score the lists whose address is where ``view`` stands."""
        if self._before is not None:
            self._before.look(block, i, view)
        lists = self._at.pop(view.fold.offset, ())
        if not lists or self.problem:
            return
        view.refresh()
        for which in lists:
            try:
                self._scores[which] = {name: self._score(which, view, *each) for name, each in self._systems.items()}
            except (RankerError, SourceError) as error:
                self.problem = f"a held-out list could not be scored: {error}"
                return

    def _score(self, which: int, view: FoldView, pipeline: Pipeline, model: Model) -> Float32:
        """``float32[items]``: what ``model`` gives the items of a list, none of them filtered."""
        lists = self._lists
        items, now_ms = lists.item[lists.rows(which)][:MAX_K], int(lists.now_ms[which])
        query = Query(
            "", user=int(lists.user[which]), surface=lists.surface[which] or "home", candidates=items,
            segments=(int(lists.segments[which, 0]), int(lists.segments[which, 1])),
        )  # fmt: skip
        pipeline.candidates(query, view, now_ms, model)  # so that it is this user's row that is at hand
        plain = len(self._plan.columns)
        rows = np.zeros((len(items), plain + len(model.sources)), np.float32)
        rows[:, :plain] = pipeline.features(query, view, items, now_ms, self._assembled)
        pipeline.modelled(model, view, items, rows[:, plain:])
        ranker = model.on(query.surface).ranker
        assert ranker is not None  # noqa: S101  (:func:`_ranked` has seen to it)
        attention = None
        if ranker.attends and model.attended is not None:
            attention = model.attended.attend(pipeline.asked, view.index, items)
        scores = np.array(ranker.score(rows, attention), np.float32)
        if not np.isfinite(scores).all():
            raise RankerError(f"bundle {model.version} gave a score that is not finite")
        return scores

    def figures(self) -> tuple[HeldLists | None, str]:
        """What the systems did; else ``None``, and why lists cannot judge."""
        if self.problem:
            return None, self.problem
        least, found = self._config.gate.lists, sorted(self._scores)
        if len(found) < least:
            return None, (
                f"{len(found)} held-out lists had something taken and something left (gate.lists wants {least}): wait for more of them, "
                "or make gate.holdout longer"
            )
        logged = {which: said for which in found if (said := self._propensities(which)) is not None}
        drawn = len(logged) >= least
        found = [which for which in found if not drawn or which in logged]
        places = [np.flatnonzero(self._judging[self._lists.rows(which)]) for which in found]
        rows = np.concatenate([at + int(self._lists.begin[which]) for which, at in zip(found, places, strict=True)])
        taken = self._lists.outcomes[rows] > 0
        if drawn:
            said = np.concatenate([logged[which][at] for which, at in zip(found, places, strict=True)])
            raw = np.exp(-said)
        else:
            raw = by_place(self._lists.position[rows].astype(np.int64), taken)
        weights, clipped = clip(raw, taken)
        of = np.repeat(np.arange(len(found)), [len(at) for at in places])
        shown = Shown(of, taken, weights, self._lists.user[found])
        scores = {
            name: np.concatenate([self._scores[which][name][at] for which, at in zip(found, places, strict=True)])
            for name in self._systems
        }
        versions = {name: model.version for name, (_, model) in self._systems.items()}
        return measure(shown, scores, versions, weighting="propensity" if drawn else "position", clipped=clipped), ""

    def _propensities(self, which: int) -> Float64 | None:
        """Natural logarithms by row of a list that was drawn by lot; None: it was not, or is known by its impressions."""
        block = self._log.read(int(self._lists.record[which]) - 1, 1)
        if block is None or int(block.records["kind"][0]) != Kind.SERVED:
            return None
        explored = served_at(block, 0).answer.explored
        places = self._lists.position[self._lists.rows(which)].astype(np.int64)
        if explored is None or len(explored.log_propensities) <= int(places.max()):
            return None
        return np.array(explored.log_propensities, np.float64)[places]


def _ranked(systems: Mapping[str, tuple[Pipeline, Model]]) -> bool:
    return all(model.ranker is not None for _, model in systems.values())


def _judging(lists: ShownLists) -> Bools:
    """Which rows can be judged by: bool[n], those that were seen, of the first ``MAX_K`` of each list."""
    place = np.arange(len(lists.item)) - np.repeat(lists.begin, lists.sizes)
    judging: Bools = lists.seen & (place < MAX_K)
    return judging


def addresses(log: EventLog, config: Config, *, split: int, until: int) -> Int64:
    """Where the lists stand that can judge on the stretch behind ``split``, in order: offsets int64[l]."""
    lists = read_shown(log, config, since=split, until=until)
    return lists.offset[_that_judge(lists, _judging(lists), split)]


def _that_judge(lists: ShownLists, judging: Bools, split: int) -> Int64:
    """Lists that were made behind ``split``, with rows that were taken and rows that were not."""
    return np.flatnonzero(_contrast(lists, judging) & (lists.offset >= split))


def _contrast(lists: ShownLists, judging: Bools) -> Bools:
    """Lists with rows that were taken and rows that were not: bool[l]."""
    if not len(lists):
        return np.zeros(0, np.bool_)
    taken = judging & (lists.outcomes > 0)
    hit, left = (np.add.reduceat(rows.astype(np.int64), lists.begin) for rows in (taken, judging & ~taken))
    contrast: Bools = (hit > 0) & (left > 0)
    return contrast


def by_place(places: Int64, taken: Bools) -> Float64:
    """``1 / rate`` of the place of each row, float64[n], with ``rate = (taken + 10 mean) / (rows + 10)``: what stands at a place that is rarely
    taken from says more when it is taken.
    """
    rows = np.bincount(places).astype(np.float64)
    rates = (np.bincount(places, taken) + STRENGTH * taken.mean()) / (rows + STRENGTH)
    return np.asarray(1.0 / rates[places])


def clip(weights: Float64, taken: Bools) -> tuple[Float64, float]:
    """``weights`` over the median of taken rows, at most ``MOST_WEIGHT``; and the share of taken rows for which that was less."""
    scaled = weights / np.median(weights[taken])
    return np.minimum(scaled, MOST_WEIGHT), float(np.mean(scaled[taken] > MOST_WEIGHT))


def sums(shown: Shown, scores: npt.NDArray[np.floating]) -> Sums:
    """What ``scores`` float[n] make of the lists; equal scores count as every order of them in the mean.

    With w the weight of a taken item: gain ``Σ w / log2(rank + 1)``, ideal the same with the heaviest first; won ``Σ w · share of the items of the
    list that were not taken which it scores above`` (equal ones: half), most ``Σ w``.
    """
    lists = len(shown.users)
    sizes = np.bincount(shown.of, minlength=lists)
    starts = np.cumsum(sizes) - sizes
    discount = 1.0 / np.log2(np.arange(len(shown.of)) - np.repeat(starts, sizes) + 2.0)
    heavy = np.where(shown.taken, shown.weights, 0.0)

    order = np.lexsort((-scores.astype(np.float64), shown.of))  # stays list by list
    ranked = scores[order]
    first = np.ones(len(order), np.bool_)
    first[1:] = (ranked[1:] != ranked[:-1]) | (shown.of[1:] != shown.of[:-1])
    tie = np.cumsum(first) - 1
    owner = shown.of[first]
    weight = np.bincount(tie, heavy[order])
    gain = weight * np.bincount(tie, discount) / np.bincount(tie)

    left = np.bincount(tie, ~shown.taken[order])
    all_left = np.bincount(owner, left, lists)
    to_here = np.cumsum(left) - (np.cumsum(all_left) - all_left)[owner]  # of this list, down to this score
    won = weight * (all_left[owner] - to_here + 0.5 * left) / all_left[owner]

    best = heavy[np.lexsort((-heavy, shown.of))]
    return Sums(
        _total(owner, gain, lists), _total(shown.of, best * discount, lists), _total(owner, won, lists),
        _total(shown.of, heavy, lists),
    )  # fmt: skip


def _total(of: npt.NDArray[np.integer], values: Float64, count: int) -> Float64:
    return np.bincount(of, values, count).astype(np.float64)


def measure(
    shown: Shown, scores: Mapping[str, npt.NDArray[np.floating]], versions: Mapping[str, str], *, weighting: Weighting, clipped: float
) -> HeldLists:  # fmt: skip
    """Levels of all systems, and what the candidate gains over the others, with 95% intervals (users as clusters)."""
    _, user = np.unique(shown.users, return_inverse=True)
    found = {name: sums(shown, each) for name, each in scores.items()}
    by_user = {name: Sums(*(_total(user, part, 0) for part in each)) for name, each in found.items()}
    ours = by_user[CANDIDATE]
    systems = {}
    for name, theirs in by_user.items():
        over = auc_over = relative = None
        if name != CANDIDATE:
            over = _estimate(ratio_difference(ours.gain, ours.ideal, theirs.gain, theirs.ideal), -1.0, 1.0)
            auc_over = _estimate(ratio_difference(ours.won, ours.most, theirs.won, theirs.most), -1.0, 1.0)
            if len(theirs.gain) > 1:
                ratio, (low, high) = ratio_interval(ours.gain, theirs.gain)
                relative = Estimate(ratio - 1.0, max(low - 1.0, -1.0), high - 1.0)
        systems[name] = OnLists(
            version=versions[name], shown_ndcg=_estimate(ratio_interval(theirs.gain, theirs.ideal), 0.0, 1.0),
            shown_auc=_estimate(ratio_interval(theirs.won, theirs.most), 0.0, 1.0), ndcg_over=over, relative_over=relative,
            auc_over=auc_over,
        )  # fmt: skip
    return HeldLists(
        lists=len(shown.users), rows=len(shown.of), taken=int(shown.taken.sum()), users=len(ours.gain), weighting=weighting,
        ess=effective_sample_size(shown.weights[shown.taken]), clipped=clipped, systems=systems,
    )  # fmt: skip


def _estimate(found: tuple[float, Interval], least: float, most: float) -> Estimate:
    value, (low, high) = found
    return Estimate(value, max(low, least), min(high, most))
