"""What is removed is what nobody serves and nobody goes back to; reports stay beside their bundles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from headwater.registry.bundle import BundleError, ManifestFields
from headwater.registry.registry import Registry

Fields = Callable[..., ManifestFields]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


def publish(registry: Registry, fields: Fields, number: int, plan: str) -> str:
    return registry.publish(fields(number, plan_hash=plan), {"ranker.lgb.txt": b"model"}).version


def test_neither_the_current_nor_the_way_back_is_ever_removed(
    tmp_path_factory: pytest.TempPathFactory, fields: Fields
) -> None:
    steps = st.lists(st.tuples(st.sampled_from("pqr"), st.sampled_from(["a", "b"]), st.integers(0, 9)), max_size=14)

    @given(steps=steps, keep=st.integers(0, 3), history=st.none() | st.integers(1, 3))
    @settings(max_examples=40, deadline=None)
    def check(steps: list[tuple[str, str, int]], keep: int, history: int | None) -> None:
        registry = Registry(tmp_path_factory.mktemp("registry"))
        published: dict[str, list[str]] = {"a": [], "b": []}
        stacks: dict[str, list[str]] = {"a": [], "b": []}
        for number, (what, plan, which) in enumerate(steps):
            if what == "p" or not published[plan]:
                published[plan].append(publish(registry, fields, number, plan))
            elif what == "q":
                version = published[plan][which % len(published[plan])]
                registry.put_in_service(version)
                stacks[plan] += [] if stacks[plan][-1:] == [version] else [version]
            elif len(stacks[plan]) > 1:
                registry.rollback(plan)
                stacks[plan].pop()
        if history is not None:
            stacks = {plan: stack[-history - 1 :] for plan, stack in stacks.items()}
        way = {version for stack in stacks.values() for version in stack}
        loose = sorted({v for versions in published.values() for v in versions} - way)
        removed = registry.prune(keep, history=history)
        assert removed == loose[: max(len(loose) - keep, 0)]
        assert {line.version for line in registry.list()} == way | set(loose[len(removed) :])
        for plan, stack in stacks.items():
            assert registry.history(plan) == stack[:-1]
            for version in reversed(stack[:-1]):
                assert registry.rollback(plan) == version

    check()


def test_reports_stand_beside_their_bundles_and_go_with_them(tmp_path: Path, fields: Fields) -> None:
    registry = Registry(tmp_path)
    old, new = (publish(registry, fields, number, "plan-a") for number in (1, 2))
    assert registry.report(old) is None
    for version in (old, new):
        registry.write_report(version, b"{}")
        registry.write_report(version, version.encode())
        assert registry.report(version) == version.encode()
        registry.load(version, plan_hash="plan-a")
    assert registry.prune(1) == [old]
    assert registry.report(old) is None
    assert registry.report(new) == new.encode()
    with pytest.raises(BundleError, match="not a bundle version"):
        registry.report("../../etc/passwd")
    assert Registry(tmp_path / "none").prune(0) == []


def test_a_prune_that_died_leaves_no_half_bundle(
    tmp_path: Path, fields: Fields, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(tmp_path)
    version = publish(registry, fields, 1, "plan-a")
    with monkeypatch.context() as dying:
        dying.setattr(
            "headwater.registry.registry.shutil.rmtree", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt())
        )
        with pytest.raises(KeyboardInterrupt):
            registry.prune(0)
    assert registry.list() == []
    assert publish(registry, fields, 1, "plan-a") == version
    assert [path.name for path in (tmp_path / "bundles").iterdir()] == [version]
