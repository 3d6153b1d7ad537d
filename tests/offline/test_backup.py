"""Backup and restore: what comes back is what was there, whole, and without those who were erased."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from headwater.features.paths import state_dir
from headwater.features.plan import compile_plan
from headwater.features.recovery import open_state
from headwater.log.archived import open_log
from headwater.log.batch import events_to_batch
from headwater.log.erasures import FILE as ERASURES_FILE
from headwater.log.identity import LmdbIdentity
from headwater.log.lake import LakeLog, lake_dir
from headwater.log.lmdb import LmdbLog
from headwater.log.record import Kind, Namespace
from headwater.log.socket import SyncWriterClient
from headwater.offline.archive import Archiver
from headwater.offline.backup import MANIFEST, BackupError, backup, read_manifest, restore, verify_backup
from headwater.online.keys import add_key, read_keys
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.schema.keys import KEYS_FILE, Scope
from tests.offline.sites import CONFIG, MAP, Clock, fill, folded, records_of, user, writer_of

WRITER = Path(__file__).parent.parent / "log" / "writer_process.py"


def archive(data: Path) -> None:
    archiver = Archiver(data, commit_bytes=12_000)
    archiver.run()
    archiver.close()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Log, lake and a bundle's file."""
    path, clock = tmp_path / "data", Clock()
    with writer_of(path, clock) as writer:
        fill(writer, clock, commits=30, seed=1)
        archive(path)
        fill(writer, clock, commits=10, seed=2)
    bundle = path / "models" / "bundles" / "v1"
    bundle.mkdir(parents=True)
    (bundle / "model.txt").write_text("a model")
    (bundle.parent / ".incoming-1").mkdir()
    (path / "notes.txt").write_text("mine")
    return path


def test_a_backup_under_load_restores_to_the_same_state(tmp_path: Path) -> None:
    """A writer process appends while the backup is made: what is restored is a prefix of the log, byte for byte."""
    data = tmp_path / "data"
    stop, counts = threading.Event(), [0]
    with subprocess.Popen([sys.executable, str(WRITER), str(data)], stdout=subprocess.DEVNULL) as process:
        client = SyncWriterClient(data / "run" / "writer.sock", connect_timeout_s=30.0)
        client.put_items([Item(id=f"i{n}", categories=[f"c{n % 3}"]) for n in range(20)])

        def append() -> None:
            while not stop.is_set():
                n = counts[0]
                events = [Event(user=f"new-{n}-{k}", item=f"i{(n + k) % 20}", type="click") for k in range(20)]
                client.append_events(events_to_batch(events, ()))
                counts[0] += 1

        thread = threading.Thread(target=append)
        thread.start()
        try:
            while counts[0] < 20:
                assert process.poll() is None
                thread.join(0.001)
            archive(data)
            made = [backup(data, tmp_path / f"backup-{k}", created_ms=1) for k in range(3)]
            after = counts[0]
            while counts[0] < after + 20:
                thread.join(0.001)
        finally:
            stop.set()
            thread.join()
            process.terminate()
            process.wait(30)
            client.close()
    offsets = [report.last_offset for report in made]
    original = open_log(data)
    assert 0 < offsets[0] <= offsets[1] <= offsets[2] < original.last_offset
    whole = records_of(original)
    for k, offset in enumerate(offsets):
        report = restore(tmp_path / f"backup-{k}", tmp_path / f"restored-{k}", map_size=MAP)
        assert (report.last_offset, report.erased) == (offset, 0)
        log = open_log(tmp_path / f"restored-{k}")
        assert records_of(log) == whole[:offset]
        assert folded(log, tmp_path / f"state-{k}") == folded(original, tmp_path / f"original-{k}", offset)
        identity = LmdbIdentity(tmp_path / f"restored-{k}" / "identity", readonly=True)
        theirs = LmdbIdentity(data / "identity", readonly=True)
        names = [f"new-{n}-{j}" for n in range(counts[0]) for j in range(20)]
        known = {key.user for name in names if (key := identity.lookup(name)) is not None}
        block = log.read(0, 1_000_000)
        assert block is not None
        assert set(block.records["user"][block.records["kind"] == Kind.EVENT].tolist()) <= known
        assert all(identity.lookup(name) in (None, theirs.lookup(name)) for name in names)
        theirs.close()
        identity.close()
        log.close()
    original.close()


