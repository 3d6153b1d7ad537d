"""The quickstart and the how-to pages work as they are written, one after the other, in one folder with one server."""

from __future__ import annotations

import csv
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from headwater.cli.main import build_app
from tests.online.running import PATIENCE_S, Running

DOCS = Path(__file__).parent.parent / "docs"
ORDER = ("import", "rule", "experiment", "rollback", "explain", "key", "restore")
BLOCK = re.compile(r"^```(console|toml|python|csv)(?: title=\"([^\"]+)\")?\n(.*?)^```", re.DOTALL | re.MULTILINE)
HERE = "localhost:8080"  # where the pages have the server


class Reader:
    """Somebody who types what a page says: commands of ours in this process, all others in a shell."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server: Running | None = None

    def follow(self, page: Path) -> list[str]:
        """Do everything on the page; the output of each of its commands."""
        outputs = []
        for kind, title, body in BLOCK.findall(page.read_text(encoding="utf-8")):
            if kind == "console":
                outputs += [self._type(line.removeprefix("$ ")) for line in body.splitlines() if line.startswith("$ ")]
            elif title:
                (self.folder / title).write_text(body)
            elif match := re.match(r"# (added to )?([a-z_]+\.(?:py|toml))\n", body):
                with (self.folder / match[2]).open("a" if match[1] else "w") as file:
                    file.write(body)
            else:
                raise AssertionError(f"{page.name}: a block that is no file: {body}")
        return outputs

    def read(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())

    def _type(self, line: str) -> str:
        if line.startswith("cd "):
            self.folder /= line.removeprefix("cd ")
            os.chdir(self.folder)
            return ""
        if line == "headwater serve &":
            self.server = Running(self.folder, (self.folder / "headwater.toml").read_text(), ["--port", "0"])
            self.server.start()
            return ""
        command, _, target = line.partition(" > ")
        output = self._run(command)
        if target:
            (self.folder / target).write_text(output)
        return output

    def _run(self, command: str) -> str:
        if command.startswith("headwater "):
            words = shlex.split(self._shell(f"set -f; printf '%q ' {command.removeprefix('headwater ')}"))
            done = CliRunner().invoke(build_app(), words)
            if done.exception is not None and not isinstance(done.exception, SystemExit):
                raise done.exception
            assert done.exit_code == 0, f"{command}\n{done.output}"
            return done.stdout
        if command.startswith("python ") and command.endswith(".py"):
            runpy.run_path(command.removeprefix("python "))
            return ""
        if command.startswith("kill "):
            assert self.server is not None
            assert int((self.folder / "data/run/serve.lock").read_text()) == self.server.process.pid
            assert self.server.stop() == 0
            return ""
        if HERE in command:
            assert self.server is not None
            command = command.replace("curl ", "curl -sS --fail-with-body ", 1).replace(HERE, self.server.url)
        return self._shell(command)

    def _shell(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command], cwd=self.folder, capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """The one who has followed the quickstart."""
    with pytest.MonkeyPatch.context() as patch:
        reader = Reader(tmp_path_factory.mktemp("reader"))
        patch.chdir(reader.folder)
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        for name in ("HEADWATER_CONFIG", "HEADWATER_DATA", "HEADWATER_API_KEY"):
            patch.delenv(name, raising=False)
        reader.follow(DOCS / "quickstart.md")
        yield reader
        if reader.server is not None and reader.server.process.poll() is None:
            reader.server.stop()


def test_the_order_has_every_page() -> None:
    assert sorted(ORDER) == sorted(path.stem for path in (DOCS / "how-to").glob("*.md") if path.stem != "index")


def test_quickstart(reader: Reader) -> None:
    before, after = reader.read("before.json"), reader.read("after.json")
    assert len(before["items"]) == len(after["items"]) == 3
    assert after["address"]["user_offset"] >= int((reader.folder / "token").read_text())
    clicked = (reader.folder / "clicked").read_text().strip()
    assert clicked in [item["id"] for item in before["items"]]
    assert clicked not in [item["id"] for item in after["items"]]
    assert before["model"] == after["model"] != ""


def test_the_pages_in_order(reader: Reader) -> None:
    said = {name: reader.follow(DOCS / "how-to" / f"{name}.md") for name in ORDER}
    assert "3 accepted, 1 refused" in said["import"][1]
    with (reader.folder / "items.csv").open(encoding="utf-8") as file:
        category = {row["id"]: row["categories"] for row in csv.DictReader(file)}
    free, ruled = (
        Counter(category[item["id"]] for item in reader.read(f"{n}.json")["items"]) for n in ("free", "ruled")
    )
    assert "Yoga" in free, f"a rule that has something to do would be about one of {free}"
    assert "Yoga" not in ruled
    assert max(ruled.values()) <= 2
    assert "wide: running" in said["experiment"][-2]
    first, second = (output.splitlines() for output in (said["rollback"][1], said["rollback"][3]))
    assert first != second, "the rollback changed nothing"
    assert "seen by this user" in said["explain"][-1]
    assert reader.read("keyed.json")["items"]
    assert "1" in said["key"][-2]
    assert "no server: read from the log" in said["restore"][-1]
