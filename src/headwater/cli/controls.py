"""``headwater controls``: what is changed by hand or by an alert while a server runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwater.cli.options import ConfigOption, DataOption, JsonOption, print_json, settings
from headwater.schema.clock import wall_ms
from headwater.schema.errors import ConfigurationError

if TYPE_CHECKING:
    from headwater.schema.controls import Controls


def register(app: typer.Typer) -> None:
    """Add ``controls``."""
    group = typer.Typer(no_args_is_help=True, help="Tier, exploration and promotion of a running server, by hand.")
    for command in (show, set_):
        group.command(command.__name__.rstrip("_"))(command)
    app.add_typer(group, name="controls")


def show(config: ConfigOption = None, data: DataOption = None, as_json: JsonOption = False) -> None:
    """The controls as they stand, and who changed them last.

    Example: headwater controls show
    """
    from headwater.registry.audit import read_audit
    from headwater.registry.controls import read_controls

    chosen = settings(config, data)
    now = read_controls(chosen.data)
    if as_json:
        print_json(now)
        return
    _print(now)
    for entry in read_audit(chosen.data, 1_000):
        if entry.action == "controls.change":
            typer.echo(f"last change {entry.id}: {entry.subject} by {entry.by}: {entry.reason}")
            break


def set_(
    reason: Annotated[str, typer.Option("--reason", help="Why; it stands in the audit log.")],
    tier_floor: Annotated[
        int | None, typer.Option("--tier-floor", min=0, max=4, help="Answers come from this tier or a lower one.")
    ] = None,
    exploration: Annotated[
        float | None,
        typer.Option("--exploration", min=0.0, max=100.0, help="Factor on the exploration rates; 1: as configured."),
    ] = None,
    freeze: Annotated[bool, typer.Option("--freeze", help="Have no bundle promoted, for the reason given.")] = False,
    thaw: Annotated[bool, typer.Option("--thaw", help="Let bundles be promoted again.")] = False,
    retrain: Annotated[bool, typer.Option("--retrain", help="Have `headwater learn` start a round now.")] = False,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change controls; running servers and learners follow within a second. `headwater alerts undo` takes it back.

    Example: headwater controls set --tier-floor 2 --reason "the ranker is being repaired"
    """
    from headwater.registry.controls import change_controls

    if freeze and thaw:
        raise ConfigurationError("--freeze and --thaw: one of them")
    now_ms = wall_ms()
    changes: dict[str, Any] = {}
    if tier_floor is not None:
        changes["tier_floor"] = tier_floor
    if exploration is not None:
        changes["exploration"] = exploration
    if freeze or thaw:
        changes["promotion_frozen"] = reason[:500] if freeze else ""
    if retrain:
        changes["retrain_asked_ms"] = now_ms
    if not changes:
        raise ConfigurationError("nothing is to be changed: see `headwater controls set --help`")
    now = change_controls(settings(config, data).data, by="cli", reason=reason, time_ms=now_ms, **changes)
    if as_json:
        print_json(now)
    else:
        _print(now)


def _print(now: Controls) -> None:
    from headwater.cli.alerts import time_of

    typer.echo(f"tier_floor        {now.tier_floor}{'' if now.tier_floor else ' (full answers)'}")
    typer.echo(f"exploration       {now.exploration:g} times what is configured")
    typer.echo(f"promotion         {f'frozen: {now.promotion_frozen}' if now.promotion_frozen else 'as the gate says'}")
    asked = time_of(now.retrain_asked_ms) if now.retrain_asked_ms else "never"
    typer.echo(f"retrain asked     {asked}")
