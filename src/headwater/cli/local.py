"""A whole system of one's own, for demonstrations and measurements: a folder, a world in its log, a server.

Every step is the one that a user takes: the configuration is a file, the history goes through the log's
writer, training is the job behind ``headwater train``, serving is ``headwater serve``.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from headwater.client import Client
from headwater.evaluation.world_log import history_batch
from headwater.log.archived import open_log
from headwater.log.writer import open_writer
from headwater.schema.clock import wall_ms
from headwater.schema.config import load_config
from headwater.schema.errors import ConfigurationError, HeadwaterError, UnavailableError
from headwater.simulator import World
from headwater.simulator.catalogue import HOUR_MS

if TYPE_CHECKING:
    from headwater.offline.train import TrainReport

TomlTable = Mapping[str, str | int | float | bool | list[str]]

_STOP_S = 20.0


class StepFailedError(HeadwaterError):
    """A command that was run as a step of another failed."""


@dataclass(frozen=True, slots=True)
class Site:
    """A folder with a configuration and a data directory."""

    config: Path
    data: Path

    @property
    def server_log(self) -> Path:
        """Where a server that this program starts writes its log lines."""
        return self.config.parent / "serve.log"


def make_site(folder: Path, tables: Mapping[str, TomlTable]) -> Site:
    """A new site in ``folder``: on the log's clock, at the defaults but for ``tables`` of the configuration.

    Raises:
        ConfigurationError: the folder already holds a log, or cannot be written.
    """
    site = Site(folder / "headwater.toml", folder / "data")
    if site.data.exists():
        raise ConfigurationError(f"{site.data} is already there; name an empty folder")
    lines = ['data_dir = "data"', 'clock = "log"']
    for name, table in tables.items():
        # JSON texts, numbers, booleans and lists of them are TOML too.
        lines += ["", f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        site.config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"Cannot write {site.config}: {error.strerror}") from error
    load_config(site.config)
    return site


def write_world(site: Site, world: World, on_hour: Callable[[int], None]) -> tuple[int, int]:
    """Put a world's items and history into the log, hour by hour as they came; returns (events, items).

    ``on_hour`` is told how many hours are written.
    """
    history = world.history()
    segment_keys = load_config(site.config).segments.keys
    at_ms = world.start_ms
    items = 0
    with open_writer(site.data, clock=lambda: at_ms, segment_keys=segment_keys) as writer:
        known_ms = 0
        for hour in range(world.hours):
            at_ms = world.start_ms + hour * HOUR_MS
            born = world.items_born(known_ms, at_ms)
            known_ms = at_ms
            if born:
                writer.put_items(born, at_ms=at_ms)
                items += len(born)
            last = world.hours - 1 == hour
            until = len(history) if last else int(np.searchsorted(history.time_ms, at_ms + HOUR_MS))
            rows = slice(int(np.searchsorted(history.time_ms, at_ms)), until)
            if rows.stop > rows.start:
                writer.append_events(history_batch(world, history.take(rows), segment_keys))
            on_hour(hour + 1)
    return len(history), items


def train_site(site: Site, progress: Callable[[str, int, int], None] | None = None) -> TrainReport:
    """Train on everything in the log of a site and publish; ``progress`` gets (phase, done, total)."""
    from headwater.evaluation.checks import checks_dir
    from headwater.features.profiles import Profiles
    from headwater.offline.train import train
    from headwater.registry.audit import Author

    log = open_log(site.data)
    try:
        return train(
            load_config(site.config), log, site.data / "models", promote=Author("cli", wall_ms), created_ms=wall_ms(), checks=checks_dir(site.data),
            unseal=Profiles(site.data),
            progress=progress,
        )  # fmt: skip
    finally:
        log.close()


def run_command(site: Site, *arguments: str) -> str:
    """Run ``headwater`` with ``arguments`` on a site; progress goes to standard error, the answer is returned.

    Raises:
        StepFailedError: the command failed; its own message stands on standard error.
    """
    done = subprocess.run(command(site, *arguments), stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise StepFailedError(f"`headwater {arguments[0]}` failed with exit code {done.returncode}")
    return done.stdout


def command(site: Site, *arguments: str) -> list[str]:
    """The command line of ``headwater`` with ``arguments`` on a site."""
    chosen = ["--config", str(site.config), "--data", str(site.data)]
    return [sys.executable, "-m", "headwater.cli.main", *arguments, *chosen]


def free_port(wanted: int = 0) -> int:
    """``wanted`` when nobody listens there, else any free port."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise UnavailableError("There is no free port on 127.0.0.1")


class Server:
    """``headwater serve`` on a site, from ``__enter__`` (ready to answer) to ``__exit__`` (stopped).

    Raises:
        UnavailableError: it did not become ready in ``patience_s`` seconds; the message holds its last lines.
    """

    def __init__(self, site: Site, port: int = 0, patience_s: float = 120.0) -> None:
        self.site = site
        self.port = free_port(port)
        self.url = f"http://127.0.0.1:{self.port}"
        self._patience_s = patience_s
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id of the supervisor."""
        if self._process is None:
            raise UnavailableError("The server is not running")
        return self._process.pid

    def __enter__(self) -> Self:
        with self.site.server_log.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal reaches this program only, which then ends the server.
            self._process = subprocess.Popen(  # noqa: S603
                command(self.site, "serve", "--port", str(self.port)),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def _wait(self) -> None:
        until = time.monotonic() + self._patience_s
        with Client(self.url, timeout=1.0) as client:
            while not client.ready():
                ended = self._process is None or self._process.poll() is not None
                if ended or time.monotonic() > until:
                    what = "ended at once" if ended else f"was not ready after {self._patience_s:.0f} s"
                    raise UnavailableError(f"`headwater serve` {what}:\n{self._last_lines()}")
                time.sleep(0.05)

    def _last_lines(self) -> str:
        text = self.site.server_log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-15:])

    def stop(self) -> None:
        """End the server: politely, and after some seconds with all its processes."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
