"""``headwater explain``: why a list that was served is as it is, and why an item is not in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.options import ApiKeyOption, ConfigOption, DataOption, JsonOption, Settings, print_json, settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from msgspec import UnsetType
    from rich.console import Console

    from headwater.schema.explanation import Comparison, ExplainedItem, Explanation, Fate, FeatureValue
    from headwater.serving.explain import Question


def register(app: typer.Typer) -> None:
    """Add ``explain``."""
    app.command("explain")(explain)


def explain(
    request_id: Annotated[str, typer.Argument(help="The `request_id` of an answer.")],
    item: Annotated[str | None, typer.Option(help="Say why this item is where it is, or is not there.")] = None,
    bundle: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Compare with the list that this bundle gives.")
    ] = None,
    after: Annotated[
        int | None,
        typer.Option(min=0, metavar="OFFSET", help="Look for the list behind this offset: `user_offset` of its address."),
    ] = None,
    backup: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Replay from the state in this backup on, not from the log's beginning."),
    ] = None,
    candidates: Annotated[int, typer.Option(min=0, max=1_000, help="Candidates of each source.")] = 10,
    features: Annotated[int, typer.Option(min=0, max=1_000, help="Features of each item.")] = 8,
    url: Annotated[str | None, typer.Option(help="Ask this server [default: replay the log of the data directory].")] = None,
    api_key: ApiKeyOption = None,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Replay a logged request: candidates by source, filters, features and their age, and what became of an item.

    Example: headwater explain 019a5c7e9b1d2f4a6c8e0a2b4c6d8e0f --item article-17

    The log is read from its beginning to the list's address, lake included, and nothing is written; a server may run
    beside it. With --backup it is read from the state of an older backup (`headwater backup --state`) on. With --url a server explains, which gives its replay ten seconds.
    """
    from headwater.serving.explain import Question

    question = Question(item=item, bundle=bundle, candidates=candidates, features=features)
    if url is not None and backup is not None:
        raise typer.BadParameter("a server replays its own log; leave --url or --backup out", param_hint="--backup")
    if url is not None:
        explanation = _ask(url, api_key, request_id, question, after)
    else:
        explanation = _replay(settings(config, data), request_id, question, after, backup)
    if as_json:
        print_json(explanation)
    else:
        _show(explanation)


def _ask(url: str, api_key: str | None, request_id: str, question: Question, after: int | None) -> Explanation:
    from headwater.client import Client

    with Client(url, api_key) as client:
        return client.explain(
            request_id, item=question.item, bundle=question.bundle, after=after, candidates=question.candidates,
            features=question.features,
        )  # fmt: skip


def _replay(
    chosen: Settings, request_id: str, question: Question, after: int | None, backup: Path | None
) -> Explanation:  # fmt: skip
    from headwater.cli.train import Bars
    from headwater.experiments.store import as_served
    from headwater.serving.explain_logged import explain_logged

    with Bars() as bars:
        return explain_logged(
            chosen.config, chosen.data, request_id, question, after=after, backup=backup,
            progress=lambda done, last: bars.update("replay", done, last),
            arms=lambda config, variants: as_served(chosen.data, config, variants),
        )  # fmt: skip


