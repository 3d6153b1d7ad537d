"""Publishing, promoting and rolling back: whole at every instant."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from headwater.registry.bundle import BundleError, ManifestFields, PlanMismatchError
from headwater.registry.files import replace_file
from headwater.registry.registry import BundleWatcher, Registry

Fields = Callable[..., ManifestFields]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "models")


def _publish(registry: Registry, fields: Fields, count: int) -> list[str]:
    return [registry.publish(fields(i), {"ranker.lgb.txt": f"model {i}".encode()}).version for i in range(count)]


def test_an_empty_registry(registry: Registry) -> None:
    assert registry.list() == []
    assert registry.current("plan-a") is None
    assert registry.stamp("plan-a") == (None, None)
    with pytest.raises(BundleError, match="no earlier bundle"):
        registry.rollback("plan-a")
    with pytest.raises(BundleError, match="not a bundle version"):
        registry.put_in_service("../../etc")
    with pytest.raises(BundleError, match="not a bundle directory"):
        registry.put_in_service("20231114T221320123Z-0123456789ab")


def test_promotions_and_rollbacks_are_a_stack(registry: Registry, fields: Fields) -> None:
    a, b, c = _publish(registry, fields, 3)
    assert registry.current("plan-a") is None
    for version in (a, b, b, a, c):
        registry.put_in_service(version)
        assert registry.current("plan-a") == version
    assert [(line.version, line.current) for line in registry.list()] == [(c, True), (b, False), (a, False)]
    assert [registry.rollback("plan-a") for _ in range(3)] == [a, b, a]
    with pytest.raises(BundleError, match="no earlier bundle"):
        registry.rollback("plan-a")
    assert registry.current("plan-a") == a
    registry.put_in_service(c)
    assert registry.rollback("plan-a") == a


def test_a_bundle_that_is_not_fit_is_not_promoted(registry: Registry, fields: Fields) -> None:
    a, b = _publish(registry, fields, 2)
    registry.put_in_service(a, plan_hash="plan-a")
    with pytest.raises(PlanMismatchError):
        registry.put_in_service(b, plan_hash="plan-b")
    (registry.path / "bundles" / b / "ranker.lgb.txt").write_text("altered")
    with pytest.raises(BundleError, match="SHA-256"):
        registry.put_in_service(b)
    assert registry.current("plan-a") == a
    (registry.path / "bundles" / b / "manifest.json").write_text("{")
    listed = registry.list()
    assert listed[0].manifest is None
    assert "damaged" in str(listed[0].problem)
    assert listed[1].manifest is not None


def test_rollback_to_a_damaged_bundle_keeps_the_current_one(registry: Registry, fields: Fields) -> None:
    a, b = _publish(registry, fields, 2)
    registry.put_in_service(a)
    registry.put_in_service(b)
    (registry.path / "bundles" / a / "ranker.lgb.txt").unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        registry.rollback("plan-a")
    assert registry.current("plan-a") == b


def test_a_damaged_current_is_named_and_mended_by_promoting(registry: Registry, fields: Fields) -> None:
    a, b = _publish(registry, fields, 2)
    registry.put_in_service(a)
    registry.put_in_service(b)
    (registry.path / "plans" / "plan-a" / "CURRENT").write_text("nonsense")
    with pytest.raises(BundleError, match="Promote a version again"):
        registry.current("plan-a")
    registry.put_in_service(b)
    assert registry.current("plan-a") == b
    assert registry.rollback("plan-a") == a


def test_the_watcher_hands_out_each_change_once(registry: Registry, fields: Fields) -> None:
    watcher = BundleWatcher(registry, "plan-a")
    assert watcher.poll() is None
    a, b = _publish(registry, fields, 2)
    foreign = registry.publish(fields(9, plan_hash="plan-b"), {}).version
    assert watcher.poll() is None
    registry.put_in_service(a)
    first = watcher.poll()
    assert first is not None
    assert (first.version, first.files) == (a, {"ranker.lgb.txt": b"model 0"})
    assert watcher.poll() is None
    registry.put_in_service(foreign)
    assert watcher.poll() is None, "another plan's bundle became current for servers of another plan"
    mark = registry.stamp("plan-a")
    registry.put_in_service(b)
    assert registry.stamp("plan-a") != mark
    second = watcher.poll()
    assert second is not None
    assert second.version == b


def test_each_plan_has_a_current_bundle_and_a_way_back_of_its_own(registry: Registry, fields: Fields) -> None:
    a, b = _publish(registry, fields, 2)
    c, d = (registry.publish(fields(n, plan_hash="plan-b"), {}).version for n in (5, 6))
    for version in (a, c, b, d):
        registry.put_in_service(version)
    assert (registry.current("plan-a"), registry.current("plan-b")) == (b, d)
    assert {line.version for line in registry.list() if line.current} == {b, d}
    assert registry.rollback("plan-b") == c
    assert (registry.current("plan-a"), registry.current("plan-b")) == (b, c)
    assert registry.rollback("plan-a") == a
    with pytest.raises(BundleError, match="no earlier bundle of plan plan-a"):
        registry.rollback("plan-a")
    for wrong in ("", "..", "a/b"):
        with pytest.raises(BundleError, match="not a plan hash"):
            registry.current(wrong)


def test_a_bundle_of_another_plan_is_refused_with_both_hashes(registry: Registry, fields: Fields) -> None:
    (a,) = _publish(registry, fields, 1)
    foreign = registry.publish(fields(9, plan_hash="plan-b"), {}).version
    registry.put_in_service(a)
    both = r"trained on plan plan-b.*compiles to plan plan-a"
    with pytest.raises(PlanMismatchError, match=both):
        registry.put_in_service(foreign, plan_hash="plan-a")
    with pytest.raises(PlanMismatchError, match=both):
        registry.load(foreign, plan_hash="plan-a")
    assert registry.current("plan-a") == a
    (registry.path / "plans" / "plan-a" / "CURRENT").write_text(f"{foreign}\n")
    watcher = BundleWatcher(registry, "plan-a")
    with pytest.raises(PlanMismatchError, match=both):
        watcher.poll()
    assert watcher.poll() is None, "refused once"


def _as_before(registry: Registry, current: str, history: list[str]) -> None:
    """The pointer as a release wrote it that had one for all plans."""
    (registry.path / "CURRENT").write_text(f"{current}\n")
    (registry.path / "HISTORY").write_text("".join(f"{version}\n" for version in history))


def test_the_pointer_of_an_older_release_is_read_and_moved(registry: Registry, fields: Fields) -> None:
    a, b, c = _publish(registry, fields, 3)
    foreign = registry.publish(fields(9, plan_hash="plan-b"), {}).version
    _as_before(registry, b, [a, foreign, b])
    assert (registry.current("plan-a"), registry.current("plan-b")) == (b, None)
    assert [line.version for line in registry.list() if line.current] == [b]
    watcher = BundleWatcher(registry, "plan-a")
    first = watcher.poll()
    assert first is not None
    assert first.version == b
    registry.put_in_service(foreign)
    assert not (registry.path / "CURRENT").exists()
    assert (registry.current("plan-a"), registry.current("plan-b")) == (b, foreign)
    registry.put_in_service(c)
    assert [registry.rollback("plan-a") for _ in range(2)] == [b, a]
    _as_before(registry, b, [])
    assert registry.current("plan-a") == a, "the pointer of the plan comes first"


def test_every_replacement_is_seen_however_fast(registry: Registry, tmp_path: Path) -> None:
    folder = registry.path / "plans" / "plan-a"
    folder.mkdir(parents=True)
    seen = set()
    for i in range(200):
        replace_file(folder / "CURRENT", b"%03d" % (i % 2))
        seen.add(registry.stamp("plan-a"))
    assert len(seen) == 200


def test_a_reader_never_sees_half_a_bundle(registry: Registry, fields: Fields) -> None:
    registry.put_in_service(_publish(registry, fields, 1)[0])
    done = threading.Event()
    seen: list[str] = []
    failures: list[Exception] = []

    def read() -> None:
        watcher = BundleWatcher(registry, "plan-a")
        while not done.is_set():
            try:
                current = registry.current("plan-a")
                assert current is not None
                loaded = registry.load(current, plan_hash="plan-a")
                assert loaded.files["ranker.lgb.txt"].startswith(b"model ")
                assert all(line.problem is None for line in registry.list())
                swapped = watcher.poll()
                if swapped is not None:
                    seen.append(swapped.version)
            except (AssertionError, BundleError, OSError) as error:
                failures.append(error)
                return

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for i in range(1, 40):
        content = f"model {i} ".encode() * 20_000
        registry.put_in_service(registry.publish(fields(i), {"ranker.lgb.txt": content, "card.md": b"c"}).version)
        if i % 5 == 0:
            registry.rollback("plan-a")
    done.set()
    for reader in readers:
        reader.join()
    assert failures == []
    assert len(set(seen)) > 3


def test_publishers_take_turns(registry: Registry, fields: Fields) -> None:
    def publish(start: int) -> None:
        for i in range(start, start + 8):
            registry.put_in_service(registry.publish(fields(i), {"ranker.lgb.txt": f"model {i}".encode()}).version)

    publishers = [threading.Thread(target=publish, args=(100 * n,)) for n in range(4)]
    for publisher in publishers:
        publisher.start()
    for publisher in publishers:
        publisher.join()
    assert len(registry.list()) == 32
    back = [registry.rollback("plan-a") for _ in range(31)]
    assert len({*back, registry.current("plan-a")}) == 31
    with pytest.raises(BundleError, match="no earlier"):
        registry.rollback("plan-a")


DYING = """
import os, sys
from pathlib import Path
import msgspec
from headwater.registry import bundle
from headwater.registry.registry import Registry

