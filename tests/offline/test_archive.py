"""The archive job: each record in the lake once, whatever dies when."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headwater.log.environment import StoreError
from headwater.log.lake import LakeLog, app_id, lake_dir, open_table
from headwater.log.lmdb import LmdbLog
from headwater.log.writer import LogWriter
from headwater.offline.archive import Archiver, ArchiveReport
from tests.offline.sites import Clock, fill, records_of, writer_of

STEPS = ("created", "written", "synced", "committed", "done")


class DiedError(Exception):
    """The process ended here."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, LogWriter, Clock]]:
    clock = Clock()
    with writer_of(tmp_path, clock) as writer:
        fill(writer, clock, commits=40, seed=1)
        yield tmp_path, writer, clock


def archive(
    data: Path, *, commit_bytes: int = 12_000, on_step: Callable[[str], object] = lambda _: None
) -> ArchiveReport:
    archiver = Archiver(data, commit_bytes=commit_bytes, on_step=on_step)
    try:
        return archiver.run()
    finally:
        archiver.close()


def assert_each_once(data: Path) -> None:
    log, lake = LmdbLog(data / "log", readonly=True), LakeLog(lake_dir(data))
    assert records_of(lake) == records_of(log)
    log.close()
    named = {file.path for file in lake.files}
    assert {path.name for path in lake_dir(data).glob("*") if path.is_file()} == named


def test_a_second_run_adds_nothing(site: tuple[Path, LogWriter, Clock]) -> None:
    data, writer, clock = site
    first = archive(data)
    assert (first.first_offset, first.last_offset, first.records) == (1, writer.last_offset, writer.last_offset)
    assert first.commits > 1
    assert_each_once(data)
    again = archive(data)
    assert (again.records, again.commits, again.version) == (0, 0, first.version)
    fill(writer, clock, commits=5, seed=2)
    more = archive(data)
    assert more.records == writer.last_offset - first.last_offset
    assert_each_once(data)
    table = open_table(lake_dir(data))
    assert table.transaction_version(app_id(LakeLog(lake_dir(data)).log_id)) == writer.last_offset


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_dying_between_any_two_steps_loses_and_doubles_nothing(
    site: tuple[Path, LogWriter, Clock], step: str, which: int
) -> None:
    """The run dies at its ``which``-th time at a step; the log goes on; the next run makes it good."""
    data, writer, clock = site
    seen = itertools.count()

    def die(at: str) -> None:
        if at == step and next(seen) == which:
            raise DiedError

    if step == "created" and which:
        pytest.skip("a table is made once")
    with pytest.raises(DiedError):
        archive(data, on_step=die)
    fill(writer, clock, commits=3, seed=3)
    archive(data, commit_bytes=7_000)  # other pieces than the run that died
    assert_each_once(data)


@pytest.mark.parametrize("keep", [0.0, 0.2, 0.5, 0.9, 0.999])
def test_a_commit_that_a_power_cut_tore_is_taken_back(site: tuple[Path, LogWriter, Clock], keep: float) -> None:
    data, writer, clock = site
    archive(data)
    newest = max((lake_dir(data) / "_delta_log").glob("*.json"))
    whole = newest.read_bytes()
    newest.write_bytes(whole[: int(keep * len(whole))])
    fill(writer, clock, commits=3, seed=3)
    archive(data)
    assert_each_once(data)


def test_checkpoints_keep_the_position(site: tuple[Path, LogWriter, Clock]) -> None:
    data, writer, clock = site
    archive(data)
    open_table(lake_dir(data)).create_checkpoint()
    for commit in sorted((lake_dir(data) / "_delta_log").glob("*.json"))[:-1]:
        commit.unlink()
    assert archive(data).records == 0
    fill(writer, clock, commits=3, seed=3)
    archive(data)
    assert_each_once(data)


def test_two_at_once_share_the_work(site: tuple[Path, LogWriter, Clock]) -> None:
    data, _, _ = site
    code = (
        "import sys; from pathlib import Path; from headwater.offline.archive import Archiver; "
        "print(Archiver(Path(sys.argv[1]), commit_bytes=5000).run().records)"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(data)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    counts = []
    for process in running:
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0, error.decode()
        counts.append(int(out.splitlines()[-1]))
    log = LmdbLog(data / "log", readonly=True)
    assert sorted(counts) == [0, log.last_offset]
    log.close()
    assert_each_once(data)


def test_following_commits_by_size_and_by_age(site: tuple[Path, LogWriter, Clock]) -> None:
    """Enough records make a commit at once; what is less waits for ``commit_s``."""
    data, writer, clock = site
    archive(data)
    archived = writer.last_offset
    steady = [0.0]
    stop, looked = threading.Event(), threading.Event()
    reached: list[str] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            """One look at the log after another, as the test says."""
            assert timeout
            looked.set()
            stop.wait(5.0)
            stop.clear()
            return self.is_set()

    ending = Stop()
    archiver = Archiver(data, commit_bytes=12_000, commit_s=600.0, seconds=lambda: steady[0], on_step=reached.append)
    thread = threading.Thread(target=archiver.follow, args=(ending,))
    thread.start()

    def turn() -> int:
        looked.wait(5.0)
        looked.clear()
        stop.set()
        looked.wait(5.0)
        return LakeLog(lake_dir(data)).last_offset

    try:
        assert turn() == archived
        fill(writer, clock, commits=3, seed=5)
        assert turn() == archived  # too few, too young
        steady[0] = 601.0
        assert turn() == writer.last_offset
        fill(writer, clock, commits=30, seed=6)
        assert turn() > writer.last_offset - 200
        assert reached.count("committed") >= 2
    finally:
        ending.set()
        stop.set()
        thread.join(10.0)
        archiver.close()
    archive(data)
    assert_each_once(data)


def test_a_table_of_something_else_is_refused(site: tuple[Path, LogWriter, Clock]) -> None:
    data, _, _ = site
    archive(data)
    first = min((lake_dir(data) / "_delta_log").glob("*.json"))
    lines = [json.loads(line) for line in first.read_text().splitlines()]
    for line in lines:
        if "metaData" in line:
            line["metaData"]["description"] = "weather"
    first.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(StoreError, match="no archive of a log"):
        archive(data)
