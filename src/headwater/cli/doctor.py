"""``headwater doctor``: is this machine ready, and is what runs on it well?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import typer
from msgspec import Struct

from headwater.cli.options import (
    EXIT_CHECK_FAILED,
    ConfigOption,
    DataOption,
    JsonOption,
    Settings,
    print_json,
    settings,
    system_clock,
)
from headwater.schema.errors import HeadwaterError, UnavailableError

Level = Literal["ok", "warn", "fail"]

_LEAST_PYTHON = (3, 11)
_PACKAGES = ("numpy", "numba", "msgspec", "lmdb", "polars", "pyarrow", "lightgbm", "litestar", "uvicorn", "uvloop")
_FSYNCS = 20
_FSYNC_BYTES = 16 * 1024
_SLOW_FSYNC_MS = 10.0
_LITTLE_DISK_GIB, _TOO_LITTLE_DISK_GIB = 5.0, 0.5
_GIB = 1024**3
_LAST_RECORDS = 1_000
_REMOTE_S = 2.0


class Check(Struct, frozen=True, omit_defaults=True):
    """One finding. ``advice`` says what to do where it is not ok; ``figures`` are for machines."""

    name: str
    level: Level
    detail: str
    advice: str = ""
    figures: dict[str, float] = {}


class Report(Struct, frozen=True):
    """All findings; ``healthy``: none of them failed."""

    healthy: bool
    checks: list[Check]


def register(app: typer.Typer) -> None:
    """Add ``doctor``."""
    app.command("doctor")(doctor)


def doctor(config: ConfigOption = None, data: DataOption = None, as_json: JsonOption = False) -> None:
    """Check Python, packages, configuration, kernels, disk, writer and log. Ends with 1 when a check fails.

    Example: headwater doctor --data data
    """
    checks = list(_checks(config, data))
    report = Report(all(check.level != "fail" for check in checks), checks)
    if as_json:
        print_json(report)
    else:
        _print(report)
    if not report.healthy:
        raise typer.Exit(EXIT_CHECK_FAILED)


def _checks(config: Path | None, data: Path | None) -> Iterator[Check]:
    yield _python()
    yield from _packages()
    yield _kernels()
    try:
        chosen = settings(config, data)
    except HeadwaterError as error:
        yield Check("configuration", "fail", str(error), "Correct the file; headwater init writes a good one")
        return
    source = str(chosen.config_path) if chosen.config_path is not None else "no file, the defaults"
    yield Check("configuration", "ok", source)
    yield from _disk(chosen.data)
    yield _keys(chosen)
    yield _writer(chosen)
    yield _log(chosen)
    yield _state(chosen)
    if chosen.config.state.store == "redis":
        yield _redis(chosen)
    if chosen.config.ranker.remote:
        yield _remote_ranker(chosen)
    yield from _tables(chosen)


def _python() -> Check:
    import platform
    import sys

    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < _LEAST_PYTHON:
        return Check("python", "fail", detail, "Headwater needs Python 3.11 or newer")
    return Check("python", "ok", detail)


def _packages() -> Iterator[Check]:
    import importlib
    import importlib.metadata

    found = []
    for name in _PACKAGES:
        try:
            importlib.import_module(name)
        except (ImportError, OSError) as error:  # a missing system library is an OSError
            yield Check(
                "packages", "fail", f"{name} cannot be imported: {error}", f"pip install --force-reinstall {name}"
            )
        else:
            found.append(f"{name} {importlib.metadata.version(name)}")
    if len(found) == len(_PACKAGES):
        yield Check("packages", "ok", ", ".join(found))


def _kernels() -> Check:
    from headwater.jit import cache_dir

    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        advice = "Name a folder that can be written in HEADWATER_CACHE; until then every start compiles for seconds"
        return Check("kernels", "warn", f"{folder}: {error.strerror}", advice)
    compiled = sum(1 for _ in folder.rglob("*.nbc"))
    detail = f"{compiled} compiled kernels in {folder}" if compiled else f"none compiled yet; they will go to {folder}"
    return Check("kernels", "ok", detail, figures={"compiled": compiled})


def _disk(data: Path) -> Iterator[Check]:
    import os
    import shutil

    folder = data.absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        yield Check("data directory", "fail", f"{data} cannot be written", f"Give yourself write access to {folder}")
        return
    state = "" if folder == data.absolute() else " (will be made)"
    yield Check("data directory", "ok", f"{data}{state}")
    free = shutil.disk_usage(folder).free / _GIB
    level: Level = "ok" if free >= _LITTLE_DISK_GIB else "warn" if free >= _TOO_LITTLE_DISK_GIB else "fail"
    advice = "" if level == "ok" else "Make room: the writer stops when the disk is full"
    yield Check("free disk", level, f"{free:.1f} GiB", advice, {"gib": round(free, 2)})
    yield _fsync(folder, time.perf_counter)


def _fsync(folder: Path, clock: Callable[[], float]) -> Check:
    import os
    import tempfile

    took = []
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            for _ in range(_FSYNCS):
                file.write(b"\1" * _FSYNC_BYTES)
                file.flush()
                started = clock()
                os.fdatasync(file.fileno())
                took.append((clock() - started) * 1_000)
    except OSError as error:
        return Check("fsync", "fail", f"{folder}: {error.strerror}", "The log cannot be made durable here")
    median, worst = sorted(took)[_FSYNCS // 2], max(took)
    level: Level = "warn" if median > _SLOW_FSYNC_MS else "ok"
    advice = "" if level == "ok" else "Every acknowledged event waits for this; put the data directory on a local SSD"
    figures = {"median_ms": round(median, 3), "max_ms": round(worst, 3)}
    return Check("fsync", level, f"{median:.2f} ms (median of {_FSYNCS}), {worst:.2f} ms at most", advice, figures)


def _writer(chosen: Settings) -> Check:
    from headwater.log.client import SyncWriterClient

    socket = chosen.data / "run" / "writer.sock"
    if not socket.exists():
        return Check("writer", "ok", "not running (headwater serve starts it)")
    try:
        with SyncWriterClient(socket, connect_timeout_s=0.5, ack_timeout_s=2.0) as client:
            offset = client.ping().offset
    except UnavailableError as error:
        advice = "If headwater serve should be running, look at its log; if not, the socket is left over and harmless"
        return Check("writer", "warn", f"does not answer: {error}", advice)
    return Check("writer", "ok", f"running, the log ends at offset {offset:,}", figures={"offset": offset})


def _log(chosen: Settings) -> Check:
    from headwater.log.lmdb import LmdbLog

    folder = chosen.data / "log"
    if not (folder / "data.mdb").exists():
        return Check("log", "ok", "empty")
    try:
        log = LmdbLog(folder, readonly=True)
        try:
            last = log.last_offset
            log.read(max(last - _LAST_RECORDS, 0), _LAST_RECORDS)
        finally:
            log.close()
    except HeadwaterError as error:
        return Check("log", "fail", str(error), "Restore the data directory from a backup")
    return Check("log", "ok", f"readable, {last:,} records", figures={"offset": last})


def _keys(chosen: Settings) -> Check:
    """Whether callers need API keys, and whether the file of their hashes is for its owner alone."""
    from headwater.online.keys import read_keys
    from headwater.schema.clock import wall_ms
    from headwater.schema.keys import KEYS_FILE

    try:
        keys = read_keys(chosen.data)
    except HeadwaterError as error:
        return Check("keys", "fail", str(error), "Nobody is let in until it can be read")
    if keys is None:
        return Check("keys", "ok", "no API keys: served on loopback only")
    path, good = chosen.data / KEYS_FILE, sum(not key.why_invalid(wall_ms()) for key in keys)
    figures = {"good": float(good), "keys": float(len(keys))}
    if path.stat().st_mode & 0o077:
        return Check("keys", "warn", f"others of this machine may open {path}", f"chmod 600 {path}", figures)
    if not good:
        advice = "headwater keys add NAME --scope ..."
        return Check("keys", "warn", "no API key is good: nobody is let in", advice, figures)
    return Check("keys", "ok", f"{good} of {len(keys)} API keys are good", figures=figures)


def _state(chosen: Settings) -> Check:
    """Which plan is in service, and whether it is the one of the configuration."""
    from headwater.features.paths import read_current, read_flip, state_dirs
    from headwater.features.plan import compile_plan
    from headwater.online.supervisor import serving_process

    try:
        plan, current, flip = compile_plan(chosen.config).hash, read_current(chosen.data), read_flip(chosen.data)
    except HeadwaterError as error:
        return Check("state", "fail", str(error), "Correct what it names")
    figures = {"plans": float(len(state_dirs(chosen.data)))}
    if current is None or not serving_process(chosen.data):
        return Check("state", "ok", f"no plan in service; the configuration has plan {plan}", figures=figures)
    if flip is not None and flip.stage == "refused":
        return Check("state", "warn", f"plan {current.plan} serves, {flip.plan} was refused", flip.reason, figures)
    if current.plan != plan:
        advice = "`headwater features backfill` brings the configuration's plan into service"
        return Check("state", "warn", f"plan {current.plan} serves, the configuration has {plan}", advice, figures)
    return Check("state", "ok", f"plan {plan} serves", figures=figures)


def _redis(chosen: Settings) -> Check:
    """Whether the Redis that holds the state answers, and how far the state of the configuration's plan is."""
    from headwater.features.paths import state_dir
    from headwater.features.plan import compile_plan
    from headwater.features.state import open_store, open_wire

    try:
        wire = open_wire(chosen.config, hurried=True)
        name = wire.name
        wire.close()
    except HeadwaterError as error:
        return Check(
            "redis", "fail", str(error), "Start it or correct [state]; until then lists are answered in tier 3 or 4"
        )
    try:
        plan = compile_plan(chosen.config)
        state = open_store(chosen.config, state_dir(chosen.data, plan.hash), plan, writable=False)
        try:
            offset = state.meta().offset
        finally:
            state.close()
    except HeadwaterError as error:
        return Check("redis", "warn", f"{name} answers; {error}", "`headwater serve` folds the state")
    return Check("redis", "ok", f"{name} holds the state at offset {offset:,}", figures={"offset": offset})


def _remote_ranker(chosen: Settings) -> Check:
    """Whether the server at ``ranker.remote`` has the ranker of the promoted bundle."""
    from headwater.features.plan import compile_plan
    from headwater.ranking.ranker import UnreachableError
    from headwater.ranking.remote import RemoteRanker
    from headwater.registry.registry import Registry

    try:
        plan, registry = compile_plan(chosen.config), Registry(chosen.data / "models")
        version = registry.current(plan.hash)
        if version is None:
            return Check("remote ranker", "ok", "not asked: no bundle is promoted")
        manifest = registry.load(version, plan_hash=plan.hash).manifest
    except HeadwaterError as error:
        return Check("remote ranker", "fail", str(error), "Correct what it names")
    ranker = RemoteRanker(
        chosen.config.ranker.remote, version=version, plan_hash=plan.hash, columns=manifest.columns, attends=False
    )
    try:
        ranker.check(_REMOTE_S)
    except UnreachableError as error:
        return Check(
            "remote ranker", "fail", str(error), f"Have it load {version}; until then lists are of tier 1 or 2"
        )
    except HeadwaterError as error:
        return Check("remote ranker", "fail", str(error), "Lists are of tier 1 or 2 until it has the right one")
    finally:
        ranker.close()
    return Check("remote ranker", "ok", f"{ranker.url} has version {version}")


def _tables(chosen: Settings) -> Iterator[Check]:
    """How up to date each of [[tables]] is, as its loader saw it last."""
    from headwater.features.module import configured_columns
    from headwater.offline.tables.read import reads_of
    from headwater.offline.tables.standing import Standing, read_standing

    if not chosen.config.tables:
        return
    now_ms, standings = system_clock(chosen)(), read_standing(chosen.data)
    for source in chosen.config.tables:
        name = f"table {source.name}"
        try:
            max_age_ms = reads_of(source, configured_columns(chosen.config)).max_age_ms
        except HeadwaterError as error:
            yield Check(name, "warn", str(error), "Correct what it names")
            continue
        newest = standings.get(source.name, Standing()).newest_ms
        if newest is None:
            advice = (
                "`headwater features load` brings it in, and so does a running server; its log says why when it cannot"
            )
            yield Check(name, "warn", "nothing is loaded", advice)
            continue
        age_h = max(now_ms - newest, 0) / 3_600_000
        figures = {"newest_valid_from_ms": float(newest), "hours": round(age_h, 2)}
        if max_age_ms is not None and now_ms - newest > max_age_ms:
            advice = "Its features are at their defaults, for age: see to the job that computes it"
            yield Check(name, "warn", f"newest row valid from {age_h:,.1f} h ago", advice, figures)
        else:
            yield Check(name, "ok", f"newest row valid from {age_h:,.1f} h ago", figures=figures)


def _print(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    table = Table(box=None, show_header=False, pad_edge=False)
    for check in report.checks:
        detail = Text(check.detail)
        if check.advice:
            detail.append(f"\n→ {check.advice}", style="italic")
        table.add_row(Text(check.level, style=colours[check.level]), Text(check.name), detail)
    Console().print(table)
