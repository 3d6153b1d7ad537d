"""The command line as a person meets it: help, exit codes, init, import, doctor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headwater.cli import main as command_line
from headwater.cli.main import build_app
from headwater.cli.options import parse_time, settings
from headwater.schema.config import Config, load_config
from headwater.schema.errors import ConfigurationError, HeadwaterError, UnavailableError
from tests.command_tree import command_tree

HEAVY = ("numpy", "numba", "polars", "pyarrow", "lightgbm", "litestar", "lmdb", "scipy")


COMMANDS = command_tree()


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.chdir(tmp_path)
    return CliRunner()


def exit_code(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["headwater", *arguments])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    return int(ended.value.code or 0)


def test_times_of_options() -> None:
    assert parse_time("--until", None) is None
    assert parse_time("--until", "1970-01-02") == parse_time("--until", "1970-01-02T02:00:00+02:00") == 86_400_000
    assert parse_time("--at", "1970-01-01T00:00:00.001Z") == 1
    with pytest.raises(ConfigurationError, match=r"^--split soon: Expected a time like 2017"):
        parse_time("--split", "soon")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    assert CliRunner().invoke(build_app(), [*name.split(), "--help"]).exit_code == 0
    assert f"Example: headwater {name}" in COMMANDS[name]


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from headwater.cli.main import build_app
build_app()
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("error", "code"),
    [(HeadwaterError("no"), 2), (ConfigurationError("no"), 2), (UnavailableError("no"), 3)],
)
def test_errors_become_exit_codes(
    error: HeadwaterError, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("headwater.cli.doctor._checks", fail)
    assert exit_code(["doctor"], monkeypatch) == code
    assert capsys.readouterr().err == "headwater: no\n"


def test_a_folder_that_cannot_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert exit_code(["serve", "--data", str(tmp_path / "file" / "data")], monkeypatch) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"headwater: {tmp_path / 'file'}")


def test_wrong_arguments_end_with_2(monkeypatch: pytest.MonkeyPatch) -> None:
    assert exit_code(["doctor", "--nothing"], monkeypatch) == 2
    assert exit_code(["nothing"], monkeypatch) == 2
    assert exit_code(["--version"], monkeypatch) == 0


def test_init_writes_the_defaults_once(runner: CliRunner, tmp_path: Path) -> None:
    assert runner.invoke(build_app(), ["init", "shop"]).exit_code == 0
    path = tmp_path / "shop" / "headwater.toml"
    assert load_config(path) == Config()
    path.write_text("clock = 'log'\n")
    refused = runner.invoke(build_app(), ["init", "shop"])
    assert isinstance(refused.exception, ConfigurationError)
    assert path.read_text() == "clock = 'log'\n"
    assert runner.invoke(build_app(), ["init", "shop", "--force"]).exit_code == 0
    assert load_config(path) == Config()


def test_settings_come_from_options_then_the_folder_then_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert settings(None, None).data == Path("data")
    assert settings(None, None).config_path is None
    (tmp_path / "headwater.toml").write_text("data_dir = 'here'\n")
    assert settings(None, None).data == Path("here")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "other.toml").write_text("data_dir = 'there'\n")
    assert settings(Path("sub/other.toml"), None).data == Path("sub/there")
    assert settings(Path("sub/other.toml"), Path("x")).data == Path("x")


def test_import_events_prints_one_json_object(runner: CliRunner, tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("who,item,ts\nu,a,1506816000\n,b,1506816001\n")
    arguments = ["import", "events", "e.csv", "--map", "who=user", "--map", "ts=time", "--set", "type=click"]
    result = runner.invoke(build_app(), [*arguments, "--time-unit", "s", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.splitlines()[-1])
    assert {"rows", "accepted", "rejected", "rows_per_s"} <= set(report)
    assert (report["rows"], report["accepted"], report["rejected"]) == (2, 1, {"user: missing": 1})
    assert "rows were refused" in result.stderr
    again = runner.invoke(build_app(), [*arguments, "--time-unit", "s"])
    assert "0 accepted" in again.stdout


def test_import_items_then_doctor(runner: CliRunner, tmp_path: Path) -> None:
    (tmp_path / "i.csv").write_text("id,title\na,One\n")
    imported = runner.invoke(build_app(), ["import", "items", "i.csv", "--at", "2017-10-01", "--json"])
    assert json.loads(imported.stdout.splitlines()[-1])["accepted"] == 1
    result = runner.invoke(build_app(), ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.splitlines()[-1])
    by_name = {check["name"]: check for check in report["checks"]}
    assert report["healthy"]
    assert by_name["log"]["figures"]["offset"] > 0
    assert by_name["fsync"]["figures"]["median_ms"] > 0
    assert "no plan in service" in by_name["state"]["detail"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--map", "user"], "--map user: Expected NAME=NAME"),
        (["--time-unit", "hours"], "--time-unit hours: Expected s, ms, us, ns or iso"),
        (["--config", "absent.toml"], "absent.toml: Cannot read the configuration"),
    ],
)
def test_wrong_import_options_are_named(runner: CliRunner, arguments: list[str], message: str) -> None:
    result = runner.invoke(build_app(), ["import", "events", "e.csv", *arguments])
    assert isinstance(result.exception, HeadwaterError)
    assert message in str(result.exception)


def test_doctor_ends_with_1_when_a_check_fails(runner: CliRunner, tmp_path: Path) -> None:
    (tmp_path / "headwater.toml").write_text("[serving]\nprt = 1\n")
    result = runner.invoke(build_app(), ["doctor", "--json"])
    assert result.exit_code == 1
    report = json.loads(result.stdout.splitlines()[-1])
    failed = [check for check in report["checks"] if check["level"] == "fail"]
    assert [check["name"] for check in failed] == ["configuration"]
    assert "did you mean `serving.port`" in failed[0]["detail"]


def test_doctor_reads_for_people(runner: CliRunner) -> None:
    result = runner.invoke(build_app(), ["doctor"])
    assert result.exit_code == 0
    assert "writer" in result.stdout
