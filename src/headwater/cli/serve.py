"""``headwater serve``: everything that one machine needs, and each of its parts alone."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import signal
import socket
import traceback
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwater.cli.options import (
    EXIT_INPUT,
    EXIT_UNAVAILABLE,
    ConfigOption,
    DataOption,
    Settings,
    configure_logging,
    settings,
)
from headwater.online.roles import PARTS, Part, Role
from headwater.schema.clock import wall_ms
from headwater.schema.errors import ConfigurationError, HeadwaterError, UnavailableError

if TYPE_CHECKING:
    from litestar.types import ASGIApp

    from headwater.online.service import Service


LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Handed:
    """What the supervisor gives an api process: its role, descriptors, whether to hold until told, the plan it must have, and where
    its configuration was read.
    """

    role: Role
    listen_fd: int | None
    control_fd: int | None
    hold: bool
    plan: str | None
    pinned: Path | None


def register(app: typer.Typer) -> None:
    """Add ``serve``."""
    app.command("serve")(serve)


def serve(
    config: ConfigOption = None,
    data: DataOption = None,
    host: Annotated[
        str | None,
        typer.Option(
            help="Address to listen on [default: serving.host; 127.0.0.1 for metrics of fold, learn, monitor]."
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65_535,
            help="Port, 0 for any free one [default: serving.port; of fold, learn and monitor, which show metrics there: none].",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, help="Api processes [default: serving.workers].")
    ] = None,
    role: Annotated[
        Role,
        typer.Option(help="all: everything but learn; else that alone, beside the others on the same data directory."),
    ] = Role.ALL,
    part: Annotated[Part | None, typer.Option(hidden=True)] = None,
    listen_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
    clock_shift_ms: Annotated[int | None, typer.Option(hidden=True)] = None,
    worker: Annotated[int, typer.Option(hidden=True)] = 0,
    pinned: Annotated[Path | None, typer.Option(hidden=True)] = None,
    plan: Annotated[str | None, typer.Option(hidden=True)] = None,
    control_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
    hold: Annotated[bool, typer.Option("--hold", hidden=True)] = False,
) -> None:
    """Serve recommendations over HTTP; take in events, items and users. Ctrl-C ends it politely.

    Example: headwater serve --port 8080

    Prints the address once it answers. Log lines are JSON on standard error.
    """
    import structlog

    configure_logging("info")
    structlog.contextvars.bind_contextvars(role=role.value, part="supervisor" if part is None else part.value)
    chosen = settings(config, data) if pinned is None else _pinned(pinned, config, data)
    serving = chosen.config.serving
    answers = Part.API in PARTS[role]
    listens = answers or port is not None
    host = host or (serving.host if answers else LOOPBACK)
    port = serving.port if port is None else port
    shift_ms = _clock_shift_ms(chosen) if clock_shift_ms is None else clock_shift_ms
    if part in (None, Part.API) and listens:
        _check_reach(host, chosen.data)
    if part is None:
        from headwater.cli.supervise import supervise

        if role in (Role.ALL, Role.RECOMMEND):
            _check_rules(chosen)
        if chosen.config.monitoring.enabled:
            from headwater.cli.monitor import rules_of

            rules_of(chosen.config)
        count = (serving.workers if workers is None else workers) if answers else int(listens)
        supervise(chosen, role, host, port, count, shift_ms)
        return
    from headwater.cli.process_metrics import ProcessMetrics
    from headwater.online.supervisor import die_with_supervisor

    die_with_supervisor()
    ProcessMetrics().started(part)
    try:
        if part is Part.WRITER:
            _run(lambda stop, _: _write(chosen, _clock(shift_ms), stop))
        elif part is Part.FOLD:
            _run(lambda stop, _: _fold(chosen, stop, plan))
        elif part is Part.TABLES:
            _run(lambda stop, _: _load(chosen, _clock(shift_ms), stop))
        elif part is Part.LEARNER:
            _learn(chosen)
        elif part is Part.MONITOR:
            from headwater.cli.monitor import monitor

            _run(lambda stop, _: monitor(chosen, stop, shift_ms))
        else:
            handed = Handed(role, listen_fd, control_fd, hold, plan, pinned)
            _run(lambda stop, retire: _answer(chosen, host, port, handed, _clock(shift_ms), worker, stop, retire))
    except HeadwaterError as error:
        code = EXIT_UNAVAILABLE if isinstance(error, UnavailableError) else EXIT_INPUT
        structlog.get_logger().critical("process_failed", error=str(error), code=code)
        raise typer.Exit(code) from error


def _pinned(path: Path, config: Path | None, data: Path | None) -> Settings:
    """The settings of a child: the copy of the configuration that the supervisor made for it of the file ``config``."""
    from headwater.features.pinned import load_pinned

    if data is None:
        raise ConfigurationError("--pinned is for the supervisor's children, which are given --data too")
    return Settings(load_pinned(path), config, data)


def _check_reach(host: str, data: Path) -> None:
    """Without API keys nobody but this machine may ask.

    Raises:
        ConfigurationError: ``host`` is an address that others can reach, and there are no keys or they cannot be read.
    """
    from headwater.online.keys import read_keys

    if read_keys(data) is not None:
        return
    try:
        if ipaddress.ip_address(host).is_loopback:
            return
    except ValueError:
        if host == "localhost":
            return
    raise ConfigurationError(
        f'serving.host: "{host}" can be reached from elsewhere and there are no API keys. '
        "Make one with `headwater keys add NAME --scope ...`, or listen on 127.0.0.1"
    )


def _check_rules(chosen: Settings) -> None:
    """Rules that do not compile are found before anything starts.

    Raises:
        ConfigurationError: the message names each.
    """
    if chosen.config.rules:
        from headwater.features.plan import compile_plan
        from headwater.policy.rules import compile_rules
        from headwater.serving.rule_fields import rule_fields

        compile_rules(chosen.config.rules, rule_fields(chosen.config, compile_plan(chosen.config)))


def _clock_shift_ms(chosen: Settings) -> int:
    """How far the system's time is from the wall's: with the log's clock, time goes on where the log ends."""
    from headwater.log.environment import StoreError
    from headwater.log.lmdb import LmdbLog

    if chosen.config.clock == "wall":
        return 0
    try:
        event_log = LmdbLog(chosen.data / "log", readonly=True)
    except StoreError:  # nothing was ever written: time starts now
        return 0
    try:
        last_ms = event_log.last_received_ms
    finally:
        event_log.close()
    return last_ms - _clock(0)() if last_ms else 0


