"""``headwater experiments new | list | show | start | status | stop | override``: files in the data directory, and who is in them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec import Struct

from headwater.cli.experiment_text import Wanted
from headwater.cli.options import (
    ConfigOption,
    DataOption,
    JsonOption,
    ReasonOption,
    Settings,
    audit,
    print_json,
    read_file,
    settings,
    system_clock,
)
from headwater.schema.clock import wall_ms

if TYPE_CHECKING:
    from headwater.experiments.definitions import Experiment

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The experiment.")]


class Line(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An experiment as the lists show it. ``problem``: what is wrong with its file, or why it is not served as it says."""

    name: str
    layer: str = ""
    status: str = ""
    share: float = 0.0
    shadow: float = 0.0
    variants: dict[str, float] = {}
    surfaces: list[str] | None = None
    version: str = ""
    started_ms: int = 0
    stopped_ms: int = 0
    stopped_why: str = ""
    problem: str = ""


class VariantCount(Struct, frozen=True):
    """Of a variant: the users that were exposed to it, and how many of all exposed users its weight makes expect."""

    name: str
    users: int
    expected: float


class Standing(Struct, frozen=True):
    """What ``status`` prints of an experiment. ``mixed`` users saw more than one variant, ``unknown`` exposures are to none that it has."""

    experiment: Line
    exposures: int
    variants: list[VariantCount]
    mixed: int
    unknown: int
    last_ms: int


def register_runs(group: typer.Typer) -> None:
    """Add the commands."""
    for command in (new, list_, show, start, status, stop, override):
        group.command(command.__name__.rstrip("_"))(command)


def new(
    name: NameArgument,
    file: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Take this definition, in TOML.")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A key of the configuration that the variant changes; give several times."),
    ] = None,
    bundle: Annotated[str, typer.Option(metavar="VERSION", help="The bundle that the variant ranks with.")] = "",
    canary: Annotated[
        str, typer.Option(metavar="VERSION", help="Let a few users have this bundle, with guardrails on what they click.")
    ] = "",
    shadow: Annotated[
        str, typer.Option(metavar="VERSION", help="Ask this bundle copies of requests, and show nobody what it says.")
    ] = "",
    interleave: Annotated[
        bool, typer.Option("--interleave", help="Give everybody the lists of both variants in one, and see whose items are clicked.")
    ] = False,
    layer: Annotated[str, typer.Option(metavar="NAME", help="Experiments of one layer never share a user.")] = "main",
    share: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="The part of the layer's users [default: 1, of a canary 0.01]; for a shadow, of all requests [0.05].")
    ] = None,
    when: Annotated[str, typer.Option(metavar="EXPRESSION", help="Whom it is for, in the language of rules: context.country == 'NL'.")] = "",
    hypothesis: Annotated[str, typer.Option(help="What is expected, and why.")] = "",
    metric: Annotated[list[str] | None, typer.Option(metavar="NAME", help="What decides; give several times for several.")] = None,
    reason: ReasonOption = "",
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Write the file of a new experiment, a draft that nobody is in yet; edit it as you like, then start it.

    Example: headwater experiments new wide --set ranker.candidates=400 --metric clicks_per_user --share 0.2

    A canary is an experiment too (headwater experiments new next --canary VERSION), and so is a shadow (--shadow VERSION).
    """
    from headwater.experiments import store
    from headwater.experiments.changes import check_changes
    from headwater.experiments.definitions import ExperimentError, parse_experiment

    chosen = settings(config, data)
    if file is not None:
        text = read_file("--from", file)
        if (found := parse_experiment(text, str(file)).name) != name:
            raise ExperimentError(f'{file}: name: Expected "{name}", got "{found}"')
    else:
        text = Wanted(
            name, layer, share, hypothesis, metric or [], change or [], bundle, canary, shadow, interleave, when
        ).text()
    wanted = parse_experiment(text, "the new experiment")
    check_changes(wanted, chosen.config)
    _check_target(chosen, wanted)
    audit(chosen.data, "experiment.create", name, reason)
    made = store.create(chosen.data, text)
    if as_json:
        print_json(_line(made))
        return
    typer.echo(
        f"{store.folder_of(chosen.data) / name}.toml is a draft; `headwater experiments start {name}` lets users in"
    )


def list_(config: ConfigOption = None, data: DataOption = None, as_json: JsonOption = False) -> None:
    """All experiments: their layer, status, share and variants, and what is wrong with them.

    Example: headwater experiments list
    """
    from headwater.experiments import store

    chosen = settings(config, data)
    lines = _lines(chosen)
    if as_json:
        print_json({"experiments": lines, "off": store.is_off(chosen.data)})
        return
    if store.is_off(chosen.data):
        typer.secho("All experiments are switched off; `headwater experiments start --all` ends that", fg="yellow")
    for line in lines:
        variants = ", ".join(f"{name} {part:.0%}" for name, part in line.variants.items())
        place = "(shadow)" if line.shadow else line.layer
        typer.echo(f"{line.name:24} {line.status or '?':8} {place:12} {line.shadow or line.share:7.2%}  {variants}")
        if line.problem:
            typer.secho(f"  {line.problem}", fg="red")
    if not lines:
        typer.echo("There are none; `headwater experiments new` writes one")


def show(name: NameArgument, config: ConfigOption = None, data: DataOption = None, as_json: JsonOption = False) -> None:
    """Print the file of an experiment.

    Example: headwater experiments show wide
    """
    import msgspec

    from headwater.experiments import store

    chosen = settings(config, data)
    found = store.read_experiment(chosen.data, name)
    if as_json:
        print_json({**msgspec.to_builtins(found), "version": found.version})
        return
    typer.echo((store.folder_of(chosen.data) / f"{name}.toml").read_text(), nl=False)


def start(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The experiment.")] = None,
    share: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="The part of the layer's users [default: as the file says].")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Switch on again what `stop --all` has switched off.")] = False,
    reason: ReasonOption = "",
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Let users take part; of a running experiment, more of them: who is in stays in, with the same variant.

    Example: headwater experiments start wide --share 0.05

    A running server takes it up within a second. Bundles of variants are checked as when they are promoted.
    """
    from headwater.experiments import store

    chosen = settings(config, data)
    if _only_one(name, everything) is None:
        audit(chosen.data, "experiments.on", "all", reason)
        store.switch(chosen.data, on=True)
        _say(as_json, {"off": False}, "Experiments are switched on")
        return
    wanted = store.read_experiment(chosen.data, str(name))
    _check_target(chosen, wanted)
    _check_bundles(chosen, wanted)
    audit(chosen.data, "experiment.start", f"{name}{'' if share is None else f' with {share:.2%}'}", reason)
    started = store.start(chosen.data, str(name), chosen.config, now_ms=system_clock(chosen)(), share=share)
    runs = f"runs with {started.share:.2%} of layer {started.layer}"
    asked = f"is asked copies of {started.shadow:.2%} of the requests"
    _say(as_json, _line(started), f"{name} {asked if started.shadow else runs}")


