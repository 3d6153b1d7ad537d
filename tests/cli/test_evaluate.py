"""``headwater evaluate`` from a file to a report."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from headwater.cli.main import build_app
from headwater.schema.errors import ConfigurationError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve people with five clicks each, by place instead of time; nearly all go through the items in one order."""
    lines = ["user,item,place"]
    lines += [f"u{user},i{(user % 3 + place * (1 + user % 2)) % 9},{place}" for user in range(12) for place in range(5)]
    (tmp_path / "clicks.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "headwater.toml").write_text("[sources.item_knn]\nenabled = true\n")
    common = ["--config", str(tmp_path / "headwater.toml"), "--data", str(tmp_path / "data")]
    result = CliRunner().invoke(
        build_app(),
        ["import", "events", str(tmp_path / "clicks.csv"), *common, "--map", "place=time", "--set", "type=click",
         "--time-unit", "s", "--sort"],
        catch_exceptions=False,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return tmp_path


def run(data: Path, *arguments: str) -> str:
    common = ["--config", str(data / "headwater.toml"), "--data", str(data / "data")]
    result = CliRunner().invoke(build_app(), ["evaluate", *common, *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_leave_one_out_writes_what_it_prints(data: Path) -> None:
    output = run(data, "--protocol", "loo", "--out", str(data / "report"), "--json")
    report = msgspec.json.decode(output.strip().splitlines()[-1])
    assert (report["protocol"], report["n"], report["data"]["last_offset"] > 60) == ("loo", 12, True)
    assert set(report["models"]) == {"recent_popularity", "popularity", "item_knn"}
    for model in report["models"].values():
        assert {"hr@10", "ndcg@10", "mrr", "coverage", "ci95", "train_s", "peak_mb"} <= set(model)
    assert msgspec.json.decode((data / "report" / "report.json").read_bytes()) == report
    assert "item_knn" in (data / "report" / "report.md").read_text()
    assert (data / "report" / "report.svg").read_text().startswith("<svg")
    assert "item_knn" in run(data, "--protocol", "loo", "--part", "validation")


def test_options_of_another_protocol_are_refused(data: Path) -> None:
    with pytest.raises(ConfigurationError, match="--split, --until and --window"):
        run(data, "--protocol", "loo", "--split", "2017-10-12")
