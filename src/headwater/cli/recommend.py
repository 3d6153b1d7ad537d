"""``headwater recommend``: one list, from the running server or straight from the data directory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.options import (
    EXIT_CHECK_FAILED,
    ApiKeyOption,
    ConfigOption,
    DataOption,
    JsonOption,
    Settings,
    print_json,
    settings,
)

if TYPE_CHECKING:
    from headwater.schema.requests import RecommendRequest, RecommendResponse


def register(app: typer.Typer) -> None:
    """Add ``recommend``."""
    app.command("recommend")(recommend)


def recommend(
    user: Annotated[str | None, typer.Option(help="Whom to recommend to [default: a stranger].")] = None,
    k: Annotated[int, typer.Option(min=1, max=200, help="How many items.")] = 10,
    surface: Annotated[str, typer.Option(help="The place that shows the list.")] = "home",
    context: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An attribute of the moment, such as country=DE.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Ask this server [default: the one that serves the data directory].")
    ] = None,
    api_key: ApiKeyOption = None,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a user would be recommended now, with the source of each item and the reason.

    Example: headwater recommend --user ada --k 5

    Without a running server the log in the data directory is read and nothing is written.
    Exit code 1: the list is empty.
    """
    from headwater.schema.requests import RecommendRequest

    chosen = settings(config, data)
    request = RecommendRequest(user=user, k=k, surface=surface, context=_attributes(context or []) or None)
    response = (
        _ask(url, api_key, request) if url else _ask_running(chosen, api_key, request) or _in_process(chosen, request)
    )
    if as_json:
        print_json(response)
    else:
        _show(response)
    if not response.items:
        raise typer.Exit(EXIT_CHECK_FAILED)


def _attributes(pairs: list[str]) -> dict[str, str | int | float | bool]:
    found: dict[str, str | int | float | bool] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f'"{pair}" is not KEY=VALUE', param_hint="--context")
        found[key] = value
    return found


def _ask(url: str, api_key: str | None, request: RecommendRequest) -> RecommendResponse:
    from headwater.client import Client

    with Client(url, api_key) as client:
        return client.recommend(request)


def _ask_running(chosen: Settings, api_key: str | None, request: RecommendRequest) -> RecommendResponse | None:
    """The answer of the server that serves the data directory; None when there is none."""
    from headwater.cli.supervise import running_address
    from headwater.client import Client

    url = running_address(chosen.data)
    if url is None:
        return None
    with Client(url, api_key) as client:
        return client.recommend(request) if client.healthy() else None


def _in_process(chosen: Settings, request: RecommendRequest) -> RecommendResponse:
    """Fold the log in memory, load the current bundle and run the pipeline.

    Raises:
        StoreError: there is no log in the data directory.
    """

    import msgspec

    from headwater.features.fold import Fold
    from headwater.features.plan import compile_plan
    from headwater.features.replay import fold_to
    from headwater.log.archived import open_log
    from headwater.log.identity import LmdbIdentity
    from headwater.online.errors import RefusalError
    from headwater.online.recommender import Recommender
    from headwater.registry.registry import Registry
    from headwater.schema.errors import HeadwaterError
    from headwater.schema.request_ids import new_request_id
    from headwater.serving.model import open_model
    from headwater.serving.view import FoldView

    plan = compile_plan(chosen.config)
    event_log = open_log(chosen.data)
    identity = LmdbIdentity(chosen.data / "identity", readonly=True)
    try:
        fold = Fold(plan, unseal=identity.decrypt)
        fold_to(event_log, fold, event_log.last_offset)
        view = FoldView(plan, fold)
        view.refresh()
        recommender = Recommender(chosen.config, plan, event_log.vocabulary(), identity, view)
        registry = Registry(chosen.data / "models")
        version = registry.current(plan.hash)
        if version is not None:
            recommender.model = open_model(registry.load(version, plan_hash=plan.hash), chosen.config, plan)
        try:
            checked = recommender.decode(msgspec.json.encode(request))
        except RefusalError as refusal:
            raise HeadwaterError(f"{refusal.field}: {refusal}") from refusal
        asked = recommender.asked(checked, new_request_id(fold.received_ms), 10_000.0, fold.received_ms)
        recommender.answer(asked, fold.received_ms)  # kernels that are loaded only now would eat the deadline
        return recommender.response(
            asked, recommender.answer(asked, fold.received_ms), ["no server: read from the log"]
        )
    finally:
        identity.close()
        event_log.close()


def _show(response: RecommendResponse) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=None, pad_edge=False)
    for name in ("#", "item", "score", "source", "reason"):
        table.add_column(name, justify="right" if name in ("#", "score") else "left", overflow="fold")
    for place, item in enumerate(response.items, 1):
        table.add_row(str(place), item.id, f"{item.score:.3f}", item.source, item.reason)
    if response.items:
        console.print(table)
    address = response.address
    console.print(
        f"tier {response.tier}, model {response.model}, reflects users to {address.user_offset} "
        f"and items to {address.item_offset}",
        style="dim",
    )
    for reason in response.reasons:
        console.print(f"  {reason}", style="dim", markup=False)
