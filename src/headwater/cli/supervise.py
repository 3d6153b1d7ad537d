"""The supervisor behind ``headwater serve``: which processes a role has, and how they are started."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from headwater.cli.options import Settings
from headwater.online.roles import PARTS, TOGETHER, Part, Role, home

if TYPE_CHECKING:
    import socket

    from headwater.online.supervisor import Child, Supervisor


@dataclass(frozen=True, slots=True)
class Site:
    """What the processes of one supervisor are given: the settings, its role, and where it listens."""

    chosen: Settings
    role: Role
    host: str
    port: int
    listeners: Sequence[socket.socket]
    shift_ms: int

    def command(self, part: Part, pinned: Path, *more: str) -> list[str]:
        """The command line of a process that reads its configuration at ``pinned``."""
        said = {
            "--role": self.role.value, "--part": part.value, "--data": self.chosen.data, "--pinned": pinned,
            "--host": self.host, "--port": self.port, "--clock-shift-ms": self.shift_ms,
        }  # fmt: skip
        if self.chosen.config_path is not None:
            said["--config"] = self.chosen.config_path
        words = [str(word) for pair in said.items() for word in pair]
        return [sys.executable, "-m", "headwater.cli.main", "serve", *words, *more]

    def children(self, pinned: Path, plan: str | None = None) -> list[Child]:
        """All processes but the writer, of one configuration; those of a later one (that has ``plan``) hold their answers
        until they are told to begin.
        """
        from headwater.features.pinned import load_pinned
        from headwater.online.supervisor import Child

        more = () if plan is None else ("--plan", plan)
        config = load_pinned(pinned)
        made = []
        for part in PARTS[self.role]:
            if part is Part.API:
                for number, listener in enumerate(self.listeners):
                    words = self.command(part, pinned, "--worker", str(number), *more)
                    made.append(Child(part.value, words, listener, hold=plan is not None))
            elif part is Part.MONITOR:
                if config.monitoring.enabled or self.role is Role.MONITOR:
                    made.append(Child(part.value, self.command(part, pinned), vital=False))
            elif part is Part.FOLD or (part is Part.TABLES and config.tables) or part is Part.LEARNER:
                made.append(Child(part.value, self.command(part, pinned, *(more if part is Part.FOLD else ()))))
        return made


def supervise(chosen: Settings, role: Role, host: str, port: int, listening: int, shift_ms: int) -> None:
    """Run ``role`` on the data directory until a signal ends it. ``listening`` is how many listen on ``port``: api processes, or this
    process for the metrics of a role without any (0: nobody does).

    Raises:
        ConfigurationError: somebody does that already, or the port is taken.
        UnavailableError: a process gave up before everything was up.
    """
    from headwater.features.paths import check_sockets_fit
    from headwater.features.pinned import drop_pinned, pin_config
    from headwater.online.supervisor import listen

    check_sockets_fit(chosen.data)
    own = home(chosen.data, role)
    with contextlib.ExitStack() as held:
        _lock(held, chosen.data, role)
        (own / "address").unlink(missing_ok=True)  # of a server that was killed
        listeners = listen(host, port, listening) if listening else []
        if listeners:
            port = int(listeners[0].getsockname()[1])
        pinned = pin_config(chosen.config, own)
        drop_pinned(own, pinned)
        held.callback((own / "address").unlink, missing_ok=True)
        asyncio.run(_run(Site(chosen, role, host, port, listeners, shift_ms), pinned))


def _lock(held: contextlib.ExitStack, data: Path, role: Role) -> None:
    """Be the only one who does what ``role`` does on ``data``; all of it is what each of the single roles does."""
    from headwater.online.supervisor import ServeLock

    for each in (role, *(TOGETHER if role is Role.ALL else ())):
        doing = f"serves {data}" if each is Role.ALL else f"has the role {each} on {data}"
        held.callback(ServeLock(home(data, each) / "serve.lock", doing).release)


async def _run(site: Site, pinned: Path) -> None:
    from headwater.online.flip import Flipper, Generation
    from headwater.online.supervisor import Child, Supervisor

    data, parts = site.chosen.data, PARTS[site.role]
    first = Generation(site.chosen.config, pinned, site.children(pinned))
    writer = [Child(Part.WRITER.value, site.command(Part.WRITER, pinned))] if Part.WRITER in parts else []
    address = (site.host, site.port) if Part.API in parts else None
    supervisor = Supervisor([*writer, *first.children], data, address, home(data, site.role))
    flipper = None
    if site.role is Role.ALL:
        flipper = Flipper(
            supervisor, data, site.chosen.config_path, first, make=site.children, writer=writer[0],
            write_command=lambda pinned: site.command(Part.WRITER, pinned),
        )  # fmt: skip

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.stop)
    hangup = _Hangup(site, supervisor, lambda: pinned if flipper is None else flipper.pinned)
    loop.add_signal_handler(signal.SIGHUP, hangup)
    loop.add_signal_handler(signal.SIGUSR1, _not_alone if flipper is None else flipper.restart_workers)
    async with _metrics_shown(site):
        await supervisor.run(lambda: _announce(site), None if flipper is None else flipper.watch)


def _metrics_shown(site: Site) -> contextlib.AbstractAsyncContextManager[None]:
    """``/metrics`` of a role whose processes answer no requests, if it has a port."""
    if Part.API in PARTS[site.role] or not site.listeners:
        return contextlib.nullcontext()
    from headwater.online.metrics_port import MetricsPort

    port = MetricsPort(site.chosen.config, site.chosen.data, home(site.chosen.data, site.role) / "metrics")
    return port.serving(site.listeners[0])


def _not_alone() -> None:
    import structlog

    structlog.get_logger().error(
        "workers_not_restarted", hint="only a server with all roles does that; start this role again"
    )


def _announce(site: Site) -> None:
    """Say on standard output that the role is up, and where it listens in a file beside its lock."""
    url = f"http://[{site.host}]:{site.port}" if ":" in site.host else f"http://{site.host}:{site.port}"
    if site.listeners:
        (home(site.chosen.data, site.role) / "address").write_text(url)
    if Part.API not in PARTS[site.role]:
        shown = f", metrics at {url}/metrics" if site.listeners else ""
        typer.echo(f"Headwater has the role {site.role} on {site.chosen.data}{shown} (Ctrl-C ends it)")
        return
    alone = "" if site.role is Role.ALL else f", with the role {site.role}"
    typer.echo(f"Headwater serves at {url} (Ctrl-C ends it){alone}")


class _Hangup:
    """What a SIGHUP does: the rules are read again; but when it is the terminal that hung up, the server ends."""

    def __init__(self, site: Site, supervisor: Supervisor, pinned: Callable[[], Path]) -> None:
        from headwater.online.supervisor import has_terminal

        self._site, self._supervisor, self._pinned = site, supervisor, pinned
        self._has_terminal = has_terminal
        self._terminal = has_terminal()
        self._asked = False
        self._reading: asyncio.Task[None] | None = None

    def __call__(self) -> None:
        if self._terminal and not self._has_terminal():
            self._supervisor.stop()
            return
        self._asked = True
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while self._asked:
            self._asked = False
            await asyncio.to_thread(_take_up_rules, self._site, self._pinned())


def _take_up_rules(site: Site, pinned: Path) -> None:
    import structlog

    if site.role not in (Role.ALL, Role.RECOMMEND):
        structlog.get_logger().warning("rules_not_read", reason=f"the role {site.role} has no use for rules")
        return
    from headwater.online.rules import take_up_rules

    take_up_rules(site.chosen.config_path, pinned)


def running_address(data: Path) -> str | None:
    """The address of the server that says it recommends from ``data``; None when there is none."""
    for role in (Role.ALL, Role.RECOMMEND):
        with contextlib.suppress(FileNotFoundError):
            if found := (home(data, role) / "address").read_text().strip():
                return found
    return None
