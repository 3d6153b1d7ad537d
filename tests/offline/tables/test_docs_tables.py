"""The worked example of ``docs/tables.md``: its files and commands, as they stand there."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from headwater.cli.main import build_app
from tests.offline.tables.worlds import DAY_MS, HOUR_MS

PAGE = (Path(__file__).parent.parent.parent.parent / "docs" / "tables.md").read_text(encoding="utf-8")
FIRST_MS = 1_767_225_600_000  # 2026-01-01
END_MS = FIRST_MS + 12 * DAY_MS + 18 * HOUR_MS


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


def shop(folder: Path) -> None:
    """A catalogue and twelve days of views."""
    (folder / "items.csv").write_text("id,categories\n" + "".join(f"item-{n},c{n % 3}\n" for n in range(20)))
    times = [*range(FIRST_MS + HOUR_MS, END_MS, 2 * HOUR_MS), END_MS]
    lines = [f"u{k % 5},item-{k % 20},view,{at}\n" for k, at in enumerate(times)]
    (folder / "history.csv").write_text("user,item,type,time\n" + "".join(lines))


def test_the_example_does_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in (*blocks("python"), *blocks("toml")):
        name = re.match(r"# (\S+)\n", block)
        assert name is not None
        (tmp_path / name[1]).write_text(block)
    shop(tmp_path)
    outputs: dict[str, str] = {}
    for line in "".join(blocks("console")).splitlines():
        program, *arguments = shlex.split(line.removeprefix("$ "))
        if program == "python":
            subprocess.run([sys.executable, *arguments], check=True, timeout=120)
            continue
        result = CliRunner().invoke(build_app(), arguments)
        assert result.exit_code == 0, result.output
        outputs[" ".join(arguments[:2])] = result.stdout
    said = json.loads(outputs["features load"].splitlines()[-1])
    assert said == json.loads(blocks("json")[0])
    assert re.search(r"table quality: 0 rows as loaded, \d+ from before", outputs["features materialize"])
    rows = pl.read_parquet(tmp_path / "rows").sort("now_ms")
    assert len(rows) > 100
    for row in rows.iter_rows(named=True):
        number = int(row["item_id"].removeprefix("item-"))
        night = (row["now_ms"] - FIRST_MS - 2 * HOUR_MS) // DAY_MS
        if night < 0:
            assert (row["quality"], row["reviews"]) == (0.5, 0.0)
        else:
            assert row["quality"] == pytest.approx(0.5 + (number * 7 + night) % 10 / 20)
            assert row["reviews"] == number + night
