"""``features show``: the plan of a configuration, all of it or by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headwater.cli.main import build_app
from headwater.features.plan import compile_plan
from headwater.features.sizes import widths
from headwater.features.wording import KINDS
from headwater.schema.config import load_config
from headwater.schema.errors import ConfigurationError

MODULE = """
from headwater.features.declare import largest, mean, total

features = [
    mean("item_watch_1d", "item", ["view"], half_life="1d", unit="s", description="watch time of a view", owner="video"),
    total("user_spent_30d", "user", ["purchase"], window="30d", tiles=30, unit="EUR", description="money of 30 days"),
    largest("user_most", "user", ["purchase"]),
]
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A site with features of its own, fewer of ours."""
    (tmp_path / "mine.py").write_text(MODULE)
    path = tmp_path / "headwater.toml"
    path.write_text('[features]\nmodule = "mine.py"\nwithout = ["item_price"]\n')
    return path


def run(*arguments: str) -> str:
    result = CliRunner().invoke(build_app(), ["features", "show", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_json_says_all_of_the_plan(config: Path) -> None:
    plan = compile_plan(load_config(config))
    shown = json.loads(run("--config", str(config), "--json").splitlines()[-1])
    assert shown["plan"] == plan.hash
    assert [(c["name"], c["version"]) for c in shown["columns"]] == list(zip(plan.columns, plan.versions, strict=True))
    assert "item_price" not in plan.columns
    by_name = {column["name"]: column for column in shown["columns"]}
    spent = by_name["user_spent_30d"]
    assert spent["own_user_bytes"] == spent["user_bytes"] == 120
    assert spent["formula"] == "value of purchase of the user, last 30d in 30 tiles"
    assert (spent["unit"], spent["owner"], spent["of"], spent["kind"]) == ("EUR", "yours", "user", "windows")
    assert by_name["item_watch_1d"]["owner"] == "video"
    assert shown["windows"] == ["30d in 30 tiles"]
    assert (shown["sizes"]["user"], shown["sizes"]["item"]) == widths(plan.layout)
    cost = shown["cost"]
    assert min(cost[key] for key in ("fold_ns_per_event", "assemble_ns_alone", "assemble_ns_per_row")) > 0
    assert sum(kind["columns"] for kind in cost["by_kind"].values()) == len(plan.columns)
    assert set(cost["by_kind"]) <= set(KINDS)
    assert 0 < cost["packed_user"]["fixed"] < cost["packed_user"]["mean"] <= shown["sizes"]["user_packed_most"]


def test_names_choose(config: Path) -> None:
    text = run("user_most", "item_watch_1d", "--config", str(config), "--no-cost")
    assert "largest value of purchase of the user" in text
    assert "(value of view of the item, half-life 1d) / (view with a value of the item, half-life 1d)" in text
    assert "item_click_rate" not in text


def test_the_whole_plan_is_for_people_too(config: Path) -> None:
    text = run("--config", str(config), "--no-cost")
    assert f"plan {compile_plan(load_config(config)).hash}, 76 columns" in text
    assert "measured" not in text
    assert "user row" in text


def test_a_name_that_is_none_is_told_the_nearest(config: Path) -> None:
    with pytest.raises(ConfigurationError, match='no feature "user_mosst", did you mean "user_most"'):
        run("user_mosst", "--config", str(config), "--no-cost")
