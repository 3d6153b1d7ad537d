"""``headwater drift`` on a data directory: what it says, and its exit code."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from typer.testing import CliRunner

from headwater.cli.drift import drifted, nested
from headwater.cli.main import build_app
from headwater.features.plan import compile_plan
from headwater.log.lmdb import LmdbLog
from headwater.log.protocol import Commit, Term
from headwater.log.record import Namespace
from headwater.monitoring.samples import sample
from headwater.schema.config import load_config
from headwater.schema.errors import ConfigurationError
from tests.monitoring.logs import CLICK, START_MS, VIEW, Rows, Traffic, publish

SETTINGS = 'clock = "log"\n[monitoring.drift]\nreference = "8h"\nwindow = "2h"\nmin_rows = 1000\n'


def constant(rows: Rows) -> Rows:
    return np.where(np.arange(4) == 1, np.float32(0.25), rows)


def site(folder: Path, *, broken: bool) -> list[str]:
    """A data directory of 14 hours, whose last four have a constant feature; returns the options that name it."""
    config = folder / "headwater.toml"
    config.write_text(SETTINGS)
    plan = compile_plan(load_config(config)).hash
    traffic = Traffic(publish(folder / "data" / "models", START_MS, plan), plan=plan)
    traffic.run(10)
    traffic.run(4, **({"shift": constant} if broken else {}))  # type: ignore[arg-type]
    log = LmdbLog(folder / "data" / "log")
    terms: tuple[Term, ...] = (Term(Namespace.EVENT_TYPE, VIEW, "view"), Term(Namespace.EVENT_TYPE, CLICK, "click"))
    while (block := traffic.log.read(log.last_offset)) is not None:
        log.append(Commit(block, terms))
        terms = ()
    log.close()
    return ["--config", str(config), "--data", str(folder / "data")]


def test_a_site_that_is_as_it_was(tmp_path: Path) -> None:
    done = CliRunner().invoke(build_app(), ["drift", *site(tmp_path, broken=False)])
    assert done.exit_code == 0, done.output
    assert "drifted: nothing" in done.output
    assert "normal" in done.output


def test_a_feature_that_went_constant_is_named(tmp_path: Path) -> None:
    options = site(tmp_path, broken=True)
    done = CliRunner().invoke(build_app(), ["drift", *options, "--json"])
    assert done.exit_code == 1, done.output
    said = msgspec.json.decode(done.output.strip().splitlines()[-1])
    assert said["drifted"] == ["feature_dead heavy", "feature heavy"]
    assert said["feature_psi"]["heavy"] > said["feature_psi_null"]["heavy"]
    assert said["feature_psi"]["normal"] < said["feature_psi_null"]["normal"]
    done = CliRunner().invoke(build_app(), ["drift", *options, "--reference", "5d"])
    assert done.exit_code == 1  # what the bundle brought along says that it is dead
    assert "drifted: feature_dead heavy" in done.output
    assert "no window was judged yet" in done.output


def test_a_data_directory_without_served_lists_is_told(tmp_path: Path) -> None:
    LmdbLog(tmp_path / "log").close()
    done = CliRunner().invoke(build_app(), ["drift", "--data", str(tmp_path)])
    assert done.exit_code != 0
    assert "no bundle served a list" in str(done.exception)


def test_a_window_that_is_no_duration_is_told(tmp_path: Path) -> None:
    done = CliRunner().invoke(build_app(), ["drift", "--data", str(tmp_path), "--window", "soon"])
    assert isinstance(done.exception, ConfigurationError)
    assert str(done.exception).startswith("--window soon: Expected a duration")


def test_samples_in_words() -> None:
    samples = [
        sample("headwater_feature_drifted", 1.0, feature="ctr"), sample("headwater_features_drifted", 1.0),
        sample("headwater_event_volume_off", 1.0, type="click"), sample("headwater_calibration_off", 0.0),
    ]  # fmt: skip
    assert drifted(samples) == ["feature ctr", "event_volume click"]
    assert nested(samples)["feature_drifted"] == {"ctr": 1.0}
