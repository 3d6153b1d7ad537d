"""``headwater capacity``: how many cores and how much memory a product needs, from figures of this machine."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from headwater.cli.options import JsonOption, print_json
from headwater.cli.sizing import Calibration, Needs, Product, sized
from headwater.schema.errors import ConfigurationError, HeadwaterError


def register(app: typer.Typer) -> None:
    """Add ``capacity``."""
    app.command("capacity")(capacity)


def capacity(
    calibration: Annotated[
        Path,
        typer.Option("--calibration", metavar="FILE", help="Figures of a machine; written by --calibrate."),
    ] = Path("calibration.json"),
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure this machine first (a few minutes) and write FILE.")
    ] = False,
    daily_users: Annotated[int, typer.Option(min=1, help="People a day.")] = 5_000_000,
    users: Annotated[int, typer.Option(min=1, help="People whose state is kept.")] = 50_000_000,
    requests: Annotated[float, typer.Option(min=0.0, help="Requests of a person a day.")] = 20.0,
    events: Annotated[float, typer.Option(min=0.0, help="Events of a person a day.")] = 100.0,
    items: Annotated[int, typer.Option(min=1, help="Items that are live.")] = 50_000,
    peak: Annotated[float, typer.Option(min=1.0, help="Busiest second over the mean of the day.")] = 4.3,
    headroom: Annotated[float, typer.Option(min=1.0, help="Cores to have over cores in use at the peak.")] = 2.0,
    as_json: JsonOption = False,
) -> None:
    """Say how many cores, how much memory and how many core-seconds per million requests a product needs.

    The calibration starts a server of its own and measures it: requests, durable events, bytes of users. Keep the file with
    the machine that it was made on.

    Example: headwater capacity --calibrate --daily-users 200000 --users 2000000
    """
    seen = _measured(calibration, items) if calibrate else read_calibration(calibration)
    product = Product(
        daily_users=daily_users,
        users=users,
        requests=requests,
        events=events,
        items=items,
        peak=peak,
        headroom=headroom,
    )
    needs = sized(product, seen)
    if as_json:
        print_json({"product": product, "needs": needs, "calibration": seen})
    else:
        _table(product, needs, seen)


def read_calibration(path: Path) -> Calibration:
    """The figures in ``path``.

    Raises:
        ConfigurationError: there are none, or the file is none of ours.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Calibration)
    except FileNotFoundError as error:
        raise ConfigurationError(f"{path}: There is no calibration; make one with --calibrate") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: Not a calibration: {error}. Make one with --calibrate") from error


def _measured(path: Path, items: int) -> Calibration:
    with tempfile.TemporaryDirectory(prefix="headwater-capacity-") as folder:
        site = Path(folder) / "ingest"
        serve = _bench(
            "serve", "--items", str(items), "--users", "100000", "--ranker", "lightgbm", "--candidates", "200", "--rate", "50",
            "--duration", "20", "--no-floor",
        )  # fmt: skip
        ingest = _bench("ingest", "--keep", str(site))
        memory = _bench("memory", "--users", "100000", "--folded", "100000")
        seen = calibrated(serve, ingest, memory, _log_bytes_per_event(site))
    path.write_bytes(msgspec.json.format(msgspec.json.encode(seen), indent=1) + b"\n")
    return seen


def calibrated(serve: dict[str, Any], ingest: dict[str, Any], memory: dict[str, Any], log_bytes: float) -> Calibration:
    """A calibration from what ``bench serve``, ``bench ingest`` and ``bench memory`` print.

    Raises:
        HeadwaterError: a server that held no rate at all.
    """
    from headwater.features.plan import compile_plan
    from headwater.features.sizes import sizes
    from headwater.schema.config import Config

    if serve["capacity_rps"] is None:
        raise HeadwaterError("`bench serve` found no rate that this machine holds; is it busy with something else?")
    posted: float = ingest["events_per_s"] * ingest["duration_s"]
    spent: dict[str, float] = ingest["cpu_s_by_part"]

    def ms_per_event(*parts: str) -> float:
        return max(1e3 * float(sum(spent.get(part, 0.0) for part in parts)) / posted, 1e-6)

    return Calibration(
        ms_per_request=sum(serve["cpu_ms_by_part"].values()),
        capacity_rps=serve["capacity_rps"], p99_ms=serve["p99_ms"],
        ms_per_event=ms_per_event(*spent), writer_ms_per_event=ms_per_event("writer"), fold_ms_per_event=ms_per_event("fold"),
        log_bytes_per_event=log_bytes, state_bytes_per_user=memory["state_bytes_per_user"],
        identity_bytes_per_user=memory["identity_bytes_per_user"], item_bytes=float(sizes(compile_plan(Config())).item),
        items=serve["items"], ranker=serve["ranker"], machine=serve["machine"], versions=serve["versions"],
    )  # fmt: skip


def _bench(name: str, *arguments: str) -> dict[str, Any]:
    typer.echo(f"headwater bench {name} {' '.join(arguments)}", err=True)
    command = [sys.executable, "-m", "headwater.cli.main", "bench", name, *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)  # noqa: S603
    if done.returncode:
        raise HeadwaterError(f"`headwater bench {name}` failed with exit code {done.returncode}")
    figures: dict[str, Any] = msgspec.json.decode(done.stdout.splitlines()[-1])
    return figures


def _log_bytes_per_event(site: Path) -> float:
    """What a record takes in the log that ``bench ingest`` left in ``site``: pages in use over records."""
    from headwater.cli.bench.memory import pages
    from headwater.log.lmdb import LmdbLog

    log = LmdbLog(site / "data" / "log", readonly=True)
    try:
        records = log.last_offset
    finally:
        log.close()
    in_use = sum(int(table["bytes"]) for table in pages(site / "data" / "log").values())
    return in_use / max(records, 1)


def _table(product: Product, needs: Needs, seen: Calibration) -> None:
    from rich.console import Console
    from rich.table import Table

    rows = Table(title="What it needs", title_justify="left", show_header=False)
    for name, value in (
        ("requests/s, mean and peak", f"{needs.requests_per_s_mean:,.0f}, {needs.requests_per_s_peak:,.0f}"),
        ("events/s, mean and peak", f"{needs.events_per_s_mean:,.0f}, {needs.events_per_s_peak:,.0f}"),
        ("cores in use at the peak: serving, ingest", f"{needs.serving_cores:,.1f}, {needs.ingest_cores:,.1f}"),
        (f"cores to have (× {product.headroom:g})", f"{needs.cores:,.1f}"),
        ("core-seconds per million requests", f"{needs.core_seconds_per_million_requests:,.0f}"),
        ("memory: state, identity, items a worker", f"{needs.state_gib:,.1f}, {needs.identity_gib:,.1f}, {needs.item_gib_a_worker:,.2f} GiB"),
        ("memory in all", f"{needs.memory_gib:,.1f} GiB"),
        ("log a day", f"{needs.log_gib_a_day:,.1f} GiB"),
        ("calibrated on", f"{seen.machine.get('cpu', '?')}, {seen.items:,} items, ranker {seen.ranker}"),
    ):  # fmt: skip
        rows.add_row(name, value)
    console = Console()
    console.print(rows)
    for note in needs.notes:
        console.print(f"note: {note}", markup=False)