def test_everything_comes_back_and_the_log_goes_on(data: Path, tmp_path: Path) -> None:
    add_key(data, "shop", [Scope.READ], now_ms=1)
    (data / "experiments").mkdir()
    (data / "experiments" / "wide.toml").write_text("an experiment")
    (data / "experiments" / ".lock").write_text("")
    made = backup(data, tmp_path / "b", created_ms=17)
    assert made.left_out == ["notes.txt"]
    report = restore(tmp_path / "b", tmp_path / "there" / "data", map_size=MAP)
    assert (report.created_ms, report.last_offset, report.first_offset) == (17, made.last_offset, 1)
    restored = tmp_path / "there" / "data"
    one, other = open_log(data), open_log(restored)
    assert records_of(one) == records_of(other)
    assert one.log_id == other.log_id
    for namespace in Namespace:
        assert one.vocabulary().texts(namespace) == other.vocabulary().texts(namespace)
    assert one.imported("file-1", "m") == other.imported("file-1", "m")
    assert records_of(LakeLog(lake_dir(data))) == records_of(LakeLog(lake_dir(restored)))
    assert read_keys(restored) == read_keys(data) is not None
    assert (restored / KEYS_FILE).stat().st_mode & 0o777 == 0o600
    assert (restored / "models" / "bundles" / "v1" / "model.txt").read_text() == "a model"
    assert not (restored / "models" / "bundles" / ".incoming-1").exists()
    assert [path.name for path in (restored / "experiments").iterdir()] == ["wide.toml"]
    one.close()
    other.close()
    clock = Clock(report.received_ms)
    with writer_of(restored, clock) as writer:
        fill(writer, clock, commits=5, seed=3)
    archive(restored)


def test_a_trimmed_log_takes_its_lake_and_its_state_along(data: Path, tmp_path: Path) -> None:
    plan = compile_plan(CONFIG)
    log = open_log(data)
    whole = records_of(log)
    before = folded(log, state_dir(data, plan.hash))
    log.close()
    with writer_of(data, Clock()) as writer:
        while writer.trim_log(10_000).accepted:
            pass
    trimmed = LmdbLog(data / "log", readonly=True)
    assert trimmed.first_offset > 1
    trimmed.close()
    made = backup(data, tmp_path / "b", created_ms=1, with_state=True)
    assert made.states == {plan.hash: len(whole)}
    restored = tmp_path / "restored"
    restore(tmp_path / "b", restored, map_size=MAP)
    log = open_log(restored)
    assert records_of(log) == whole
    state = open_state(state_dir(restored, plan.hash), plan, log)  # the fold would go on from here
    assert state.offset == len(whole)
    assert list(state.dump()) == before[:-1]
    state.close()
    log.close()


def test_who_was_erased_after_the_backup_does_not_come_back(data: Path, tmp_path: Path) -> None:
    made = backup(data, tmp_path / "b", created_ms=1)
    gone = [user(n) for n in range(3, 9)]
    with writer_of(data, Clock()) as writer:
        writer.erase_users(gone)
    identity = LmdbIdentity(data / "identity", readonly=True)
    assert [identity.lookup(name) for name in gone] == [None] * len(gone)
    identity.close()
    careless = restore(tmp_path / "b", tmp_path / "careless", map_size=MAP)
    assert careless.erased == 0
    copy = tmp_path / "elsewhere.jsonl"
    shutil.copyfile(data / ERASURES_FILE, copy)
    for k, source in enumerate((data, copy)):
        restored = tmp_path / f"restored-{k}"
        report = restore(tmp_path / "b", restored, erasures_from=[source], map_size=MAP)
        identity = LmdbIdentity(tmp_path / "careless" / "identity", readonly=True)
        known = [key for name in gone if (key := identity.lookup(name)) is not None]
        identity.close()
        assert report.erased == len(known) > 3
        assert report.last_offset == made.last_offset + len(known)
        identity = LmdbIdentity(restored / "identity", readonly=True)
        assert [identity.lookup(name) for name in gone] == [None] * len(gone)
        assert [identity._key(key.user) for key in known] == [None] * len(known)
        identity.close()
        log = open_log(restored)
        users = {row[1] for row in folded(log, tmp_path / f"state-{k}") if row[0] == "users"}
        assert not users & {key.user for key in known}
        log.close()
        again = restore(tmp_path / "b", tmp_path / f"again-{k}", erasures_from=[restored], map_size=MAP)
        assert again.erased == len(known)  # the list went on


