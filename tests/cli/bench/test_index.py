"""``headwater bench index`` measures what it says."""

from __future__ import annotations

import msgspec
import numpy as np
from typer.testing import CliRunner

from headwater.cli.bench.index import clustered
from headwater.cli.main import build_app


def test_it_reports_every_size_and_the_choice() -> None:
    result = CliRunner().invoke(
        build_app(), ["bench", "index", "--items", "500,700", "--dim", "8", "--queries", "20", "--json"]
    )
    assert result.exit_code == 0, result.output
    figures = msgspec.json.decode(result.output.strip().splitlines()[-1])
    assert list(figures["choices"]) == ["500", "700"]
    assert figures["choices"]["700"]["kind"] == "exact"
    assert figures["choices"]["700"]["exact"]["recall"] == 1.0
    assert {"seed", "machine", "versions", "dim", "k"} <= set(figures)


def test_numbers_that_are_none_are_refused() -> None:
    result = CliRunner().invoke(build_app(), ["bench", "index", "--items", "many"])
    assert result.exit_code != 0


def test_vectors_are_of_the_seed() -> None:
    first, again, other = (clustered(50, 4, 5, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])
