"""The way to define metrics: what is gathered comes to the same as what is counted at once, and the page knows them all."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

from headwater import monitoring
from headwater.cli.process_metrics import ProcessMetrics
from headwater.log.metrics import WriterMetrics
from headwater.monitoring.metrics import MonitorMetrics
from headwater.nearline.metrics import FoldMetrics
from headwater.online.metrics import Metrics
from headwater.prometheus import Described, Instruments

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "metrics.md").read_text(encoding="utf-8")
_ROW = re.compile(r"^\| `(headwater_\w+)` \| (\w+) \| (\w*) ?\| ((?:`\w+`(?:, )?)*) ?\| (.+) \|$", re.MULTILINE)

BOUNDS = (0.1, 0.2, 0.5)
VALUES = (0.0, 0.1, 0.1000001, 0.15, 0.2, 0.3, 0.5, 0.50001, 7.0, 0.05)


def every_metric() -> list[Described]:
    """Of all processes, and what watches find: ``METRICS`` of the modules of ``headwater.monitoring``."""
    of_processes = [
        one
        for made in (Metrics(), FoldMetrics(), WriterMetrics(), ProcessMetrics(), MonitorMetrics())
        for one in made.described
    ]
    modules = [
        importlib.import_module(f"headwater.monitoring.{found.name}")
        for found in pkgutil.iter_modules(monitoring.__path__)
    ]
    return [*of_processes, *(one for module in modules for one in getattr(module, "METRICS", ()))]


def test_gathered_observations_come_to_what_single_ones_do() -> None:
    made = Instruments()
    single = made.histogram("single", "At once", BOUNDS, "stage")
    gathered = made.gathered_histogram("gathered", "In one go", BOUNDS, "stage")
    for number, value in enumerate(VALUES):
        single.labels("a").observe(value)
        gathered["a"].observe(value)
        if number == 4:
            made.flush()
    made.flush()
    made.flush()
    text = made.expose().decode()
    lines = {
        name: [line.partition("_")[2] for line in text.splitlines() if line.startswith(f"{name}_")]
        for name in ("single", "gathered")
    }

    def apart(name: str) -> list[str]:
        return [line for line in lines[name] if "created" not in line and not line.startswith("sum")]

    assert len(apart("single")) == len(BOUNDS) + 2
    assert apart("gathered") == apart("single")
    sums = [made.registry.get_sample_value(f"{name}_sum", {"stage": "a"}) for name in ("single", "gathered")]
    assert sums[1] == pytest.approx(sums[0])


def test_a_gathered_counter_shows_when_it_is_brought_over() -> None:
    made = Instruments()
    counter = made.gathered_counter("answers", "Answers", "tier", "surface")
    counter["0", "home"] += 2.0
    counter["4", "home"] += 1.0

    def shown(tier: str) -> float | None:
        return made.registry.get_sample_value("answers_total", {"tier": tier, "surface": "home"})

    assert shown("0") is None
    made.flush()
    counter["0", "home"] += 3.0
    made.expose()
    assert (shown("0"), shown("4")) == (5.0, 1.0)


def test_what_a_second_thread_shows_takes_nothing_from_who_counts() -> None:
    made = Instruments()
    counter = made.gathered_counter("answers", "Answers", "surface")
    counter["home"] += 2.0
    assert "answers_total{" not in made.shown().decode()
    assert counter["home"] == 2.0
    assert 'answers_total{surface="home"} 2.0' in made.expose().decode()


def test_the_page_lists_every_metric_and_no_other() -> None:
    listed = {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, _, labels, _ in _ROW.findall(PAGE)}
    assert len(listed) == len(re.findall(r"^\| `headwater_", PAGE, re.MULTILINE)), (
        "a row does not have its five columns, or is there twice"
    )
    assert listed == {metric.name: (metric.kind, metric.labels) for metric in every_metric()}


def test_units_are_what_names_say() -> None:
    for name, _, unit, _, says in _ROW.findall(PAGE):
        assert (unit == "s") == name.endswith("_seconds"), name
        assert says


def test_no_page_names_a_metric_that_is_gone() -> None:
    known = {metric.name for metric in every_metric()}
    for path in (*DOCS.parent.glob("*.md"), *DOCS.glob("*.md")):
        for name in re.findall(r"`(headwater_[a-z_]+)[`{]", path.read_text(encoding="utf-8")):
            assert re.sub(r"_(total|bucket|sum|count)$", "", name) in known, f"{path.name}: {name}"
