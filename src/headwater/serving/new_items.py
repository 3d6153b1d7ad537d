"""The new-item budget: which new items are owed impressions now, and to whom they are shown (``[new_items]``).

Everything follows from the item rows and the clock, which all servers have, so that nobody has to agree with anybody, and a replay
gives the same places away. An item is to have had ``impressions · age / (0.9 · within)`` impressions at an age. What it
will be owed a moment ahead (a tenth of what is left of its time), over all impressions that will be made in that moment, is
the share of places that it gets: one behind its schedule gets more, one ahead of it less or none, and no rate of requests has to be known
beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import gammaincc

from headwater.features.assemble import born_ms
from headwater.features.bounded import tired_of
from headwater.features.decay import decay, since_landmark
from headwater.features.layout import I_CLOCK, I_FIRST
from headwater.features.plan import Plan
from headwater.features.rows import ItemTable, User
from headwater.policy.exploration import Promise, promised_places, seed_of
from headwater.policy.order import Ordered
from headwater.retrieval.index import ItemIndex
from headwater.retrieval.merge import Candidates
from headwater.retrieval.sources import Taste
from headwater.retrieval.young import SECOND_MS, Prior, Young, YoungItems
from headwater.schema.config import Config
from headwater.schema.durations import parse_duration
from headwater.schema.looks import ItemPromise
from headwater.schema.new_items import NewItems
from headwater.schema.requests import Promised
from headwater.serving.lists import Origin
from headwater.serving.view import View

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

NEW = Origin("new_items", "new")

CHOICES = 16  # items that may come to the promised places of one list
_LOOKED_AT = 4 * CHOICES  # so that some are left when others may not be shown
_READY = 0.9  # of its time, by which an item is to have what it was promised: the last impressions are counted late
_SLACK = 0.05  # of the promise: one that is short of its schedule by less is not behind it
_AHEAD, _LEAST_AHEAD = 10, 40  # parts of the time that is left, and of the whole


class Account(NamedTuple):
    """What became of promises to items: bool[n] each. An item may be ``reached`` and not ``doubted``, or ``stopped``, or still ``owed`` some."""

    reached: Bools
    stopped: Bools
    behind: Bools


class Standing(NamedTuple):
    """Where all promises stand. ``items`` int64[n] are owed impressions now, ``demand`` float64[n] is the share of all places that each of
    them should get, ``late`` bool[n] whether it is behind its schedule, ``content`` float32[n, d] what they are about. The others count items: all that are new, those that have what they were
    promised, those behind their schedule, those that get no more because they are clearly bad.
    """

    items: Int64
    demand: Float64
    late: Bools
    content: Float32
    promised: int
    reached: int
    behind: int
    stopped: int


def is_bad(shown: Float64, liked: Float64, prior: Prior, said: NewItems) -> Bools:
    """Whether the rate of each item is above ``bar`` times the mean with a probability below ``doubt``: bool[n].

    Where the posterior mean is above that bar the probability is above 0.3, as shapes are at least a half: not looked at.
    """
    shape, strength, bar = prior.shape + liked, prior.strength + shown, said.bar * prior.mean
    bad = shape / strength < bar
    bad[bad] = gammaincc(shape[bad], strength[bad] * bar) < said.doubt
    return bad


def account(young: Young, said: NewItems, now_ms: int) -> Account:
    """What became of the promises to ``young`` items by ``now_ms``."""
    within_ms = parse_duration(said.within)
    reached = young.shown >= said.impressions
    stopped = ~reached & is_bad(young.shown, young.liked, young.prior, said)
    on_time = said.impressions * (np.minimum((now_ms - young.born_ms) / within_ms, 1.0) - _SLACK)
    return Account(reached, stopped, ~reached & ~stopped & (young.shown < on_time))


class NewItemBudget:
    """Gives promised places away. Belongs to one pipeline: it keeps the standing of the second at hand, and works on one request at a time."""

    def __init__(self, config: Config, plan: Plan) -> None:
        if plan.outcomes is None:
            raise ValueError("the plan keeps no outcomes")
        self.said = config.new_items
        self._plan, self._cells = plan, plan.outcomes
        self._within_ms = parse_duration(self.said.within)
        self._young = YoungItems(plan.outcomes, self._within_ms, config.features.rate_prior)
        self._taste = Taste(plan)
        self._of: Young | None = None
        self._standing: Standing | None = None
        self._owed: tuple[Int64, Float64] | None = None  # items of the request at hand, and the share of places of each
        nobody = ItemIndex(
            plan, ItemTable(plan.layout, 1)
        )  # kernels are compiled here, so that no request waits for them
        self._young.at(nobody, -1, 0)
        self._traffic(nobody.table, 0)

    def standing(self, view: View, now_ms: int) -> Standing:
        """Where the promises stand at the item columns of ``view``, in the second of ``now_ms``."""
        young = self._young.at(view.index, view.item_offset, now_ms)
        if self._standing is None or young is not self._of:
            self._of, self._standing = young, self._stand(young, view, now_ms // SECOND_MS * SECOND_MS)
        return self._standing

    def promise_to(self, item: int, view: View, now_ms: int) -> ItemPromise | None:
        """What was promised a dense item and what became of it; None: it has no time of birth, so nothing was."""
        rows = view.table.rows
        born = int(born_ms(rows, item))
        if born == 0 or born > now_ms:
            return None
        shown, liked = (int(rows.u4[item, cell]) for cell in (self._cells.shown, self._cells.liked))
        young = self._young.at(view.index, view.item_offset, now_ms)
        one = Young(np.array([item]), np.array([born]), np.array([float(shown)]), np.array([float(liked)]), young.prior)
        came = account(one, self.said, now_ms)
        state: Literal["owed", "behind", "reached", "stopped", "over"]
        if came.reached[0] or came.stopped[0]:
            state = "reached" if came.reached[0] else "stopped"
        elif born + self._within_ms <= now_ms:
            state = "over"
        else:
            state = "behind" if came.behind[0] else "owed"
        return ItemPromise(
            state=state, shown=shown, liked=liked, impressions=self.said.impressions, until_ms=born + self._within_ms
        )

    def begin(self, view: View, surface: str, now_ms: int) -> bool:
        """Another request; whether places of its list may be promised."""
        self._owed = None
        return surface in self.said.surfaces and len(self.standing(view, now_ms).items) > 0

    def with_promised(
        self, candidates: Candidates, source: int, user: User, view: View, may_show: Callable[[Int64], Bools], now_ms: int
    ) -> Candidates:  # fmt: skip
        """``candidates``, in front of them the promised items for ``user`` that no source offered: score 0, ``source`` their position
        among the sources. Remembers all that were chosen.
        """
        items, wanted = self._choose(user, view, may_show, now_ms)
        self._owed = items, wanted
        missing = items[~np.isin(items, candidates.items)]
        return Candidates(
            np.concatenate([missing, candidates.items]),
            np.concatenate([np.zeros(len(missing), np.float32), candidates.scores]),
            np.concatenate([np.full(len(missing), source, np.int64), candidates.source]),
        )

    def chosen(self, items: Int64) -> Int64:
        """Which of ``items`` int64[n] were chosen for the request at hand: positions int64[m]."""
        return np.zeros(0, np.int64) if self._owed is None else np.flatnonzero(np.isin(items, self._owed[0]))

    def promise(self, items: Int64, k: int, request_id: str) -> Promise | None:
        """The promised places of a list of ``k`` of the candidates ``items`` int64[n]; None: there are none."""
        if self._owed is None or not len(items):
            return None
        chosen, wanted = self._owed
        places, most = promised_places(min(k, len(items)), self.said.share)
        order = np.argsort(items, kind="stable")
        at = np.minimum(np.searchsorted(items, chosen, sorter=order), len(items) - 1)
        there = items[order[at]] == chosen
        chances = wanted[there] * (most / self.said.share)
        if not len(chances) or not len(places):
            return None
        chances *= min(1.0, most / chances.sum())
        return Promise(places, order[at][there], chances, seed_of(request_id, b"new items"))

    # -- parts ---------------------------------------------------------------------------------------------

    def _stand(self, young: Young, view: View, now_ms: int) -> Standing:
        said, within_ms = self.said, self._within_ms
        came = account(young, said, now_ms)
        age = np.maximum(now_ms - young.born_ms, 0).astype(np.float64)
        ahead = np.maximum((within_ms - age) / _AHEAD, within_ms / _LEAST_AHEAD)
        due = said.impressions * np.minimum((age + ahead) / (_READY * within_ms), 1.0)
        owed = np.where(came.stopped, 0.0, due - young.shown)
        made = ahead * max(self._traffic(view.table, now_ms), 1e-12)  # impressions of all items until then
        demand = np.clip(owed / made, 0.0, 1.0)
        which = np.flatnonzero(demand > 0.0)
        items = young.items[which]
        return Standing(
            items, demand[which], came.behind[which], view.index.content[items], len(young.items), int(came.reached.sum()),
            int(came.behind.sum()), int(came.stopped.sum()),
        )  # fmt: skip

    def _traffic(self, table: ItemTable, now_ms: int) -> float:
        """Impressions of all items in a millisecond, of late: ``sum · ln 2 / half-life``, over the part of it that a log so young can hold."""
        cells, lives = self._cells, self._plan.lives
        rate, period_ms = float(lives.rate[cells.life]), int(lives.period_ms[cells.life])
        clock, first = int(table.rows.i8[0, I_CLOCK]), int(table.rows.i8[0, I_FIRST])
        now_ms = max(now_ms, clock)
        held = 1.0 - decay(max(now_ms - first, SECOND_MS), rate)
        return (
            float(table.rows.f4[0, cells.traffic])
            * since_landmark(clock, now_ms, rate, period_ms)
            * math.log(2.0)
            * rate
            / held
        )

    def _choose(
        self, user: User, view: View, may_show: Callable[[Int64], Bools], now_ms: int
    ) -> tuple[Int64, Float64]:  # fmt: skip
        """The items that ``user`` may be shown at promised places, and the share of places that each of them gets, together at most all
        that may be promised. Who has no taste for an item is shown it only when it is behind: the promise comes first. An item that the user was shown already and did not touch, where that is known, is not shown to them again.
        """
        standing, said = self.standing(view, now_ms), self.said
        wanted = standing.demand
        taste = self._taste.of(user, view.index)
        if taste is not None and taste.any():
            likeness = standing.content @ taste
            known = view.index.has_content[standing.items]
            wanted = wanted * np.where(known, np.exp(said.fit * likeness), 1.0)
            wanted[known & ~standing.late & (likeness < said.least_fit)] = 0.0
        best = np.flatnonzero(wanted > 0.0)
        if len(best) > _LOOKED_AT:
            best = best[np.argpartition(-wanted[best], _LOOKED_AT)[:_LOOKED_AT]]
        best = best[np.argsort(-wanted[best], kind="stable")]
        items = standing.items[best]
        again = tired_of(user.u4, 1, now_ms, self._plan.layout)
        free = may_show(items) & ~np.isin(items, again)
        items, chances = items[free][:CHOICES], wanted[best][free][:CHOICES]
        if not len(items):
            return items, chances
        return items, chances * (min(float(wanted.sum()), said.share) / chances.sum())


def promised_record(done: Ordered) -> Promised | None:
    """What the log keeps of the places of a list that could go to promised items; None: there were none."""
    places = np.flatnonzero(done.chances > 0.0)
    if not len(places):
        return None
    return Promised(
        places.tolist(),
        done.chances[places].tolist(),
        done.kept[places].tolist(),
        done.log_propensities[places].tolist(),
    )
