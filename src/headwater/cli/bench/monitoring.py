"""``headwater bench monitoring``: what monitoring takes of the processor time of a request."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from headwater.cli.bench.report import EventsOption, ItemsOption, KeepOption, SeedOption, UsersOption, show
from headwater.cli.bench.setups import RankerKind, tables_of
from headwater.cli.options import EXIT_CHECK_FAILED, JsonOption
from headwater.schema.clock import wall_ms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headwater.cli.bench.workload import Prepared

LIMIT = 0.03
_RESAMPLES = 2_000
TRIMMED = 0.1
WARM_UP = 2  # rounds
TURN = 2  # requests of a turn: what else the machine does lasts longer, and meets both


class Round(NamedTuple):
    """Processor seconds of the same requests with and without monitoring."""

    with_s: float
    without_s: float


def register(app: typer.Typer) -> None:
    """Add ``monitoring``."""
    app.command("monitoring")(monitoring)


def monitoring(
    rounds: Annotated[int, typer.Option(min=2, help="Pairs of blocks.")] = 150,
    block: Annotated[int, typer.Option(min=64, help="Requests of a block.")] = 64,
    items: ItemsOption = 20_000,
    users: UsersOption = 20_000,
    events: EventsOption = 200_000,
    candidates: Annotated[int, typer.Option(min=1, max=2_000, help="Candidates after merging.")] = 200,
    ranker: Annotated[RankerKind, typer.Option(help="What orders them.")] = RankerKind.LIGHTGBM,
    seed: SeedOption = 7,
    keep: KeepOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send the same requests through the service of a worker with monitoring and without, two at a time in turns, and compare processor time.

    With: what is counted and timed of each answer, feature rows that are kept of a sample. Without: neither. Traces are off, as they are unless
    somebody wants them. The writer and the fold run beside it, as ever; nothing goes over HTTP. What is brought over once a
    second counts as that share of a second. Exit code 1: monitoring takes more than 3%.

    Example: headwater bench monitoring --items 5000 --users 5000 --rounds 50 --json
    """
    from headwater.cli.bench.workload import Size, prepared
    from headwater.online.supervisor import METRICS_VARIABLE, ONE_THREAD

    size = Size(seed=seed, users=users, items=items, events=events)
    with (
        prepared(size, keep, tables_of(ranker, candidates, candidates)) as ready,
        tempfile.TemporaryDirectory() as shared,
    ):
        # the figures are shared between processes as they are in a server; this has to be said before they are defined
        os.environ.update(ONE_THREAD | {METRICS_VARIABLE: shared})
        figures = _measure(ready, rounds, block, seed)
    figures |= {
        "limit": LIMIT,
        "missed": ["monitoring share"] if figures["share"] > LIMIT else [],
        "ranker": ranker.value,
        "candidates": candidates,
    }
    show("What monitoring costs", figures, size, ready.events, as_json)
    if figures["missed"]:
        raise typer.Exit(EXIT_CHECK_FAILED)


def _measure(ready: Prepared, rounds: int, block: int, seed: int) -> dict[str, Any]:
    import uvloop

    from headwater.cli.bench.workload import Requests
    from headwater.cli.local import Server

    arrivals = Requests(ready.world, seed, "monitoring").recommend([0.0] * (rounds + WARM_UP) * block)
    bodies = [arrival.raw.partition(b"\r\n\r\n")[2] for arrival in arrivals]
    with Server(ready.site):
        found, tell_s, watch = uvloop.run(_run(ready, bodies, block, seed))
    return costs(found, block, tell_s, seed) | watch


