"""From what happened to figures with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from headwater.evaluation.closed_loop.run import Ledger
from headwater.evaluation.metrics import Interval, ratio_difference, ratio_interval
from headwater.simulator.catalogue import HOUR_MS

Float64 = npt.NDArray[np.float64]

NEW_HOURS = 24  # a new item has so long to be shown
ENDS_DAYS = 2  # people who came in the first so many days: did they come in the last so many?


class Figures(Struct, frozen=True, kw_only=True):
    """What one policy came to, over all seeds.

    ``satisfaction`` of a visit (0 to 1), ``regret``: the share of the best lists' utility that was lost, ``ctr`` clicks an
    impression, ``visits`` of a person a day, ``returning``: of those who came in the first two days, the share that came in the
    last two. ``new_shown``: the share of new items that had their first impressions (``impressions`` of the report) within
    24 hours, ``new_hours`` the mean time to them, counted up to 48 hours. ``new_known``: the share of new items that had enough impressions for a good estimate
    of their click rate (:func:`~headwater.evaluation.closed_loop.estimates.impressions_to_know`) within 48 hours, ``known_hours`` the mean time to that, counted up to 48 hours. ``coverage``: the share of the items that were shown to
    anybody; ``gini`` of impressions over items, 0 to 1. ``ci95`` takes people, or new items, of all seeds as what was sampled;
    for coverage and gini it is Student's over seeds. ``by_seed`` and ``by_day`` are satisfactions.
    """

    says: str
    satisfaction: float
    regret: float
    ctr: float
    visits: float
    returning: float
    new_shown: float
    new_hours: float
    new_known: float
    known_hours: float
    coverage: float
    gini: float
    ci95: dict[str, Interval]
    by_seed: list[float]
    by_day: list[float]
    lists: int
    new_items: int


class Versus(Struct, frozen=True, kw_only=True):
    """How much more one policy had than another, with 95% intervals, paired by person."""

    satisfaction: float
    regret: float
    ctr: float
    visits: float
    returning: float
    ci95: dict[str, Interval]


_MOST = {
    "visits": np.inf,
    "new_hours": 2.0 * NEW_HOURS,
    "known_hours": 2.0 * NEW_HOURS,
}  # what a figure can be; all others are shares
_RATIOS = ("satisfaction", "regret", "ctr", "visits", "returning")


def figures_of(says: str, ledgers: Sequence[Ledger], impressions: int) -> Figures:
    """Figures of one policy from its ledgers, one a seed.

    Raises:
        ValueError: nobody came.
    """
    values: dict[str, float] = {}
    intervals: dict[str, Interval] = {}
    for name in _RATIOS:
        values[name], intervals[name] = ratio_interval(*_ratio(name, ledgers))
    hours, in_time = _hours_to(ledgers, [impressions] * len(ledgers), NEW_HOURS)
    known_hours, known = _hours_to(ledgers, [ledger.to_know for ledger in ledgers], 2 * NEW_HOURS)
    for name, column in (
        ("new_shown", in_time), ("new_hours", hours), ("new_known", known), ("known_hours", known_hours),
    ):  # fmt: skip
        values[name], intervals[name] = (
            ratio_interval(column, np.ones(len(column))) if len(column) else (0.0, (0.0, 0.0))
        )
    for name, of in (("coverage", _coverage), ("gini", _gini)):
        each = np.array([of(ledger) for ledger in ledgers])
        values[name], intervals[name] = ratio_interval(each, np.ones(len(each)))
    visits, satisfaction = (_days(name, ledgers).sum(axis=0) for name in ("visits", "satisfaction"))
    return Figures(
        says=says, **values, ci95={name: _within(name, interval) for name, interval in intervals.items()},
        by_seed=[_rounded(ratio_interval(*_ratio("satisfaction", [ledger]))[0]) for ledger in ledgers],
        by_day=[_rounded(s / max(v, 1.0)) for s, v in zip(satisfaction.tolist(), visits.tolist(), strict=True)],
        lists=int(_sum("lists", ledgers).sum()), new_items=len(in_time),
    )  # fmt: skip


def _within(name: str, interval: Interval) -> Interval:
    low, high = interval
    return round(max(low, 0.0), 5), round(min(high, _MOST.get(name, 1.0)), 5)


def versus(ours: Sequence[Ledger], theirs: Sequence[Ledger]) -> Versus:
    """What ``ours`` had more than ``theirs``, ledgers of the same seeds."""
    values: dict[str, float] = {}
    intervals: dict[str, Interval] = {}
    for name in _RATIOS:
        values[name], (low, high) = ratio_difference(*_ratio(name, ours), *_ratio(name, theirs))
        intervals[name] = (round(low, 5), round(high, 5))
    return Versus(**values, ci95=intervals)


def _sum(name: str, ledgers: Sequence[Ledger]) -> Float64:
    """float64[people of all seeds]."""
    return np.concatenate([ledger.sums[name].sum(axis=1) for ledger in ledgers])


def _days(name: str, ledgers: Sequence[Ledger]) -> Float64:
    return np.concatenate([ledger.sums[name] for ledger in ledgers])


def _ratio(name: str, ledgers: Sequence[Ledger]) -> tuple[Float64, Float64]:
    """Parts and wholes of a figure, one entry a person."""
    if name == "regret":
        best = _sum("best", ledgers)
        return best - _sum("expected", ledgers), best
    if name == "visits":
        visits = _days("visits", ledgers)
        return visits.sum(axis=1), np.full(len(visits), float(visits.shape[1]))
    if name == "returning":
        visits = _days("visits", ledgers)
        ends = min(ENDS_DAYS, visits.shape[1])
        came, last = visits[:, :ends].sum(axis=1) > 0.0, visits[:, -ends:].sum(axis=1) > 0.0
        return (came & last).astype(np.float64), came.astype(np.float64)
    parts, wholes = {"satisfaction": ("satisfaction", "visits"), "ctr": ("clicks", "impressions")}[name]
    return _sum(parts, ledgers), _sum(wholes, ledgers)


def _hours_to(ledgers: Sequence[Ledger], impressions: Sequence[int], within: int) -> tuple[Float64, Float64]:
    """Of each new item that was there long enough to tell: hours to its first ``impressions`` (by ledger), at most 48, and whether ``within`` so many."""
    hours, in_time = [], []
    for ledger, wanted in zip(ledgers, impressions, strict=True):
        for position, born_ms in ledger.born_ms.items():
            times = ledger.new.get(position, [])
            took = (times[wanted - 1] - born_ms) / HOUR_MS if len(times) >= wanted else np.inf
            if born_ms + within * HOUR_MS <= ledger.end_ms:
                in_time.append(float(took <= within))
            if born_ms + 2 * NEW_HOURS * HOUR_MS <= ledger.end_ms:
                hours.append(min(took, 2.0 * NEW_HOURS))
    return np.array(hours), np.array(in_time)


def _coverage(ledger: Ledger) -> float:
    return float((ledger.shown[ledger.eligible] > 0).mean())


def _gini(ledger: Ledger) -> float:
    """``Σ (2i − n − 1) x_i / (n Σ x)`` over impressions in ascending order."""
    shown = np.sort(ledger.shown[ledger.eligible]).astype(np.float64)
    n = len(shown)
    return float(((2 * np.arange(1, n + 1) - n - 1) * shown).sum() / (n * max(shown.sum(), 1.0)))


def _rounded(value: float) -> float:
    return round(float(value), 4)


def table(found: Mapping[str, Figures], metrics: Sequence[str]) -> list[str]:
    """Markdown: a row for each policy, with intervals."""
    lines = ["| | " + " | ".join(metrics) + " |", "|---|" + "---|" * len(metrics)]
    for name, each in found.items():
        cells = [f"{getattr(each, m):.3f} [{each.ci95[m][0]:.3f}, {each.ci95[m][1]:.3f}]" for m in metrics]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines
