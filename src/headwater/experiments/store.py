"""Experiments as files: one TOML file each in ``DATA/experiments``, swapped whole, followed by every server.

People write the files; starting and stopping changes single lines of them and leaves the rest, comments included, as it is.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from headwater.experiments.assignment import Acting, arms_of
from headwater.experiments.changes import changed, check_changes, where_it_parts
from headwater.experiments.definitions import Experiment, ExperimentError, hashed_id, parse_experiment
from headwater.experiments.layers import check_together, find, with_buckets
from headwater.registry.files import read_regular, replace_file, stamp, writers_lock
from headwater.schema.config import Config
from headwater.schema.errors import ConfigurationError
from headwater.schema.experiments import FOLDER, INTERLEAVED

OFF = "OFF"
"""A file of this name in the folder ends all experiments at once, until it is gone."""

MAX_FILE = 1 << 20
MAX_ARMS = 16
"""Each is a pipeline of its own in every worker."""

_FILE = re.compile(r"[A-Za-z0-9_:\-][A-Za-z0-9_.:\-]{0,63}")
_TABLE = re.compile(r"^[ \t]*\[", re.MULTILINE)

Mark = tuple[object, ...]


def folder_of(data: Path) -> Path:
    """Where the experiments of a data directory lie."""
    return data / FOLDER


def read_experiments(data: Path) -> tuple[dict[str, Experiment], dict[str, str]]:
    """All experiments by name, and of files that cannot be read why (by the name of the file, less its ending).

    Raises:
        ExperimentError: the folder cannot be read.
    """
    found: dict[str, Experiment] = {}
    folder = folder_of(data)
    if (folder.exists() and not os.access(folder, os.R_OK | os.X_OK)) or folder.is_file():
        raise ExperimentError(f"{folder}: Expected a folder that can be read")
    wrong: dict[str, str] = {}
    for path in sorted(folder_of(data).glob("*.toml")):
        try:
            found[path.stem] = _parsed(path)
        except ExperimentError as error:
            wrong[path.stem] = str(error)
    return found, wrong


def read_experiment(data: Path, name: str) -> Experiment:
    """The experiment called ``name``.

    Raises:
        ExperimentError: there is none (the nearest is named), or its file is wrong.
    """
    path = folder_of(data) / f"{name}.toml"
    if _FILE.fullmatch(name) and path.is_file():
        return _parsed(path)
    return find(read_experiments(data)[0].values(), name)


def create(data: Path, text: str) -> Experiment:
    """Keep ``text`` as the file of a new experiment.

    Raises:
        ExperimentError: it is wrong, not a draft, or there is one of its name.
    """
    experiment = parse_experiment(text, "the new experiment")
    if not _FILE.fullmatch(experiment.name):
        raise ExperimentError(f'name: "{experiment.name}" is the name of its file too, and cannot begin with a dot')
    if experiment.status != "draft":
        raise ExperimentError(
            f"status: A new experiment is a draft; `headwater experiments start {experiment.name}` starts it"
        )
    with _locked(data):
        path = folder_of(data) / f"{experiment.name}.toml"
        if path.exists():
            raise ExperimentError(f"{path}: There is an experiment of that name; choose another, or edit that file")
        replace_file(path, text.encode())
    return experiment


def start(data: Path, name: str, config: Config, *, now_ms: int, share: float | None = None) -> Experiment:
    """Let users take part in ``name``; of one that runs, more of them (or fewer). ``share`` None: as it says itself.

    Raises:
        ExperimentError: it is wrong, its layer has no room, it cannot run beside the others, or all are switched off.
    """
    with _locked(data):
        if is_off(data):
            raise ExperimentError(
                "All experiments are switched off; `headwater experiments start --all` switches them on again"
            )
        before = read_experiment(data, name)
        running = [each for each in read_experiments(data)[0].values() if each.is_running and each.name != name]
        wanted = replace(before, share=before.share if share is None else share, status="draft")
        wanted = with_buckets(wanted, running)
        check_changes(wanted, config)
        values: dict[str, Any] = {
            "status": "running", "share": wanted.share, "buckets": [list(pair) for pair in wanted.buckets],
        }  # fmt: skip
        if not before.is_running:
            values |= {"started_ms": now_ms, "stopped_ms": 0, "stopped_why": ""}
        text, started = _edited(_path(data, name), before, values)
        accept([*running, started], config)
        replace_file(_path(data, name), text.encode())
    return started


def stop(data: Path, name: str, *, now_ms: int, why: str = "") -> Experiment:
    """Give everybody the control again. It keeps its buckets, so that it can be started once more with the same users.

    Raises:
        ExperimentError: there is none, or its file is wrong (then ``stop_all`` helps).
    """
    with _locked(data):
        values = {"status": "stopped", "stopped_ms": now_ms, "stopped_why": why}
        text, stopped = _edited(_path(data, name), read_experiment(data, name), values)
        replace_file(_path(data, name), text.encode())
    return stopped


def override(data: Path, name: str, user: str, variant: str) -> Experiment:
    """Give the tester ``user`` a variant, whatever the hashes say. Only a hash of the id is kept.

    Raises:
        ExperimentError: there is no such experiment or variant.
    """
    with _locked(data):
        experiment = read_experiment(data, name)
        path = _path(data, name)
        text, line = path.read_text(), f"{hashed_id(experiment, user)} = {json.dumps(variant)}"
        text = re.sub(rf"^{hashed_id(experiment, user)}\s*=.*\n", "", text, flags=re.MULTILINE)
        table = re.search(r"^\[overrides\].*$", text, re.MULTILINE)
        if table is None:
            text = f"{text.rstrip()}\n\n[overrides]\n{line}\n"
        else:
            text = f"{text[: table.end()]}\n{line}{text[table.end() :]}"
        made = parse_experiment(text, str(path))
        replace_file(path, text.encode())
    return made


def switch(data: Path, *, on: bool) -> None:
    """End all experiments at once (every user gets the control), or let those that run go on."""
    with _locked(data):
        path = folder_of(data) / OFF
        if on:
            path.unlink(missing_ok=True)
        elif not path.exists():
            replace_file(path, b"All experiments are off: `headwater experiments start --all` ends that.\n")


def is_off(data: Path) -> bool:
    """Whether all experiments are switched off."""
    return (folder_of(data) / OFF).exists()


def mark(data: Path) -> Mark:
    """What changes with every file of the folder; a few microseconds for each."""
    folder = folder_of(data)
    try:
        return (stamp(folder / OFF), *((path.name, stamp(path)) for path in sorted(folder.glob("*.toml"))))
    except OSError as error:  # reading says what is wrong
        return (str(error),)


def accept(running: Sequence[Experiment], config: Config) -> list[Acting]:
    """``running`` with the surfaces that each acts on under ``config``.

    Raises:
        ExperimentError: they cannot run together, or need more pipelines than a worker keeps.
    """
    check_together(running)
    acting = []
    for experiment in running:
        check_changes(experiment, config)
        acting.append(Acting(experiment, where_it_parts(experiment, config)))
    if (count := len(arms_of(acting))) > MAX_ARMS:
        raise ExperimentError(
            f"The variants of overlapping experiments make {count} combinations, and a worker keeps at most {MAX_ARMS} "
            "pipelines: run fewer at a time, put them into one layer, or limit their `surfaces`"
        )
    return acting


def as_served(data: Path, config: Config, variants: Mapping[str, str]) -> tuple[Config, tuple[str, ...]]:
    """``config`` as ``variants`` (by experiment) change it, by their definitions of today; and notes on what is not known any more."""
    notes: list[str] = []
    for name, chosen in sorted(variants.items()):
        if chosen == INTERLEAVED:  # the control's list is the one that is explained
            continue
        try:
            experiment = read_experiment(data, name)
            if chosen in experiment.variant_names:
                config = changed(config, [experiment.variant(chosen)])
                continue
            why = f'it has no variant "{chosen}" any more'
        except ConfigurationError as error:
            why = str(error)
        notes.append(f'served with variant "{chosen}" of experiment "{name}", explained without: {why}')
    return config, tuple(notes)


class ExperimentFiles:
    """The experiments of ``data`` as a server takes them up. A file that is wrong changes nothing: what was in force for it stays.

    ``problems`` says what is wrong now, by experiment.
    """

    def __init__(self, data: Path) -> None:
        self._data = data
        self._in_force: dict[str, Experiment] = {}
        self.problems: dict[str, str] = {}

    def read(self, config: Config) -> list[Acting]:
        """The running experiments that ``config`` can serve; those that are in force go before those that come new."""
        read, self.problems = read_experiments(self._data)
        kept = {name: self._in_force[name] for name in self.problems if name in self._in_force}
        running = sorted(
            (each for each in (read | kept).values() if each.is_running),
            key=lambda each: (each.name not in self._in_force, each.started_ms, each.name),
        )
        acting: list[Acting] = []
        for experiment in running:
            for version in (experiment, self._in_force.get(experiment.name)):
                if version is None:
                    continue
                try:
                    acting = accept([*(each.experiment for each in acting), version], config)
                    break
                except ConfigurationError as error:
                    self.problems.setdefault(experiment.name, str(error))
        self._in_force = {each.experiment.name: each.experiment for each in acting}
        return [] if is_off(self._data) else acting


def _parsed(path: Path) -> Experiment:
    try:
        text = read_regular(path, MAX_FILE).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ExperimentError(f"{path}: Cannot read the experiment: {error}") from error
    experiment = parse_experiment(text, str(path))
    if experiment.name != path.stem:
        raise ExperimentError(f'{path}: name: Expected "{path.stem}", as the file is called, got "{experiment.name}"')
    return experiment


def _path(data: Path, name: str) -> Path:
    return folder_of(data) / f"{name}.toml"


def _locked(data: Path) -> AbstractContextManager[None]:
    folder_of(data).mkdir(parents=True, exist_ok=True, mode=0o700)
    return writers_lock(folder_of(data) / ".lock")


def _edited(path: Path, before: Experiment, values: Mapping[str, Any]) -> tuple[str, Experiment]:
    """The text of ``path`` with ``values`` of keys that stand before its first table, each on one line, and what it says then.

    Raises:
        ExperimentError: the file is written in a way that this would damage.
    """
    text = path.read_text()
    table = _TABLE.search(text)
    head, rest = (text, "") if table is None else (text[: table.start()], text[table.start() :])
    for key, value in values.items():
        line = f"{key} = {json.dumps(value)}"
        found = re.search(rf"^{key}[ \t]*=.*$", head, re.MULTILINE)
        head = f"{head.rstrip()}\n{line}\n" if found is None else f"{head[: found.start()]}{line}{head[found.end() :]}"
    text = f"{head.rstrip()}\n\n{rest}" if rest else head
    wanted = msgspec.convert({**msgspec.to_builtins(before), **values}, Experiment)
    try:
        if parse_experiment(text, str(path)) == wanted:
            return text, wanted
    except ExperimentError as error:
        why = str(error)
    else:
        why = "they would not be read as they were written"
    raise ExperimentError(f"{path}: Put {', '.join(values)} on one line each, before the first table: {why}")
