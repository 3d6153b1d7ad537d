"""The report of an experiment as files: JSON for machines, Markdown for people, and a drawing of the intervals."""

from __future__ import annotations

import html
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from headwater.experiments.analysis import Comparison, ExperimentReport, Look
from headwater.experiments.decisions import Bounds
from headwater.schema.errors import HeadwaterError

_WIDTH, _LEFT, _ROW, _HEIGHT, _GAP = 860, 250, 26, 170, 40
_SEQUENCE, _FIXED, _AXIS = "#4a7ebb", "#222", "#999"


def write_report(report: ExperimentReport, directory: Path) -> tuple[Path, ...]:
    """Write ``report.json``, ``report.md`` and ``report.svg`` below ``directory``; returns the three paths.

    Raises:
        HeadwaterError: the directory cannot be written.
    """
    paths = directory / "report.json", directory / "report.md", directory / "report.svg"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        paths[0].write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
        paths[1].write_text(markdown(report), encoding="utf-8")
        paths[2].write_text(drawing(report), encoding="utf-8")
    except OSError as error:
        raise HeadwaterError(
            f"the report cannot be written below {directory}: {error}; choose another --out"
        ) from error
    return paths


def markdown(report: ExperimentReport) -> str:
    """The report as Markdown: the verdict first, then what it rests on."""
    until = datetime.fromtimestamp(report.until_ms / 1_000, UTC).isoformat(timespec="seconds")
    whole = report.verdicts[0]
    users = ", ".join(f"{name} {count:,}" for name, count in report.users.items())
    split = report.split
    lines = [
        f"# {report.experiment}", "",
        f"**{whole.decision}**: {'; '.join(whole.reasons)}", "",
        f"- until {until}; users exposed: {users}; left out because they met several variants: {report.mixed:,}",
        f"- split: p = {split.p_value:.3g} ({'ALARM' if split.alarm else 'no alarm'} at {split.level:g}, valid at every look)",
        f"- level {report.alpha:g}; confidence sequences are tightest at {report.planned_users:,} users",
    ]  # fmt: skip
    for role in ("primary", "guardrail", "secondary"):
        chosen = [one for one in report.comparisons if one.role == role]
        if chosen:
            lines += ["", f"## {role.capitalize()} metrics", "", *comparison_table(chosen)]
    if report.guardrails:
        lines += [
            "",
            "## Guardrails",
            "",
            "| metric | variant | harm is | bound | change | confidence sequence | state |",
        ]
        lines.append("|---|---|---|---|---|---|---|")
        lines += [
            f"| {g.metric} | {g.variant} | {g.direction} | {g.bound:.1%} | {_percent(g.relative)} | {interval(g.sequence)} | {g.state} |"
            for g in report.guardrails
        ]
    lines += ["", "## Segments", "", report.breakdown.warning]
    if report.breakdown.slices:
        lines += [
            "",
            "| segment | metric | variant | users | change | 1 look | p | p (Holm) |",
            "|---|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {s.segment} | {s.metric} | {s.variant} | {sum(s.users):,} | {_percent(s.relative)} | {interval(s.interval)} "
            f"| {s.p_value:.3g} | {s.p_holm:.3g} |"
            for s in report.breakdown.slices
        ]  # fmt: skip
    lines += ["", "![intervals](report.svg)", ""]
    return "\n".join(lines)


