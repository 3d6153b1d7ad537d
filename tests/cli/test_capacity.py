"""How many cores a product needs: the arithmetic, and what it is made from."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from headwater.cli.capacity import calibrated, read_calibration
from headwater.cli.main import build_app
from headwater.cli.sizing import GIB, Calibration, Product, sized
from headwater.schema.errors import ConfigurationError, HeadwaterError

SEEN = Calibration(
    ms_per_request=2.0, capacity_rps=450.0, p99_ms=8.0, ms_per_event=0.05, writer_ms_per_event=0.02,
    fold_ms_per_event=0.01, log_bytes_per_event=128.0, state_bytes_per_user=400.0, identity_bytes_per_user=100.0,
    item_bytes=2_048.0, items=50_000, ranker="lightgbm", machine={"cpu": "one of them", "cores": 2}, versions={"numpy": "2"},
)  # fmt: skip
PRODUCT = Product(
    daily_users=5_000_000, users=50_000_000, requests=20.0, events=100.0, items=50_000, peak=4.3, headroom=2.0
)
SERVE = {
    "cpu_ms_by_part": {"api": 1.5, "writer": 0.3, "fold": 0.2, "supervisor": 0.0}, "capacity_rps": 450.0, "p99_ms": 8.0,
    "items": 50_000, "ranker": "lightgbm", "machine": {"cpu": "one of them", "cores": 2}, "versions": {"numpy": "2"},
}  # fmt: skip
INGEST = {
    "events_per_s": 10_000.0, "duration_s": 10.0, "cpu_s_by_part": {"api": 2.0, "writer": 2.0, "fold": 1.0, "supervisor": 0.0}
}  # fmt: skip
MEMORY = {"state_bytes_per_user": 400.0, "identity_bytes_per_user": 100.0}


def test_the_product_of_the_design() -> None:
    needs = sized(PRODUCT, SEEN)
    assert needs.requests_per_s_mean == pytest.approx(100e6 / 86_400)  # 1,157/s
    assert needs.requests_per_s_peak == pytest.approx(4.3 * 100e6 / 86_400)
    assert needs.events_per_s_peak == pytest.approx(24_884, abs=1)
    assert needs.serving_cores == pytest.approx(4_977 * 0.002, abs=0.01)
    assert needs.ingest_cores == pytest.approx(24_884 * 0.00005, abs=0.001)
    assert needs.cores == pytest.approx(2 * (needs.serving_cores + needs.ingest_cores))
    assert needs.core_seconds_per_million_requests == pytest.approx(2_000.0)
    assert needs.state_gib == pytest.approx(50e6 * 400 / GIB)
    items = 50_000 * 2_048 / GIB
    assert needs.memory_gib == pytest.approx(50e6 * 500 / GIB + items * (1 + 2 * needs.serving_cores))
    assert needs.log_gib_a_day == pytest.approx(500e6 * 128 / GIB)
    assert needs.machine_limit_events_per_s == pytest.approx(50_000.0)
    assert needs.notes == []


def test_what_one_machine_cannot_do_is_said() -> None:
    busy = msgspec.structs.replace(SEEN, writer_ms_per_event=0.05, capacity_rps=200.0)
    notes = sized(msgspec.structs.replace(PRODUCT, items=200_000), busy).notes
    for note, word in zip(notes, ("several machines", "--items 200000", "headroom"), strict=True):
        assert word in note


def test_a_calibration_comes_from_the_benchmarks() -> None:
    made = calibrated(SERVE, INGEST, MEMORY, 128.0)
    assert made.ms_per_request == pytest.approx(2.0)
    assert (made.ms_per_event, made.writer_ms_per_event, made.fold_ms_per_event) == pytest.approx((0.05, 0.02, 0.01))
    assert made.item_bytes > 1_000
    with pytest.raises(HeadwaterError, match="no rate that this machine holds"):
        calibrated({**SERVE, "capacity_rps": None}, INGEST, MEMORY, 128.0)


def test_the_command_reads_a_calibration(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_bytes(msgspec.json.encode(SEEN))
    ran = CliRunner().invoke(build_app(), ["capacity", "--calibration", str(path), "--daily-users", "864000", "--json"])
    assert ran.exit_code == 0, ran.output
    needs = msgspec.json.decode(ran.stdout)["needs"]
    assert needs["requests_per_s_mean"] == pytest.approx(200.0)
    shown = CliRunner().invoke(build_app(), ["capacity", "--calibration", str(path)])
    assert "core-seconds per million requests" in shown.stdout
    assert "2,000" in shown.stdout


@pytest.mark.parametrize("text", [None, "{", "{}", '{"ms_per_request": 1}'])
def test_what_is_no_calibration_is_refused_by_name(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "calibration.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigurationError, match="calibrat") as refused:
        read_calibration(path)
    assert str(path) in str(refused.value)
    assert "--calibrate" in str(refused.value)
