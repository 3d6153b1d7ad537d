"""The closed loop as files: JSON, Markdown and drawings."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from headwater.evaluation.closed_loop.compare import ClosedLoopReport, encode
from headwater.evaluation.closed_loop.figures import Figures, Versus, table
from headwater.evaluation.report import drawing
from headwater.schema.errors import HeadwaterError

_FIRST = ("satisfaction", "regret", "ctr", "visits", "returning")
_ITEMS = ("coverage", "gini", "new_shown", "new_hours", "new_known", "known_hours")
_COLOURS = ("#4a7ebb", "#c0504d", "#6b9a3a", "#8064a2", "#d98f2b", "#4bacc6")
_WIDTH, _HEIGHT, _LEFT, _TOP, _FOOT = 860, 300, 60, 34, 60


def write_closed_loop(report: ClosedLoopReport, directory: Path) -> tuple[Path, ...]:
    """Write ``closed-loop.json``, ``closed-loop.md``, ``closed-loop.svg`` (intervals) and ``closed-loop-days.svg`` below ``directory``.

    Raises:
        HeadwaterError: the directory cannot be written.
    """
    paths = tuple(directory / f"closed-loop{end}" for end in (".json", ".md", ".svg", "-days.svg"))
    bodies = (encode(report), *(text.encode() for text in (markdown(report), intervals(report), by_day(report))))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path, body in zip(paths, bodies, strict=True):
            path.write_bytes(body)
    except OSError as error:
        raise HeadwaterError(
            f"the report cannot be written below {directory}: {error}. Choose another --out"
        ) from error
    return paths


def markdown(report: ClosedLoopReport) -> str:
    """Tables of policies and delays, with what they were run on."""
    s = report.sizes
    lines = [
        "# Closed loop", "",
        (f"{s.users} people, {s.items} items and {s.births:g} new ones a day, {s.days} days after {s.history_hours} hours of history, seeds "
        f"{', '.join(map(str, report.seeds))}{', scenario ' + report.scenario if report.scenario else ''}; {report.seconds:.0f} s."), "",
    ]  # fmt: skip
    for title, found, over, against in (
        ("Policies", report.policies, report.over_popular, "popular"),
        ("Late events", report.delays, report.over_first_delay, next(iter(report.delays), "")),
    ):
        if not found:
            continue
        lines += [f"## {title}", "", *table(found, _FIRST), "", *table(found, _ITEMS), ""]
        if over:
            lines += [f"More than {against}, paired by person:", "", *_differences(over), ""]
    lines += [
        (f"An item is shown up to {report.impressions_per_item_day:g} times a day on average; new_shown and new_hours are about its first "
        f"{s.impressions} impressions, new_known and known_hours about its first {report.impressions_to_know:g}, after which half of the variance between "
         "click rates is that of the true ones. Intervals are 95%."), "",
        "![intervals](closed-loop.svg)", "", "![by day](closed-loop-days.svg)", "",
    ]  # fmt: skip
    return "\n".join(lines)


def intervals(report: ClosedLoopReport) -> str:
    """An SVG: satisfaction and regret of every policy and delay, with intervals."""
    tables = {"policies": _plain(report.policies), "late events": _plain(report.delays)}
    return drawing({title: found for title, found in tables.items() if found})


def by_day(report: ClosedLoopReport) -> str:
    """An SVG: satisfaction of a visit by day, a line for each policy and delay."""
    panels = [found for found in (report.policies, report.delays) if found]
    parts = [_lines(found, top=n * _HEIGHT, days=report.sizes.days) for n, found in enumerate(panels)]
    height = _HEIGHT * len(panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def _lines(found: Mapping[str, Figures], *, top: int, days: int) -> str:
    highest = max(max(each.by_day) for each in found.values()) * 1.05 or 1.0
    wide, high = _WIDTH - _LEFT - 200, _HEIGHT - _TOP - _FOOT
    base = top + _TOP + high
    parts = [_text(10, top + 18, "satisfaction of a visit, by day", "bold")]
    for share in (0.0, 0.5, 1.0):
        y = base - share * high
        parts.append(f'<path d="M{_LEFT} {y:.1f}h{wide}" stroke="#ddd"/>{_text(10, y + 4, f"{share * highest:.2f}")}')
    step = wide / max(days - 1, 1)
    parts += [_text(_LEFT + day * step - 3, base + 18, str(day + 1)) for day in range(days)]
    for n, (name, each) in enumerate(found.items()):
        colour = _COLOURS[n % len(_COLOURS)]
        points = " ".join(f"{_LEFT + d * step:.1f},{base - v / highest * high:.1f}" for d, v in enumerate(each.by_day))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<rect x="{_WIDTH - 180}" y="{top + _TOP + n * 18}" width="12" height="4" fill="{colour}"/>')
        parts.append(_text(_WIDTH - 162, top + _TOP + n * 18 + 6, name))
    return "".join(parts)


def _plain(found: Mapping[str, Figures]) -> dict[str, dict[str, Any]]:
    """As :func:`headwater.evaluation.report.drawing` takes it."""
    plain: dict[str, dict[str, Any]] = msgspec.to_builtins(dict(found))
    return plain


def _differences(over: Mapping[str, Versus]) -> Sequence[str]:
    lines = ["| | " + " | ".join(_FIRST) + " |", "|---|" + "---|" * len(_FIRST)]
    for name, each in over.items():
        cells = [f"{getattr(each, m):+.3f} [{each.ci95[m][0]:+.3f}, {each.ci95[m][1]:+.3f}]" for m in _FIRST]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _text(x: float, y: float, words: str, weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-weight="{weight}">{html.escape(words)}</text>'
