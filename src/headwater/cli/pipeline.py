"""``headwater pipeline``: the request path and its ladder, as data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from headwater.cli.options import ConfigOption, JsonOption, print_json, settings

if TYPE_CHECKING:
    from headwater.schema.surfaces import Fatigue, Surface


def register(app: typer.Typer) -> None:
    """Add ``pipeline``."""
    group = typer.Typer(no_args_is_help=True, help="The request path: its stages, and the tiers that it steps down.")
    group.command("show")(show)
    app.add_typer(group, name="pipeline")


def show(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """The stages of a request in order: what each needs, by when it must be over, and what a list is without it; the tiers, and
    how the list of each surface is put together.

    Example: headwater pipeline show
    """
    from headwater.serving.stages import STAGES, TIERS, described

    chosen = settings(config, None).config
    ladder = chosen.ladder
    if as_json:
        print_json(described(chosen))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    stages = Table("stage", "does", "needs", "over by", "without it", box=None, pad_edge=False)
    for stage in STAGES:
        until = f"{stage.until * ladder.deadline_ms:g} ms" if stage.name != "log" else "after the answer"
        stages.add_row(stage.name, stage.does, ", ".join(stage.needs) or "–", until, stage.skipped)
    console.print(stages)
    tiers = Table("tier", "name", "serves", box=None, pad_edge=False)
    for tier in TIERS:
        tiers.add_row(str(tier.number), tier.name, tier.serves)
    console.print()
    console.print(tiers)
    surfaces = Table("surface", "k", "objective", "fatigue", "diversity", "exploration", box=None, pad_edge=False)
    for surface in chosen.surfaces:
        surfaces.add_row(surface.name, str(surface.k), *_policy_of(surface, chosen.fatigue))
    console.print()
    console.print(surfaces)
    if (said := chosen.new_items).impressions:
        console.print()
        console.print(
            f"new items: {said.impressions:,} impressions within {said.within}, at most {said.share:.3g} of the places on {', '.join(said.surfaces)}"
        )


def _policy_of(surface: Surface, fatigue: Fatigue) -> tuple[str, str, str, str]:
    """Objective, fatigue, diversity and exploration in words."""
    explores = surface.exploration
    impressions, action = fatigue.on(surface)
    return (
        ", ".join(f"{weight:g} × {head}" for head, weight in surface.objective.items()) or "of the bundle",
        f"{action} after {impressions} in {fatigue.window}" if action != "none" else "–",
        f"{surface.diversity_by} {surface.diversity:g}" if surface.diversity else "–",
        "; ".join(
            [
                *(
                    [
                        f"{explores.share:.3g} of requests, from {explores.candidates}, temperature {explores.temperature:g}"
                    ]
                    if explores.share
                    else []
                ),
                *([f"{explores.uniform:.3g} uniformly"] if explores.uniform else []),
            ]
        )
        or "–",
    )
