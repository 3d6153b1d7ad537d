"""From a log to a bundle with its statistics; and no bundle from features that serving has otherwise."""

from __future__ import annotations

import json
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from headwater.cli.local import Site, make_site, write_world
from headwater.cli.main import build_app
from headwater.evaluation.checks import MismatchError, checks_dir, last_check
from headwater.features.plan import compile_plan
from headwater.features.statistics import STATISTICS_FILE, Statistics
from headwater.learning.trainingset import build_training_set
from headwater.log.lmdb import LmdbLog
from headwater.log.writer import open_writer
from headwater.offline.train import TrainReport, train
from headwater.registry.audit import Author
from headwater.registry.registry import Registry
from headwater.schema.config import load_config
from headwater.schema.requests import Address
from headwater.simulator import World
from tests.evaluation.served import entry, rows_of

START_MS = 1_760_313_600_000
ITEMS = [3, 1, 7]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A small world in a log; tests serve lists of their own."""
    site = make_site(
        tmp_path_factory.mktemp("train"),
        {
            "ranker": {"trees": 3, "leaves": 4, "negatives": 3, "max_rows": 1_200},
            "gate": {"enabled": False},  # all of the log is trained on
        },
    )
    world = World(3, start_ms=START_MS, users=120, items=100, hours=24, visits_per_day=4.0)
    hours: list[int] = []
    write_world(site, world, hours.append)
    return site


def serve(site: Site, *, flip: str | None = None) -> None:
    """Log a list with its feature rows; ``flip``: with one wrong bit in the column of that name."""
    config = load_config(site.config)
    plan = compile_plan(config)
    with open_writer(site.data, clock=lambda: START_MS, segment_keys=config.segments.keys) as writer:
        log = LmdbLog(site.data / "log", readonly=True)
        try:
            address = Address(log.last_offset, log.last_offset - 2, log.last_received_ms + 9, plan.hash, "none")
            rows = rows_of(log, plan, 2, ITEMS, address, [0, 0, 0, 0])
        finally:
            log.close()
        if flip is not None:
            rows.view(np.uint32)[1, plan.columns.index(flip)] ^= 1
        writer.append_served([entry(2, ITEMS, address, [0, 0, 0, 0], rows.tobytes())])


def trained(site: Site, *, allow_mismatch: bool = False, created_ms: int = START_MS) -> TrainReport:
    log = LmdbLog(site.data / "log", readonly=True)
    try:
        return train(
            load_config(site.config), log, site.data / "models", created_ms=created_ms, checks=checks_dir(site.data), promote=Author("cli", lambda: created_ms),
            allow_mismatch=allow_mismatch, threads=1,
        )  # fmt: skip
    finally:
        log.close()


def run(site: Site, *command: str) -> tuple[int, str]:
    done = CliRunner().invoke(build_app(), [*command, "--config", str(site.config), "--data", str(site.data)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout


def test_the_bundle_holds_the_statistics_of_its_rows(site: Site) -> None:
    config = load_config(site.config)
    plan = compile_plan(config)
    report = trained(site)
    bundle = Registry(site.data / "models").load(report.bundle, plan_hash=plan.hash)
    assert "allow_mismatch" not in bundle.manifest.training
    assert STATISTICS_FILE in bundle.manifest.files
    log = LmdbLog(site.data / "log", readonly=True)
    try:
        rows = build_training_set(
            log, plan, config, until=log.last_offset, start_ms=0, groups=300, seed=config.ranker.seed
        ).features
    finally:
        log.close()
    statistics = Statistics.decode(bundle.files[STATISTICS_FILE])
    assert statistics.plan == plan.hash
    for feature, cells in zip(statistics.read(), rows.T, strict=True):
        assert (feature.count, feature.smallest, feature.largest) == (len(rows), cells.min(), cells.max())
    assert trained(site).bundle == report.bundle  # to the byte

    code, out = run(site, "features", "stats", "--json")
    said = json.loads(out.splitlines()[-1])
    assert code == 0
    assert (said["bundle"], said["plan"]) == (report.bundle, plan.hash)
    assert [feature["name"] for feature in said["features"]] == list(plan.columns)
    code, out = run(site, "features", "stats", "--bundle", report.bundle)
    assert code == 0
    assert all(name in out for name in plan.columns)


def test_what_serving_has_otherwise_trains_nothing(site: Site) -> None:
    config = load_config(site.config)
    plan = compile_plan(config)
    checks = checks_dir(site.data)
    serve(site)
    code, _ = run(site, "features", "verify")
    assert code == 0
    trained(site)

    serve(site, flip="item_age")
    code, out = run(site, "features", "verify", "--json")
    assert code == 1
    report = last_check(checks, plan.hash)
    assert report is not None
    assert msgspec.json.encode(report) == out.splitlines()[-1].encode()
    assert (report.requests, report.mismatched_bytes, report.failed) == (2, 1, ("item_age",))

    before = Registry(site.data / "models").list()
    with pytest.raises(MismatchError, match=r"disagree on item_age: 1 bytes in 1 of 2 requests.*--allow-mismatch"):
        trained(site, created_ms=START_MS + 1)
    with pytest.raises(MismatchError):
        run(site, "train")
    assert Registry(site.data / "models").list() == before

    forced = trained(site, allow_mismatch=True, created_ms=START_MS + 2)
    assert forced.allowed_mismatch == ("item_age",)
    manifest = Registry(site.data / "models").load(forced.bundle, plan_hash=plan.hash).manifest
    assert manifest.training["allow_mismatch"] == "item_age"

    code, out = run(site, "features", "verify", "--since", str(report.last_offset + 1))
    assert code == 1  # nothing was served since: the report stays
    assert "0 requests" in out
    with pytest.raises(MismatchError):
        trained(site, created_ms=START_MS + 3)
    serve(site)
    code, out = run(site, "features", "verify", "--since", str(report.last_offset + 1))
    assert code == 0
    assert "1 requests, 3 rows, 0 mismatched bytes" in out
    assert trained(site, created_ms=START_MS + 4).allowed_mismatch == ()


def test_since_may_be_a_time(site: Site) -> None:
    serve(site)
    assert run(site, "features", "verify", "--since", "2100-01-01")[1].startswith("0 requests")
    assert not run(site, "features", "verify", "--since", "1970-01-01")[1].startswith("0 requests")
