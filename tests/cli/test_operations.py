"""Archive, retain, backup, restore and erase, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from headwater.cli.main import build_app
from headwater.cli.options import EXIT_CHECK_FAILED
from headwater.log.environment import StoreError
from headwater.offline.backup import BackupError
from headwater.registry.audit import read_audit
from headwater.schema.errors import ConfigurationError
from tests.offline.sites import Clock, fill, user, writer_of


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory with four days of records, and a configuration that goes by its clock."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "headwater.toml").write_text(
        'clock = "log"\n[log]\ndedup_window = 1000\nmap_size_gib = 1.0\n[retention]\nlog = "2d"\n'
    )
    clock = Clock()
    with writer_of(tmp_path / "data", clock) as writer:
        fill(writer, clock, commits=400, seed=1, step_ms=900_000)
    return tmp_path


def run(*arguments: str, code: int = 0) -> str:
    """Standard output of a command that ends with ``code``."""
    done = CliRunner().invoke(build_app(), list(arguments))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.stdout


def answer(*arguments: str, code: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", code=code).splitlines()[-1])


def test_a_drill(folder: Path) -> None:
    archived = answer("archive", "--once")
    assert archived["records"] == archived["last_offset"] > 2_500
    assert "the lake holds offsets 1 to" in run("archive", "--once")
    kept = answer("retain")
    assert kept["log_removed"] == kept["log_first_offset"] - 1 > 200
    assert kept["first_offset"] == 1
    assert "0 records left the log" in run("retain", "--log-days", "3")
    made = answer("backup", "b")
    assert made["last_offset"] == archived["last_offset"]
    done = answer("erase", user(3), user(4), "nobody-of-that-name")
    assert (done["erased"], done["unknown"], done["recoverable"]) == (2, 1, 0)
    assert user(3) not in json.dumps(done)
    (entry,) = read_audit(folder / "data")
    assert (entry.by, entry.action, entry.subject) == ("cli", "user.erase", "3 users")  # and not who
    with pytest.raises(ConfigurationError, match="Leave ids out of it"):
        run("erase", user(5), "--reason", f"{user(5)} asked for it")
    (folder / "ids").write_text(f"{user(5)}\n{user(6)}\n")
    assert "0 recoverable ids" in run("erase", "--file", "ids")
    back = answer("restore", "b", "--data", "there", "--erasures-from", "data")
    assert (back["erased"], back["last_offset"]) == (4, made["last_offset"] + 4)
    assert "users were erased again" in run("restore", "b", "--data", "other", "--no-erasures")
    assert answer("archive", "--once", "--data", "there")["records"] == 4


def test_mistakes_say_what_to_do(folder: Path) -> None:
    with pytest.raises(StoreError, match="start the writer first"):
        run("archive", "--once", "--data", "nowhere")
    with pytest.raises(ConfigurationError, match="at least one user"):
        run("erase")
    run("backup", "b")
    with pytest.raises(ConfigurationError, match="--erasures-from PATH"):
        run("restore", "b", "--data", "there")
    with pytest.raises(BackupError, match="not empty"):
        run("restore", "b", "--no-erasures")
    with pytest.raises(BackupError, match="this is no backup"):
        run("restore", "data", "--data", "there", "--no-erasures")


def test_what_is_found_is_a_failed_check(folder: Path) -> None:
    (folder / "data" / "models").mkdir()
    (folder / "data" / "models" / "card.txt").write_text(f"trained for {user(7)}")
    found = answer("erase", user(7), code=EXIT_CHECK_FAILED)
    assert found["recoverable"] == 1
    assert [part["part"] for part in found["searched"] if part["hits"]] == ["models"]
    assert answer("erase", user(7), "--no-search")["searched"] == []
