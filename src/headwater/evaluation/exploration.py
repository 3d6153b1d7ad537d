"""What exploration costs and what it buys, from the log.

*Cost.* The lists of a surface that were drawn by lot, and those that were drawn uniformly, against those that were not: by whether they
were taken up, that is, their user had a positive event on one of their items within a window. The lot falls by request id, so
the three are random samples of the same requests. Promised places are compared the same way: one that went to a promised item with one that
might have. How likely that was differs from place to place and is logged, so a place that went counts ``1 - chance``, one that did not ``chance``
(overlap weights: F. Li, K. L. Morgan, A. M. Zaslavsky, "Balancing Covariates via Propensity Score Weighting", JASA 2018).

*Gain.* What became of the promises to items that were new in the part of the log that was read.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from headwater.evaluation.metrics import Interval, mean_interval, weighted_difference
from headwater.evaluation.uptake import READ, Uptake, positive_types, served_in
from headwater.log.batch import ItemRecord
from headwater.log.protocol import EventLog
from headwater.log.record import FLAG_RETRACT, Kind, Namespace, RecordBlock, of_people
from headwater.retrieval.young import add_rate, fitted_prior
from headwater.schema.config import Config
from headwater.schema.durations import parse_duration
from headwater.schema.errors import HeadwaterError
from headwater.schema.requests import ServedList
from headwater.serving.new_items import is_bad

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

PLAIN, EXPLORED, UNIFORM = "plain", "explored", "uniform"

_decode_item = msgspec.msgpack.Decoder(ItemRecord).decode


class Sample(Struct, frozen=True, kw_only=True):
    """Lists of one surface that were put together one way: "plain", "explored", "uniform". ``rate`` is the share that was taken up.
    ``difference``: that less the rate of the plain ones (None: of these). Intervals are of 95%, with users as what was sampled.
    """

    how: str
    lists: int
    users: int
    taken: int
    rate: float
    ci95: Interval
    difference: float | None = None
    difference_ci95: Interval | None = None


class Places(Struct, frozen=True, kw_only=True):
    """Promised places of one surface: how many there were, how many went to a promised item. ``place_cost``: what is lost of the rate at which
    the place is taken up, ``list_cost`` of that at which its list is, when it goes; None where nothing can be compared.
    """

    places: int
    kept: int
    expected: float
    place_cost: float | None = None
    place_ci95: Interval | None = None
    list_cost: float | None = None
    list_ci95: Interval | None = None


class SurfaceCost(Struct, frozen=True, kw_only=True):
    """A surface on which something was drawn by lot."""

    surface: str
    lists: list[Sample]
    promised: Places | None = None


class Outcome(Struct, frozen=True, kw_only=True):
    """The new items whose promise came to one end. ``impressions`` and ``rate`` (positive events an impression; NaN: no impressions) are those
    while it was promised; ``later_rate`` is that since.
    """

    items: int
    impressions: int
    rate: float
    later_impressions: int
    later_rate: float


class Gain(Struct, frozen=True, kw_only=True):
    """What became of promises: ``reached`` in time; ``stopped``: given up as clearly bad; ``missed``: their time was over first; ``running``: it
    is not over. ``reached_share`` is that of all whose promise is over and was not given up. ``hours_to_promise``: quantiles of the
    time that it took, by "p50", "p90" and "max".
    """

    impressions: int
    within_ms: int
    items: int
    reached_share: float
    hours_to_promise: dict[str, float]
    reached: Outcome
    stopped: Outcome
    missed: Outcome
    running: Outcome


class ExplorationReport(Struct, frozen=True, kw_only=True):
    """``strangers``: lists without a user, of which nobody can say whether they were taken up. ``gain`` None: nothing is promised."""

    window_ms: int
    lists: int
    strangers: int
    surfaces: list[SurfaceCost]
    gain: Gain | None = None


class _List(NamedTuple):
    user: int
    at_ms: int
    how: str
    items: list[int]
    promised: tuple[list[int], list[float], list[bool]]


def measure_exploration(event_log: EventLog, config: Config, *, window_ms: int, since: int = 1) -> ExplorationReport:
    """Read the log from offset ``since`` on. Lists that walked a lower tier on purpose, or came from tiers 3 and 4, and those of interleaved
    experiments are left out: they are never drawn.

    Raises:
        HeadwaterError: no list of a known user was drawn, and nothing is promised to new items.
        CorruptLogError: a served list cannot be read.
    """
    uptake, items = Uptake(positive_types(event_log, config)), _Items(event_log, config)
    by_surface: dict[str, list[_List]] = {}
    seen: set[str] = set()
    lists = strangers = 0
    offset = max(since, event_log.first_offset, 1) - 1
    while (block := event_log.read(offset, READ)) is not None:
        uptake.add(block)
        items.add(block)
        for user, served in served_in(block, seen):
            items.served(served)
            if served.walked or served.tier > 2 or not served.lots:
                continue
            lists += 1
            if user == 0:
                strangers += 1
                continue
            by_surface.setdefault(served.surface, []).append(_list(user, served))
        offset = block.last_offset
    costs = [_cost(name, here, uptake, window_ms) for name, here in sorted(by_surface.items())]
    costs = [cost for cost in costs if len(cost.lists) > 1 or cost.lists[0].how != PLAIN or cost.promised is not None]
    gain = items.gain() if config.new_items.impressions else None
    if not costs and gain is None:
        raise HeadwaterError(
            "the log holds no list of a known user that was drawn by lot: let a surface explore (surfaces.exploration), or promise new items "
            "impressions (new_items.impressions), then ask again"
        )
    return ExplorationReport(window_ms=window_ms, lists=lists, strangers=strangers, surfaces=costs, gain=gain)


def _list(user: int, served: ServedList) -> _List:
    how = PLAIN if served.explored is None else UNIFORM if served.explored.uniform else EXPLORED
    said = served.promised
    promised = ([], [], []) if said is None else (said.places, said.chances, said.kept)
    return _List(user, served.address.now_ms, how, served.items, promised)


def _cost(surface: str, lists: list[_List], uptake: Uptake, window_ms: int) -> SurfaceCost:
    taken = [[uptake.within(one.user, item, one.at_ms, window_ms) for item in one.items] for one in lists]
    whole = np.array([any(each) for each in taken], np.float64)
    users = np.array([one.user for one in lists], np.int64)
    how = np.array([one.how for one in lists])
    samples = []
    for name in (PLAIN, EXPLORED, UNIFORM):
        here = how == name
        if not here.any():
            continue
        rate, interval = mean_interval(whole[here], users[here])
        difference, wide = None, None
        if name != PLAIN and (how == PLAIN).any():
            both = here | (how == PLAIN)
            difference, wide = weighted_difference(whole[both], np.ones(both.sum()), here[both], users[both])
        samples.append(
            Sample(
                how=name, lists=int(here.sum()), users=len(np.unique(users[here])), taken=int(whole[here].sum()), rate=rate,
                ci95=interval, difference=difference, difference_ci95=wide,
            )
        )  # fmt: skip
    return SurfaceCost(surface=surface, lists=samples, promised=_places(lists, taken, whole))


def _places(lists: list[_List], taken: list[list[bool]], whole: Float64) -> Places | None:
    rows = [
        (one.user, chance, kept, taken[i][place], whole[i])
        for i, one in enumerate(lists)
        for place, chance, kept in zip(*one.promised, strict=True)
    ]
    if not rows:
        return None
    users = np.array([row[0] for row in rows], np.int64)
    chance, place, of_list = (np.array([row[column] for row in rows], np.float64) for column in (1, 3, 4))
    kept = np.array([row[2] for row in rows], np.bool_)
    said = Places(places=len(rows), kept=int(kept.sum()), expected=float(chance.sum()))
    weights = np.where(kept, 1.0 - chance, chance)
    if not (weights[kept].sum() > 0.0 and weights[~kept].sum() > 0.0):
        return said
    gained, wide = weighted_difference(place, weights, kept, users)
    of_lists, list_wide = weighted_difference(of_list, weights, kept, users)
    return msgspec.structs.replace(
        said, place_cost=-gained, place_ci95=(-wide[1], -wide[0]), list_cost=-of_lists, list_ci95=(-list_wide[1], -list_wide[0])
    )  # fmt: skip


class _Items:
    """Births, impressions and positive events of items."""

    def __init__(self, event_log: EventLog, config: Config) -> None:
        known = event_log.vocabulary()
        self._said, self._usual_strength = config.new_items, config.features.rate_prior
        self._served = self._said.counted_by == "served"
        self._shown_types = [known.index(Namespace.EVENT_TYPE, name) for name in self._said.types]
        self._liked_types = [known.index(Namespace.EVENT_TYPE, kind.name) for kind in config.events if kind.positive]
        self._born: dict[int, int] = {}
        self._began_ms: int | None = None
        self._ended_ms = 0
        self._shown: list[npt.NDArray[np.int64]] = []
        self._liked: list[npt.NDArray[np.int64]] = []

    def add(self, block: RecordBlock) -> None:
        """Take in the next block."""
        records = block.records
        if self._began_ms is None:
            self._began_ms = int(records["received_ms"][0])
        self._ended_ms = max(self._ended_ms, int(records["received_ms"][-1]))
        for i in np.flatnonzero(records["kind"] == Kind.ITEM).tolist():
            item = int(records["item"][i])
            published = _decode_item(block.payload(i)).item.published
            first = self._born.get(item, int(records["received_ms"][i]))
            self._born[item] = published or first
        events = records[of_people(records, Kind.EVENT) & ((records["flags"] & FLAG_RETRACT) == 0)]
        wanted = [(self._liked, self._liked_types)]
        if not self._served:
            wanted.append((self._shown, self._shown_types))
        for parts, types in wanted:
            chosen = events[np.isin(events["type"], types)]
            if len(chosen):
                at = np.minimum(chosen["time_ms"], chosen["received_ms"])
                parts.append(np.stack([chosen["item"].astype(np.int64), at]))

    def served(self, served: ServedList) -> None:
        """Take in a served list: impressions, where a product sends none."""
        if self._served:
            items = np.array(served.items, np.int64)
            self._shown.append(np.stack([items, np.full(len(items), served.address.now_ms)]))

    def gain(self) -> Gain:
        """What became of the promises to the items that were born in what was read."""
        said, within_ms = self._said, parse_duration(self._said.within)
        born = {item: at for item, at in self._born.items() if at >= (self._began_ms or 0) and at <= self._ended_ms}
        items = np.array(sorted(born), np.int64)
        births = np.array([born[item] for item in items.tolist()], np.int64)
        shown, liked = _by_item(self._shown), _by_item(self._liked)
        prior = fitted_prior(_sums(shown, liked), self._usual_strength)
        until = np.minimum(births + within_ms, self._ended_ms + 1)
        reached_ms = np.full(len(items), -1, np.int64)
        for n, (item, begin, end) in enumerate(zip(items.tolist(), births.tolist(), until.tolist(), strict=True)):
            times = shown.get(item, _NEVER)
            times = times[(times >= begin) & (times < end)]
            if len(times) >= said.impressions:
                reached_ms[n] = times[said.impressions - 1]
        reached = reached_ms >= 0
        until = np.where(reached, reached_ms + 1, until)
        during = np.array([_count(shown, i, b, e) for i, b, e in _rows(items, births, until)], np.float64)
        gained = np.array([_count(liked, i, b, e) for i, b, e in _rows(items, births, until)], np.float64)
        bad = is_bad(during, gained, prior, said)
        over = births + within_ms <= self._ended_ms
        stopped = ~reached & bad
        missed, running = ~reached & ~bad & over, ~reached & ~bad & ~over

        def outcome(which: npt.NDArray[np.bool_]) -> Outcome:
            rest = [(i, e, self._ended_ms + 1) for i, _, e in _rows(items[which], births[which], until[which])]
            later, later_liked = (sum(_count(of, *row) for row in rest) for of in (shown, liked))
            impressions = int(during[which].sum())
            return Outcome(
                items=int(which.sum()), impressions=impressions, rate=_rate(float(gained[which].sum()), impressions),
                later_impressions=later, later_rate=_rate(later_liked, later),
            )  # fmt: skip

        hours = (reached_ms - births)[reached] / 3_600_000.0
        settled = int(reached.sum() + missed.sum())
        return Gain(
            impressions=said.impressions, within_ms=within_ms, items=len(items), reached_share=_rate(int(reached.sum()), settled),
            hours_to_promise={} if not len(hours) else {
                "p50": float(np.quantile(hours, 0.5)), "p90": float(np.quantile(hours, 0.9)), "max": float(hours.max()),
            },
            reached=outcome(reached), stopped=outcome(stopped), missed=outcome(missed), running=outcome(running),
        )  # fmt: skip


_NEVER = np.zeros(0, np.int64)


def _rows(items: Int64, begins: Int64, ends: Int64) -> list[tuple[int, int, int]]:
    return list(zip(items.tolist(), begins.tolist(), ends.tolist(), strict=True))


def _by_item(parts: list[npt.NDArray[np.int64]]) -> dict[int, Int64]:
    """Times of each item, ascending, from (2, n) parts of items and times."""
    if not parts:
        return {}
    items, times = np.concatenate(parts, axis=1)
    order = np.lexsort((times, items))
    items, times = items[order], times[order]
    found, starts = np.unique(items, return_index=True)
    return dict(zip(found.tolist(), np.split(times, starts[1:]), strict=True))


def _count(of: dict[int, Int64], item: int, begin_ms: int, end_ms: int) -> int:
    times = of.get(item, _NEVER)
    return int(np.searchsorted(times, end_ms) - np.searchsorted(times, begin_ms))


def _sums(shown: dict[int, Int64], liked: dict[int, Int64]) -> Float64:
    sums = np.zeros(8)
    for item, times in shown.items():
        add_rate(float(len(times)), float(len(liked.get(item, _NEVER))), sums)
    return sums


def _rate(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