def test_a_list_of_another_log_is_refused(data: Path, tmp_path: Path) -> None:
    backup(data, tmp_path / "b", created_ms=1)
    other = tmp_path / "other"
    with writer_of(other, clock := Clock()) as writer:
        fill(writer, clock, commits=3, seed=5)
        writer.erase_users([user(n) for n in range(20)])
    with pytest.raises(BackupError, match="erasures of log"):
        restore(tmp_path / "b", tmp_path / "r", erasures_from=[other], map_size=MAP)
    for wrong in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(BackupError, match="name the"):
            restore(tmp_path / "b", tmp_path / "r", erasures_from=[wrong], map_size=MAP)
    assert not (tmp_path / "r").exists()


def test_a_damaged_backup_restores_nothing(data: Path, tmp_path: Path) -> None:
    backup(data, tmp_path / "b", created_ms=1)
    manifest = verify_backup(tmp_path / "b")
    for name in manifest.files:
        path = tmp_path / "b" / name
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]) if good else b"x")
        with pytest.raises(BackupError, match="not what was backed up"):
            restore(tmp_path / "b", tmp_path / "r", map_size=MAP)
        path.unlink()
        with pytest.raises(BackupError, match="is missing"):
            restore(tmp_path / "b", tmp_path / "r", map_size=MAP)
        path.write_bytes(good)
    (tmp_path / "b" / "more").write_text("x")
    with pytest.raises(BackupError, match="more is not in the manifest"):
        restore(tmp_path / "b", tmp_path / "r", map_size=MAP)
    (tmp_path / "b" / MANIFEST).write_text("{}")
    with pytest.raises(BackupError, match="is damaged"):
        restore(tmp_path / "b", tmp_path / "r", map_size=MAP)
    assert not (tmp_path / "r").exists()


def test_an_unfinished_backup_is_known_for_one(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("headwater.offline.backup.write_synced", full)
        with pytest.raises(OSError, match="No space"):
            backup(data, tmp_path / "b", created_ms=1)
    assert not (tmp_path / "b").exists()
    with pytest.raises(BackupError, match="did not finish"):
        read_manifest(tmp_path / "b.incomplete")
    with pytest.raises(BackupError, match=r"b\.incomplete is there already.*remove it"):
        backup(data, tmp_path / "b", created_ms=1)
    shutil.rmtree(tmp_path / "b.incomplete")
    backup(data, tmp_path / "b", created_ms=1)
    with pytest.raises(BackupError, match="name a new folder"):
        backup(data, tmp_path / "b", created_ms=1)
    with pytest.raises(BackupError, match="in the data directory"):
        backup(data, data / "b", created_ms=1)


def test_a_directory_that_is_not_empty_is_left_alone(data: Path, tmp_path: Path) -> None:
    backup(data, tmp_path / "b", created_ms=1)
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "mine").write_text("x")
    with pytest.raises(BackupError, match="not empty: move it away"):
        restore(tmp_path / "b", tmp_path / "r", map_size=MAP)
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["mine"]
    (tmp_path / "r" / "mine").unlink()
    restore(tmp_path / "b", tmp_path / "r", map_size=MAP)
