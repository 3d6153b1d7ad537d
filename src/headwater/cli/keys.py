"""``headwater keys``: API keys of a server, in a file of its data directory."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer
from msgspec import Struct

from headwater.cli.options import ConfigOption, DataOption, JsonOption, ReasonOption, audit, print_json, settings
from headwater.schema.keys import ApiKey, Scope


class Line(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A key as ``keys list`` shows it; ``key`` is its text, which only ``keys add`` knows."""

    id: str
    name: str
    scopes: tuple[Scope, ...]
    state: str
    created: str
    expires: str | None = None
    revoked: str | None = None
    key: str | None = None
    public: bool = False


def register(app: typer.Typer) -> None:
    """Add ``keys``."""
    group = typer.Typer(no_args_is_help=True, help="API keys: who may send, ask, read and erase.")
    for command in (add, list_, revoke):
        group.command(command.__name__.rstrip("_"))(command)
    app.add_typer(group, name="keys")


def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who or what gets it.")],
    scope: Annotated[list[Scope], typer.Option(help="What it may do; give several times for several.")],
    expires: Annotated[
        str | None, typer.Option(metavar="DURATION", help="How long it is good, such as 90d [default: until revoked].")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="It may stand in a page: it opens what one visitor needs and no more.")
    ] = False,
    reason: ReasonOption = "",
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it; it is shown this once, only its hash is kept. A running server knows it within a second.

    Example: headwater keys add shop --scope ingest --scope recommend --expires 90d
    """
    from headwater.online.keys import add_key
    from headwater.schema.clock import wall_ms
    from headwater.schema.durations import parse_duration

    at_ms = wall_ms()
    expires_ms = None if expires is None else at_ms + parse_duration(expires)
    chosen = settings(config, data)
    audit(chosen.data, "key.add", f"{name} ({', '.join(scope)}{', public' if public else ''})", reason)
    text, key = add_key(chosen.data, name, scope, now_ms=at_ms, expires_ms=expires_ms, public=public)
    if as_json:
        print_json(_line(key, at_ms, text))
        return
    until = f"good until {_time(expires_ms)}" if expires_ms is not None else "good until it is revoked"
    kind = "Public key" if public else "Key"
    typer.echo(f"{kind} {key.id} of {name} ({', '.join(key.scopes)}), {until}. It is shown this once:", err=True)
    typer.echo(text)


def list_(config: ConfigOption = None, data: DataOption = None, as_json: JsonOption = False) -> None:
    """Every key that was ever made: name, scopes, and whether it is good. Never the key itself.

    Example: headwater keys list
    """
    from headwater.online.keys import read_keys
    from headwater.schema.clock import wall_ms

    chosen = settings(config, data)
    at_ms = wall_ms()
    lines = [_line(key, at_ms) for key in read_keys(chosen.data) or ()]
    if as_json:
        print_json({"keys": lines})
        return
    if not lines:
        typer.echo(f"{chosen.data} has no API keys: it is served on loopback only, to everybody on this machine")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for name in ("name", "scopes", "state", "created", "expires", "id"):
        table.add_column(name, overflow="fold")
    for line in lines:
        scopes = " ".join((*line.scopes, *(("(public)",) if line.public else ())))
        table.add_row(line.name, scopes, line.state, line.created, line.expires or "", line.id)
    Console().print(table)


def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The key's name or id.")],
    reason: ReasonOption = "",
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Revoke a key for good; running servers refuse it within a second.

    Example: headwater keys revoke shop

    With no good key left a server refuses everything but /healthz and /readyz: it does not become open.
    """
    from headwater.online.keys import read_keys, revoke_key
    from headwater.schema.clock import wall_ms

    chosen = settings(config, data)
    at_ms = wall_ms()
    gone = next((key for key in read_keys(chosen.data) or () if name in (key.name, key.id)), None)
    if gone is not None:  # else it is refused
        audit(chosen.data, "key.revoke", f"{gone.name} ({gone.id})", reason)
    key = revoke_key(chosen.data, name, now_ms=at_ms)
    if as_json:
        print_json(_line(key, at_ms))
        return
    left = sum(not other.why_invalid(at_ms) for other in read_keys(chosen.data) or ())
    typer.echo(f"Key {key.id} of {key.name} is revoked; {left} left")


def _line(key: ApiKey, at_ms: int, text: str | None = None) -> Line:
    return Line(
        id=key.id,
        name=key.name,
        scopes=key.scopes,
        state={"": "good", "was revoked": "revoked", "has expired": "expired"}[key.why_invalid(at_ms)],
        created=_time(key.created_ms),
        expires=None if key.expires_ms is None else _time(key.expires_ms),
        revoked=None if key.revoked_ms is None else _time(key.revoked_ms),
        key=text,
        public=key.public,
    )


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1_000, UTC).isoformat(timespec="seconds")
