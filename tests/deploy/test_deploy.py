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
from headwater.online.roles import PARTS, Role

DEPLOY = Path(__file__).parent.parent.parent / "deploy"


def accepted(words: list[str]) -> None:
    """Fails unless the command line knows command and options of ``words``, which start with the program."""
    assert Path(words[0]).name == "headwater"
    ran = CliRunner().invoke(build_app(), [*words[1:], "--help"])  # an option that does not exist fails before the help
    assert ran.exit_code == 0, ran.output


@pytest.mark.parametrize("name", ["headwater", *(f"headwater@{role}" for role in PARTS if role is not Role.ALL)])
def test_a_unit_starts_a_command_that_exists(name: str) -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's names have capitals
    kind, at, role = name.partition("@")
    unit.read(DEPLOY / f"{kind}{at}.service")
    words = [word.replace("%i", role) for word in shlex.split(unit["Service"]["ExecStart"])]
    accepted([word for word in words if word != "$OPTIONS"])
    assert unit["Service"]["Restart"] == "always"
    assert unit["Service"]["User"] != "root"


def test_the_container_starts_a_command_that_exists_and_not_as_root() -> None:
    text = (DEPLOY / "Containerfile").read_text()
    command = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
    assert len(command) == 1
    accepted(json.loads(command[0]))
    assert re.findall(r"^USER (\w+)$", text, re.MULTILINE) == ["headwater"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on this machine")
@pytest.mark.parametrize(
    ("file", "name"), [("headwater.service", "headwater.service"), ("headwater@.service", "headwater@fold.service")]
)
def test_systemd_understands_the_units(tmp_path: Path, file: str, name: str) -> None:
    text = (DEPLOY / file).read_text().replace("/opt/headwater/bin/headwater", "/bin/true")
    (tmp_path / file).write_text(text)
    seen = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / name)], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert seen.returncode == 0, seen.stderr
    assert file not in seen.stderr, seen.stderr
