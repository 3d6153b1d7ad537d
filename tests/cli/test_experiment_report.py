"""``headwater experiments report`` and ``power`` on a log that was written as a server writes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from headwater.cli.main import build_app
from headwater.experiments.definitions import parse_experiment
from headwater.experiments.store import folder_of, read_experiment
from headwater.log.batch import events_to_batch
from headwater.log.commands import ExposureEntry
from headwater.schema.errors import ConfigurationError, HeadwaterError
from headwater.schema.events import Event
from headwater.schema.experiments import ExposureRecord
from tests.offline.sites import KEYS, START_MS, Clock, writer_of

HOUR = 3_600_000
USERS = 420
DEFINITION = """
name = "wider"
status = "running"
buckets = [[0, 10000]]
started_ms = {started}
metrics = ["clicks_per_user", "views"]
[[guardrails]]
metric = "hides_per_user"
direction = "increase"
bound = 0.5
[[variants]]
name = "control"
[[variants]]
name = "wide"
set = {{"ranker.candidates" = 400}}
"""
VIEWS = '[[metrics]]\nname = "views"\nwindow = "1d"\nnumerator = {of = "events", types = ["view"]}\n'


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A day of clicks, a day in which users are exposed, a day in which the treated click twice as often."""
    folder = tmp_path_factory.mktemp("experiment")
    rng, clock = np.random.default_rng(4), Clock()
    taste = rng.gamma(2.0, 1.0, USERS)
    wide = rng.random(USERS) < 0.5
    text = DEFINITION.format(started=START_MS + 24 * HOUR)
    (folder / "headwater.toml").write_text('clock = "log"\n[log]\nmap_size_gib = 1.0\n')
    (folder / "views.toml").write_text(VIEWS)
    experiment = parse_experiment(text, "test")
    with writer_of(folder / "data", clock) as writer:

        def click(hour: int, rate: np.ndarray[tuple[int], np.dtype[np.float64]]) -> None:
            clock.now_ms = START_MS + hour * HOUR
            made = [
                Event(
                    user=f"u{u}", item="i", type=kind, time=clock.now_ms - 1_000 - n,
                    attributes={"country": "de" if u % 3 else "fr"},
                )
                for kind, share in (("click", 1.0), ("view", 1.5), ("hide", 0.1))
                for u, count in enumerate(rng.poisson(rate * share / 4).tolist())
                for n in range(count)
            ]  # fmt: skip
            writer.append_events(events_to_batch(made, KEYS))

        for hour in (2, 8, 14, 20):
            click(hour, taste)
        clock.now_ms = START_MS + 24 * HOUR
        for part in np.array_split(rng.permutation(USERS), 20):
            clock.now_ms += HOUR
            records = [ExposureRecord("wider", "wide" if wide[u] else "control", experiment.version, "r") for u in part]
            writer.append_exposures(
                [ExposureEntry(0, 0, f"u{u}", msgspec.msgpack.encode(r)) for u, r in zip(part, records, strict=True)]
                * 2
            )
        for hour in (46, 47, 48, 49):
            click(hour, taste * np.where(wide, 2.0, 1.0))
        clock.now_ms = START_MS + 75 * HOUR  # all windows are over
        writer.append_events(events_to_batch([Event(user="visitor", item="i", type="view")], KEYS))
    folder_of(folder / "data").mkdir(exist_ok=True)
    (folder_of(folder / "data") / "wider.toml").write_text(text)
    return folder


def run(folder: Path, *arguments: str, code: int = 0) -> Any:
    at = ("--config", str(folder / "headwater.toml"), "--data", str(folder / "data"))
    done = CliRunner().invoke(build_app(), ["experiments", *arguments, *at])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.stdout