def _clock(shift_ms: int) -> Callable[[], int]:
    return lambda: wall_ms() + shift_ms


def _run(main: Callable[[asyncio.Event, asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    """Run ``main`` in a uvloop; SIGTERM and SIGINT set the first event it is given, SIGUSR1 the second (to retire)."""
    import uvloop

    async def run() -> None:
        stop, retire = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_log_loop_error)
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_signal_handler(signal.SIGUSR1, retire.set)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            loop.add_signal_handler(signal.SIGINT, stop.set)
        await main(stop, retire)

    uvloop.run(run())


def _log_loop_error(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What nobody awaited, as a log line; the trace without the values of its variables."""
    import structlog

    error = context.get("exception")
    trace = "".join(traceback.format_exception(error)) if isinstance(error, BaseException) else ""
    structlog.get_logger().error("loop_error", message=context.get("message"), error=type(error).__name__, trace=trace)


async def _write(chosen: Settings, clock: Callable[[], int], stop: asyncio.Event) -> None:
    from headwater.log.environment import GIB
    from headwater.log.socket import serve_writer
    from headwater.log.space import MB
    from headwater.log.writer import open_writer

    config = chosen.config
    writer = open_writer(
        chosen.data,
        clock=clock,
        segment_keys=config.segments.keys,
        dedup_window=config.log.dedup_window,
        map_size=int(config.log.map_size_gib * GIB),
        min_free=int(config.log.min_free_mb * MB),
    )
    try:
        await serve_writer(writer, chosen.data / "run" / "writer.sock", stop=stop, on_ready=_settle)
    finally:
        writer.close()


def _settle() -> None:
    """What is in memory now stays: the collector need not look at it again."""
    gc.collect()
    gc.freeze()


async def _fold(chosen: Settings, stop: asyncio.Event, plan: str | None) -> None:
    from headwater.nearline.fold import run_fold

    await run_fold(chosen.config, chosen.data, stop=stop, plan_hash=plan)


async def _load(chosen: Settings, clock: Callable[[], int], stop: asyncio.Event) -> None:
    from headwater.offline.tables.follow import follow_tables

    await follow_tables(chosen.config, chosen.data, clock=clock, stop=stop, served=True)


def _learn(chosen: Settings) -> None:
    from headwater.cli.learn import keep_learning

    keep_learning(chosen, every=None, rounds=None, threads=1, report=lambda _: None)


async def _answer(
    chosen: Settings,
    host: str,
    port: int,
    handed: Handed,
    clock: Callable[[], int],
    worker: int,
    stop: asyncio.Event,
    retire: asyncio.Event,
) -> None:
    from headwater.online.supervisor import listen
    from headwater.online.worker import Orders, run_worker

    listener = socket.socket(fileno=handed.listen_fd) if handed.listen_fd is not None else listen(host, port, 1)[0]
    orders = Orders(stop, retire, hold=handed.hold)
    with listener, contextlib.ExitStack() as opened:
        if handed.control_fd is not None:
            orders.control = opened.enter_context(socket.socket(fileno=handed.control_fd))
            orders.control.setblocking(False)
        await run_worker(
            chosen.config, chosen.data, listener, clock=clock, worker=worker, orders=orders, plan_hash=handed.plan,
            pinned=handed.pinned, role=handed.role, console=_console(chosen, clock),
        )  # fmt: skip


def _console(chosen: Settings, clock: Callable[[], int]) -> Callable[[Service], ASGIApp] | None:
    """What makes the console of a worker; None where the configuration has none."""
    if not chosen.config.console.enabled:
        return None

    def made(service: Service) -> ASGIApp:
        from headwater.cli.console import planes_of
        from headwater.console.app import console_app
        from headwater.online.console import ConsoleKeys, ConsoleLive
        from headwater.schema.clock import wall_ms

        keys, live = ConsoleKeys(service.access), ConsoleLive(service, chosen.data)
        planes = planes_of(chosen, service, clock)
        return console_app(service.config, chosen.data, keys, live, planes, clock=clock, wall=wall_ms)

    return made
