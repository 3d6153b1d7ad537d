"""Figures with intervals as ECharts options: side by side, and as they closed in over time. Data only, no functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Chart = dict[str, Any]


class Interval(NamedTuple):
    """A figure and its interval; an end that is not known is None."""

    name: str
    value: float
    low: float | None
    high: float | None


def forest(intervals: Sequence[Interval], *, percent: bool = False) -> Chart:
    """One below the other: a bar from end to end and a point for the figure. An open end is drawn as long as the longest."""
    if not intervals:
        return {"empty": "There is nothing to draw yet"}
    scale = 100.0 if percent else 1.0
    ends = [abs(end) for one in intervals for end in (one.value, one.low, one.high) if end is not None]
    most = max(ends) or 1.0
    low = [scale * (-most if one.low is None else one.low) for one in intervals]
    high = [scale * (most if one.high is None else one.high) for one in intervals]
    return {
        "grid": {"left": 8, "right": 24, "top": 12, "bottom": 8, "containLabel": True},
        "xAxis": {"type": "value", "axisLabel": {"formatter": "{value}%" if percent else "{value}"}, "scale": not percent},
        "yAxis": {"type": "category", "inverse": True, "data": [one.name for one in intervals]},
        "tooltip": {"trigger": "axis", "axisPointer": {"type": "shadow"}},
        "series": [
            {
                "name": "from", "type": "bar", "stack": "interval", "stackStrategy": "all", "data": low, "silent": True,
                "itemStyle": {"color": "transparent"}, "barWidth": 10,
            },
            {
                "name": "interval's length", "type": "bar", "stack": "interval", "stackStrategy": "all", "barWidth": 10,
                "data": [h - x for x, h in zip(low, high, strict=True)], "itemStyle": {"color": "#4a7ebb", "opacity": 0.55},
            },
            {
                "name": "figure", "type": "scatter", "symbolSize": 9, "data": [scale * one.value for one in intervals],
                "itemStyle": {"color": "#0b6e7f"}, "z": 5,
            },
        ],
    }  # fmt: skip


def closing_in(path: Sequence[Mapping[str, Any]], *, unit: str = "users") -> Chart:
    """A figure (``relative``) with its ``sequence`` after so many ``users``, in percent: a line in a band."""
    known = [
        look for look in path
        if look["relative"] is not None and None not in look["sequence"] and look["sequence"][0] <= look["sequence"][1]
    ]  # fmt: skip
    if not known:
        return {"empty": "There are too few users to say anything yet"}
    said = known[len(known) // 8 :]  # the first looks are so wide that nothing else would be seen
    low = [100.0 * look["sequence"][0] for look in said]
    high = [100.0 * look["sequence"][1] for look in said]
    return {
        "grid": {"left": 8, "right": 24, "top": 12, "bottom": 28, "containLabel": True},
        "xAxis": {"type": "category", "name": unit, "nameLocation": "middle", "nameGap": 26, "data": [f"{look['users']:,}" for look in said]},
        "yAxis": {"type": "value", "axisLabel": {"formatter": "{value}%"}},
        "series": [
            {"name": "low", "type": "line", "stack": "band", "stackStrategy": "all", "symbol": "none", "data": low, "lineStyle": {"opacity": 0}},
            {
                "name": "width", "type": "line", "stack": "band", "stackStrategy": "all", "symbol": "none", "lineStyle": {"opacity": 0},
                "data": [h - x for x, h in zip(low, high, strict=True)], "areaStyle": {"color": "#4a7ebb", "opacity": 0.3},
            },
            {
                "name": "change", "type": "line", "symbol": "none", "data": [100.0 * look["relative"] for look in said],
                "lineStyle": {"color": "#0b6e7f", "width": 2}, "itemStyle": {"color": "#0b6e7f"},
                "markLine": {"silent": True, "symbol": "none", "label": {"show": False}, "data": [{"yAxis": 0}], "lineStyle": {"type": "dashed"}},
            },
        ],
    }  # fmt: skip
