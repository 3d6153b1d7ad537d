"""``headwater models``: the bundles of the registry; which one serves, and why."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.options import (
    EXIT_CHECK_FAILED,
    ConfigOption,
    DataOption,
    JsonOption,
    ReasonOption,
    Settings,
    audit,
    print_json,
    settings,
)
from headwater.schema.clock import wall_ms

if TYPE_CHECKING:
    from headwater.registry.registry import Registry

VersionArgument = Annotated[str, typer.Argument(metavar="VERSION", help='A version, its beginning, or "current"')]


def register(app: typer.Typer) -> None:
    """Add ``models``."""
    group = typer.Typer(no_args_is_help=True, help="Bundles of the registry: what serves, why, and the way back.")
    for command in (list_, show, promote, rollback, diff, prune):
        group.command(command.__name__.rstrip("_"))(command)
    app.add_typer(group, name="models")


def list_(config: ConfigOption = None, data: DataOption = None, as_json: JsonOption = False) -> None:
    """Every bundle, newest first: which one serves, where a rollback leads, what the gate said.

    Example: headwater models list
    """
    from headwater.registry.listing import bundle_lines

    chosen, registry, _ = _opened(config, data)
    lines = bundle_lines(registry)
    if as_json:
        print_json({"bundles": lines})
        return
    if not lines:
        typer.echo(f"{chosen.data / 'models'} holds no bundle yet: headwater train makes one")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for name in ("version", "", "ranker", "trained until", "MiB", "gate", "plan"):
        table.add_column(name, no_wrap=name == "version", overflow="fold")
    for line in lines:
        mark = "serves" if line.current else ("rollback" if line.rollback else "")
        what = line.problem or " + ".join((line.ranker or "", *line.sources))
        size = f"{line.bytes / (1 << 20):.1f}"
        table.add_row(line.version, mark, what, line.trained_until or "", size, line.gate or "", line.plan or "")
    Console().print(table)


def show(
    version: VersionArgument = "current",
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """The model card of a bundle, what its lists looked like (the reference of drift), and what the gate said of it.

    Example: headwater models show current
    """
    from headwater.registry.card import read_card, render_card
    from headwater.registry.listing import gate_report, resolved_version
    from headwater.registry.reference import REFERENCE_FILE, decode_reference, render_reference

    _, registry, plan = _opened(config, data)
    bundle = registry.load(resolved_version(registry, plan, version), plan_hash=None)
    card, report = read_card(bundle), gate_report(registry, bundle.version)
    seen = bundle.files.get(REFERENCE_FILE)
    reference = None if seen is None else decode_reference(seen)
    if as_json:
        print_json({"manifest": bundle.manifest, "card": card, "gate": report, "reference": reference})
        return
    typer.echo(f"{bundle.version}\n")
    typer.echo(render_card(card) if card is not None else "This bundle was published without a card.")
    if reference is not None:
        typer.echo(render_reference(reference))
    if report is not None:
        from headwater.cli.train import print_verdict

        print_verdict(report)


def promote(
    version: VersionArgument,
    config: ConfigOption = None,
    data: DataOption = None,
    no_gate: Annotated[bool, typer.Option("--no-gate", help="Do not compare it with the one in service")] = False,
    force: Annotated[bool, typer.Option("--force", help="Compare, and promote whatever comes of it")] = False,
    despite_freeze: Annotated[
        bool, typer.Option("--despite-freeze", help="Promote although promotion is frozen (headwater controls)")
    ] = False,
    reason: ReasonOption = "",
    by: Annotated[str, typer.Option("--by", hidden=True)] = "cli",  # the console has this command do it for somebody
    as_json: JsonOption = False,
) -> None:
    """Have a bundle serve, if the gate lets it pass: it is asked about what lies behind its training, and that of the
    bundle in service. Servers take it up by themselves.

    Example: headwater models promote 20261124T101500123Z-0123456789ab
    """
    from headwater.evaluation.checks import checks_dir
    from headwater.features.plan import compile_plan
    from headwater.features.profiles import Profiles
    from headwater.log.archived import open_log
    from headwater.offline.publish import Publication, promote_published
    from headwater.registry.audit import Author
    from headwater.registry.listing import resolved_version

    chosen, registry, plan = _opened(config, data)
    resolved = resolved_version(registry, plan, version)
    author = Author(by, wall_ms, reason)
    if no_gate or not chosen.config.gate.enabled:
        frozen = "" if despite_freeze else registry.frozen
        if not frozen:
            registry.promote(resolved, plan_hash=plan, author=author)
        done = Publication(bundle=resolved, promoted=not frozen, gate=None, frozen=frozen)
    else:
        with closing(open_log(chosen.data)) as log:
            done = promote_published(
                chosen.config, compile_plan(chosen.config), log, registry, resolved, checks=checks_dir(chosen.data),
                now_ms=wall_ms(), seed=chosen.config.ranker.seed, force=force, despite_freeze=despite_freeze,
                author=author, unseal=Profiles(chosen.data),
            )  # fmt: skip
    if as_json:
        print_json(done)
    else:
        typer.echo(f"{done.bundle} {'serves' if done.promoted else 'was not promoted'}")
    if done.gate is not None:
        from headwater.cli.train import print_verdict

        print_verdict(done.gate)
    if done.frozen:
        print_frozen(done.frozen)
    if not done.promoted:
        raise typer.Exit(EXIT_CHECK_FAILED)


def print_frozen(why: str) -> None:
    """Why a bundle was not promoted that might have been, on standard error."""
    typer.secho(
        f"promotion is frozen: {why}. `headwater controls set --thaw` ends that; `headwater models promote VERSION "
        "--despite-freeze` promotes one bundle",
        err=True, fg="red",
    )  # fmt: skip


def rollback(
    reason: ReasonOption = "", config: ConfigOption = None, data: DataOption = None, as_json: JsonOption = False
) -> None:
    """Have the bundle serve that served before. Servers go back within a second; going on back is possible.

    Example: headwater models rollback
    """
    from headwater.monitoring.actions import Actions

    chosen, registry, plan = _opened(config, data)
    actions = Actions(chosen.data, chosen.config, lambda: plan)
    before = actions.roll_back(by="cli", reason=reason, now_ms=wall_ms()).subject
    version = registry.current(plan)
    if as_json:
        print_json({"version": version, "before": before})
    else:
        typer.echo(f"{version} serves again, in the place of {before}")


def diff(
    first: VersionArgument,
    second: Annotated[str, typer.Argument(metavar="VERSION", help="The other one")] = "current",
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """What differs between two bundles: data, columns, parameters, files, measurements.

    Example: headwater models diff 20261124T101500123Z current
    """
    from headwater.registry.difference import difference
    from headwater.registry.listing import resolved_version

    _, registry, plan = _opened(config, data)
    versions = [resolved_version(registry, plan, version) for version in (first, second)]
    changes = difference(*(registry.load(version, plan_hash=None) for version in versions))
    if as_json:
        print_json({"first": versions[0], "second": versions[1], "changes": changes})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for name in ("", *versions):
        table.add_column(name, overflow="fold")
    for change in changes:
        table.add_row(change.key, *("" if side is None else str(side) for side in (change.first, change.second)))
    Console().print(table)


def prune(
    keep: Annotated[int, typer.Option("--keep", min=0, help="How many bundles that never served are kept")] = 3,
    history: Annotated[
        int | None, typer.Option("--history", min=1, help="Shorten the way back to so many bundles [default: no]")
    ] = None,
    reason: ReasonOption = "",
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove old bundles: never one that serves, and never one that a rollback leads to.

    Example: headwater models prune --keep 3 --history 20
    """
    chosen, registry, _ = _opened(config, data)
    audit(chosen.data, "bundle.prune", f"keep {keep}{'' if history is None else f', history {history}'}", reason)
    removed = registry.prune(keep, history=history)
    if as_json:
        print_json({"removed": removed})
    else:
        typer.echo("\n".join([f"{len(removed)} removed", *removed]))


def _opened(config: ConfigOption, data: DataOption) -> tuple[Settings, Registry, str]:
    """The settings, the registry, and the hash of the plan that the configuration compiles to."""
    from headwater.features.plan import compile_plan
    from headwater.registry.registry import Registry

    chosen = settings(config, data)
    return chosen, Registry(chosen.data / "models"), compile_plan(chosen.config).hash
