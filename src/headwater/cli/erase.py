"""``headwater erase``: people, from everything that could lead to them, with a certificate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from headwater.cli.archive import now_ms_of
from headwater.cli.options import (
    EXIT_CHECK_FAILED,
    ConfigOption,
    DataOption,
    JsonOption,
    ReasonOption,
    audit,
    print_json,
    settings,
)
from headwater.schema.errors import ConfigurationError


def register(app: typer.Typer) -> None:
    """Add ``erase``."""
    app.command()(erase)


def erase(
    users: Annotated[list[str] | None, typer.Argument(metavar="USER...", help="Ids as you send them.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="Ids, one a line; - is standard input.")
    ] = None,
    search: Annotated[
        bool, typer.Option("--search/--no-search", help="Look through every file for what must be gone.")
    ] = True,
    reason: ReasonOption = "",
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Destroy the keys, mappings and state rows of users, then search every store for them.

    Example: headwater erase ada bob --json

    Works beside a running server and without one. Prints a certificate that names nobody. Exit code 1: something of
    them was found. Backups hold what they held: see "Erasure" in docs/operations.md.
    """
    from headwater.offline.erase import erase as destroy

    ids = [*(users or ()), *(_lines(file) if file is not None else ())]
    if not ids:
        raise ConfigurationError("erase: Name at least one user, or a file of ids with --file")
    if any(user in reason for user in ids):
        raise ConfigurationError("erase: --reason: Leave ids out of it: the audit log is kept when they are gone")
    chosen = settings(config, data)
    audit(chosen.data, "user.erase", "a user" if len(ids) == 1 else f"{len(ids)} users", reason)  # who is not said
    certificate = destroy(chosen.data, chosen.config, ids, at_ms=now_ms_of(chosen), search=search)
    if as_json:
        print_json(certificate)
    else:
        typer.echo(
            f"{certificate.erased} of {certificate.requested} users erased ({certificate.unknown} unknown), recorded up to "
            f"offset {certificate.offset}; {certificate.state_rows} state rows left"
        )
        for part in certificate.searched:
            typer.echo(f"  searched {part.part}: {part.files} files, {part.bytes:,} bytes, {part.hits} users found")
        if certificate.too_short:
            typer.echo(f"  {certificate.too_short} ids are too short to be searched for as text")
        typer.echo(f"{certificate.recoverable} recoverable ids" if search else "not searched")
    if certificate.recoverable or certificate.state_rows:
        raise typer.Exit(EXIT_CHECK_FAILED)


def _lines(file: Path) -> list[str]:
    text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line]
