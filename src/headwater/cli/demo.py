"""``headwater demo``: the whole loop, from an empty folder to a list that changes after three clicks."""

from __future__ import annotations

import contextlib
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from msgspec import Struct

from headwater.cli.options import EXIT_CHECK_FAILED, JsonOption, print_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from headwater.cli.demo_tastes import Course, Learner, Watch
    from headwater.cli.local import Site
    from headwater.cli.shelf import Shelf
    from headwater.client import Client
    from headwater.schema.requests import RecommendResponse
    from headwater.simulator import Scenario, World
    from headwater.simulator.traffic import LiveTraffic

LIST_LENGTH = 10
CLICKS = 3
VISITOR = "visitor"
GUESTS = tuple(f"guest-{number:02d}" for number in range(50))
CONTEXT = {"country": "DE", "device": "mobile"}
WORLD_START_MS = 1_772_409_600_000  # Monday, 2 March 2026, 00:00 UTC: the same seed gives the same demo on any day
LIVE_EVENTS_PER_S = 10.0
DAY_S, SCENARIO_DAY_S = 86_400.0, 120.0  # a day of a scenario takes so long, for somebody to see what it does


class Visit(Struct, frozen=True):
    """What the visitor saw: ``before`` and ``after`` count items of ``taste`` among the ``k`` of the list.

    ``delay_ms``: from posting a click to the list that reflects it, for each click.
    """

    taste: str
    clicked: list[str]
    before: int
    after: int
    k: int
    delay_ms: list[float]

    @property
    def listened(self) -> bool:
        """Whether the list turned to the taste that was clicked."""
        return self.after > self.before


def register(app: typer.Typer) -> None:
    """Add ``demo``."""
    app.command("demo")(demo)


