"""``headwater alerts``: how the rules stand, what they did, and the way back."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec import Struct

from headwater.cli.options import (
    EXIT_CHECK_FAILED,
    ConfigOption,
    DataOption,
    JsonOption,
    ReasonOption,
    Settings,
    parse_length,
    print_json,
    settings,
    system_clock,
)
from headwater.schema.clock import wall_ms
from headwater.schema.errors import ConfigurationError

if TYPE_CHECKING:
    from headwater.schema.alerts import AlertRule

STALE_ROUNDS = 5
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The alert, as `headwater alerts list` calls it.")]


class Line(Struct, frozen=True, kw_only=True):
    """A rule, or one group of it, as ``alerts list`` shows it. ``state`` "off": it is switched off; "unwatched": nobody looks."""

    alert: str
    group: str
    severity: str
    state: str
    since: str | None
    value: float | None
    wrong: str
    actions: tuple[str, ...]
    acknowledged: str | None


def register(app: typer.Typer) -> None:
    """Add ``alerts``."""
    group = typer.Typer(no_args_is_help=True, help="Alert rules: how they stand, what they did, and the way back.")
    for command in (list_, show, ack, undo):
        group.command(command.__name__.rstrip("_"))(command)
    group.command("test")(rehearse)
    app.add_typer(group, name="alerts")


def list_(config: ConfigOption = None, data: DataOption = None, as_json: JsonOption = False) -> None:
    """Every rule and how it stands. Exit code 1 when one of them fires.

    Example: headwater alerts list
    """
    chosen = settings(config, data)
    lines = _lines(chosen)
    if as_json:
        print_json({"alerts": lines})
    else:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table

        table = Table(box=SIMPLE_HEAD)
        for name, width in (("alert", 17), ("state", 10), ("since", 10), ("value", 10), ("actions", 17)):
            table.add_column(name, min_width=width, overflow="fold")
        for line in lines:
            value = "" if line.value is None else f"{line.value:.4g} "
            wrong = line.state in ("pending", "firing")
            state = [line.state, *([line.severity] if wrong else []), *(["acknowledged"] if line.acknowledged else [])]
            table.add_row(
                f"{line.alert}\n{line.group}".strip(), " ".join(state), line.since or "", f"{value}({line.wrong})", " ".join(line.actions),
            )  # fmt: skip
        Console().print(table)
    if any(line.state == "firing" for line in lines):
        raise typer.Exit(EXIT_CHECK_FAILED)


def show(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Of this alert alone.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="So many entries at most.")] = 50,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """What was done, by alerts and by hand, newest first: the audit log. Of one alert its rule, too.

    Example: headwater alerts show slow-answers
    """
    from headwater.registry.audit import read_audit

    chosen = settings(config, data)
    entries = read_audit(chosen.data, limit if name is None else 100_000)
    if name is not None:
        rule = _rule(chosen, name)
        entries = [entry for entry in entries if entry.by == f"alert:{name}"][:limit]
        if as_json:
            print_json({"rule": rule, "entries": entries})
            return
        for key, value in _said(rule).items():
            typer.echo(f"{key:14} {value}")
    elif as_json:
        print_json({"entries": entries})
        return
    undone = {entry.undoes for entry in entries}
    for entry in entries:
        back = f" (takes back {entry.undoes})" if entry.undoes else " (taken back)" if entry.id in undone else ""
        typer.echo(
            f"{time_of(entry.time_ms)}  {entry.id}  {entry.by}  {entry.action} {entry.subject}{back}: {entry.reason}"
        )
    if not entries:
        typer.echo("nothing was done yet")


def rehearse(
    name: NameArgument,
    since: Annotated[str, typer.Option("--since", metavar="DURATION", help="How far to look back.")] = "1d",
    notify: Annotated[bool, typer.Option("--notify", help="Send a test message to the webhooks, too.")] = False,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Play the kept history to a rule as it is configured now: when would it have fired? Nothing is done.

    Example: headwater alerts test slow-answers --since 7d

    What is older than an hour is kept once a minute, what is older than a day once in ten.
    """
    from headwater.monitoring.history import HISTORY_FILE, History
    from headwater.monitoring.notify import Notifier
    from headwater.monitoring.rehearsal import rehearsed

    chosen = settings(config, data)
    rule, now_ms = _rule(chosen, name), wall_ms()
    history = History(chosen.data / HISTORY_FILE, readonly=True)
    try:
        rounds, events = rehearsed(rule, history, now_ms - parse_length("--since", since), now_ms)
    finally:
        history.close()
    if notify:
        notifier = Notifier(chosen.config.monitoring.webhooks)
        notifier.tell({"alert": name, "state": "test", "severity": rule.severity, "time_ms": now_ms})
        notifier.close(30.0)
    if as_json:
        print_json({"alert": name, "rounds": rounds, "events": events})
        return
    for event in events:
        typer.echo(
            f"{time_of(event.time_ms)}  {event.change} {event.group} {event.value if event.value is not None else ''}"
        )
    typer.echo(f"{rounds} rounds since {time_of(now_ms - parse_length('--since', since))}, {len(events)} changes")