def dying(call):
    def wrapped(*args, **kwargs):
        global left
        left -= 1
        if left == 0:
            os._exit(77)
        return call(*args, **kwargs)
    return wrapped

for line in sys.stdin:
    command, root, left, fields = msgspec.json.decode(line, type=tuple[str, str, int, bundle.ManifestFields])
    child = os.fork()
    if child == 0:
        for name in ("fsync", "replace", "rename", "open"):
            setattr(os, name, dying(getattr(os, name)))
        registry = Registry(Path(root))
        if command == "publish":
            registry.publish(fields, {"ranker.lgb.txt": b"late", "card.md": b"card"})
        elif command == "rollback":
            registry.rollback("plan-a")
        else:
            registry.put_in_service(command)
        os._exit(0)
    print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

Die = Callable[[Registry, str, int, ManifestFields], bool]


@pytest.fixture(scope="module")
def die() -> Iterator[Die]:
    """Runs a command in a process that dies before its n-th system call on files; tells whether it got that far."""
    with subprocess.Popen(
        [sys.executable, "-c", DYING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"},
    ) as process:

        def run(registry: Registry, command: str, step: int, fields: ManifestFields) -> bool:
            assert process.stdin is not None
            assert process.stdout is not None
            order = (command, str(registry.path), step, fields)
            process.stdin.write(msgspec.json.encode(order).decode() + "\n")
            process.stdin.flush()
            ended = ""
            while not ended.startswith("ended "):
                ended = process.stdout.readline()
                assert ended
            assert ended in ("ended 0\n", "ended 77\n")
            return ended == "ended 77\n"

        yield run


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("command", ["publish", "promote", "promote again", "rollback"])
def test_death_at_any_step_leaves_a_registry_that_works(
    tmp_path: Path, fields: Fields, die: Die, command: str, old: bool
) -> None:
    for step in range(1, 40):
        registry = Registry(tmp_path / f"{command}-{step}")
        a, b, c = _publish(registry, fields, 3)
        registry.put_in_service(a)
        registry.put_in_service(b)
        if old:
            shutil.rmtree(registry.path / "plans")
            _as_before(registry, b, [a, b])
        died = die(registry, {"promote": c, "promote again": a}.get(command, command), step, fields(50))
        assert all(line.problem is None for line in registry.list())
        current = registry.current("plan-a")
        assert current in {"publish": (b,), "promote": (b, c)}.get(command, (a, b))
        assert current is not None
        registry.load(current, plan_hash="plan-a")
        behind = {a: [b, a] if command == "promote again" else [], b: [a], c: [b, a]}[current]
        late = registry.publish(fields(50), {"ranker.lgb.txt": b"late", "card.md": b"card"}).version
        assert not list((registry.path / "bundles").glob(".incoming-*"))
        registry.put_in_service(late)
        for version in [current, *behind]:
            assert registry.rollback("plan-a") == version
        with pytest.raises(BundleError, match="no earlier"):
            registry.rollback("plan-a")
        if not died:
            break
    assert not died
    assert step > 5


def test_the_first_promotion_dying_leaves_nothing_behind(tmp_path: Path, fields: Fields, die: Die) -> None:
    for step in range(1, 40):
        registry = Registry(tmp_path / str(step))
        a, b = _publish(registry, fields, 2)
        died = die(registry, a, step, fields())
        promoted = registry.current("plan-a") == a
        registry.put_in_service(b)
        if promoted:
            assert registry.rollback("plan-a") == a
        with pytest.raises(BundleError, match="no earlier"):
            registry.rollback("plan-a")
        if not died:
            break
    assert not died
