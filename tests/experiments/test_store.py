"""Files of experiments: started and stopped line by line, followed by servers, never a reason to stop serving."""

from __future__ import annotations

from pathlib import Path

import pytest

from headwater.experiments.definitions import ExperimentError
from headwater.experiments.store import (
    ExperimentFiles,
    create,
    folder_of,
    mark,
    override,
    read_experiment,
    read_experiments,
    start,
    stop,
    switch,
)
from headwater.schema.config import Config

TEXT = """# What we want to know: do more candidates pay?
name = "wide"
share = 0.2  # to begin with

[[variants]]
name = "control"

[[variants]]  # the one that costs
name = "wide"
set = {"ranker.candidates" = 300}
"""
OTHER = TEXT.replace('"wide"\nshare', '"other"\nshare')


def taken(files: ExperimentFiles, config: Config | None = None) -> list[str]:
    return [each.experiment.name for each in files.read(config or Config())]


def test_it_is_started_widened_and_stopped_and_the_file_keeps_its_words(tmp_path: Path) -> None:
    created = create(tmp_path, TEXT)
    assert (created.status, created.buckets) == ("draft", ())
    started = start(tmp_path, "wide", Config(), now_ms=5)
    assert (started.status, started.buckets, started.started_ms) == ("running", ((0, 2_000),), 5)
    other = create(tmp_path, OTHER)
    assert start(tmp_path, other.name, Config(), now_ms=6).buckets == ((2_000, 4_000),)
    wider = start(tmp_path, "wide", Config(), now_ms=7, share=0.5)
    assert (wider.buckets, wider.started_ms) == (((0, 2_000), (4_000, 7_000)), 5)
    stopped = stop(tmp_path, "wide", now_ms=8, why='it "cost" too much')
    assert (stopped.status, stopped.stopped_ms, stopped.stopped_why) == ("stopped", 8, 'it "cost" too much')
    assert stopped.buckets == wider.buckets
    assert read_experiment(tmp_path, "wide") == stopped
    text = (folder_of(tmp_path) / "wide.toml").read_text()
    assert text.startswith("# What we want to know: do more candidates pay?\n")
    assert "[[variants]]  # the one that costs\n" in text
    assert read_experiments(tmp_path)[0].keys() == {"wide", "other"}


def test_testers_are_kept_as_hashes(tmp_path: Path) -> None:
    create(tmp_path, TEXT)
    override(tmp_path, "wide", "ann@example.com", "wide")
    override(tmp_path, "wide", "bob@example.com", "wide")
    experiment = override(tmp_path, "wide", "ann@example.com", "control")
    assert sorted(experiment.overrides.values()) == ["control", "wide"]
    assert "@" not in (folder_of(tmp_path) / "wide.toml").read_text()
    with pytest.raises(ExperimentError, match='There is no variant "wid"'):
        override(tmp_path, "wide", "ann@example.com", "wid")
    assert read_experiment(tmp_path, "wide") == experiment


def test_what_cannot_be_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    create(tmp_path, TEXT)
    with pytest.raises(ExperimentError, match="There is an experiment of that name"):
        create(tmp_path, TEXT)
    with pytest.raises(ExperimentError, match="A new experiment is a draft"):
        create(tmp_path, TEXT.replace("share = 0.2", 'status = "stopped"').replace('"wide"', '"new"'))
    with pytest.raises(ExperimentError, match=r'There is no experiment "wid"; did you mean "wide"\?'):
        start(tmp_path, "wid", Config(), now_ms=1)
    before = (folder_of(tmp_path) / "wide.toml").read_text()
    (folder_of(tmp_path) / "wide.toml").write_text(before.replace("ranker.candidates", "log.dedup_window"))
    with pytest.raises(ExperimentError, match="cannot differ between variants"):
        start(tmp_path, "wide", Config(), now_ms=1)
    (folder_of(tmp_path) / "wide.toml").write_text(before.replace("share = 0.2", 'hypothesis = """\nshare = 0.3"""'))
    with pytest.raises(ExperimentError, match="on one line each, before the first table"):
        start(tmp_path, "wide", Config(), now_ms=1)
    many = TEXT + "".join(f'[[variants]]\nname = "v{n}"\nset = {{"ranker.candidates" = {n + 1}}}\n' for n in range(14))
    create(tmp_path, many.replace('"wide"\nshare', '"many"\nshare'))
    start(tmp_path, "many", Config(), now_ms=1)
    create(
        tmp_path,
        OTHER.replace("share", 'layer = "second"\nshare')
        .replace("ranker.candidates", "fatigue.factor")
        .replace("300", "0.5"),
    )
    with pytest.raises(ExperimentError, match="31 combinations, and a worker keeps at most 16"):
        start(tmp_path, "other", Config(), now_ms=1)
    assert not read_experiment(tmp_path, "other").is_running


def test_a_file_that_breaks_leaves_what_was_in_force(tmp_path: Path) -> None:
    files = ExperimentFiles(tmp_path)
    assert (taken(files), files.problems) == ([], {})
    create(tmp_path, TEXT)
    assert taken(files) == []
    seen = mark(tmp_path)
    start(tmp_path, "wide", Config(), now_ms=5)
    assert mark(tmp_path) != seen
    assert taken(files) == ["wide"]
    path = folder_of(tmp_path) / "wide.toml"
    good = path.read_text()
    path.write_text(good.replace("share", "shore"))
    assert taken(files) == ["wide"]
    assert "Unknown key `shore`" in files.problems["wide"]
    path.write_text(good.replace("300", "-300"))
    assert taken(files) == ["wide"]
    assert "Expected `int` >= 1" in files.problems["wide"]
    path.write_text(good)
    assert (taken(files), files.problems) == (["wide"], {})
    (folder_of(tmp_path) / "other.toml").write_text(good.replace('name = "wide"\nshare', 'name = "other"\nshare'))
    assert taken(files) == ["wide"], "what is in force stays, the copy has to make way"
    assert "has 0 to 2000 of layer" in files.problems["other"]
    stop(tmp_path, "wide", now_ms=9)
    path.unlink()
    assert taken(files) == ["other"]


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    folder_of(tmp_path).write_text("a file")
    assert "Not a directory" in str(mark(tmp_path))
    with pytest.raises(ExperimentError, match="Expected a folder that can be read"):
        read_experiments(tmp_path)


def test_all_are_off_at_once_and_on_again(tmp_path: Path) -> None:
    files = ExperimentFiles(tmp_path)
    create(tmp_path, TEXT)
    start(tmp_path, "wide", Config(), now_ms=5)
    seen = mark(tmp_path)
    switch(tmp_path, on=False)
    switch(tmp_path, on=False)
    assert mark(tmp_path) != seen
    assert taken(files) == []
    with pytest.raises(ExperimentError, match="All experiments are switched off"):
        start(tmp_path, "wide", Config(), now_ms=5)
    switch(tmp_path, on=True)
    assert mark(tmp_path) == seen
    assert taken(files) == ["wide"]
