"""A report as files: JSON for machines, Markdown for people, and a drawing of the intervals."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from headwater.schema.errors import HeadwaterError

Table = dict[str, dict[str, Any]]

_WIDTH, _LEFT, _ROW, _PANELS = 860, 210, 22, 2
_GAP = 40


def write_report(report: Struct, directory: Path) -> tuple[Path, ...]:
    """Write ``report.json``, ``report.md`` and ``report.svg`` below ``directory``; returns the three paths.

    A table is any field of the report that maps names of models to their metrics, or names to such tables.

    Raises:
        HeadwaterError: the report holds no table, or the directory cannot be written.
    """
    plain = msgspec.to_builtins(report, str_keys=True)
    tables = dict(tables_of(plain))
    if not tables:
        raise HeadwaterError("the report holds no models to write about")
    paths = directory / "report.json", directory / "report.md", directory / "report.svg"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        paths[0].write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
        paths[1].write_text(markdown(plain, tables), encoding="utf-8")
        paths[2].write_text(drawing(tables), encoding="utf-8")
    except OSError as error:
        raise HeadwaterError(
            f"the report cannot be written below {directory}: {error}. Choose another --out"
        ) from error
    return paths


def tables_of(plain: Mapping[str, Any]) -> Iterator[tuple[str, Table]]:
    """(title, models) of every table in a report."""
    for name, value in plain.items():
        if _is_table(value):
            yield name, value
        elif isinstance(value, dict):
            for key, inner in value.items():
                if _is_table(inner):
                    yield f"{name} {key}", inner


def metrics_of(table: Table) -> list[str]:
    """The metrics of a table, in the order of the report: those that have an interval."""
    first = next(iter(table.values()))
    return [name for name in first if name in first["ci95"]]


def markdown(plain: Mapping[str, Any], tables: Mapping[str, Table]) -> str:
    """The report as Markdown: what was asked, a table for each set of models, and by how much the ranker is better."""
    lines = [f"# {plain.get('protocol', 'evaluation')}", ""]
    for name, value in plain.items():
        if isinstance(value, str | int | float) and value != "" and name != "protocol":
            lines.append(f"- {name}: {_number(value)}")
        elif name == "data" and isinstance(value, dict):
            lines.append("- data: " + ", ".join(f"{key} {_number(inner)}" for key, inner in value.items()))
    for title, table in tables.items():
        metrics = metrics_of(table)
        lines += ["", f"## {title}", "", "| model | " + " | ".join(metrics) + " | train s | peak MiB |"]
        lines.append("|---|" + "---|" * (len(metrics) + 2))
        for model, found in table.items():
            cells = [f"{found[m]:.4f} [{found['ci95'][m][0]:.4f}, {found['ci95'][m][1]:.4f}]" for m in metrics]
            lines.append(f"| {model} | {' | '.join(cells)} | {found['train_s']:.1f} | {found['peak_mb']:.0f} |")
    if over := plain.get("ranker_over", {}):
        lines += ["", "## ranker over", "", "| model | difference |", "|---|---|"]
        for model, found in over.items():
            low, high = found["difference_ci95"]
            lines.append(f"| {model} | {found['metric']} {found['difference']:+.4f} [{low:+.4f}, {high:+.4f}] |")
    lines += ["", "Intervals are 95%, with users as clusters.", "", "![intervals](report.svg)", ""]
    return "\n".join(lines)


def drawing(tables: Mapping[str, Table]) -> str:
    """An SVG: for every table and its first two metrics, the value of each model with its interval."""
    parts: list[str] = []
    y = 10
    panel = (_WIDTH - _LEFT) // _PANELS
    for title, table in tables.items():
        metrics = metrics_of(table)[:_PANELS]
        parts.append(_text(10, y + 16, title, "bold"))
        for column, metric in enumerate(metrics):
            left = _LEFT + column * panel
            top = max(max(found["ci95"][metric][1] for found in table.values()), 1e-9)
            wide = panel - _GAP
            parts.append(_text(left, y + 16, f"{metric} (0 … {top:.3g})", "bold"))
            for row, (model, found) in enumerate(table.items()):
                at = y + 34 + row * _ROW
                value, (low, high) = found[metric], found["ci95"][metric]
                if column == 0:
                    parts.append(_text(10, at + 4, model))
                x0, x, x1 = (left + wide * part / top for part in (low, value, high))
                parts.append(
                    f'<rect x="{left}" y="{at - 6}" width="{max(x - left, 0):.1f}" height="12" fill="#4a7ebb"/>'
                    f'<path d="M{x0:.1f} {at}H{x1:.1f}M{x0:.1f} {at - 4}v8M{x1:.1f} {at - 4}v8" stroke="#222" fill="none"/>'
                )
        y += 34 + len(table) * _ROW + 16
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}" height="{y}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def _text(x: float, y: float, words: str, weight: str = "normal") -> str:
    return f'<text x="{x}" y="{y}" font-weight="{weight}">{html.escape(words)}</text>'


def _is_table(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(inner, dict) and "ci95" in inner for inner in value.values())
    )


def _number(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, bool) else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
