"""Options that commands share, so that ``--config``, ``--data`` and ``--json`` mean one thing everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from headwater.schema.clock import wall_ms
from headwater.schema.config import Config, load_config, resolve_data_dir
from headwater.schema.durations import parse_duration
from headwater.schema.errors import ConfigurationError

EXIT_CHECK_FAILED = 1
EXIT_INPUT = 2
EXIT_UNAVAILABLE = 3

DEFAULT_CONFIG = Path("headwater.toml")

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="PATH", envvar="HEADWATER_CONFIG", help="Configuration [default: ./headwater.toml if there]"
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR", envvar="HEADWATER_DATA", help="Data directory [default: data_dir of the configuration]"
    ),
]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key", metavar="KEY", envvar="HEADWATER_API_KEY",
        help="Key for the server; better in the environment, for others of this machine can read arguments.",
    ),
]  # fmt: skip
WindowOption = Annotated[str, typer.Option("--window", help="How long after a list an event still counts")]
SinceOption = Annotated[int, typer.Option("--since", min=1, metavar="OFFSET", help="Read the log from here on")]
ReasonOption = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it stands in the audit log.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on the last line.")]


@dataclass(frozen=True, slots=True)
class Settings:
    """What ``--config`` and ``--data`` came to. ``config_path`` is None when the defaults are used."""

    config: Config
    config_path: Path | None
    data: Path


def settings(config: Path | None, data: Path | None) -> Settings:
    """Load the configuration that the options name: the given file, else ``./headwater.toml``, else the defaults.

    Raises:
        ConfigurationError: the file cannot be read or is wrong.
    """
    path = config if config is not None else (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)
    loaded = load_config(path)
    return Settings(loaded, path, data if data is not None else resolve_data_dir(loaded, path))


def parse_time(option: str, text: str | None) -> int | None:
    """The time that ``option`` was given, ISO 8601 (UTC unless it says otherwise), in Unix ms; None for none.

    Raises:
        ConfigurationError: ``text`` is no time.
    """
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigurationError(f"{option} {text}: Expected a time like 2017-10-12 or 2017-10-12T06:00:00Z") from error
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1_000)


def parse_length(option: str, text: str) -> int:
    """The duration that ``option`` was given, in ms.

    Raises:
        ConfigurationError: ``text`` is no duration.
    """
    try:
        return parse_duration(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"{option} {text}: {error}") from error


def read_file(option: str, path: Path) -> str:
    """The text of the file that ``option`` was given.

    Raises:
        ConfigurationError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{option} {path}: Cannot read the file: {error}") from error


def audit(data: Path, action: str, subject: str, reason: str) -> None:
    """Write into the audit log what the command line is about to change.

    Raises:
        HeadwaterError, OSError: it cannot be written; then nothing may be changed.
    """
    from headwater.registry.audit import record

    record(data, time_ms=wall_ms(), by="cli", action=action, subject=subject[:500], reason=reason)


def print_json(value: Any) -> None:
    """One JSON object on one line of standard output: structs, dataclasses and dictionaries alike."""
    import msgspec

    typer.echo(msgspec.json.encode(value).decode())


def configure_logging(level: Literal["debug", "info", "warning", "error"]) -> None:
    """JSON lines on standard error, from ``level`` up. A command that serves calls it again with "info"."""
    import sys

    import structlog
    from structlog.tracebacks import ExceptionDictTransformer

    from headwater.online.library_logs import take_library_logs

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # local variables may hold user ids and keys: a traceback names places only
            structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # standard error of the moment, not of the moment of this call: a caller may exchange it
        logger_factory=lambda *_: structlog.WriteLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )
    take_library_logs()


def system_clock(chosen: Settings) -> Callable[[], int]:
    """The time of the system: the wall's, or where the log stands."""
    from contextlib import closing

    from headwater.log.environment import StoreError
    from headwater.log.lmdb import LmdbLog

    def stands() -> int:
        try:
            with closing(LmdbLog(chosen.data / "log", readonly=True)) as event_log:
                return event_log.last_received_ms
        except StoreError:  # nothing was ever written: time starts now
            return wall_ms()

    return stands if chosen.config.clock == "log" else wall_ms
