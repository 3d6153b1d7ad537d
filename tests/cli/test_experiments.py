"""``headwater experiments``: a definition from the command line to its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from headwater.cli.main import build_app
from headwater.experiments.definitions import ExperimentError
from headwater.experiments.store import folder_of, read_experiment
from headwater.log.writer import open_writer
from headwater.registry.errors import BundleError

VERSION = "20260101T000000000Z-0123456789ab"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def run(data: Path, *arguments: str) -> str:
    words = ["experiments", *arguments, "--data", str(data)]
    result = CliRunner().invoke(build_app(), words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def said(data: Path, *arguments: str) -> Any:
    return json.loads(run(data, *arguments, "--json").splitlines()[-1])


def test_from_a_draft_to_the_end(data: Path) -> None:
    made = said(
        data,
        "new",
        "wide",
        "--set",
        "ranker.candidates=400",
        "--set",
        "surfaces.home.diversity_by=mmr",
        "--share",
        "0.2",
    )
    assert (made["status"], made["share"], made["variants"]) == ("draft", 0.2, {"control": 0.5, "treatment": 0.5})
    variant = read_experiment(data, "wide").variants[1]
    assert variant.changes == {"ranker.candidates": 400, "surfaces.home.diversity_by": "mmr"}
    started = said(data, "start", "wide")
    assert (started["status"], started["version"]) == ("running", made["version"])
    assert started["started_ms"] > 1_700_000_000_000
    assert said(data, "start", "wide", "--share", "0.5")["started_ms"] == started["started_ms"]
    run(data, "override", "wide", "ada@example.com", "treatment")
    text = run(data, "show", "wide")
    assert "@" not in text
    assert "\n\n\n" not in text
    assert said(data, "list")["experiments"][0]["share"] == 0.5
    stopped = said(data, "stop", "wide", "--why", "no effect")
    assert (stopped["status"], stopped["stopped_why"]) == ("stopped", "cli: no effect")
    assert said(data, "show", "wide")["version"] == made["version"]
    assert "wide                     stopped" in run(data, "list")


def test_the_switch_for_all_and_what_is_wrong_are_shown(data: Path) -> None:
    run(data, "new", "wide", "--set", "ranker.candidates=400")
    run(data, "start", "wide")
    (folder_of(data) / "bad.toml").write_text("nonsense")
    assert run(data, "stop", "--all") == "All experiments are switched off\n"
    with pytest.raises(ExperimentError, match="All experiments are switched off"):
        run(data, "start", "wide")
    listed = said(data, "list")
    assert listed["off"] is True
    assert [line["name"] for line in listed["experiments"]] == ["bad", "wide"]
    assert "Not valid TOML" in listed["experiments"][0]["problem"]
    run(data, "start", "--all")
    assert said(data, "list")["off"] is False


def test_nobody_is_in_it_yet(data: Path) -> None:
    run(data, "new", "wide", "--set", "ranker.candidates=400")
    run(data, "start", "wide")
    open_writer(data, clock=lambda: 1).close()
    (standing,) = said(data, "status")["experiments"]
    assert standing["exposures"] == 0
    assert [each["users"] for each in standing["variants"]] == [0, 0]
    assert "treatment                        0 users" in run(data, "status", "wide")


def test_a_canary_has_a_bundle_and_guardrails(data: Path) -> None:
    made = said(data, "new", "next", "--canary", VERSION)
    assert (made["share"], list(made["variants"])) == (0.01, ["control", "canary"])
    experiment = read_experiment(data, "next")
    assert experiment.variants[1].bundle == VERSION
    assert [guardrail.metric for guardrail in experiment.guardrails] == ["clicks_per_user", "clicks_per_list"]
    with pytest.raises(BundleError, match=VERSION):
        run(data, "start", "next")


def test_a_shadow_takes_no_users(data: Path) -> None:
    assert said(data, "new", "next", "--shadow", VERSION, "--share", "0.25")["shadow"] == 0.25
    path = folder_of(data) / "next.toml"
    path.write_text(path.read_text().replace(f'bundle = "{VERSION}"', 'set = {"ranker.candidates" = 50}'))
    assert run(data, "start", "next") == "next is asked copies of 25.00% of the requests\n"
    assert read_experiment(data, "next").buckets == ()
    assert "(shadow)      25.00%" in run(data, "list")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["new", "x"], "Say what the variant changes"),
        (
            ["new", "x", "--canary", VERSION, "--set", "a=1"],
            "--canary and --shadow are about one bundle and nothing else",
        ),
        (["new", "x", "--set", "ranker.candidats=1"], "did you mean `ranker.candidates`"),
        (["new", "x", "--set", "log.dedup_window=1"], "cannot differ between variants"),
        (
            ["new", "x", "--set", "ranker.candidates=1", "--when", "contxt.country == 'NL'"],
            r'experiment "x": when: column 1: There is no field "contxt.country"',
        ),
        (["start", "x"], 'There is no experiment "x"'),
        (["status", "x"], 'There is no experiment "x"'),
    ],
)
def test_a_mistake_is_named(data: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        run(data, *arguments)
    assert not (folder_of(data) / "x.toml").exists()


def test_whom_it_is_for_is_checked_when_it_is_written_and_when_it_starts(data: Path) -> None:
    run(data, "new", "wide", "--set", "ranker.candidates=400", "--when", "context.country in ['NL', 'BE']")
    assert read_experiment(data, "wide").when == "context.country in ['NL', 'BE']"
    path = folder_of(data) / "wide.toml"
    path.write_text(path.read_text().replace("in ['NL', 'BE']", "= 'NL'"))
    with pytest.raises(ExperimentError, match=r"column 17: Write == to compare\n    context.country = 'NL'\n {20}\^"):
        run(data, "start", "wide")
    assert read_experiment(data, "wide").status == "draft"


def test_a_definition_comes_from_a_file(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    run(data, "new", "wide", "--set", "ranker.candidates=400")
    path.write_text((folder_of(data) / "wide.toml").read_text().replace('"wide"', '"mine"'))
    run(data, "new", "mine", "--from", str(path))
    assert read_experiment(data, "mine").variants == read_experiment(data, "wide").variants
    with pytest.raises(ExperimentError, match='name: Expected "other", got "mine"'):
        run(data, "new", "other", "--from", str(path))


def test_an_interleaved_experiment_is_written(data: Path) -> None:
    made = said(data, "new", "both", "--set", "ranker.candidates=400", "--interleave")
    assert made["variants"] == {"interleaved": 1.0}
    assert read_experiment(data, "both").interleave
    with pytest.raises(ExperimentError, match="give the bundle with --bundle"):
        run(data, "new", "worse", "--canary", VERSION, "--interleave")