def ack(
    name: NameArgument,
    reason: ReasonOption = "",
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take notice of an alert that fires: of this incident nobody is told again.

    Example: headwater alerts ack fold-behind --reason "the disk is being exchanged"
    """
    from headwater.monitoring.standing import acknowledge

    entries = acknowledge(settings(config, data).data, name, by="cli", reason=reason, now_ms=wall_ms())
    if as_json:
        print_json({"entries": entries})
        return
    for entry in entries:
        typer.echo(f"{entry.subject}: acknowledged")


def undo(
    entry: Annotated[
        str, typer.Argument(metavar="ENTRY", help="Its id in `headwater alerts show`, or how that begins.")
    ],
    reason: ReasonOption = "",
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take back what an alert, or somebody by hand, did: put back what stood there before, unless it was changed since.

    Example: headwater alerts undo 3f2a90c1
    """
    from headwater.cli.monitor import plan_in_service
    from headwater.monitoring.actions import Actions

    chosen = settings(config, data)
    actions = Actions(chosen.data, chosen.config, lambda: plan_in_service(chosen.data), system_clock(chosen))
    done = actions.undo(entry, by="cli", reason=reason or "by hand", now_ms=wall_ms())
    if as_json:
        print_json(done)
    else:
        typer.echo(f"{done.action} {done.subject}: {done.undoes} is taken back ({done.id})")


def time_of(ms: int) -> str:
    """A time as people read it, UTC."""
    return f"{datetime.fromtimestamp(ms / 1e3, UTC):%Y-%m-%d %H:%M:%S}"


def _rule(chosen: Settings, name: str) -> AlertRule:
    from headwater.cli.monitor import rules_of
    from headwater.schema.strict import nearest

    rules = {rule.name: rule for rule in rules_of(chosen.config)}
    if name not in rules:
        raise ConfigurationError(f'There is no alert "{name}"{nearest(name, sorted(rules))}')
    return rules[name]


def _said(rule: AlertRule) -> dict[str, object]:
    """The parts of a rule that are not as by default."""
    import msgspec

    said: dict[str, object] = msgspec.to_builtins(rule)
    plain = {
        "labels": {},
        "over": "",
        "over_labels": {},
        "by": "",
        "at_least": 0.0,
        "above": None,
        "below": None,
        "clear": None,
    }
    return {key: value for key, value in said.items() if key not in plain or value != plain[key]}


def _lines(chosen: Settings) -> list[Line]:
    from headwater.cli.monitor import rules_of
    from headwater.monitoring.standing import read_ack, read_standing
    from headwater.schema.durations import parse_duration

    standing = read_standing(chosen.data)
    stale = wall_ms() - standing.time_ms > STALE_ROUNDS * parse_duration(chosen.config.monitoring.every)
    lines = []
    for rule in rules_of(chosen.config):
        wrong = f"> {rule.above:g}" if rule.above is not None else f"< {rule.below:g}"
        states = [state for state in standing.states if state.alert == rule.name] if rule.enabled else []
        for state in states:
            taken = read_ack(chosen.data, state.incident) if state.state == "firing" else None
            lines.append(
                Line(
                    alert=rule.name, group=state.group, severity=rule.severity, state="unwatched" if stale else state.state,
                    since=time_of(state.since_ms), value=state.value, wrong=wrong, actions=rule.actions,
                    acknowledged=None if taken is None else f"{taken.by}: {taken.reason}",
                )
            )  # fmt: skip
        if not states:
            lines.append(
                Line(
                    alert=rule.name, group="", severity=rule.severity, since=None, value=None, wrong=wrong, actions=rule.actions,
                    state="off" if not rule.enabled else "unwatched" if stale or not rule.by else "ok", acknowledged=None,
                )
            )  # fmt: skip
    return lines
