"""The files in `deploy/`: what they start exists, and what systemd thinks of the unit."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headwater.cli.main import build_app

DEPLOY = Path(__file__).parent.parent / "deploy"


def accepted(words: list[str]) -> None:
    """Fails unless the command line knows command and options of ``words``, which start with the program."""
    assert Path(words[0]).name == "headwater"
    ran = CliRunner().invoke(build_app(), [*words[1:], "--help"])  # an option that does not exist fails before the help
    assert ran.exit_code == 0, ran.output


def test_the_unit_starts_a_command_that_exists() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's names have capitals
    unit.read(DEPLOY / "headwater.service")
    accepted(shlex.split(unit["Service"]["ExecStart"]))
    assert unit["Service"]["Restart"] == "always"
    assert unit["Service"]["User"] != "root"


def test_the_container_starts_a_command_that_exists_and_not_as_root() -> None:
    text = (DEPLOY / "Containerfile").read_text()
    command = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
    assert len(command) == 1
    accepted(json.loads(command[0]))
    assert re.findall(r"^USER (\w+)$", text, re.MULTILINE) == ["headwater"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on this machine")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    text = (DEPLOY / "headwater.service").read_text().replace("/opt/headwater/bin/headwater", "/bin/true")
    (tmp_path / "headwater.service").write_text(text)
    seen = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "headwater.service")], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert seen.returncode == 0, seen.stderr
    assert "headwater.service" not in seen.stderr, seen.stderr