async def _run(
    ready: Prepared, bodies: Sequence[bytes], block: int, seed: int
) -> tuple[list[Round], float, dict[str, Any]]:  # fmt: skip
    """Rounds of ``block`` requests each (the first ones, which warm up, are left out), the seconds of one round of telling."""
    import time

    from msgspec.structs import replace

    from headwater.features.pinned import expected_plan
    from headwater.online.app import create_app, unmeasured_app
    from headwater.online.counting import AnswerCounts
    from headwater.online.service import Service
    from headwater.online.stores import open_stores
    from headwater.schema.config import load_config

    class Nothing(AnswerCounts):
        def count(self, *_: object) -> None:
            pass

        def log(self, _: float) -> None:
            pass

    config = load_config(ready.site.config)
    # a deadline that is far away: both do the same work, whatever else the machine does
    config = replace(config, ladder=replace(config.ladder, deadline_ms=10_000.0, walk=0.0))
    plan = expected_plan(config, None)
    stores = open_stores(config, ready.site.data, plan)
    shift_ms = stores.log.last_received_ms - wall_ms()
    service = Service(config, plan, ready.site.data, stores, clock=lambda: wall_ms() + shift_ms, seed=seed)
    try:
        service.start()
        measured, unmeasured = create_app(service), unmeasured_app(service)
        counting, nothing = service.counts, Nothing(service.metrics, service.recommender.pipeline.conditions.scorer)  # type: ignore[arg-type]
        plain = replace(config, serving=replace(config.serving, feature_sample=0.0))

        async def once(monitored: bool, part: Sequence[bytes]) -> float:
            app = measured if monitored else unmeasured
            service.counts, service.config = (counting, config) if monitored else (nothing, plain)
            began = time.process_time()
            for body in part:
                await _ask(app, body)
            return time.process_time() - began

        rounds: list[Round] = []
        for at in range(0, len(bodies), block):
            spent, first = {True: 0.0, False: 0.0}, True
            for begin in range(at, at + block, TURN):
                for monitored in (first, not first):  # who is first finds colder caches of the processor
                    spent[monitored] += await once(monitored, bodies[begin : begin + TURN])
                first = not first
            rounds.append(Round(spent[True], spent[False]))
        tells = []
        for part in (bodies[at : at + block] for at in range(0, min(len(bodies), 8 * block), block)):
            await once(True, part)
            began = time.process_time()
            service.tell()
            tells.append(time.process_time() - began)
        return rounds[WARM_UP:], sorted(tells)[len(tells) // 2], _watch(service, config)
    finally:
        await service.close()


async def _ask(app: Any, body: bytes) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start" and message["status"] != 200:
            raise RuntimeError(f"a request of the benchmark was answered with {message['status']}")

    headers = [(b"content-type", b"application/json")]
    await app(
        {
            "type": "http",
            "path": "/v1/recommend",
            "raw_path": b"/v1/recommend",
            "query_string": b"",
            "method": "POST",
            "headers": headers,
        },
        receive,
        send,
    )


def _watch(service: Any, config: Any) -> dict[str, Any]:
    """What the monitor pays for online metrics, over the log of the site."""
    import time

    from headwater.monitoring.online_metrics import OnlineMetrics

    event_log = service.stores.log
    watch = OnlineMetrics(event_log, config)
    watch._at = event_log.first_offset - 1
    began = time.process_time()
    list(watch.look(service.clock()))
    read = watch._at - event_log.first_offset + 1
    return {"watch_records": read, "watch_us_per_record": round(1e6 * (time.process_time() - began) / max(read, 1), 3)}


def costs(rounds: Sequence[Round], block: int, tell_s: float, seed: int) -> dict[str, Any]:
    """What ``rounds`` come to. ``share``: processor time with monitoring over that without, less 1, and what is told once a second.

    The ratio is the geometric mean over rounds (the mean of ratios is above 1 where there is noise and nothing else) without the tenth at each
    end, in which something else had the processor's caches; ``ci95`` by resampling rounds.
    """
    import numpy as np
    from scipy.stats import trim_mean

    spent = np.array(rounds, np.float64).reshape(-1, 2)
    ratios = np.log(spent[:, 0] / spent[:, 1])
    rng = np.random.default_rng([seed, 41])
    drawn = trim_mean(ratios[rng.integers(0, len(ratios), (_RESAMPLES, len(ratios)))], TRIMMED, axis=1)
    low, high = np.exp(np.quantile(drawn, (0.025, 0.975))).tolist()
    per_request = float(np.exp(trim_mean(ratios, TRIMMED))) - 1.0
    with_s, without_s = np.median(spent, axis=0).tolist()
    return {
        "requests": len(rounds) * block,
        "cpu_ms_with": round(1e3 * with_s / block, 4),
        "cpu_ms_without": round(1e3 * without_s / block, 4),
        "share_of_requests": round(per_request, 4),
        "tell_ms_per_s": round(1e3 * tell_s, 3),
        "share": round(per_request + tell_s, 4),
        "ci95": [round(low - 1.0 + tell_s, 4), round(high - 1.0 + tell_s, 4)],
    }