def _show(explanation: Explanation) -> None:
    from rich.console import Console

    terminal = Console()
    console = terminal if terminal.is_terminal else Console(width=200)  # a file or a pipe has no width
    request, replay = explanation.request, explanation.replay
    say = _sayer(console)
    say(
        f"request {request.request_id}: {request.k} items for {'a known user' if request.known_user else 'a stranger'} on {request.surface}, "
        f"tier {request.tier}, bundle {request.address.bundle}"
    )
    for name, variant in request.experiments.items():
        say(f"  {variant} of experiment {name}")
    for place in request.promised:
        said = "it did" if place.kept else "it did not"
        say(f"  place {place.place} could go to a promised new item with probability {place.chance:.3g}; {said}")
    for reason in request.reasons:
        say(f"  {reason}")
    same = {None: "were not logged", True: "the same bytes", False: "OTHER BYTES"}[replay.same_features]
    say(
        f"{'exact' if replay.exact else 'not exact'}: {replay.state} state, users {replay.user_offset} and items {replay.item_offset}, bundle "
        f"{replay.bundle}; {'the same list' if replay.same_list else 'ANOTHER LIST'}, features {same}"
    )
    for note in replay.notes:
        say(f"  {note}")
    _show_sources(console, explanation)
    for each in explanation.filters:
        say(f"{each.stage}: {each.items} items {each.reason}, such as {', '.join(each.examples)}")
    _show_items(console, explanation.items)
    _show_fate(say, explanation.item)
    _show_other(say, explanation.other)
    for shadow in explanation.shadows:
        say(
            f"the shadow {shadow.experiment} ({shadow.variant}, bundle {shadow.bundle}, tier {shadow.tier}) would have given {shadow.shared} of the "
            f"{len(explanation.served)} items: {', '.join(placed.item for placed in shadow.items)}"
        )


def _show_sources(console: Console, explanation: Explanation) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("source", "weight", "width", "offered", "kept", "listed", "first candidates"):
        table.add_column(name, justify="left" if name in ("source", "first candidates") else "right", overflow="fold")
    for source in explanation.sources:
        first = ", ".join(
            f"{candidate.item}{f' ({candidate.refused})' if candidate.refused else ''}"
            for candidate in source.candidates
        )
        table.add_row(
            source.source, f"{source.weight:g}", str(source.width), str(source.offered), str(source.kept), str(source.listed),
            source.why_empty or first,
        )  # fmt: skip
    console.print(table)


def _show_items(console: Console, items: list[ExplainedItem]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("#", "item", "score", "ranked", "merged", "sources", "features (effect, age)"):
        table.add_column(
            name, justify="right" if name in ("#", "score", "ranked", "merged") else "left", overflow="fold"
        )
    for item in items:
        sources = ", ".join(f"{found.source} {found.rank}" for found in item.sources) or item.source
        table.add_row(
            _text(item.place), item.item, "" if item.score is None else f"{item.score:.4g}", _text(item.ranked), _text(item.merged),
            sources, "; ".join(_feature(feature) for feature in item.features if feature.effect != 0.0),
        )  # fmt: skip
    console.print(table)


def _show_fate(say: Callable[[str], None], fate: Fate | UnsetType) -> None:
    from msgspec import UNSET

    if fate is UNSET:
        return
    of = fate.of
    say(f"{of.item}: {fate.stage}, {fate.reason}")
    for name, value in of.heads.items():
        say(f"  head {name} {value:.4g}")
    for feature in of.features:
        if feature.effect != 0.0:
            say(f"  {_feature(feature)}")


def _show_other(say: Callable[[str], None], other: Comparison | UnsetType) -> None:
    from msgspec import UNSET

    if other is UNSET:
        return
    say(f"with bundle {other.bundle} (tier {other.tier}): {len(other.differences)} places of {len(other.items)} differ")
    for each in other.differences:
        moved = f", {each.item} goes to place {each.moved_to}" if each.moved_to else ""
        say(f"  place {each.place}: {each.other or 'nothing'} instead of {each.item or 'nothing'}{moved}")


def _feature(feature: FeatureValue) -> str:
    about = [] if feature.effect is None else [f"{feature.effect:+.3g}"]
    if feature.age_ms is not None:
        about.append(f"{'≥ ' if feature.age_of == 'row' else ''}{_span(feature.age_ms)}")
    return f"{feature.name} {feature.value:.4g}" + (f" ({', '.join(about)})" if about else "")


def _span(ms: int) -> str:
    for size, unit in ((86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")):
        if ms >= size:
            return f"{ms / size:.1f}{unit}"
    return f"{ms}ms"


def _text(place: int | None) -> str:
    return "" if place is None else str(place)


def _sayer(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)
