"""The job that writes training rows: exposures and outcomes → labels → as-of features → Parquet or Delta."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from headwater.features.asof import Questions, answers
from headwater.features.attributes import surface_code
from headwater.features.fold import Unseal
from headwater.features.plan import compile_plan
from headwater.learning.exposures import POSITIVES, Asked, Exposures, Stretch, dense_types, read_exposures
from headwater.learning.labels import LabelRule, Labels, closes_after_ms, join_labels, label_rules
from headwater.learning.rows import Definition, RowTables, pieces, row_schema
from headwater.learning.rowstore import DeltaRows, ParquetRows, RowStore, Span
from headwater.log.protocol import EventLog
from headwater.log.seek import last_before
from headwater.offline.tables.history import Lookup, TableOrigins, table_history
from headwater.schema.config import Config
from headwater.schema.durations import parse_duration
from headwater.schema.errors import HeadwaterError

Float32 = npt.NDArray[np.float32]
Progress = Callable[[str, int, int], None]
Format = Literal["parquet", "delta"]

FILE_ROWS = 262_144
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


class LabelReport(Struct, frozen=True):
    """How often a label was fulfilled, and how long after the exposure (ms; empty when it never was)."""

    positives: int
    rate: float
    delay_ms: dict[str, float]


class MaterializeReport(Struct, frozen=True, kw_only=True):
    """What was written. ``first_offset`` to ``last_offset`` are the records whose exposures are in it now (0, 0: none).

    ``open`` exposures have labels that are not closed at the log's end: a later run writes them. ``skipped`` says
    what can be no row, and why; ``tables`` how many rows have the columns of a table from the log, and how many from the
    table's files, because they are from before it was loaded.
    """

    rows: int
    open: int
    skipped: dict[str, int]
    labels: dict[str, LabelReport]
    tables: dict[str, TableOrigins]
    plan: str
    format: str
    files: int
    first_offset: int
    last_offset: int
    slices: int
    threads: int
    seconds: float
    rows_per_s: float


def materialize(
    config: Config, log: EventLog, out: Path, *, asked: Asked | None = None, from_ms: int | None = None,
    to_ms: int | None = None, output: Format = "parquet", threads: int = 1, slices: int = 1,
    file_rows: int = FILE_ROWS, unseal: Unseal | None = None, lookup: Lookup | None = None, progress: Progress | None = None,
) -> MaterializeReport:  # fmt: skip
    """Write the rows of all exposures received from ``from_ms`` on and before ``to_ms`` whose labels are closed.

    What is in ``out`` already is not written again. Neither rows nor bytes depend on ``threads`` and ``slices``.
    ``lookup`` finds a user's number, for tables of users that were loaded after some of the rows.

    Raises:
        HeadwaterError: the log is empty, or has no exposures of this kind; ``out`` holds something else.
    """
    began = time.perf_counter()
    asked = Asked() if asked is None else asked
    if log.last_offset == 0:
        raise HeadwaterError("the log is empty: import events first (headwater import --help)")
    plan = compile_plan(config)
    rules, watermark_ms = label_rules(config.training), parse_duration(config.training.watermark)
    row_schema(plan, [rule.name for rule in rules])  # names that collide are found before any work is done
    drawn = asked.rows == POSITIVES
    definition = Definition(
        plan=plan.hash, log_id=log.log_id, rows=asked.rows, negatives=asked.negatives if drawn else None,
        seed=asked.seed if drawn else None, watermark_ms=watermark_ms, labels=rules,
    )  # fmt: skip
    store: RowStore = ParquetRows(out, definition) if output == "parquet" else DeltaRows(out, definition)
    (first, last), closed = _wanted(log, closes_after_ms(rules, watermark_ms), from_ms, to_ms)
    span = store.remaining((first, min(last, closed))) if first <= min(last, closed) else None
    stretch = _stretch(log, span, (max(first, closed + 1), last), rules, watermark_ms)

    def told(phase: str) -> Callable[[int, int], None]:
        return lambda done, total: None if progress is None else progress(phase, done, total)

    labelled = sorted({name for rule in rules for name in rule.types})
    exposures = read_exposures(log, config, asked, stretch, watermark_ms, labelled, told("read"))
    labels = {rule.name: _labels(log, exposures, rule, watermark_ms) for rule in rules}
    n = len(exposures)
    files = -(-n // file_rows)
    origins: dict[str, TableOrigins] = {}
    if span is not None and n:
        tables = RowTables(plan, log.vocabulary(), exposures, labels)
        questions = _questions(exposures)
        history = table_history(config, plan, log, questions, lookup)
        origins = history.origins
        folded = answers(log, plan, questions, threads=threads, slices=slices, unseal=unseal)
        rows = _watched(history.over(folded), n, told("assemble"))
        store.write(span, tables, pieces(rows, n, len(plan.columns), file_rows), files, threads)
    seconds = time.perf_counter() - began
    return MaterializeReport(
        rows=n, open=exposures.open, skipped=exposures.skipped, plan=plan.hash, format=output,
        labels={name: _label_report(found) for name, found in labels.items()}, tables=origins,
        files=files if output == "parquet" else min(files, 1),
        first_offset=span[0] if span else 0, last_offset=span[1] if span else 0,
        slices=slices, threads=threads, seconds=seconds, rows_per_s=n / seconds,
    )  # fmt: skip


def _wanted(log: EventLog, closes_after: int, from_ms: int | None, to_ms: int | None) -> tuple[Span, int]:
    """The span of offsets that is asked for, and the last offset at which all labels are closed."""
    end = log.last_offset
    first = 1 if from_ms is None else last_before(log, from_ms)[0] + 1
    last = end if to_ms is None else min(last_before(log, to_ms)[0], end)
    return (first, last), min(last_before(log, _received(log, end) - closes_after)[0], end)


def _stretch(
    log: EventLog, span: Span | None, open_: Span, rules: Sequence[LabelRule], watermark_ms: int
) -> Stretch:  # fmt: skip
    """What to read for the rows of ``span`` and to count those of ``open_``, which reaches the end of the log or is empty.

    No exposure is later than the watermark, so what an outcome may belong to instead was received no earlier than
    that before the exposure; and nothing counts that is received after the label is closed.
    """
    rows = (1, 0) if span is None else span
    parts = [part for part in (rows, open_) if part[0] <= part[1]]
    if not parts:
        return Stretch(rows, open_, 1, 0)
    first, last = min(part[0] for part in parts), max(part[1] for part in parts)
    return Stretch(
        rows,
        open_,
        read_from=last_before(log, _received(log, first) - watermark_ms)[0] + 1,
        read_to=last_before(log, _received(log, last) + closes_after_ms(rules, watermark_ms) + 1)[0],
    )


def _received(log: EventLog, offset: int) -> int:
    block = log.read(offset - 1, 1)
    if block is None:
        raise HeadwaterError(f"the log ends before offset {offset}")
    return int(block.records["received_ms"][0])


def _labels(log: EventLog, exposures: Exposures, rule: LabelRule, watermark_ms: int) -> Labels:
    """The labels of the exposures that become rows, in their order."""
    types = dense_types(log, rule.types)
    found = join_labels(exposures.competing, exposures.outcomes, types, rule.window_ms, watermark_ms)
    place = exposures.place
    return Labels(found.label[place], found.delay_ms[place], found.value[place])


def _questions(exposures: Exposures) -> Questions:
    columns = exposures.columns
    offset, user, item, now_ms = (columns[name].astype(np.int64) for name in ("offset", "user", "item", "now_ms"))
    codes = np.array([surface_code(name) for name in exposures.surfaces], np.int64)
    surface = codes[columns["surface"].astype(np.int64)]
    return Questions(offset, user, item, now_ms, columns["segments"].astype(np.uint16), surface)


def _watched(
    rows: Iterable[tuple[int, int, Float32]], total: int, progress: Callable[[int, int], None]
) -> Iterator[tuple[int, int, Float32]]:
    for start, stop, piece in rows:
        yield start, stop, piece
        progress(stop, total)


def _label_report(labels: Labels) -> LabelReport:
    positives = int(labels.label.sum())
    delays = labels.delay_ms[labels.label == 1]
    quantiles = {name: float(np.quantile(delays, q)) for name, q in QUANTILES.items()} if positives else {}
    return LabelReport(positives, positives / max(len(labels.label), 1), quantiles)
