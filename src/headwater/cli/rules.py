"""``headwater rules``: what the business rules say, what is wrong with them, and what they would have done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec import Struct

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
    from headwater.features.plan import Plan
    from headwater.policy.lint import Finding
    from headwater.policy.rules import CompiledRule
    from headwater.serving.rule_effects import Effect


class FieldShown(Struct, frozen=True):
    """A field that expressions may ask about."""

    name: str
    kind: str
    of: str
    optional: bool
    about: str


class Shown(Struct, frozen=True):
    """What ``rules show`` prints."""

    rules: list[dict[str, Any]]
    fields: list[FieldShown]


class LintReport(Struct, frozen=True):
    """What ``rules lint`` prints. ``effects`` is empty where there was nothing to ask again; ``unchecked`` says why."""

    rules: int
    errors: int
    findings: list[Finding]
    effects: list[Effect]
    unchecked: str


class Published(Struct, frozen=True):
    """What ``rules publish`` prints. ``refused`` says why the server did not take the rules up."""

    version: str
    rules: int
    warnings: list[Finding]
    in_service: bool
    refused: str


def register(app: typer.Typer) -> None:
    """Add ``rules``."""
    rules = typer.Typer(no_args_is_help=True, help="The business rules of the configuration.")
    rules.command("show")(show_rules)
    rules.command("lint")(lint_rules)
    rules.command("publish")(publish_rules)
    app.add_typer(rules, name="rules")


def show_rules(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Print the rules of the configuration, and the fields that their expressions may ask about.

    Example: headwater rules show
    """
    from headwater.features.plan import compile_plan
    from headwater.schema.rules import encoded
    from headwater.serving.rule_fields import rule_fields

    chosen = settings(config, None).config
    fields = [
        FieldShown(f.name, f"{f.kind}s" if f.many else str(f.kind), "item" if f.per_item else "request", f.optional, f.about)
        for f in rule_fields(chosen, compile_plan(chosen))
    ]  # fmt: skip
    shown = Shown([encoded(rule) for rule in chosen.rules], fields)
    if as_json:
        print_json(shown)
        return
    for rule in shown.rules:
        typer.echo(rule["name"])
        for key, value in rule.items():
            if key != "name":
                typer.echo(f"  {key:9} {_in_words(value)}")
    typer.echo(f"{len(shown.rules)} rules; what they may ask about:")
    for field in fields:
        missing = ", may be missing" if field.optional else ""
        typer.echo(
            f"  {field.name:24} {field.kind} of the {field.of}{missing}{f': {field.about}' if field.about else ''}"
        )


def lint_rules(
    config: ConfigOption = None,
    data: DataOption = None,
    requests: Annotated[
        int, typer.Option(min=0, max=1_000_000, help="Ask so many of the newest served lists again.")
    ] = 1_000,
    as_json: JsonOption = False,
) -> None:
    """Check the rules: mistakes and contradictions, and how many recent answers each rule touches, shortens or empties.

    Example: headwater rules lint --json

    The state and the served lists in the data directory are read, and nothing is written.
    Exit code 1: there are errors.
    """

    from headwater.features.plan import compile_plan
    from headwater.policy.lint import lint
    from headwater.serving.rule_fields import rule_fields

    chosen = settings(config, data)
    plan = compile_plan(chosen.config)
    surfaces = {surface.name: surface.k for surface in chosen.config.surfaces}
    now_ms = wall_ms()
    compiled, findings = lint(chosen.config.rules, rule_fields(chosen.config, plan), surfaces, now_ms)
    found, unchecked = _effects(chosen, plan, compiled, requests) if compiled else ([], "there are no rules to ask")
    errors = sum(finding.level == "error" for finding in findings)
    report = LintReport(len(chosen.config.rules), errors, findings, found, unchecked)
    if as_json:
        print_json(report)
    else:
        _print(report)
    if errors:
        raise typer.Exit(EXIT_CHECK_FAILED)


def publish_rules(
    reason: ReasonOption = "", config: ConfigOption = None, data: DataOption = None, as_json: JsonOption = False
) -> None:
    """Check the rules and bring them into service, without a restart and without a failed request.

    Example: headwater rules publish

    The running server reads its configuration file again and takes up the rules in it, and nothing else. (SIGHUP to the
    server does the same.) Exit code 1: there are errors, or the server did not take them up; the rules from before serve on.
    """

    from headwater.features.plan import compile_plan
    from headwater.online.rules import check_rules, publish, taken

    chosen = settings(config, data)
    now_ms = wall_ms()
    warnings = check_rules(chosen.config, compile_plan(chosen.config), now_ms)
    version = taken(chosen.config).version
    audit(chosen.data, "rules.publish", f"{len(chosen.config.rules)} rules, version {version}", reason)
    refused = publish(chosen.data, version)
    if as_json:
        print_json(Published(version, len(chosen.config.rules), warnings, not refused, refused))
    else:
        for finding in warnings:
            typer.secho(f"warning: {finding.message}", fg="yellow")
        if refused:
            typer.secho(refused, err=True, fg="red")
        else:
            typer.echo(f"{len(chosen.config.rules)} rules, version {version}, are in service")
    if refused:
        raise typer.Exit(EXIT_CHECK_FAILED)


def _effects(
    chosen: Settings, plan: Plan, compiled: tuple[CompiledRule, ...], limit: int
) -> tuple[list[Effect], str]:  # fmt: skip
    """What the rules would have done to the newest served lists; else why that is not known."""
    from headwater.features.store import LogChangedError, PlanChangedError
    from headwater.log.environment import StoreError
    from headwater.online.stores import open_stores
    from headwater.schema.errors import UnavailableError
    from headwater.serving.rule_effects import effects
    from headwater.serving.served import newest_served

    if not limit:
        return [], "no lists were asked for"
    try:
        stores = open_stores(chosen.config, chosen.data, plan)
    except (StoreError, UnavailableError, PlanChangedError, LogChangedError) as error:
        return [], f"there is no state of this configuration to ask: {error}"
    try:
        served = newest_served(stores.log, limit)
        if not served:
            return [], "no lists were served yet"
        return effects(compiled, served, plan, stores.log.vocabulary(), stores.view), ""
    finally:
        stores.close()


def _print(report: LintReport) -> None:
    for finding in report.findings:
        colour = "red" if finding.level == "error" else "yellow"
        typer.secho(f"{finding.level}: {finding.message}", fg=colour)
    if report.unchecked:
        typer.echo(f"not asked of served lists: {report.unchecked}")
    for effect in report.effects:
        acts = f"{effect.rule} ({effect.action}): acts on {effect.acts} of {effect.lists} served lists"
        typer.echo(f"{acts}, touches {effect.touched}, shortens {effect.shortened}, empties {effect.emptied}")
    typer.echo(f"{report.rules} rules, {report.errors} errors, {len(report.findings) - report.errors} warnings")


def _in_words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {said}" for key, said in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