def demo(
    movielens: Annotated[
        tuple[str, Path] | None,
        typer.Option(
            "--data", metavar="movielens DIR", help="Use this MovieLens folder in place of the simulated world."
        ),
    ] = None,
    leave: Annotated[
        bool,
        typer.Option(
            "--exit", help="End after the lists, or once a drift of tastes was seen through; do not go on serving."
        ),
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port; another one is taken if it is in use.")] = 8080,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the world.")] = 7,
    keep: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Work in this new folder and keep it [default: a temporary one].")
    ] = None,
    scenario: Annotated[
        str | None,
        typer.Option(
            help="What happens to the live visitors: a built-in scenario or a TOML file; a day takes two minutes (80 seconds where tastes drift)."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Generate a world, import it, train and serve; then a visitor clicks three things and the list answers.

    Example: headwater demo --exit

    With something to watch: headwater demo --scenario viral-item

    Tastes drift, an alert fires, a training is asked for and serves: headwater demo --scenario taste-turn

    On real data: headwater demo --data movielens path/to/ml-latest-small
    """
    from rich.console import Console

    from headwater.schema.errors import ConfigurationError
    from headwater.simulator import load_scenario

    chosen = None if scenario is None else load_scenario(scenario)
    if movielens is not None and chosen is not None:
        raise ConfigurationError("--scenario happens to simulated people: leave out --data, or --scenario")
    if movielens is not None and movielens[0] != "movielens":
        raise ConfigurationError(f'--data: there is no data set kind "{movielens[0]}"; write --data movielens DIR')
    console = Console(stderr=as_json)
    with _folder(keep) as folder, _sigterm_as_interrupt():
        _run(console, folder, movielens[1] if movielens else None, leave, port, seed, chosen, as_json)


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="headwater-demo-") as name:
        yield Path(name)


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """A polite end by signal takes the same way out as Ctrl-C, so that the server is ended too."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(
    console: Console, folder: Path, movielens: Path | None, leave: bool, port: int, seed: int, scenario: Scenario | None,
    as_json: bool,
) -> None:  # fmt: skip
    from headwater.cli.demo_tastes import TABLES, Learner, drift_s
    from headwater.cli.local import Server, TomlTable, make_site, run_command
    from headwater.cli.shelf import read_shelf
    from headwater.client import Client

    started = time.monotonic()
    # A small catalogue needs fewer trees and rows; every answer's features are logged, there are few of them.
    tables: dict[str, TomlTable] = {
        "ranker": {"trees": 120, "max_rows": 250_000},
        "serving": {"feature_sample": 1.0},
        "monitoring.online": {"attribution": "1m"},  # who looks at the console wants to see figures soon
    }
    if movielens is not None:
        # films age in years, news in minutes: the defaults would have forgotten all but the last week
        tables["features"] = {
            "item_half_lives": ["30d", "365d", "3650d"], "user_half_lives": ["30d", "3650d"],
            "affinity_half_life": "3650d", "segment_half_life": "365d",
        }  # fmt: skip
        tables["features.co_visits"] = {"half_life": "3650d", "fast_half_life": "365d", "window": "30d"}
        tables["ranker"] = {"trees": 200, "max_rows": 2_000_000}
    watched = None if scenario is None else drift_s(scenario)
    if watched is not None:
        tables |= TABLES
    site = make_site(folder, tables)
    world = None if movielens is not None else _simulate(console, site, seed, drifts=watched is not None)
    if movielens is not None:
        _step(console, "import", f"MovieLens from {movielens}")
        run_command(site, "import", "movielens", str(movielens))
    shelf = read_shelf(site.data)
    console.print(f"         {shelf.events:,} events and {len(shelf.items):,} items are in the log")
    with contextlib.ExitStack() as running:
        learner = None
        if watched is None:
            _train(console, site)
        else:
            _step(console, "learn", "`headwater learn`, which goes on beside the server")
            learner = running.enter_context(Learner(site, lambda what: console.print(f"         {what}")))
        _step(console, "serve", "one writer, one fold, one worker")
        server = running.enter_context(Server(site, port))
        client = running.enter_context(Client(server.url))
        prepared_s = time.monotonic() - started
        console.print(f"         {server.url} answers, {prepared_s:.0f} s after the start\n")
        began, first_ms = time.monotonic(), _server_ms(client, shelf.last_ms)

        def now_ms() -> int:
            return first_ms + int((time.monotonic() - began) * 1_000)

        context = CONTEXT if world is not None else {}
        visit = _visit(console, client, shelf, context, now_ms)
        if not visit.listened:
            console.print("[red]The list did not turn to the taste that was clicked.[/red]")
        course = None
        if watched is not None or not leave:
            course = _live(
                console, client, server.url, site, shelf, world, scenario, watched, seed, now_ms, leave, learner
            )  # fmt: skip
    if as_json:
        facts: dict[str, str | int | float] = {
            "data": "simulated" if movielens is None else "movielens",
            "seed": seed,
            "events": shelf.events,
        }
        facts |= {"items": len(shelf.items), "prepared_s": round(prepared_s, 1)}
        shown = {} if course is None else {"tastes": msgspec.to_builtins(course)}
        print_json(facts | msgspec.structs.asdict(visit) | shown)
    if course is not None and leave and not course.recovered:
        console.print(
            "[red]The drift of tastes was not seen through: nothing fired, was asked for, served, or helped.[/red]"
        )
        raise typer.Exit(EXIT_CHECK_FAILED)
    if not visit.listened:
        raise typer.Exit(EXIT_CHECK_FAILED)


def _step(console: Console, name: str, what: str) -> None:
    console.print(f"[bold cyan]{name:>8}[/bold cyan] {what}")


def _server_ms(client: Client, last_ms: int) -> int:
    """What time it is for the server: visitors whose clocks are slow would click before they are shown anything."""
    from headwater.schema.requests import RecommendRequest

    answer = client.recommend(RecommendRequest(user=VISITOR, k=1))
    return max(answer.address.now_ms, last_ms)


def _simulate(console: Console, site: Site, seed: int, *, drifts: bool) -> World:
    """The world and its history; one in which tastes drift has fewer people, who come more often."""
    from headwater.cli.demo_tastes import PEOPLE, VISITS_PER_DAY
    from headwater.cli.local import write_world
    from headwater.simulator import World

    start_ms = WORLD_START_MS
    world = (
        World(seed, start_ms=start_ms, users=PEOPLE, visits_per_day=VISITS_PER_DAY)
        if drifts
        else World(seed, start_ms=start_ms)
    )
    days = world.hours // 24
    _step(console, "generate", f"{len(world.people):,} people, {days} days, seed {seed}; every event goes into the log")
    with _bar(console) as advance:
        write_world(site, world, lambda hour: advance("hours", hour, world.hours))
    return world


def _train(console: Console, site: Site) -> None:
    from headwater.cli.local import train_site

    _step(console, "train", "LightGBM, on candidates as the log knew them at each moment")
    with _bar(console) as advance:
        report = train_site(site, advance)
    console.print(
        f"         {report.rows:,} rows of {report.groups:,} questions in {report.replay_s + report.fit_s:.0f} s, "
        f"{report.trees} trees: model {report.bundle}"
    )


@contextlib.contextmanager
def _bar(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for as long as it is needed; it is moved by (what, done, total)."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("         {task.description:<7}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda what, done, total: progress.update(task, description=what, completed=done, total=total)


def _visit(console: Console, client: Client, shelf: Shelf, context: dict[str, str], now_ms: Callable[[], int]) -> Visit:
    """A stranger arrives, clicks three items of one taste, and sees what that does."""
    from headwater.schema.events import Event
    from headwater.schema.requests import RecommendRequest

    def ask(token: str | None) -> RecommendResponse:
        return client.recommend(
            RecommendRequest(user=VISITOR, k=LIST_LENGTH, context=dict(context) or None, token=token)
        )

    first = ask(None)
    taste = shelf.taste_beside([item.id for item in first.items], CLICKS)
    console.print(_table(f"A stranger arrives and sees (tier {first.tier}, model {first.model})", first, shelf, taste))
    clicked = shelf.best_of(taste, CLICKS)
    console.print(f"\nThey click three items of one taste, [bold green]{taste}[/bold green]:")
    answer, delays = first, []
    for item in clicked:
        began = time.perf_counter()
        event = Event(
            user=VISITOR, item=item, type="click", time=now_ms(), surface="home", attributes=dict(context) or None
        )
        reply = client.send_events([event])
        answer = ask(reply.token)
        delays.append((time.perf_counter() - began) * 1_000)
        reflected = answer.address.user_offset >= int(reply.token)
        console.print(
            f"  · {shelf.title(item)}  [dim]posted, durable and "
            f"{'reflected' if reflected else '[red]NOT reflected[/red]'} in a new list after {delays[-1]:.1f} ms[/dim]"
        )
    console.print()
    console.print(_table(f"What they see now (model {answer.model})", answer, shelf, taste))
    before, after = (sum(shelf.has(item.id, taste) for item in r.items) for r in (first, answer))
    console.print(
        f"\n[bold]{taste}: {before} of {len(first.items)} before, {after} of {len(answer.items)} after; "
        f"{delays[-1]:.1f} ms from posting the last click to the list that reflects it.[/bold]"
    )
    return Visit(taste, clicked, before, after, LIST_LENGTH, [round(delay, 2) for delay in delays])


def _table(title: str, answer: RecommendResponse, shelf: Shelf, taste: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", expand=False)
    for name in ("", "title", "categories", "source", "reason"):
        table.add_column(name, justify="right" if not name else "left", overflow="fold")
    for place, item in enumerate(answer.items, 1):
        style = "green" if shelf.has(item.id, taste) else ""
        categories = ", ".join(shelf.categories(item.id))
        row = (str(place), shelf.title(item.id), categories, item.source, shelf.with_titles(item.reason))
        table.add_row(*row, style=style)
    return table


def _live(
    console: Console, client: Client, url: str, site: Site, shelf: Shelf, world: World | None, scenario: Scenario | None,
    watched: float | None, seed: int, now_ms: Callable[[], int], leave: bool, learner: Learner | None,
) -> Course | None:  # fmt: skip
    """Have visitors come, and what the scenario says happen to them; returns the course of a drift of tastes that comes ``watched`` seconds on."""
    from rich.markup import escape

    from headwater.cli import demo_tastes as tastes
    from headwater.simulator.traffic import LiveTraffic, PlainVisitors, WorldVisitors

    day_s, events_per_s = SCENARIO_DAY_S, LIVE_EVENTS_PER_S
    if watched is not None:
        day_s, events_per_s = tastes.DAY_S, tastes.EVENTS_PER_S
    began = time.monotonic()
    visitors = PlainVisitors(GUESTS) if world is None else WorldVisitors(
        world, now_ms=now_ms(), scenario=None if scenario is None else scenario.faster(DAY_S / day_s)
    )  # fmt: skip
    if scenario is not None:
        console.print(f"[bold]{scenario.name}[/bold]: {scenario.description}")
    traffic = LiveTraffic(
        client, visitors, seed=seed, now_ms=now_ms, events_per_s=events_per_s,
        on_error=lambda error: console.print(f"[yellow]A visit failed: {escape(str(error))}[/yellow]"),
    )  # fmt: skip
    watch = None if watched is None else tastes.Watch(
        site, traffic, lambda what: console.print(f"{time.monotonic() - began:6.0f} s  {escape(what)}"),
        at=began + watched, in_service=lambda: tastes.in_service(site),
        refused=lambda: 0 if learner is None else learner.refused,
    )  # fmt: skip
    _go_on(console, url, traffic, shelf.popular[0], watch, leave)
    return None if watch is None else watch.course


def _go_on(
    console: Console, url: str, traffic: LiveTraffic, item: str, watch: Watch | None, leave: bool
) -> None:  # fmt: skip
    """Serve with live traffic until Ctrl-C; with ``leave`` until what is watched is over."""
    from rich.markup import escape

    console.print(
        f"\nServing at [bold]{url}[/bold] with live visitors (about {traffic.events_per_s:.0f} events a second).\n"
        f"Watch it, be one of them, and see why: [bold]{url}/console[/bold]"
    )
    console.print("Or try, in another terminal:\n")
    post = "-H 'content-type: application/json' -d"
    click = f'{{"user": "you", "item": "{item}", "type": "click"}}'
    for line in (
        f'curl -s {url}/v1/recommend {post} \'{{"user": "you", "k": 5}}\'',
        f"curl -s {url}/v1/events {post} '{click}'",
        f"curl -s '{url}/v1/similar/{item}?k=5'",
        f"curl -s {url}/metrics",
    ):
        console.print(f"  {escape(line)}", soft_wrap=True, highlight=False)
    console.print("\nCtrl-C ends it.")
    traffic.start()
    try:
        while traffic.is_alive():
            traffic.join(1.0)
            if watch is not None:
                watch.look()
                if leave and watch.over():
                    break
    except KeyboardInterrupt:
        console.print("\nEnding ...")
    finally:
        traffic.stop()
    console.print(f"{traffic.visits:,} live visits, {traffic.events:,} events.")