def stop(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The experiment.")] = None,
    why: Annotated[
        str, typer.Option("--why", "--reason", metavar="TEXT", help="Why; it stands in the file and in the audit log.")
    ] = "",
    everything: Annotated[bool, typer.Option("--all", help="The kill switch: all experiments, whatever is in their files.")] = False,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Give everybody the control again; a running server does so within a second.

    Example: headwater experiments stop wide --why "no effect after two weeks"
    """
    from headwater.experiments import store
    from headwater.monitoring.actions import Actions

    chosen = settings(config, data)
    if _only_one(name, everything) is None:
        audit(chosen.data, "experiments.off", "all", why)
        store.switch(chosen.data, on=False)
        _say(as_json, {"off": True}, "All experiments are switched off")
        return
    stopped = store.read_experiment(chosen.data, str(name))
    actions = Actions(chosen.data, chosen.config, lambda: None, system_clock(chosen))
    if actions.stop_experiment(stopped.name, by="cli", reason=why, now_ms=wall_ms()) is not None:
        stopped = store.read_experiment(chosen.data, stopped.name)
    _say(as_json, _line(stopped), f"{name} is stopped")


def override(
    name: NameArgument,
    user: Annotated[str, typer.Argument(metavar="USER", help="The id of a tester; only a hash of it is kept.")],
    variant: Annotated[str, typer.Argument(metavar="VARIANT", help="What they get.")],
    reason: ReasonOption = "",
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a tester a variant, whatever the hashes say, as soon as the experiment runs; a share of 0 is enough. They are not counted.

    Example: headwater experiments override wide ada wide
    """
    from headwater.experiments import store

    chosen = settings(config, data)
    audit(chosen.data, "experiment.override", f"{name}: a tester gets {variant}", reason)
    made = store.override(chosen.data, name, user, variant)
    _say(as_json, _line(made), f"This user gets {variant}")


def status(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The experiment [default: all that run].")] = None,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Who was exposed to which variant, from the log, since the experiment was started.

    Example: headwater experiments status wide
    """
    from contextlib import closing

    from headwater.experiments import store
    from headwater.log.archived import open_log

    chosen = settings(config, data)
    lines = {line.name: line for line in _lines(chosen)}
    if name is None:
        wanted = [each for each in store.read_experiments(chosen.data)[0].values() if each.is_running]
    else:
        wanted = [store.read_experiment(chosen.data, name)]
    with closing(open_log(chosen.data)) as event_log:
        found = [_standing(event_log, each, lines[each.name]) for each in wanted]
    if as_json:
        print_json({"experiments": found, "off": store.is_off(chosen.data)})
        return
    if store.is_off(chosen.data):
        typer.secho("All experiments are switched off; `headwater experiments start --all` ends that", fg="yellow")
    for each in found:
        _print(each)
    if not found:
        typer.echo("No experiment is running")


def _only_one(name: str | None, everything: bool) -> str | None:
    if (name is None) != everything:
        raise typer.BadParameter("name one experiment, or say --all", param_hint="NAME")
    return name


def _say(as_json: bool, value: Any, text: str) -> None:
    if as_json:
        print_json(value)
    else:
        typer.echo(text)


def _check_target(chosen: Settings, experiment: Experiment) -> None:
    """Whether servers can tell whom it is for; what is probably not meant is said.

    Raises:
        ExperimentError: they cannot; the message shows the place in ``when``.
    """
    if not experiment.when:
        return
    from headwater.experiments.definitions import ExperimentError
    from headwater.features.plan import compile_plan
    from headwater.schema.errors import ConfigurationError
    from headwater.serving.targeting import compile_target

    try:
        notes = compile_target(experiment.when, chosen.config, compile_plan(chosen.config)).notes
    except ConfigurationError as error:
        raise ExperimentError(f'experiment "{experiment.name}": {error}') from error
    for note in notes:
        typer.secho(f'experiment "{experiment.name}": {note}', fg="yellow", err=True)


def _check_bundles(chosen: Settings, experiment: Experiment) -> None:
    """Whether servers could load the bundles of the variants.

    Raises:
        BundleError: one of them is not there, is damaged, or was trained on another plan.
    """
    versions = {variant.bundle for variant in experiment.variants if variant.bundle}
    if versions:
        from headwater.features.plan import compile_plan
        from headwater.registry.registry import Registry

        registry, plan = Registry(chosen.data / "models"), compile_plan(chosen.config)
        for version in sorted(versions):
            registry.load(version, plan_hash=plan.hash)


def _lines(chosen: Settings) -> list[Line]:
    from headwater.experiments import store

    read, wrong = store.read_experiments(chosen.data)
    files = store.ExperimentFiles(chosen.data)
    files.read(chosen.config)
    lines = [_line(each, files.problems.get(each.name, "")) for each in read.values()]
    return sorted([*lines, *(Line(name=name, problem=why) for name, why in wrong.items())], key=lambda line: line.name)


def _line(experiment: Experiment, problem: str = "") -> Line:
    return Line(
        name=experiment.name, layer=experiment.layer, status=experiment.status, share=experiment.share, shadow=experiment.shadow,
        variants=_parts(experiment),
        surfaces=None if experiment.surfaces is None else list(experiment.surfaces), version=experiment.version,
        started_ms=experiment.started_ms, stopped_ms=experiment.stopped_ms, stopped_why=experiment.stopped_why, problem=problem,
    )  # fmt: skip


def _parts(experiment: Experiment) -> dict[str, float]:
    if experiment.interleave:
        return dict.fromkeys(experiment.exposed_names, 1.0)
    total = sum(variant.weight for variant in experiment.variants)
    return {variant.name: variant.weight / total for variant in experiment.variants}


def _standing(event_log: Any, experiment: Experiment, line: Line) -> Standing:
    import numpy as np

    from headwater.experiments.exposures import first_exposures, read_exposures

    names = experiment.exposed_names
    found = read_exposures(
        event_log, experiment.name, names, version=experiment.version, since_ms=experiment.started_ms
    )
    arms = first_exposures(found)
    counts = np.bincount(arms.variant, minlength=len(names)).tolist()
    parts = _parts(experiment)
    variants = [
        VariantCount(name, count, parts[name] * len(arms.user)) for name, count in zip(names, counts, strict=True)
    ]
    last_ms = int(found.time_ms.max(initial=0))
    return Standing(line, len(found), variants, arms.mixed, found.unknown, last_ms)


def _print(standing: Standing) -> None:
    from datetime import UTC, datetime

    line = standing.experiment
    if line.shadow:
        typer.echo(
            f"{line.name}: {line.status}, a shadow: `headwater experiments report {line.name}` says what it would have given"
        )
        return
    last = (
        f", the last at {datetime.fromtimestamp(standing.last_ms / 1e3, UTC):%Y-%m-%d %H:%M:%S} UTC"
        if standing.last_ms
        else ""
    )
    typer.echo(
        f"{line.name}: {line.status}, {line.share:.2%} of layer {line.layer}, {standing.exposures} exposures{last}"
    )
    for variant in standing.variants:
        typer.echo(f"  {variant.name:24} {variant.users:9} users, {variant.expected:.1f} expected by weight")
    if standing.mixed:
        typer.echo(f"  {standing.mixed} users saw more than one variant")
    if line.problem:
        typer.secho(f"  {line.problem}", fg="red")
