"""Alert rules, dashboard and scrape configuration in `deploy/`: promtool takes them, they fire when they should, what they name exists."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.debian import program
from tests.test_prometheus import every_metric

ROOT = Path(__file__).parent.parent.parent
DEPLOY, RULES = ROOT / "deploy", ROOT / "deploy" / "prometheus-alerts.yml"
ALERT_TESTS = [Path(__file__).parent / f"{name}.yml" for name in ("minutes", "days")]

_NAME = re.compile(r"\bheadwater_\w+")
_ALERT = re.compile(r"^ +- alert: Headwater(\w+)$", re.MULTILINE)
_RUNBOOK = re.compile(r"^ +runbook: docs/operations\.md#([a-z-]+)$", re.MULTILINE)


def promtool(*arguments: str | Path) -> str:
    """What it says. It comes with Debian's prometheus, whose service the installation does not start (:mod:`tests.debian`)."""
    done = subprocess.run(
        [program("promtool", "prometheus"), *map(str, arguments)], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def exposed() -> set[str]:
    """The names of series that there are."""
    endings = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    return {metric.name + ending for metric in every_metric() for ending in endings[metric.kind]}


def expressions(dashboard: dict[str, Any]) -> Iterator[str]:
    """What its panels ask."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]


def test_promtool_takes_rules_and_scrape_configuration() -> None:
    assert f"{len(_ALERT.findall(RULES.read_text()))} rules found" in promtool("check", "rules", RULES)
    promtool("check", "config", DEPLOY / "prometheus.yml")


def test_rules_fire_when_they_should_and_only_then() -> None:
    promtool("test", "rules", *ALERT_TESTS)
    fired = {name for path in ALERT_TESTS for name in re.findall(r"Headwater(\w+)", path.read_text())}
    assert fired == set(_ALERT.findall(RULES.read_text())), "each rule has a series at which it fires"


def test_every_alert_has_its_runbook_entry() -> None:
    text = RULES.read_text()
    alerts, anchors = _ALERT.findall(text), _RUNBOOK.findall(text)
    assert ["".join(word.title() for word in anchor.split("-")) for anchor in anchors] == alerts
    headings = re.findall(r"^### ([a-z-]+)$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    assert set(anchors) <= set(headings)


def test_rules_and_dashboard_name_metrics_that_exist() -> None:
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    asked = list(expressions(dashboard))
    assert len(asked) > 30
    for text in (*re.findall(r"expr: >-\n +(.+)", RULES.read_text()), *asked):
        named = set(_NAME.findall(text))
        assert named or text.startswith("up{"), text
        assert named <= exposed(), text
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)


def test_the_dashboard_asks_what_prometheus_understands(tmp_path: Path) -> None:
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    rules = [
        {"record": f"panel:{number}", "expr": text.replace("$__rate_interval", "1m")}
        for number, text in enumerate(expressions(dashboard))
    ]
    path = tmp_path / "panels.yml"
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))  # JSON is YAML too
    promtool("check", "rules", path)