def test_report_from_the_log(site: Path, tmp_path: Path) -> None:
    options = (
        "report",
        "wider",
        "--window",
        "1d",
        "--before",
        "1d",
        "--metrics",
        str(site / "views.toml"),
        "--planned",
        "420",
    )
    found = json.loads(run(site, *options, "--json", "--out", str(tmp_path)).splitlines()[-1])
    assert sum(found["users"].values()) == USERS
    assert not found["split"]["alarm"]
    by_name = {one["metric"]: one for one in found["comparisons"]}
    clicks = by_name["clicks_per_user"]
    assert (clicks["role"], by_name["views"]["role"], by_name["returned"]["role"]) == (
        "primary",
        "primary",
        "secondary",
    )
    assert sum(clicks["users"]) == USERS
    low, high = clicks["relative_sequence"]
    assert 0.3 < low < 1.0 < high
    assert clicks["variance_ratio"] < 0.9
    assert by_name["clicks_per_list"]["difference"] is None  # no list was served
    assert {one["segment"] for one in found["breakdown"]["slices"]} == {"country=de"}  # of the others there are too few
    assert (tmp_path / "report.md").read_text().startswith("# wider")
    harm = found["guardrails"][0]
    assert (harm["metric"], harm["variant"]) == ("hides_per_user", "wide")
    shown = run(site, *options)
    assert found["verdicts"][0]["decision"] in shown
    assert "clicks_per_user" in shown
    early = json.loads(run(site, *options, "--json", "--until", "2025-10-10T20:00:00").splitlines()[-1])
    assert sum(early["users"].values()) < USERS
    assert early["verdicts"][0]["decision"] == "continue"


def test_what_cannot_be_reported_says_what_to_do(site: Path) -> None:
    with pytest.raises(HeadwaterError, match=r"views.*--metrics"):
        run(site, "report", "wider", "--window", "1d")
    with pytest.raises(ConfigurationError, match="wider"):
        run(site, "report", "widr")
    with pytest.raises(ConfigurationError, match=r"--metrics .*nowhere\.toml: Cannot read the file"):
        run(site, "report", "wider", "--metrics", "nowhere.toml")
    with pytest.raises(ConfigurationError, match=r"--metrics .*: Cannot read the file"):
        run(site, "report", "wider", "--metrics", str(site))
    with pytest.raises(ConfigurationError, match="--window soon: Expected a duration"):
        run(site, "report", "wider", "--window", "soon")


def test_power_from_numbers_and_from_the_log(site: Path) -> None:
    by_hand = json.loads(
        run(site, "power", "--mean", "0.4", "--sd", "1.2", "--effect", "0.05", "--json").splitlines()[-1]
    )
    assert by_hand["days"] is None
    assert by_hand["fixed"] == pytest.approx(4 * 1.44 * (1.96 + 0.8416) ** 2 / 0.02**2, rel=0.001)
    measured = json.loads(run(site, "power", "--window", "1d", "--before", "2d", "--json").splitlines()[-1])
    assert measured["mean"] > 0.5
    assert measured["variance_ratio"] < 1.0
    assert measured["days"]["fixed"] > 0
    assert "all the time" in run(site, "power", "--mean", "0.4", "--sd", "1.2")
    with pytest.raises(ConfigurationError, match="belong together"):
        run(site, "power", "--mean", "0.4")
    with pytest.raises(ConfigurationError, match="clicks_per_user"):
        run(site, "power", "--metric", "clicks")


def test_the_guard_stops_what_does_harm_and_nothing_else(site: Path, tmp_path: Path) -> None:
    shutil.copytree(site, tmp_path / "site")
    folder = tmp_path / "site"
    path = folder_of(folder / "data") / "wider.toml"
    options = ("--window", "1d", "--before", "1d", "--json")
    said = json.loads(run(folder, "guard", *options, code=1).splitlines()[-1])["experiments"]
    assert said[0]["problem"].startswith('experiment "wider": there is no metric views')
    assert read_experiment(folder / "data", "wider").is_running
    good = path.read_text().replace(', "views"', "").replace("bound = 0.5", "bound = 9.0")
    path.write_text(good)
    said = json.loads(run(folder, "guard", *options).splitlines()[-1])["experiments"]
    assert [(one["decision"], one["stopped"], one["users"]) for one in said] == [("ship", False, USERS)]
    harmful = '[[guardrails]]\nmetric = "clicks_per_user"\ndirection = "increase"\nbound = 0.01\n[[variants]]\nname = "control"'
    path.write_text(good.replace('[[variants]]\nname = "control"', harmful))
    assert "stop: harm" in run(folder, "guard", *options[:-1], code=1)
    stopped = read_experiment(folder / "data", "wider")
    assert (stopped.status, stopped.stopped_ms) == ("stopped", START_MS + 75 * HOUR)
    assert "guardrail clicks_per_user is violated" in stopped.stopped_why
    assert "no experiment is running" in run(folder, "guard")
