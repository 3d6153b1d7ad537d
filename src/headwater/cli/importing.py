"""``headwater import``: histories and catalogues into the log, each row once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.options import ConfigOption, DataOption, JsonOption, Settings, parse_time, print_json, settings
from headwater.schema.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from headwater.offline.importing import FileOptions, ImportReport, Mapping, Target

FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="CSV, Parquet or JSON lines (.gz too, not Parquet).")
]
MapOption = Annotated[
    list[str] | None, typer.Option("--map", metavar="COLUMN=FIELD", help="Which field a column is; repeatable.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="One value for every row; repeatable.")
]
UnitOption = Annotated[
    str | None,
    typer.Option("--time-unit", metavar="UNIT", help="s, ms, us, ns or iso [default: ms; ISO 8601 for text]"),
]
FormatOption = Annotated[
    str | None, typer.Option("--format", metavar="FORMAT", help="csv, parquet or jsonl [default: by the name]")
]
DelimiterOption = Annotated[
    str | None, typer.Option("--delimiter", metavar="CHAR", help="Of a CSV file [default: comma; tab for .tsv]")
]
EncodingOption = Annotated[str, typer.Option("--encoding", metavar="NAME", help="Of a CSV file.")]
RejectsOption = Annotated[
    Path | None,
    typer.Option("--rejects", metavar="FILE", help="Where refused rows go [default: in DATA/rejects]"),
]


def register(app: typer.Typer) -> None:
    """Add ``import`` and its three kinds."""
    group = typer.Typer(
        no_args_is_help=True,
        help="Import a history or a catalogue; running it twice adds nothing.\n\n"
        "Example: headwater import events clicks.csv --map visitor=user --set type=click --time-unit s",
    )
    group.command("movielens")(movielens)
    group.command("events")(events)
    group.command("items")(items)
    app.add_typer(group, name="import")


def movielens(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder as downloaded and unpacked.")],
    positive_from: Annotated[
        float,
        typer.Option("--positive-from", min=0.0, max=5.0, help="Ratings from here on are likes, lower ones views."),
    ] = 4.0,
    rejects: RejectsOption = None,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Import MovieLens: ratings.csv and movies.csv, or the older ratings.dat, movies.dat and users.dat.

    Example: headwater import movielens ml-latest-small
    """
    from headwater.offline.importing import import_movielens

    with _target(settings(config, data), rejects) as target:
        report = import_movielens(folder, target, positive_from=positive_from)
    _show(report, as_json)


def events(
    file: FileArgument,
    columns: MapOption = None,
    constants: SetOption = None,
    event_types: Annotated[
        list[str] | None,
        typer.Option("--event-type", metavar="FROM=TO", help="What a type in the file is called here; repeatable."),
    ] = None,
    time_unit: UnitOption = None,
    sort: Annotated[bool, typer.Option("--sort", help="Order the whole file by time first (in memory).")] = False,
    file_format: FormatOption = None,
    delimiter: DelimiterOption = None,
    encoding: EncodingOption = "utf-8",
    rejects: RejectsOption = None,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Import events; each counts as received at its own time.

    Columns that bear a field's name need no --map. Fields: user, item, type, time, event_id, value,
    surface, request_id, position, session, retract, attributes.NAME.

    Example: headwater import events clicks.parquet --map user_id=user --map article=item --map ts=time
    --map country=attributes.country --set type=click
    """
    from headwater.offline.importing import import_events

    mapping = _mapping(columns, constants, event_types, time_unit)
    with _target(settings(config, data), rejects) as target:
        report = import_events(file, mapping, target, options=_options(file_format, delimiter, encoding), sort=sort)
    _show(report, as_json)


def items(
    file: FileArgument,
    columns: MapOption = None,
    constants: SetOption = None,
    time_unit: UnitOption = None,
    separator: Annotated[
        str, typer.Option("--separator", help="Between the entries of a list in a text column.")
    ] = "|",
    at: Annotated[
        str | None,
        typer.Option(
            "--at", metavar="TIME", help="When the items became known, ISO 8601 [default: where the log stands]"
        ),
    ] = None,
    file_format: FormatOption = None,
    delimiter: DelimiterOption = None,
    encoding: EncodingOption = "utf-8",
    rejects: RejectsOption = None,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Import items; an item that is there already is replaced.

    Fields: id, title, text, categories, tags, price, available, regions, published, expires, vector,
    attributes.NAME. Import the items before the events that name them.

    Example: headwater import items articles.csv --map article_id=id --map section=categories --time-unit s
    """
    from headwater.offline.importing import import_items

    mapping = _mapping(columns, constants, None, time_unit, separator)
    at_ms = parse_time("--at", at)
    with _target(settings(config, data), rejects) as target:
        report = import_items(file, mapping, target, options=_options(file_format, delimiter, encoding), at_ms=at_ms)
    _show(report, as_json)


def _mapping(
    columns: list[str] | None,
    constants: list[str] | None,
    event_types: list[str] | None,
    time_unit: str | None,
    separator: str = "|",
) -> Mapping:
    import msgspec

    from headwater.offline.importing import Mapping, parse_assignments

    raw = {
        "columns": parse_assignments("--map", columns or ()),
        "constants": parse_assignments("--set", constants or ()),
        "event_types": parse_assignments("--event-type", event_types or ()),
        "time_unit": time_unit,
        "separator": separator,
    }
    try:
        return msgspec.convert(raw, Mapping)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"--time-unit {time_unit}: Expected s, ms, us, ns or iso") from error


def _options(file_format: str | None, delimiter: str | None, encoding: str) -> FileOptions:
    from headwater.offline.importing import FileOptions

    return FileOptions(file_format, delimiter, encoding)


@contextlib.contextmanager
def _target(chosen: Settings, rejects: Path | None) -> Iterator[Target]:
    """The target of an import, with a bar on standard error while it runs."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from headwater.offline.importing import Target

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        yield Target(chosen.data, chosen.config, rejects, _Shown(bar))


class _Shown:
    """Progress as a bar: rows done, rows a second, time left."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._task = bar.add_task("import", total=None, rate="")

    def begin(self, what: str, rows: int | None) -> None:
        self._bar.remove_task(self._task)
        self._task = self._bar.add_task(what, total=rows, rate="")

    def advance(self, rows: int) -> None:
        self._bar.advance(self._task, rows)
        speed = next(task.speed for task in self._bar.tasks if task.id == self._task)
        self._bar.update(self._task, rate=f"{speed:,.0f} rows/s" if speed else "")


def _show(report: ImportReport, as_json: bool) -> None:
    warn: Callable[[str], None] = lambda text: typer.secho(text, err=True, fg="yellow")  # noqa: E731
    if report.late:
        warn(
            f"{report.late:,} events are older than one before them and count as received when that one was; "
            "--sort orders a file by time, and histories go in before newer ones"
        )
    if report.ignored_columns:
        warn(f"Columns that no field takes: {', '.join(report.ignored_columns)}")
    if report.rejects_file is not None:
        warn(f"{sum(report.rejected.values()):,} rows were refused; they stand in {report.rejects_file}")
    if as_json:
        print_json(report)
        return
    typer.echo(
        f"{report.rows:,} rows in {report.seconds:.1f} s ({report.rows_per_s:,.0f} rows/s): "
        f"{report.accepted:,} accepted, {sum(report.rejected.values()):,} refused, "
        f"{report.duplicates:,} duplicates, {report.already_imported:,} imported before"
    )
    for reason, count in report.rejected.items():
        typer.echo(f"  {count:>10,}  {reason}")
