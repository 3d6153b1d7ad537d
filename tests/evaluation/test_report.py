"""Reports as files."""

from __future__ import annotations

import mmap
import xml.etree.ElementTree as ET
from pathlib import Path

import msgspec
import pytest

from headwater.evaluation.meter import Meter
from headwater.evaluation.report import metrics_of, tables_of, write_report
from headwater.schema.errors import HeadwaterError


class Line(msgspec.Struct):
    mrr: float
    coverage: float
    ci95: dict[str, tuple[float, float]]
    train_s: float = 1.5
    peak_mb: float = 20.0
    questions: int = 9


class Made(msgspec.Struct):
    protocol: str
    seed: int
    data: dict[str, int | str]
    models: dict[str, Line]
    by_events: dict[str, dict[str, Line]]


def line(value: float) -> Line:
    return Line(value, value / 2, {"mrr": (value - 0.1, value + 0.1), "coverage": (0.0, value)})


REPORT = Made(
    "cold-users", 7, {"last_offset": 12_345}, {"a & b": line(0.5), "ease": line(0.25)}, {"3": {"ease": line(0.3)}}
)


def test_three_files_say_the_same(tmp_path: Path) -> None:
    paths = write_report(REPORT, tmp_path / "deep" / "down")
    assert [path.name for path in paths] == ["report.json", "report.md", "report.svg"]
    assert msgspec.json.decode(paths[0].read_bytes(), type=Made) == REPORT
    text = paths[1].read_text(encoding="utf-8")
    assert text.startswith("# cold-users\n")
    assert "last_offset 12,345" in text
    assert "| a & b | 0.5000 [0.4000, 0.6000] | 0.2500 [0.0000, 0.5000] | 1.5 | 20 |" in text
    assert "## by_events 3" in text
    drawn = ET.fromstring(paths[2].read_text(encoding="utf-8"))  # noqa: S314  (our own)
    words = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a & b", "ease", "models", "by_events 3"} <= set(words)
    rects = drawn.iter("{http://www.w3.org/2000/svg}rect")
    bars = [float(rect.attrib["width"]) for rect in rects if rect.get("height") == "12"]
    assert max(bars[:2]) == pytest.approx(2 * min(bars[:2]), abs=0.2), (
        "mrr of the first model is twice that of the second"
    )


def test_tables_are_found_wherever_they_stand() -> None:
    plain = msgspec.to_builtins(REPORT)
    assert [title for title, _ in tables_of(plain)] == ["models", "by_events 3"]
    assert metrics_of(plain["models"]) == ["mrr", "coverage"]


def test_what_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HeadwaterError, match="--out"):
        write_report(REPORT, tmp_path / "file" / "below")
    with pytest.raises(HeadwaterError, match="no models"):
        write_report(Made("x", 1, {}, {}, {}), tmp_path)


def test_the_meter_sees_memory_that_is_gone_again() -> None:
    with Meter() as small:
        pass
    # pages of its own: a heap that other tests have grown may have room for as much
    with Meter() as large, mmap.mmap(-1, 200 << 20) as data:
        for page in range(0, len(data), 1 << 12):
            data[page] = 1
    assert large.peak_mb > small.peak_mb + 150
    assert large.seconds > 0.0
