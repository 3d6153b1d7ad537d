"""``headwater features show``: the plan, column by column, what its rows take and what they cost here."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec import Struct

from headwater.cli.options import ConfigOption, JsonOption, print_json, settings
from headwater.schema.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.console import Console

    from headwater.cli.cost import Bench, Cost
    from headwater.features.plan import Plan
    from headwater.features.sizes import Sizes
    from headwater.schema.config import Config

_DEAREST = 8


class Described(Struct, frozen=True):
    """A column. ``bytes`` are those of full-width rows that it reads; ``own_bytes`` go if it alone is taken out."""

    name: str
    version: str
    of: str
    unit: str
    dtype: str
    default: float
    owner: str
    description: str
    formula: str
    kind: str
    user_bytes: int
    item_bytes: int
    own_user_bytes: int
    own_item_bytes: int
    ns_per_row: float | None


class Shown(Struct, frozen=True):
    """What the command prints. ``columns`` are those that were named, else all."""

    plan: str
    columns: list[Described]
    half_lives: list[str]
    windows: list[str]
    sizes: Sizes
    cost: Cost | None


def show_features(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME...]", help="Features [default: all].")] = None,
    config: ConfigOption = None,
    cost: Annotated[bool, typer.Option("--cost/--no-cost", help="Measure what a row and an event cost here.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Print the feature plan: every column with its version, the sizes of rows part by part, and what they cost.

    Example: headwater features show item_click_rate affinity

    Costs are measured on this machine, on a small generated log; with names, those of the named features too.
    """
    from headwater.features.plan import compile_plan

    chosen = settings(config, None).config
    plan = compile_plan(chosen)
    shown = described(plan, chosen, _known(plan, names or []), cost)
    if as_json:
        print_json(shown)
        return
    from rich.console import Console

    terminal = Console()
    # a file or a pipe has no width: nothing is cut there
    console = terminal if terminal.is_terminal else Console(width=240)
    if names:
        _print_named(console, shown)
    else:
        _print_plan(console, shown)


