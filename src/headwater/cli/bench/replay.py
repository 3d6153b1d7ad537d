"""``headwater bench replay``: events folded and rows assembled as of their moment, beside other tools at equal results."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwater.cli.bench.report import SeedOption, table
from headwater.cli.options import JsonOption, print_json

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from headwater.cli.bench.peers.workload import Workload
    from headwater.features.asof import Questions
    from headwater.features.definitions import Column
    from headwater.features.plan import Plan
    from headwater.log.memory import MemoryLog
    from headwater.log.record import RecordBlock
    from headwater.schema.config import Config

_BLOCK = 16_384
_TYPES = ("a", "b", "c", "d", "e")  # event types of the workload, by slot


def register(app: typer.Typer) -> None:
    """Add ``replay``."""
    app.command("replay")(replay)


def replay(
    clicks: Annotated[
        Path | None,
        typer.Option("--globo", metavar="FILE", help="Clicks of the Globo data set [default: a synthetic log]."),
    ] = None,
    events: Annotated[int, typer.Option(min=1_000, help="Events of the log.")] = 1_000_000,
    users: Annotated[int, typer.Option(min=100, help="Users of a synthetic log.")] = 500_000,
    items: Annotated[int, typer.Option(min=100, help="Items of a synthetic log.")] = 50_000,
    questions: Annotated[int, typer.Option(min=100, help="Rows that are asked for.")] = 200_000,
    negatives: Annotated[int, typer.Option(min=0, help="Rows beside each positive event, of the same moment.")] = 9,
    peers: Annotated[bool, typer.Option(help="Measure DuckDB, Polars and Feast too.")] = True,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each; the best counts.")] = 3,
    seed: SeedOption = 7,
    as_json: JsonOption = False,
) -> None:
    """Fold a log and assemble rows as of the moments of its events, on one core.

    First the default set of features, with co-visits: events folded and rows assembled a second. Then
    the set that other tools can express, by Headwater and by each of them, with whether all answers are equal.

    Example: headwater bench replay --events 200000 --questions 50000 --no-peers --json
    """
    from headwater.cli.bench.measure import machine, versions
    from headwater.cli.bench.peers.workload import globo, synthetic
    from headwater.features.plan import compile_plan

    work = (
        synthetic(events, users, items, seed, questions=questions, negatives=negatives)
        if clicks is None
        else globo(clicks, events, questions, negatives, seed)
    )
    config = _configuration(work)
    default = compile_plan(config)
    few = compile_plan(_lean(config), _comparable(config))
    log, asked = _logged(work, config)
    small = _logged(work.sample(100)[0], config, events=1_000)
    for plan in (default, few):  # so that no kernel is loaded while the clock runs
        _timed_answers(*small, plan, 1)
    fold_s = min(_timed_fold(log, default) for _ in range(repeats))
    answer_s, _rows = _timed_answers(log, asked, default, repeats)
    few_s, rows = _timed_answers(log, asked, few, repeats)
    ours = _as_peers_say(few.columns, rows)
    figures: dict[str, Any] = {
        "workload": work.name,
        "events": len(work.events.time_ms),
        "questions": len(asked.offset),
        "features": len(default.columns),
        "fold_events_per_s": round(len(work.events.time_ms) / fold_s),
        "assembled_rows_per_s": round(len(asked.offset) / max(answer_s - fold_s, 1e-9)),
        "fold_and_assemble_s": round(answer_s, 3),
        "comparable": {
            "features": len(few.columns),
            "seconds": round(few_s, 3),
            "rows_per_s": round(len(asked.offset) / few_s),
        },
        "peers": _peers(work, ours, len(asked.offset) / few_s, repeats) if peers else {},
        "seed": seed,
        "machine": machine(),
        "versions": versions(),
    }
    if as_json:
        print_json(figures)
    else:
        table("As-of replay, one core", figures)


def _peers(work: Workload, ours: Mapping[str, npt.NDArray[Any]], rows_per_s: float, repeats: int) -> dict[str, Any]:
    from headwater.cli.bench.peers import PEERS, handed_over, measure

    found: dict[str, Any] = {}
    with handed_over(work) as folder:
        for peer in PEERS:
            result = measure(peer, work, folder, ours, repeats=repeats)
            if result["installed"]:
                result["headwater_over_peer"] = round(rows_per_s / result["rows_per_s"], 2)
            found[peer.name] = result
    return found


def _configuration(work: Workload) -> Config:
    from headwater.schema.config import Config, EventType

    count = int(work.events.type.max()) + 1
    kinds = tuple(
        EventType(name=_TYPES[slot], positive=slot in work.positive, weight=1.0 if slot in work.positive else 0.0)
        for slot in range(count)
    )
    return Config(clock="log", events=kinds)


def _lean(config: Config) -> Config:
    """The same without what no other tool is asked for: co-visits, segments, a long sequence."""
    import msgspec

    from headwater.schema.config import CoVisits
    from headwater.schema.segments import Segments

    features = msgspec.structs.replace(
        config.features, recent=1, seen=1, segment_slots=1, content_size=8,
        co_visits=CoVisits(neighbours=1, depth=1, window="1ms"),
    )  # fmt: skip
    return msgspec.structs.replace(config, features=features, segments=Segments(keys=()))


def _comparable(config: Config) -> tuple[Column, ...]:
    """The features of the comparison as Headwater declares them."""
    from headwater.cli.bench.peers.workload import feature_table
    from headwater.features import declare

    positive = [kind.name for kind in config.events if kind.positive]
    columns: list[Column] = []
    for feature in feature_table():
        name, entity, types = feature.name, feature.entity, positive
        window = f"{feature.span_ms}ms"
        if feature.kind == "decayed":
            columns.append(declare.count(name, entity, types, half_life=window))
        elif feature.kind == "last_item":
            columns.extend(declare.recent(name, 1, "item"))
        elif feature.kind == "since_s":
            columns.append(declare.since(name, entity, types))
        elif feature.kind in ("min", "max"):
            make = declare.smallest if feature.kind == "min" else declare.largest
            columns.append(make(name, entity, types))
        else:
            make_sum = {"count": declare.count, "sum": declare.total, "mean": declare.mean}[feature.kind]
            if feature.span_ms:
                columns.append(make_sum(name, entity, types, window=window, tiles=feature.tiles))
            else:
                columns.append(make_sum(name, entity, types))
    return tuple(columns)


def _logged(work: Workload, config: Config, events: int | None = None) -> tuple[MemoryLog, Questions]:
    """The workload as a log in memory, and its questions at their offsets (those about the first ``events``)."""
    import numpy as np

    from headwater.features.asof import Questions
    from headwater.log.memory import MemoryLog
    from headwater.log.protocol import Commit, Term
    from headwater.log.record import RECORD, Kind, Namespace, RecordBlock

    names = [kind.name for kind in config.events]
    table = work.events
    count = len(table.time_ms) if events is None else min(events, len(table.time_ms))
    log = MemoryLog()
    terms = np.zeros(len(names), RECORD)
    terms["offset"], terms["kind"], terms["type"] = np.arange(1, len(names) + 1), Kind.TERM, Namespace.EVENT_TYPE
    terms["item"], terms["received_ms"] = np.arange(1, len(names) + 1), table.time_ms[0]
    texts = [name.encode() for name in names]
    terms["payload_size"] = [len(text) for text in texts]
    terms["payload_at"] = np.concatenate([[0], np.cumsum(terms["payload_size"])[:-1]])
    heap = np.frombuffer(b"".join(texts), np.uint8)
    log.append(
        Commit(_sealed(RecordBlock(terms, heap)), [Term(Namespace.EVENT_TYPE, i, n) for i, n in enumerate(names, 1)])
    )
    for start in range(0, count, _BLOCK):
        part = slice(start, min(start + _BLOCK, count))
        records = np.zeros(part.stop - start, RECORD)
        records["offset"] = np.arange(start, part.stop) + len(names) + 1
        records["kind"], records["type"] = Kind.EVENT, table.type[part].astype(np.uint16) + 1
        records["received_ms"] = records["time_ms"] = table.time_ms[part]
        records["user"], records["item"] = table.user[part] + 1, table.item[part] + 1
        records["value"] = table.value[part]
        log.append(Commit(_sealed(RecordBlock(records, np.zeros(0, np.uint8)))))
    asked = work.questions
    inside = asked.position < count
    return log, Questions(
        (asked.position[inside] + len(names)).astype(np.int64),  # everything in front of the event
        asked.user[inside] + 1,
        asked.item[inside] + 1,
        asked.now_ms[inside],
        np.zeros((int(inside.sum()), 2), np.uint16),
    )


def _sealed(block: RecordBlock) -> RecordBlock:
    from headwater.log.record import VERSION, crcs_of

    block.records["version"] = VERSION
    block.records["crc"], _ = crcs_of(block)
    return block


def _timed_fold(log: MemoryLog, plan: Plan) -> float:
    from headwater.features.fold import Fold

    began = time.perf_counter()
    fold = Fold(plan)
    while (block := log.read(fold.offset)) is not None:
        fold.apply(block)
    return time.perf_counter() - began


def _timed_answers(
    log: MemoryLog, asked: Questions, plan: Plan, repeats: int
) -> tuple[float, npt.NDArray[np.float32]]:  # fmt: skip
    """The best time from the log to all rows, fold included, and the rows."""
    import numpy as np

    from headwater.features.asof import answers

    best, out = float("inf"), np.zeros((len(asked.offset), len(plan.columns)), np.float32)
    for _ in range(repeats):
        began = time.perf_counter()
        for start, stop, rows in answers(log, plan, asked):
            out[start:stop] = rows
        best = min(best, time.perf_counter() - began)
    return best, out


def _as_peers_say(names: tuple[str, ...], rows: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
    """Our columns in the units of the comparison: seconds instead of hours, items from 0 instead of 1."""
    import numpy as np

    columns = {name: rows[:, d].astype(np.float64) for d, name in enumerate(names)}
    columns["user_last_item"] = columns.pop("user_last_item_0") - 1
    for name, values in columns.items():
        if name.endswith("since_s"):
            columns[name] = np.where(values < 0, -1.0, values * 3_600.0)
    return columns