def comparison_table(chosen: Sequence[Comparison]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [
        "| metric | variant | users | control | treatment | change | confidence sequence | p (always valid, Holm) | 1 look only | p (1 look, Holm) | variance left |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in chosen:
        fixed = "–" if one.fixed is None else interval(one.fixed.relative_interval)
        fixed_p = "–" if one.fixed_p_holm is None else f"{one.fixed_p_holm:.3g}"
        lines.append(
            f"| {one.metric} ({one.window}) | {one.variant} | {one.users[0]:,} + {one.users[1]:,} | {_plain(one.control)} "
            f"| {_plain(one.treatment)} | {_percent(one.relative)} | {interval(one.relative_sequence)} | {one.p_holm:.3g} | {fixed} "
            f"| {fixed_p} | {one.variance_ratio:.0%} |"
        )
    return lines


def interval(bounds: Bounds) -> str:
    """An interval of relative changes in words; an open end is an ellipsis."""
    low, high = bounds
    return f"{_percent(low, '…')} to {_percent(high, '…')}"


def drawing(report: ExperimentReport) -> str:
    """An SVG: the change of every metric with both intervals, then how the sequences of the primary metrics closed in."""
    parts: list[str] = []
    y = _forest(parts, report.comparisons, 10)
    for one in report.comparisons:
        if one.role == "primary" and any(look.relative is not None for look in one.path):
            y = _path(parts, one, y + 20)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}" height="{y}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def _forest(parts: list[str], comparisons: Sequence[Comparison], top: int) -> int:
    shown = [one for one in comparisons if one.relative is not None]
    reach = max([*_ends(shown), 1e-3])
    parts.append(_text(10, top + 14, "change against the control", "bold"))
    parts.append(
        _text(_LEFT, top + 14, f"−{reach:.1%} … +{reach:.1%}: confidence sequence (thick), one look (thin)", "bold")
    )
    wide, y = _WIDTH - _LEFT - _GAP, top + 24
    middle = _LEFT + wide / 2

    def at(value: float) -> float:
        return middle + max(-1.0, min(1.0, value / reach)) * wide / 2

    for one in shown:
        y += _ROW
        parts.append(_text(10, y + 4, f"{one.metric}, {one.variant}"))
        low, high = one.relative_sequence
        if low is not None and high is not None and low <= high:
            parts.append(
                f'<path d="M{at(low):.1f} {y}H{at(high):.1f}" stroke="{_SEQUENCE}" stroke-width="9" opacity="0.5"/>'
            )
        if one.fixed is not None:
            first, last = (at(end) for end in one.fixed.relative_interval)
            parts.append(
                f'<path d="M{first:.1f} {y}H{last:.1f}M{first:.1f} {y - 5}v10M{last:.1f} {y - 5}v10" stroke="{_FIXED}" fill="none"/>'
            )
        parts.append(f'<circle cx="{at(one.relative or 0.0):.1f}" cy="{y}" r="3" fill="{_FIXED}"/>')
    parts.append(f'<path d="M{middle:.1f} {top + 24}V{y + 12}" stroke="{_AXIS}" stroke-dasharray="3 3"/>')
    return y + 20


def _ends(shown: Sequence[Comparison]) -> list[float]:
    fixed = [abs(end) for one in shown if one.fixed is not None for end in one.fixed.relative_interval]
    sequences = [abs(end) for one in shown for end in one.relative_sequence if end is not None]
    finite = sorted(end for end in [*fixed, *sequences] if end < float("inf"))
    return finite[: max(len(finite) - len(finite) // 20, 1)]  # one wild metric shall not flatten all others


def _path(parts: list[str], one: Comparison, top: int) -> int:
    looks = [look for look in one.path if look.relative is not None and None not in look.sequence]
    if not looks:
        return top
    parts.append(_text(10, top + 14, f"{one.metric}, {one.variant}", "bold"))
    reach = max(abs(end) for look in looks[len(looks) // 5 :] for end in _closed(look))
    reach = max(reach, 1e-3)
    most = max(looks[-1].users, 1)
    wide, high = _WIDTH - _LEFT - _GAP, _HEIGHT - 40
    middle = top + 24 + high / 2

    def place(users: int, value: float) -> str:
        return f"{_LEFT + wide * users / most:.1f},{middle - max(-1.0, min(1.0, value / reach)) * high / 2:.1f}"

    upper = [place(look.users, _closed(look)[1]) for look in looks]
    lower = [place(look.users, _closed(look)[0]) for look in reversed(looks)]
    line = [place(look.users, look.relative or 0.0) for look in looks]
    parts.append(f'<polygon points="{" ".join([*upper, *lower])}" fill="{_SEQUENCE}" opacity="0.3"/>')
    parts.append(f'<polyline points="{" ".join(line)}" stroke="{_FIXED}" fill="none"/>')
    parts.append(f'<path d="M{_LEFT} {middle:.1f}H{_LEFT + wide}" stroke="{_AXIS}" stroke-dasharray="3 3"/>')
    parts.append(_text(10, top + 34, f"−{reach:.1%} … +{reach:.1%}"))
    parts.append(_text(_LEFT, top + 24 + high + 14, f"0 … {most:,} users of both variants"))
    return top + _HEIGHT


def _closed(look: Look) -> tuple[float, float]:
    low, high = look.sequence
    return low or 0.0, high or 0.0


def _text(x: float, y: float, words: str, weight: str = "normal") -> str:
    return f'<text x="{x}" y="{y}" font-weight="{weight}">{html.escape(words)}</text>'


def _percent(value: float | None, none: str = "–") -> str:
    return none if value is None else f"{value:+.2%}"


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