def described(plan: Plan, config: Config, names: list[str], measured: bool) -> Shown:
    """All that is known of ``plan``; ``names`` empty: of all columns, without the time of each."""
    from headwater.features.decay import FOREVER_MS, PERIOD
    from headwater.features.sizes import share_of, sizes
    from headwater.features.wording import column_in_words, entity_of, kind_of, span_in_words

    bench = _bench(plan, config) if measured else None
    columns = []
    for column, version in zip(plan.declared, plan.versions, strict=True):
        if names and column.name not in names:
            continue
        share = share_of(plan, config, column.name)
        columns.append(
            Described(
                name=column.name, version=version, of=entity_of(column), unit=column.unit, dtype=column.dtype,
                default=column.default, owner=column.owner, description=column.description,
                formula=column_in_words(column), kind=kind_of(column), user_bytes=share.user, item_bytes=share.item,
                own_user_bytes=share.own_user, own_item_bytes=share.own_item,
                ns_per_row=round(bench.alone_ns([column]), 1) if names and bench is not None else None,
            )
        )  # fmt: skip
    lives = sorted(0 if ms == FOREVER_MS else ms // PERIOD for ms in plan.lives.period_ms.tolist())
    tiles = sorted(zip(plan.lives.tile_ms.tolist(), plan.lives.tiles.tolist(), strict=True))
    return Shown(
        plan=plan.hash,
        columns=columns,
        half_lives=[span_in_words(ms) if ms else "never" for ms in lives],
        windows=[f"{span_in_words(ms * count)} in {count} tiles" for ms, count in tiles],
        sizes=sizes(plan),
        cost=None if bench is None else bench.cost(),
    )


def _bench(plan: Plan, config: Config) -> Bench:
    from headwater.cli.cost import Bench

    return Bench(plan, config)


def _known(plan: Plan, names: list[str]) -> list[str]:
    for name in names:
        if name not in plan.columns:
            close = difflib.get_close_matches(name, plan.columns, n=1)
            hint = f', did you mean "{close[0]}"?' if close else "; headwater features show prints all"
            raise ConfigurationError(f'There is no feature "{name}"{hint}')
    return names


def _print_named(console: Console, shown: Shown) -> None:
    for column in shown.columns:
        console.print(f"[bold]{column.name}[/bold]  {column.description}", highlight=False)
        took = (
            ""
            if column.ns_per_row is None
            else f", {_ns(column.ns_per_row)} a row (by itself, measured on this machine)"
        )
        lines = {
            "version": f"{column.version} of plan {shown.plan}",
            "of": f"{column.of}; {column.kind}",
            "formula": column.formula,
            "unit": f"{column.unit}, {column.dtype}, default {column.default:g}",
            "owner": column.owner,
            "reads": f"{column.user_bytes} bytes of a user row, {column.item_bytes} of an item row",
            "costs": f"{column.own_user_bytes} bytes of a user row and {column.own_item_bytes} of an item row that nothing else needs{took}",
        }
        for name, text in lines.items():
            console.print(f"  {name:8} {text}", highlight=False, markup=False, soft_wrap=True)


def _print_plan(console: Console, shown: Shown) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("feature", "version", "of", "unit", "dtype", "default", "owner", "own bytes", "description"):
        table.add_column(name, justify="right" if name in ("default", "own bytes") else "left", overflow="fold")
    for column in shown.columns:
        own = column.own_user_bytes + column.own_item_bytes
        table.add_row(
            column.name, column.version, column.of, column.unit, column.dtype, f"{column.default:g}", column.owner,
            str(own) if own else "", column.description,
        )  # fmt: skip
    console.print(table)
    say = _sayer(console)
    say("")
    say(f"plan {shown.plan}, {len(shown.columns)} columns")
    say(
        f"half-lives {', '.join(shown.half_lives)}" + (f"; windows {', '.join(shown.windows)}" if shown.windows else "")
    )
    sizes = shown.sizes
    say(
        f"user row {sizes.user:,} bytes at full width, at most {sizes.user_packed_most:,} as it is stored: {_parts(sizes.user_parts)}"
    )
    say(f"item row {sizes.item:,} bytes: {_parts(sizes.item_parts)}")
    _print_dearest(say, shown)
    if shown.cost is not None:
        _print_cost(say, shown.cost)


def _print_dearest(say: Any, shown: Shown) -> None:
    dearest = sorted(shown.columns, key=lambda c: -(c.own_user_bytes + c.own_item_bytes))[:_DEAREST]
    own = [f"{c.name} {c.own_user_bytes + c.own_item_bytes}" for c in dearest if c.own_user_bytes + c.own_item_bytes]
    if own:
        say(f"bytes that only one feature needs, the most: {', '.join(own)}")


def _print_cost(say: Any, cost: Cost) -> None:
    packed = cost.packed_user
    say("")
    say(
        f"measured on this machine, on a generated log of {cost.events:,} events, {cost.users:,} users and {cost.items:,} items"
    )
    say(
        f"  stored user row {packed.mean:.0f} bytes (99th percentile {packed.p99:.0f}): {packed.fixed:.0f} fixed, "
        f"{packed.per_recent_event:.1f} a recent event, {packed.per_seen_item:.1f} a seen item"
    )
    say(f"  an event folded: {_ns(cost.fold_ns_per_event)}")
    say(
        f"  a row assembled: {_ns(cost.assemble_ns_per_row)} in a group of {cost.candidates}, {_ns(cost.assemble_ns_alone)} alone"
    )
    say(f"  of that a row of nothing {_ns(cost.base_ns_per_row)}, and columns of one kind, each kind by itself:")
    for kind, part in sorted(cost.by_kind.items(), key=lambda pair: -pair[1].ns_per_row):
        say(f"    {kind:22} {part.columns:3} columns  {_ns(part.ns_per_row):>9}")


def _sayer(console: Console) -> Any:
    return lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)


def _parts(parts: dict[str, int]) -> str:
    return ", ".join(f"{name} {size:,}" for name, size in sorted(parts.items(), key=lambda pair: -pair[1]))


def _ns(value: float) -> str:
    return f"{value:,.0f} ns" if value < 10_000 else f"{value / 1_000:,.1f} µs"
