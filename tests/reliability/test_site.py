"""What one running system on a small disk survives, in short: malformed events, odd requests, new workers, a full disk."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.online.running import Running, catalogue
from tests.reliability import disk_full, malformed
from tests.reliability.load import Asker
from tests.reliability.rows import BEGIN, END, PAGE, ROWS, saved, table
from tests.reliability.swaps import restart

DISK_MB = 48


class Site(Running):
    """Whether its disk is a small one of its own."""

    small: bool


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("small")
    with ExitStack() as stack:
        try:
            stack.enter_context(disk_full.small_disk(folder / "data", DISK_MB))
            small = True
        except disk_full.NoMountError:
            small = False
        running = stack.enter_context(Site(folder, disk_full.config_for(DISK_MB)))
        running.small = small
        running.ingest("/v1/items", catalogue(100))
        yield running


def test_malformed_events_cost_nobody_else(site: Site) -> None:
    outcome = malformed.send(site.url, site.data, events=2_000, share=0.1, seed=7)
    print(outcome)  # noqa: T201  (the seed stands in it)
    assert outcome.good
    assert outcome.malformed > 100


def test_odd_requests_get_documented_answers(site: Site, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis", reason="schemathesis comes with the extra `dev`")
    from tests.reliability import fuzz

    outcome = fuzz.run(site, tmp_path, cases=300, texts=4_500, seed=7)
    print(outcome)  # noqa: T201
    assert outcome.good
    assert {"200", "400"} <= set(outcome.statuses)
    assert 0 < outcome.refused_texts < outcome.texts


def test_workers_restart_without_a_failed_request(site: Site) -> None:
    asker = Asker(site.url, seed=7, users=50, k=5, pause_s=0.005)
    asker.start()
    try:
        assert asyncio.run(restart(site))
    finally:
        asker.stop()
    assert asker.answered > 20
    assert (asker.retried, asker.failed) == (0, 0)


def test_a_full_disk_loses_nothing_and_heals(site: Site) -> None:
    if not site.small:
        pytest.skip("a small disk cannot be mounted here: it takes root")
    outcome = disk_full.fill(site, disk_mb=DISK_MB, full_s=2.0, seed=7)
    print(outcome)  # noqa: T201
    assert (outcome.lost, outcome.requests_failed) == (0, 0)
    assert set(outcome.answers) <= {"503", "507"}
    assert outcome.clear
    assert outcome.acked > 1_000


def test_the_table_of_the_documentation_is_what_was_seen() -> None:
    _, _, rest = PAGE.read_text().partition(BEGIN)
    assert rest.partition(END)[0] == table(saved())
    folder = Path(__file__).parent
    for row in ROWS:
        if row.check.startswith("redis_"):  # come with the checks of a Redis that is away
            continue
        check = Path(row.check) if row.check.endswith(".py") else Path("tests", "reliability", f"{row.check}.py")
        assert (folder.parents[1] / check).is_file(), f"row {row.number} has no check {check}"
