"""``headwater bench world`` counts what it says."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from headwater.cli.main import build_app


def test_choices_are_counted() -> None:
    sizes = ["--users", "300", "--items", "300", "--lists", "2000", "--batch", "500"]
    result = CliRunner().invoke(build_app(), ["bench", "world", *sizes, "--json"])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.output.splitlines()[-1])
    assert figures["choices"] == 7 * 300  # everybody at once is fewer than a batch
    assert figures["choices_per_s"] > 0
    assert figures["items_judged_per_s"] >= 9 * figures["choices_per_s"]
    assert 0.0 < figures["ctr"] < 0.2
