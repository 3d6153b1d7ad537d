"""A bundle loads when it is exactly what was published, and never otherwise."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.registry.array_check import check_array
from headwater.registry.bundle import (
    MANIFEST,
    BundleError,
    ManifestFields,
    PlanMismatchError,
    load_bundle,
    write_bundle,
)
from headwater.registry.files import stamp

Fields = Callable[..., ManifestFields]
FILES = {"ranker.lgb.txt": b"tree\nversion=v4\n" * 40, "card.md": b"# Card\n", "empty.txt": b""}


@pytest.fixture
def bundle(tmp_path: Path, fields: Fields) -> Path:
    return write_bundle(tmp_path, fields(), FILES)


def test_what_is_written_is_read(tmp_path: Path, fields: Fields) -> None:
    path = write_bundle(tmp_path, fields(metrics={"ndcg@10": 1}), FILES)
    loaded = load_bundle(path, plan_hash="plan-a")
    assert loaded.files == FILES
    assert loaded.version == path.name
    assert loaded.version.startswith("20231114T221320123Z-")
    assert loaded.manifest.columns == fields().columns
    assert loaded.manifest.training == fields().training
    assert loaded.manifest.metrics == {"ndcg@10": 1.0}
    assert [p.name for p in tmp_path.iterdir()] == [loaded.version]


def test_writing_it_again_changes_nothing_and_versions_sort_by_time(tmp_path: Path, fields: Fields) -> None:
    first = write_bundle(tmp_path, fields(), FILES)
    before = stamp(first)
    assert write_bundle(tmp_path, fields(), FILES) == first
    assert stamp(first) == before
    others = [write_bundle(tmp_path, fields(later), FILES) for later in (1, 999, 1_000, 90_000_000)]
    assert sorted([first, *others]) == [first, *others]


def test_any_changed_byte_is_refused(tmp_path_factory: pytest.TempPathFactory, fields: Fields) -> None:
    @given(data=st.data())
    @settings(max_examples=60, deadline=None)
    def check(data: st.DataObject) -> None:
        path = write_bundle(tmp_path_factory.mktemp("bundles"), fields(), FILES)
        name = data.draw(st.sampled_from([MANIFEST, "ranker.lgb.txt", "card.md"]))
        content = bytearray((path / name).read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= data.draw(st.integers(1, 255))
        (path / name).write_bytes(content)
        with pytest.raises(BundleError):
            load_bundle(path, plan_hash="plan-a")

    check()


@pytest.mark.parametrize("name", [MANIFEST, "ranker.lgb.txt"])
@pytest.mark.parametrize("size", [0, 1, -1])
def test_a_truncated_file_is_refused(bundle: Path, name: str, size: int) -> None:
    content = (bundle / name).read_bytes()
    (bundle / name).write_bytes(content[:size])
    with pytest.raises(BundleError, match=r"truncated|damaged|altered"):
        load_bundle(bundle, plan_hash="plan-a")


def test_a_longer_file_is_refused(bundle: Path) -> None:
    with (bundle / "card.md").open("ab") as file:
        file.write(b"more")
    with pytest.raises(BundleError, match="11 bytes, more than the 7"):
        load_bundle(bundle, plan_hash="plan-a")


@pytest.mark.parametrize("name", [MANIFEST, "card.md"])
def test_a_missing_file_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        load_bundle(bundle, plan_hash="plan-a")


@pytest.mark.parametrize("name", ["extra.txt", "extra.pkl", ".hidden", "folder"])
def test_a_file_beyond_the_manifest_is_refused(bundle: Path, name: str) -> None:
    if name == "folder":
        (bundle / name).mkdir()
    else:
        (bundle / name).write_bytes(b"x")
    with pytest.raises(BundleError, match="does not name"):
        load_bundle(bundle, plan_hash="plan-a")


def test_links_and_pipes_are_refused(bundle: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.move(bundle / "card.md", outside)
    (bundle / "card.md").symlink_to(outside)
    with pytest.raises(BundleError, match="cannot be read"):
        load_bundle(bundle, plan_hash="plan-a")
    (bundle / "card.md").unlink()
    os.mkfifo(bundle / "card.md")
    with pytest.raises(BundleError, match="not a regular file"):
        load_bundle(bundle, plan_hash="plan-a")
    (bundle / "card.md").unlink()
    shutil.move(outside, bundle / "card.md")
    load_bundle(bundle, plan_hash="plan-a")
    shutil.move(bundle, outside)
    bundle.symlink_to(outside)
    with pytest.raises(BundleError, match="not a bundle directory"):
        load_bundle(bundle, plan_hash="plan-a")


def test_another_plan_is_refused_by_name(bundle: Path) -> None:
    with pytest.raises(PlanMismatchError, match=r"plan-a.*plan-b") as caught:
        load_bundle(bundle, plan_hash="plan-b")
    assert (caught.value.trained, caught.value.running) == ("plan-a", "plan-b")
    assert load_bundle(bundle, plan_hash=None).manifest.plan_hash == "plan-a"


def test_a_later_format_is_refused_even_if_its_fields_are_unknown(bundle: Path) -> None:
    (bundle / MANIFEST).write_text(json.dumps({"format": 3, "novel": True}))
    with pytest.raises(BundleError, match="format 3, this version reads up to 2"):
        load_bundle(bundle, plan_hash="plan-a")


def test_an_earlier_format_is_refused_by_its_name(bundle: Path) -> None:
    (bundle / MANIFEST).write_text(json.dumps({"format": 1, "old": True}))
    with pytest.raises(BundleError, match=r"format 1, of an earlier release.*Train and publish again"):
        load_bundle(bundle, plan_hash="plan-a")


def test_another_name_is_refused(bundle: Path) -> None:
    renamed = bundle.rename(bundle.with_name("20990101T000000000Z-000000000000"))
    with pytest.raises(BundleError, match="Give the directory that name"):
        load_bundle(renamed, plan_hash="plan-a")


def _array(values: np.ndarray, *, allow_pickle: bool = False) -> bytes:
    out = io.BytesIO()
    np.save(out, values, allow_pickle=allow_pickle)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ranker.pkl", b"x"),
        ("ranker.pickle", b"x"),
        ("ranker.pt", b"x"),
        ("ranker.joblib", b"x"),
        ("vectors.npz", b"x"),
        ("../ranker.txt", b"x"),
        ("a/b.txt", b"x"),
        (".hidden.txt", b"x"),
        ("manifest.json", b"{}"),
        ("", b"x"),
        ("ranker.txt\n", b"x"),
        *((f"disguised{protocol}.txt", pickle.dumps({"a": 1}, protocol)) for protocol in (2, 3, 4, 5)),
        ("archive.txt", b"PK\x03\x04rest"),
        ("objects.npy", _array(np.array([{"a": 1}], object), allow_pickle=True)),
        ("short.npy", _array(np.arange(100))[:-8]),
        ("foreign.npy", b"not an array"),
        ("bomb.npy", _array(np.zeros(3)).replace(b"(3,)", b"(3000000000000,)")),
        ("fields.npy", _array(np.zeros(3, [("a", "f4"), ("b", "i4")]))),
        ("nan.npy", _array(np.array([1.0, np.nan], np.float32))),
        ("infinite.npy", _array(np.array([1.0, -np.inf], np.float16))),
    ],
)
def test_what_could_run_code_is_neither_written_nor_loaded(
    tmp_path: Path, fields: Fields, name: str, content: bytes
) -> None:
    with pytest.raises(BundleError):
        write_bundle(tmp_path, fields(), {name: content})
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_writer_cannot_bring_a_pickle_in(
    tmp_path: Path, fields: Fields, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as lax:
        lax.setattr("headwater.registry.bundle._check_name", lambda *_: None)
        lax.setattr("headwater.registry.bundle._check_content", lambda *_: None)
        named = write_bundle(tmp_path, fields(1), {"model.pkl": b"x"})
        disguised = write_bundle(tmp_path, fields(2), {"model.txt": pickle.dumps([1])})
    with pytest.raises(BundleError, match=r"may not hold a file named 'model\.pkl'"):
        load_bundle(named, plan_hash="plan-a")
    with pytest.raises(BundleError, match="is a pickle"):
        load_bundle(disguised, plan_hash="plan-a")


def test_plain_arrays_are_welcome(tmp_path: Path, fields: Fields) -> None:
    content = _array(np.arange(12, dtype=np.float32).reshape(3, 4))
    path = write_bundle(tmp_path, fields(), {"vectors.npy": content})
    assert load_bundle(path, plan_hash="plan-a").files["vectors.npy"] == content


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_array_is_refused_or_harmless(data: st.DataObject) -> None:
    content = bytearray(_array(np.arange(6, dtype=np.float32).reshape(2, 3)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    size = data.draw(st.sampled_from([len(content), data.draw(st.integers(0, len(content)))]))
    refused = False
    try:
        check_array("vectors.npy", bytes(content[:size]))
    except BundleError:
        refused = True
    assert refused or np.load(io.BytesIO(content[:size]), allow_pickle=False).dtype.kind != "O"


@pytest.mark.parametrize(
    "changes", [{"metrics": {"ndcg@10": float("nan")}}, {"columns": (1, 2)}, {"created_ms": "now"}]
)
def test_a_manifest_that_could_not_be_read_back_is_not_written(
    tmp_path: Path, fields: Fields, changes: dict[str, object]
) -> None:
    with pytest.raises(BundleError, match="manifest"):
        write_bundle(tmp_path, fields(**changes), FILES)
    assert list(tmp_path.iterdir()) == []
