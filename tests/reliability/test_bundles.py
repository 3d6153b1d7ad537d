"""Bad bundles and swaps, in short; ``HEADWATER_SWAPS=20`` with ``HEADWATER_REQUESTS=100000`` makes the swaps the full ones."""

from __future__ import annotations

import os
from pathlib import Path

from tests.reliability import bundles, swaps


def test_no_bad_bundle_is_loaded(tmp_path: Path) -> None:
    outcome = bundles.run(tmp_path)
    print(outcome)  # noqa: T201
    assert outcome.served == []
    assert not outcome.ran
    assert outcome.failed == 0
    assert outcome.still_serving
    said = {
        "pickle": "may not hold", "disguised pickle": "pickle", "external data": "external data", "NaN weights": "NaN",
        "NaN leaf": "not finite", "wrong plan": "plan another-plan", "no model": "holds no", "truncated ONNX": "no whole ONNX",
        "truncated": "truncated", "wrong hash": "SHA-256", "altered manifest": "altered", "earlier format": "format 1",
    }  # fmt: skip
    assert set(outcome.refused) == set(said)
    for kind, words in said.items():
        assert words in outcome.refused[kind], kind
    assert outcome.good


def test_swaps_fail_no_request_and_mix_no_list(tmp_path: Path) -> None:
    requests = int(os.environ.get("HEADWATER_REQUESTS", "400"))
    outcome = swaps.run(
        tmp_path, swaps=int(os.environ.get("HEADWATER_SWAPS", "4")), requests=requests, rate=50.0, seed=7
    )
    print(outcome)  # noqa: T201  (the seed stands in it)
    assert outcome.requests >= requests
    assert (outcome.failed, outcome.mixed) == (0, 0)
    assert outcome.taken_up == outcome.swaps
