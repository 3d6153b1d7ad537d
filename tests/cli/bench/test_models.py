"""``headwater bench models`` times what it says."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from headwater.cli.main import build_app


def test_each_model_is_timed() -> None:
    result = CliRunner().invoke(
        build_app(), ["bench", "models", "--candidates", "20", "--recent", "5", "--repeats", "10", "--json"]
    )
    assert result.exit_code == 0, result.output
    figures = json.loads(result.output.splitlines()[-1])
    assert set(figures["calls"]) == {"deep", "light", "lightgbm", "encoder"}
    for found in figures["calls"].values():
        assert found["cpu_p50_ms"] > 0.0
        assert 0.0 < found["wall_p50_ms"] <= found["wall_p95_ms"]
    assert (figures["candidates"], figures["recent"]) == (20, 5)
