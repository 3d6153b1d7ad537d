"""Processor time, metric pages, capacity search, stored events, requests: all on data whose answer is known."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from headwater.cli import bench
from headwater.cli.bench.ingest import stored
from headwater.cli.bench.measure import Metrics, growth, machine, processor_seconds, seconds_by_part, versions
from headwater.cli.bench.schedule import Outcome
from headwater.cli.bench.serve import capacity_of, holds
from headwater.cli.bench.workload import Requests, Size
from headwater.log.batch import events_to_batch
from headwater.log.writer import open_writer
from headwater.schema.events import Event
from headwater.schema.requests import RecommendRequest

SIZE = Size(seed=3, users=200, items=300, events=3_000)


def outcome(latency_ms: float, ok: bool = True) -> Outcome:
    return Outcome(0, "a", 0.0, 0.0, latency_ms, 200 if ok else 503, ok)


def test_processor_time_of_a_process_and_its_children(tmp_path: Path) -> None:
    def stat(pid: int, parent: int, user: int, system: int) -> None:
        (tmp_path / str(pid)).mkdir()
        text = f"{pid} (a (b) c) S {parent} 1 1 0 -1 0 0 0 0 0 {user} {system} 0 0 20 0 1 0 0"
        (tmp_path / str(pid) / "stat").write_text(text)

    stat(10, 1, 100, 50)
    stat(11, 10, 200, 0)
    stat(12, 11, 0, 300)
    stat(20, 1, 999, 999)
    ticks = os.sysconf("SC_CLK_TCK")
    assert processor_seconds(10, tmp_path) == {10: 150 / ticks, 11: 200 / ticks, 12: 300 / ticks}
    for pid, words in (
        (10, "python -m headwater.cli.main serve"),
        (11, "python -m x serve --part api"),
        (12, "p --part api"),
    ):
        (tmp_path / str(pid) / "cmdline").write_bytes(words.replace(" ", "\0").encode() + b"\0")
    assert seconds_by_part(10, tmp_path) == {"supervisor": 150 / ticks, "api": 500 / ticks}
    assert growth({"api": 1.0}, {"api": 3.0, "fold": 1.0}) == {"api": 2.0, "fold": 1.0}
    assert processor_seconds(os.getpid())[os.getpid()] >= 0


def test_means_of_histograms_between_two_pages() -> None:
    before = Metrics('x_stage_seconds_sum{stage="rank"} 1.0\nx_stage_seconds_count{stage="rank"} 10\n')
    after = Metrics(
        "# HELP x_stage_seconds Time\n# TYPE x_stage_seconds histogram\n"
        'x_stage_seconds_bucket{le="+Inf",stage="rank"} 30.0\n'
        'x_stage_seconds_sum{stage="rank"} 3.0\nx_stage_seconds_count{stage="rank"} 30\n'
        'x_stage_seconds_sum{stage="fetch",tier="0"} 0.5\nx_stage_seconds_count{stage="fetch",tier="0"} 5\n'
        'x_stage_seconds_sum{stage="fetch",tier="1"} 0.5\nx_stage_seconds_count{stage="fetch",tier="1"} 5\n'
        "x_candidates_sum 1800\nx_candidates_count 10\n"
    )
    assert after.means_since(before, "stage_seconds", "stage") == {"rank": 0.1, "fetch": 0.1}
    assert after.means_since(before, "_candidates", None) == {"": 180.0}
    grown = Metrics('y_total{source="a"} 5\ny_total{source="b"} 2.0\n').growth_since(
        Metrics('y_total{source="a"} 1'), "y_total"
    )
    assert grown == {"a": 4.0, "b": 2.0}
    assert after.means_since(after, "stage_seconds", "stage") == {}


def test_capacity_is_found_by_steps_and_halving() -> None:
    def served_up_to(limit: float) -> tuple[float | None, int]:
        rates: list[float] = []

        def load(rate: float) -> list[Outcome]:
            rates.append(rate)
            return [outcome(5.0 if rate <= limit else 500.0)] * 100

        found, tried = capacity_of(load, 100.0)
        assert len(tried) == len(rates)
        return found, len(rates)

    found, attempts = served_up_to(400.0)
    assert found == pytest.approx(400.0, rel=0.1)
    assert found is not None
    assert found <= 400.0
    assert attempts < 10
    assert served_up_to(1e9)[0] is not None
    below, _ = served_up_to(60.0)
    assert below is not None
    assert 40.0 < below <= 60.0
    assert served_up_to(0.0)[0] is None


def test_a_rate_holds_when_quick_and_successful() -> None:
    assert holds([outcome(5.0)] * 1_000)
    assert not holds([outcome(5.0)] * 997 + [outcome(5.0, ok=False)] * 3)
    assert not holds([outcome(5.0)] * 900 + [outcome(150.0)] * 100)
    assert not holds([])


def test_what_is_stored_is_counted_from_the_log(tmp_path: Path) -> None:
    with open_writer(tmp_path, clock=lambda: 1_000) as writer:
        events = [Event(user="u", item="i", type="click", event_id=f"e{n}") for n in range(50)]
        writer.append_events(events_to_batch(events, ()))
    assert stored(tmp_path, [f"e{n}" for n in range(50)]) == 50
    assert stored(tmp_path, ["e0", "e49", "lost", "lost too"]) == 2
    assert stored(tmp_path, []) == 0


def test_requests_are_seeded_valid_and_as_many_as_asked() -> None:
    world = SIZE.world()

    def made() -> tuple[list[bytes], list[list[str]], list[str | None]]:
        requests = Requests(world, 5, "tag")
        lists = requests.recommend(requests.times(50.0, 0.0, 2.0))
        posts, ids = requests.ingest([0.0, 0.1, 0.2], [1, 10, 4])
        return [a.raw for a in lists + posts], ids, [a.probe_user for a in requests.probes([0.0, 1.0])]

    first, ids, probes = made()
    assert made() == (first, ids, probes)
    assert [len(group) for group in ids] == [1, 10, 4]
    assert len({event_id for group in ids for event_id in group}) == 15
    assert len(set(probes)) == 2
    head, _, body = first[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/recommend HTTP/1.1\r\n")
    assert f"content-length: {len(body)}".encode() in head
    assert msgspec.json.decode(body, type=RecommendRequest).context
    events = msgspec.json.decode(first[-1].partition(b"\r\n\r\n")[2], type=list[Event])
    assert [event.event_id for event in events] == ids[-1]


def test_the_world_of_a_size_has_about_so_many_events() -> None:
    assert len(SIZE.world().history()) == pytest.approx(SIZE.events, rel=0.35)


def test_machine_and_versions_are_named() -> None:
    assert machine()["cpu"]
    assert int(machine()["cores"]) >= 1
    assert versions()["numpy"]


def test_every_benchmark_has_help_with_an_example() -> None:
    app = typer.Typer()
    bench.register(app)
    app.callback()(lambda: None)
    for name in ("serve", "ingest", "freshness"):
        shown = CliRunner().invoke(app, ["bench", name, "--help"])
        assert shown.exit_code == 0
        assert f"Example: headwater bench {name}" in shown.output
