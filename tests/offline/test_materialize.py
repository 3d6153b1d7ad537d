"""Materialized rows: what the log says, computed the slow way; the same however the work and the log are cut."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from headwater.cli.main import build_app
from headwater.features.asof import Questions, answers
from headwater.features.plan import compile_plan
from headwater.learning.exposures import Asked
from headwater.learning.labels import NEVER, Exposed, Outcomes
from headwater.learning.rowstore import load_rows
from headwater.log.batch import events_to_batch
from headwater.log.commands import AppendServed
from headwater.log.protocol import EventLog
from headwater.log.record import FLAG_RETRACT, Kind, Namespace
from headwater.log.writer import open_writer
from headwater.offline.materialize import Format, MaterializeReport, materialize
from headwater.schema.config import Config, Label, Training
from headwater.schema.errors import ConfigurationError, HeadwaterError
from headwater.schema.events import Event, EventDetail
from headwater.schema.requests import ServedList
from headwater.testing.events import START_MS, Step, Written
from tests.learning.label_oracle import labels_slowly
from tests.offline.exposed import CONFIG, MINUTE, cut, grow, served_entry, site

PLAN = compile_plan(CONFIG)
WATERMARK = 5 * MINUTE
DOC = Path(__file__).parent.parent.parent / "docs" / "training-data.md"


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with capture_logs():
        yield


@pytest.fixture(scope="module")
def log() -> Written:
    with capture_logs():
        return site(3, 260)


def run(
    log: EventLog, out: Path, rows: str = "impressions", *, threads: int = 1, slices: int = 1, file_rows: int = 1000,
    output: Format = "parquet", from_ms: int | None = None, to_ms: int | None = None, config: Config = CONFIG,
    negatives: int = 4,
) -> MaterializeReport:  # fmt: skip
    return materialize(
        config, log, out, asked=Asked(rows, negatives), from_ms=from_ms, to_ms=to_ms, threads=threads, slices=slices,
        file_rows=file_rows, output=output,
    )  # fmt: skip


def plain(frame: pl.LazyFrame) -> pl.DataFrame:
    """The frame with texts for categories, so that two frames compare by what they say."""
    return frame.collect().with_columns(pl.selectors.categorical().cast(pl.String))


def frame(log: EventLog, out: Path, rows: str = "impressions", **more: Any) -> pl.DataFrame:
    run(log, out, rows, **more)
    return plain(load_rows(out))


class SlowRows:
    """All there is to know about a log, record by record."""

    def __init__(self, log: Written, rows: str) -> None:
        self.exposures: list[dict[str, Any]] = []
        self.late = self.twice = 0
        texts = log.log.vocabulary().texts
        acts: list[list[Any]] = []
        requests: dict[str, int] = {}
        seen: set[str] = set()
        for block in log.blocks():
            for i, record in enumerate(block.records):
                row = {name: int(record[name]) for name in ("offset", "received_ms", "time_ms", "user", "item", "kind")}
                if row["kind"] == Kind.EVENT:
                    detail = EventDetail()
                    if record["payload_size"]:
                        detail = msgspec.msgpack.decode(block.payload(i), type=EventDetail)
                    name = texts(Namespace.EVENT_TYPE)[record["type"]]
                    request = detail.request_id or ""
                    requests.setdefault(request, len(requests) + 1)
                    time_ms = min(row["time_ms"], row["received_ms"])
                    acts.append(
                        [row, name, request, bool(record["flags"] & FLAG_RETRACT), float(record["value"]), NEVER]
                    )
                    if rows == "impressions" and name == "impression":
                        shown = {**row, "time_ms": time_ms, "request": request, "position": detail.position}
                        shown |= {"now_ms": row["received_ms"], "record": row["offset"], "offset": row["offset"] - 1}
                        self._add(shown)
                elif row["kind"] == Kind.SERVED and rows == "served":
                    served = msgspec.msgpack.decode(block.payload(i), type=ServedList)
                    requests.setdefault(served.request_id, len(requests) + 1)
                    if served.request_id in seen:
                        self.twice += len(served.items)
                        continue
                    seen.add(served.request_id)
                    for position, item in enumerate(served.items):
                        self._add({
                            **row, "item": item, "request": served.request_id, "position": position,
                            "time_ms": served.address.now_ms, "now_ms": served.address.now_ms, "record": row["offset"],
                            "offset": served.address.user_offset,
                        })  # fmt: skip
        for k, (row, name, _, retract, _, _) in enumerate(acts):
            if retract:
                same = [
                    other for other in acts[:k]
                    if not other[3] and other[5] == NEVER and other[1] == name
                    and all(other[0][key] == row[key] for key in ("user", "item", "time_ms"))
                ]  # fmt: skip
                if same:
                    same[-1][5] = row["received_ms"]
        self.exposures.sort(key=lambda shown: (shown["offset"], shown["record"], shown["position"] or 0))
        # ties among equal times go to the later one of the log
        in_log = sorted(range(len(self.exposures)), key=lambda k: (self.exposures[k]["record"], k))
        shown_in_log = [self.exposures[k] for k in in_log]
        self.types = sorted({act[1] for act in acts})
        acts = [act for act in acts if not act[3]]
        shown_columns = {
            name: np.array([e[name] for e in shown_in_log], np.int64)
            for name in ("user", "item", "time_ms", "received_ms")
        }
        named = [requests.get(e["request"], 0) if e["request"] else 0 for e in shown_in_log]
        exposed = Exposed(**shown_columns, request=np.array(named, np.uint64))
        outcomes = Outcomes(
            user=np.array([a[0]["user"] for a in acts], np.int64),
            item=np.array([a[0]["item"] for a in acts], np.int64),
            type=np.array([self.types.index(a[1]) for a in acts], np.int64),
            time_ms=np.array([min(a[0]["time_ms"], a[0]["received_ms"]) for a in acts], np.int64),
            received_ms=np.array([a[0]["received_ms"] for a in acts], np.int64),
            request=np.array([requests[a[2]] if a[2] else 0 for a in acts], np.uint64),
            value=np.array([a[4] for a in acts], np.float32),
            retracted_ms=np.array([a[5] for a in acts], np.int64),
        )
        self.labels: dict[str, list[tuple[int, int, float]]] = {}
        for label, names, window in (("click", ("click",), 20), ("engaged", ("click", "like", "purchase"), 60)):
            types = {self.types.index(name) for name in names if name in self.types}
            found = labels_slowly(exposed, outcomes, types, window * MINUTE, WATERMARK)
            self.labels[label] = [found[in_log.index(k)] for k in range(len(in_log))]
        end_ms = log.log.last_received_ms
        self.closed = [k for k, e in enumerate(self.exposures) if e["received_ms"] + 65 * MINUTE < end_ms]

    def _add(self, shown: dict[str, Any]) -> None:
        if shown["received_ms"] - shown["time_ms"] > WATERMARK:
            self.late += 1
        else:
            self.exposures.append(shown)


@pytest.mark.parametrize("rows", ["impressions", "served"])
def test_rows_are_what_the_log_says(log: Written, tmp_path: Path, rows: str) -> None:
    slow = SlowRows(log, rows)
    report = run(log.log, tmp_path, rows, file_rows=100, slices=3)
    found = plain(load_rows(tmp_path))
    expected = [slow.exposures[k] for k in slow.closed]
    assert len(found) == report.rows == len(expected) > 200
    assert report.open == len(slow.exposures) - len(expected) > 0
    for column, key in (
        ("record", "record"), ("offset", "offset"), ("user", "user"), ("item", "item"), ("time_ms", "time_ms"),
        ("now_ms", "now_ms"), ("position", "position"),
    ):  # fmt: skip
        assert found[column].to_list() == [e[key] for e in expected], column
    assert found["request_id"].to_list() == [e["request"] or None for e in expected]
    texts = log.log.vocabulary().texts(Namespace.ITEM)
    assert found["item_id"].to_list() == [texts[e["item"]] for e in expected]
    assert found["plan"].unique().to_list() == [PLAN.hash]
    for name, labels in slow.labels.items():
        mine = [labels[k] for k in slow.closed]
        assert found[f"label_{name}"].to_list() == [label for label, _, _ in mine]
        assert found[f"label_{name}_delay_ms"].to_list() == [None if d < 0 else d for _, d, _ in mine]
        assert found[f"label_{name}_value"].to_list() == [None if np.isnan(v) else v for _, _, v in mine]
        assert report.labels[name].positives == sum(label for label, _, _ in mine) > 5
    if rows == "impressions":
        assert report.skipped["late"] > 0
        assert set(found["segment_country"].to_list()) == {"de", None}
    else:
        assert report.skipped["recorded twice"] > 0
        assert (found["offset"] - found["item_offset"]).to_list() == [3] * len(found)
        assert found["score"].head(2).to_list() == [1.0, 0.5]
        strangers = found.filter(user=0)
        assert 0 < strangers["label_engaged"].sum() < len(strangers), "found by the request"


def test_features_are_those_of_the_address(log: Written, tmp_path: Path) -> None:
    found = frame(log.log, tmp_path, "served", file_rows=77)
    segments = log.log.vocabulary().texts(Namespace.SEGMENT)
    dense = np.zeros((len(found), 2), np.uint16)
    for k, key in enumerate(CONFIG.segments.keys):
        dense[:, k] = [segments.index(f"{key}={text}") if text else 0 for text in found[f"segment_{key}"]]
    offset, user, item, now_ms = (found[name].to_numpy() for name in ("offset", "user", "item", "now_ms"))
    asked = Questions(offset, user, item, now_ms, dense)
    for start, stop, rows in answers(log.log, PLAN, asked):
        assert found[start:stop].select(PLAN.columns).to_numpy().tobytes() == rows.tobytes()
    assert found.select(PLAN.columns).to_numpy().std(axis=0).astype(bool).sum() > 20


@pytest.mark.parametrize("rows", ["impressions", "served", "positives"])
@pytest.mark.parametrize(("slices", "threads"), [(2, 1), (7, 1), (7, 2), (1, 2)])
def test_bytes_do_not_depend_on_slices_and_threads(
    log: Written, tmp_path: Path, rows: str, slices: int, threads: int
) -> None:
    run(log.log, tmp_path / "a", rows, file_rows=64)
    run(log.log, tmp_path / "b", rows, file_rows=64, slices=slices, threads=threads)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert len(files) > 3
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


@pytest.mark.parametrize("rows", ["impressions", "served", "positives"])
def test_stretches_of_time_are_the_whole(log: Written, tmp_path: Path, rows: str) -> None:
    """Labels, negatives and repeated lists do not depend on where a run begins or ends."""
    whole = frame(log.log, tmp_path / "whole", rows)
    rng = np.random.default_rng(1)
    moments = np.sort(rng.integers(START_MS, log.log.last_received_ms, 4)).tolist()
    for k, (start, stop) in enumerate(zip([None, *moments], [*moments, None], strict=True)):
        run(log.log, tmp_path / "parts", rows, from_ms=start, to_ms=stop, slices=k + 1)
    parts = plain(load_rows(tmp_path / "parts"))
    assert parts.sort("record", maintain_order=True).equals(whole.sort("record", maintain_order=True))


def test_an_outcome_that_arrived_before_its_exposure_counts(tmp_path: Path) -> None:
    """Clients send clicks at once and impressions in batches: the stretch begins between the two."""
    log = Written(CONFIG)
    shown_ms = START_MS + 10 * MINUTE
    click = Event(user="u", item="i", type="click", time=shown_ms + 1_000)
    log.add([Step(shown_ms + 2_000, [click])])
    log.add([Step(shown_ms + 4 * MINUTE, [Event(user="u", item="i", type="impression", time=shown_ms)])])
    log.add([Step(shown_ms + 100 * MINUTE, [Event(user="u", item="j", type="view")])])
    found = frame(log.log, tmp_path, from_ms=shown_ms + 3 * MINUTE)
    assert found["label_click_delay_ms"].to_list() == [1_000]


@pytest.mark.parametrize("rows", ["impressions", "served"])
@pytest.mark.parametrize("output", ["parquet", "delta"])
def test_a_row_once_written_never_changes(log: Written, tmp_path: Path, rows: str, output: Format) -> None:
    """Runs while the log grows add up to the run over all of it."""
    growing = cut(log, 40)
    offsets = np.linspace(60, log.log.last_offset, 7).astype(int).tolist()
    written = 0
    for offset in offsets:
        grow(growing, log, offset)
        report = run(growing, tmp_path / "parts", rows, output=output)
        assert report.rows >= 0
        written += report.rows
        again = run(growing, tmp_path / "parts", rows, output=output)
        assert (again.rows, again.open) == (0, report.open)
    whole = frame(log.log, tmp_path / "whole", rows).sort("record", "position", maintain_order=True)
    parts = plain(load_rows(tmp_path / "parts")).sort("record", "position", maintain_order=True)
    assert len(whole) == written
    assert parts.cast(whole.schema).equals(whole)


def test_delta_holds_the_same_rows(log: Written, tmp_path: Path) -> None:
    from deltalake import DeltaTable

    parquet = frame(log.log, tmp_path / "parquet", file_rows=100)
    delta = frame(log.log, tmp_path / "delta", file_rows=100, output="delta")
    assert delta.sort("record").cast(parquet.schema).equals(parquet.sort("record"))
    table = DeltaTable(tmp_path / "delta")
    assert table.version() == 0
    said = json.loads(table.history()[0]["headwater"])
    assert said["definition"]["plan"] == PLAN.hash
    with pytest.raises(HeadwaterError, match="rows impressions and not served"):
        run(log.log, tmp_path / "delta", "served", output="delta")


def test_positives_bring_negatives_that_were_known(log: Written, tmp_path: Path) -> None:
    found = frame(log.log, tmp_path, "positives", negatives=4)
    kinds = {t.name for t in CONFIG.events if t.positive}
    slow = SlowRows(log, "none")
    assert kinds & set(slow.types) == {"click", "like", "purchase"}
    named: dict[int, int] = {}
    for block in log.blocks():
        for record in block.records[block.records["kind"] == Kind.TERM]:
            if record["type"] == Namespace.ITEM:
                named[int(record["item"])] = int(record["offset"])
    sizes = found.group_by("record", maintain_order=True).agg(pl.col("item"), pl.col("label_engaged"), pl.col("user"))
    assert len(sizes) > 50
    drawn: Counter[int] = Counter()
    for record, items, labels, users in sizes.iter_rows():
        assert len(items) == len(set(items)) == 5, "distinct, and none is the positive"
        assert len(set(users)) == 1
        assert all(named[item] < record for item in items)
        assert labels[0] in (0, 1)
        drawn.update(items[1:])
    first = sizes.filter(pl.col("record") == sizes["record"][0])
    assert first["label_engaged"].to_list()[0][1:] == [0, 0, 0, 0]
    assert len(drawn) == 15, "every item is drawn now and then"
    assert max(drawn.values()) < 4 * min(drawn.values())
    run(log.log, tmp_path / "few", "positives", negatives=50)
    few = plain(load_rows(tmp_path / "few"))
    assert few.group_by("record").len()["len"].unique().to_list() == [15], "a small catalogue has no more"


def test_files_say_what_they_hold(log: Written, tmp_path: Path) -> None:
    report = run(log.log, tmp_path, file_rows=100)
    files = sorted(tmp_path.iterdir())
    assert len(files) == report.files > 2
    assert re.fullmatch(r"rows-000000000001-\d{12}-00001-of-0000\d\.parquet", files[0].name)
    said = json.loads(pq.read_schema(files[0]).metadata[b"headwater"])
    assert (said["first_offset"], said["last_offset"]) == (1, report.last_offset)
    assert said["definition"]["labels"][0] == {"name": "click", "types": ["click"], "window_ms": 20 * MINUTE}
    assert said["version"]
    rows = pq.ParquetFile(files[0]).metadata
    assert rows.row_group(0).column(0).compression == "ZSTD"
    assert load_rows(str(tmp_path)).collect_schema()["user"] == pl.Int64


def test_a_place_holds_one_kind_of_rows(log: Written, tmp_path: Path) -> None:
    run(log.log, tmp_path)
    other = Config(training=Training(watermark="4m", labels=CONFIG.training.labels))
    with pytest.raises(HeadwaterError, match=r"watermark_ms 300000 and not 240000.*another folder"):
        run(log.log, tmp_path, config=other)
    middle = START_MS + (log.log.last_received_ms - START_MS) // 2
    run(log.log, tmp_path / "middle", from_ms=middle, to_ms=middle + 10 * MINUTE)
    with pytest.raises(HeadwaterError, match="in the middle of"):
        run(log.log, tmp_path / "middle")
    with pytest.raises(HeadwaterError, match="holds no training rows"):
        load_rows(tmp_path / "nothing")


def test_a_run_that_was_broken_off_is_made_good(log: Written, tmp_path: Path) -> None:
    run(log.log, tmp_path, file_rows=100)
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    next(tmp_path.iterdir()).unlink()
    (tmp_path / "rows-x.part").write_bytes(b"torn")
    with pytest.raises(HeadwaterError, match="part of a run"):
        load_rows(tmp_path)
    run(log.log, tmp_path, file_rows=100)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == whole


def test_lists_about_an_item_are_left_out_and_counted(tmp_path: Path) -> None:
    log = site(1, 2)
    entry = served_entry(log, "u1", "about", ["i1", "i2"], log.now_ms, anchor="i3")
    late = served_entry(log, "u1", "late", ["i1", "i2", "i3"], log.now_ms - 6 * MINUTE)
    log.add([Step(log.now_ms, AppendServed([entry, late]))])
    log.add([Step(log.now_ms + 100 * MINUTE, [Event(user="u", item="i1", type="view")])])
    report = run(log.log, tmp_path, "served")
    assert report.rows == 8
    assert {key: report.skipped[key] for key in ("about an item", "late")} == {"about an item": 2, "late": 3}


def test_what_cannot_be_done_is_said(log: Written, tmp_path: Path) -> None:
    with pytest.raises(HeadwaterError, match="the log is empty"):
        run(Written(CONFIG).log, tmp_path)
    with pytest.raises(HeadwaterError, match=r'no event of type "impressoin" \(it holds .*impression'):
        run(log.log, tmp_path, "impressoin")
    clash = Config(training=Training(labels=(Label(name="click"), Label(name="click_value", types=("like",)))))
    with pytest.raises(ConfigurationError, match="`label_click_value`"):
        run(log.log, tmp_path, config=clash)
    assert run(log.log, tmp_path / "none", to_ms=START_MS - 1).rows == 0
    assert not (tmp_path / "none").exists()


@pytest.fixture
def data(tmp_path: Path, log: Written) -> Path:
    """A data directory with impressions and clicks."""
    events = [
        Event(
            user=f"u{k % 50}", item=f"i{(k * 7) % 40}", type="click" if k % 5 == 0 else "impression",
            time=START_MS + (k - (k % 5 == 0)) * 9_000,
        )
        for k in range(2_000)
    ]  # fmt: skip
    with open_writer(tmp_path / "data", clock=lambda: START_MS, map_size=1 << 28) as writer:
        writer.append_events(events_to_batch(events, CONFIG.segments.keys, received_from_time=True))
    return tmp_path / "data"


def test_the_command_writes_rows_and_says_so(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows"
    arguments = ["features", "materialize", "--data", str(data), "--out", str(out)]
    told = CliRunner().invoke(build_app(), [*arguments, "--slices", "3", "--threads", "2", "--json"])
    assert told.exit_code == 0, told.output
    report = json.loads(told.stdout.splitlines()[-1])
    assert report["rows"] == len(load_rows(out).collect()) > 1_000
    assert {"open", "rows_per_s", "labels", "slices", "seconds", "skipped"} <= set(report)
    assert (report["slices"], report["threads"]) == (3, 2)
    again = CliRunner().invoke(build_app(), arguments)
    assert "nothing to add" in again.output
    assert "not closed yet" in again.output
    day = CliRunner().invoke(
        build_app(), [*arguments[:-1], str(tmp_path / "day"), "--from", "2025-10-09T09:00", "--to", "2025-10-09T10:00Z"]
    )
    assert day.exit_code == 0
    assert " rows of offsets " in day.output


def test_the_example_of_the_page_trains(data: Path, tmp_path: Path) -> None:
    """The Python of docs/training-data.md, as it stands there, on rows of the command."""
    told = CliRunner().invoke(
        build_app(),
        ["features", "materialize", "--data", str(data), "--rows", "positives", "--out", str(tmp_path / "rows")],
    )
    assert told.exit_code == 0, told.output
    (example,) = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    assert len(example.splitlines()) < 25
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.search(r"AUC [01]\.\d+", done.stdout)
