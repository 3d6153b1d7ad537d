"""Figures over time, from the monitor's history, as charts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from headwater.monitoring.history import HISTORY_FILE, History, HistoryError, Series

SPANS = {"15 min": 900_000, "1 h": 3_600_000, "6 h": 21_600_000, "1 d": 86_400_000, "7 d": 604_800_000}
CHARTS = {
    "freshness": "From event to list", "latency": "Time to answer", "quality": "Clicks per item shown", "tiers": "Answers by tier",
}  # fmt: skip
OFF = "The monitor is off or has just begun: without it there is no history. It comes with `headwater serve` where [monitoring] is enabled."
_FRESH = ("headwater_event_to_recommendation_seconds", "headwater_token_wait_seconds")
_QUANTILES = (0.5, 0.95, 0.99)
_COLOURS = ("#2a9d8f", "#e0a526", "#d0605e", "#6c8ebf", "#9673a6")
_TONES = ("#2a9d6f", "#7fb83d", "#e0a526", "#e06c26", "#c23b3b")


def chart(data: Path, name: str, since_ms: int, until_ms: int) -> dict[str, Any]:
    """The ECharts options of the chart ``name``, or ``{"empty": why}``."""
    try:
        history = History(data / HISTORY_FILE, readonly=True)
    except HistoryError:
        return {"empty": OFF}
    try:
        lines, unit, more = _DRAWN[name](history, since_ms, until_ms)
    finally:
        history.close()
    if not any(points for _, points in lines):
        return {"empty": "Nothing of this in the time that is shown"}
    first_ms = min(points[0][0] for _, points in lines if points)
    return {
        "grid": {"left": 60, "right": 12, "top": 34, "bottom": 26},
        "legend": {"top": 0, "left": 0, "itemHeight": 8},
        "xAxis": {
            "type": "time",
            "min": max(since_ms, first_ms),
            "max": until_ms,
            "splitNumber": 4,
            "axisLabel": {"hideOverlap": True},
        },
        "yAxis": {"type": "value", "axisLabel": {"formatter": f"{{value}} {unit}"}, **more.pop("axis", {})},
        "series": [
            {"name": said, "type": "line", "showSymbol": False, "data": points, **more} for said, points in lines
        ],
        "color": list(_TONES if name == "tiers" else _COLOURS),
    }


Points = list[tuple[dict[str, str], int, float]]


def latest(data: Path, name: str) -> Points:
    """(labels, time, value) of each series of ``name`` as last measured; nothing where there is no history."""
    try:
        history = History(data / HISTORY_FILE, readonly=True)
    except HistoryError:
        return []
    try:
        return history.latest(name)
    finally:
        history.close()


def latest_ctr(data: Path) -> float | None:
    """Clicks per item that was shown, over all surfaces, as last measured; None: it was not."""
    rates, lists = (
        {labels["surface"]: value for labels, _, value in latest(data, name) if labels.get("by") == "all"}
        for name in ("headwater_online_ctr", "headwater_online_lists")
    )
    weights = {surface: lists.get(surface, 0.0) for surface in rates}
    total = sum(weights.values())
    return sum(rates[surface] * weight for surface, weight in weights.items()) / total if total else None


Lines = list[tuple[str, list[list[float]]]]
Drawn = tuple[Lines, str, dict[str, Any]]


def _freshness(history: History, since_ms: int, until_ms: int) -> Drawn:
    for name in _FRESH:
        lines = quantiles(history.series(f"{name}_bucket", since_ms=since_ms, until_ms=until_ms), {}, _QUANTILES)
        if any(points for _, points in lines):
            return lines, "ms", {}
    return [], "ms", {}


def _latency(history: History, since_ms: int, until_ms: int) -> Drawn:
    asked = {"route": "/v1/recommend"}
    series = history.series("headwater_request_seconds_bucket", since_ms=since_ms, until_ms=until_ms, labels=asked)
    return quantiles(series, asked, _QUANTILES), "ms", {}


def _quality(history: History, since_ms: int, until_ms: int) -> Drawn:
    found = history.series("headwater_online_ctr", since_ms=since_ms, until_ms=until_ms, labels={"by": "all"})
    lines = [
        (one.labels.get("surface", ""), [[float(t), 100 * v] for t, v in zip(one.times_ms, one.values, strict=True)])
        for one in found
    ]  # fmt: skip
    return lines, "%", {}


def _tiers(history: History, since_ms: int, until_ms: int) -> Drawn:
    by_tier: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for one in history.rates("headwater_answers_total", since_ms=since_ms, until_ms=until_ms):
        for time_ms, rate in zip(one.times_ms, one.values, strict=True):
            by_tier[one.labels.get("tier", "")][time_ms] += rate
    totals: dict[int, float] = defaultdict(float)
    for rates in by_tier.values():
        for time_ms, rate in rates.items():
            totals[time_ms] += rate
    times = sorted(time_ms for time_ms, total in totals.items() if total > 0.0)
    lines = [
        (f"tier {tier}", [[float(t), 100 * by_tier[tier].get(t, 0.0) / totals[t]] for t in times])
        for tier in sorted(by_tier)
    ]
    return lines, "%", {"stack": "all", "areaStyle": {}, "lineStyle": {"width": 0}, "axis": {"max": 100}}


_DRAWN = {"freshness": _freshness, "latency": _latency, "quality": _quality, "tiers": _tiers}


def quantiles(series: Sequence[Series], labels: Mapping[str, str], wanted: Sequence[float]) -> Lines:
    """Quantiles in ms of a histogram from its buckets (counters, by ``le``) between one moment and the next; linear inside a bucket, above the
    last finite bound they are that bound. Moments in which nothing came have no point.
    """
    stood: dict[int, dict[float, float]] = defaultdict(lambda: defaultdict(float))
    for one in series:
        if all(one.labels.get(name) == value for name, value in labels.items()):
            bound = float(one.labels["le"])
            for time_ms, value in zip(one.times_ms, one.values, strict=True):
                stood[time_ms][bound] += value
    lines: Lines = [(f"P{100 * q:g}", []) for q in wanted]
    times = sorted(stood)
    for before, now in pairwise(times):
        gained = sorted(
            (bound, value - earlier if value >= (earlier := stood[before].get(bound, 0.0)) else value)
            for bound, value in stood[now].items()
        )
        total = gained[-1][1]
        if total > 0.0:
            for q, (_, points) in zip(wanted, lines, strict=True):
                points.append([float(now), round(1e3 * _quantile(gained, q * total), 3)])
    return lines


def _quantile(bounds: Sequence[tuple[float, float]], wanted: float) -> float:
    low = below = 0.0
    for bound, count in bounds:
        if count >= wanted:
            return (
                low
                if bound == float("inf") or count <= below
                else low + (bound - low) * (wanted - below) / (count - below)
            )
        low, below = bound, count
    return low
