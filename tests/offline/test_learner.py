"""What a learner keeps: every event is folded once, judges before it teaches, and nothing is lost with what was kept."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import pytest
from structlog.testing import capture_logs

from headwater.cli.local import Site, make_site
from headwater.evaluation.gate import verdict
from headwater.evaluation.held_lists import addresses
from headwater.evaluation.world_log import history_batch
from headwater.features.asof import answers
from headwater.features.fold import Fold
from headwater.features.plan import compile_plan
from headwater.log.lmdb import LmdbLog
from headwater.log.record import RecordBlock
from headwater.log.writer import open_writer
from headwater.monitoring.actions import Actions
from headwater.offline import learner as module
from headwater.offline.learn import Round, learn
from headwater.offline.learner import Learner, Made, NotYetError, StoppedError
from headwater.registry.audit import read_audit
from headwater.registry.bundle import Manifest
from headwater.registry.registry import Registry
from headwater.schema.config import load_config
from headwater.schema.errors import HeadwaterError
from headwater.simulator import World

START_MS = 1_760_313_600_000
WORLD = World(3, start_ms=START_MS, users=200, items=60, hours=24, visits_per_day=14.0)
HISTORY = WORLD.history()
FIRST, PART = 4_000, 800  # events of the first round, and of each one behind it


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


@dataclass
class Learning:
    """A site whose log grows when it is told to, and a learner on it."""

    site: Site
    stop: threading.Event = field(default_factory=threading.Event)
    written: int = 0
    now_ms: int = START_MS

    def __post_init__(self) -> None:
        self.config = load_config(self.site.config)
        self.plan = compile_plan(self.config)
        self.registry = Registry(self.site.data / "models")
        self.writer = open_writer(
            self.site.data, clock=lambda: START_MS, segment_keys=self.config.segments.keys
        )  # fmt: skip
        self.anew()

    def close(self) -> None:
        self.learner.close()
        self.writer.close()

    def anew(self) -> None:
        """As if the process had been killed and started again."""
        self.learner = Learner(
            self.config, self.plan, self.site.data, threads=1, stop=self.stop, clock=self.clock
        )  # fmt: skip

    def clock(self) -> int:
        self.now_ms += 1
        return self.now_ms

    def write(self, events: int) -> int:
        """Log the next ``events`` of the world; returns the last offset."""
        if not self.written:
            self.writer.put_items(WORLD.items_born(0, WORLD.end_ms), at_ms=START_MS)
        part = HISTORY.take(slice(self.written, self.written + events))
        self.writer.append_events(history_batch(WORLD, part, self.config.segments.keys))
        self.written += events
        with closing(LmdbLog(self.site.data / "log", readonly=True)) as log:
            return log.last_offset

    def manifest(self, made: Made) -> Manifest:
        return self.registry.load(made.published.bundle, plan_hash=self.plan.hash).manifest


def start(folder: Path, *, learn_from: str = "questions", **gate: float | str | bool) -> Learning:
    site = make_site(
        folder,
        {
            "ranker": {"trees": 5, "leaves": 4, "negatives": 9, "max_rows": 1_000, "learn_from": learn_from},
            "training": {"watermark": "1s"},
            "[training.labels]": {"name": "taken", "types": ["click", "like", "purchase"], "window": "30s"},
            "gate": {"margin": 1.0, "slower": 100.0, "questions": 50, **gate},
            "sources.item_knn": {"enabled": True},
        },
    )
    return Learning(site)


@pytest.fixture
def learning(tmp_path: Path) -> Iterator[Learning]:
    made = start(tmp_path)
    yield made
    made.close()


@pytest.fixture
def folded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many records each block had that was folded by anybody."""
    sizes: list[int] = []
    apply = Fold.apply

    def counted(fold: Fold, block: RecordBlock) -> None:
        sizes.append(len(block))
        apply(fold, block)

    monkeypatch.setattr(Fold, "apply", counted)
    return sizes


def test_every_event_is_folded_once_and_judges_before_it_teaches(learning: Learning, folded: list[int]) -> None:
    ends = [learning.write(FIRST)]
    first = learning.learner.round()
    assert first.published.promoted
    assert sum(folded) == ends[0], "one replay: for the sources, the rows, the judgement and the rounds to come"
    before = first
    for _ in range(2):
        ends.append(learning.write(PART))
        made = learning.learner.round()
        assert made.published.promoted
        assert made.warm == before.published.bundle
        entry = read_audit(learning.site.data, 1)[0]
        assert (entry.by, entry.action, entry.subject) == ("learn", "bundle.promote", made.published.bundle)
        assert f"over {before.published.bundle} on " in entry.reason
        assert sum(folded) == ends[-1] == made.last_offset
        report = made.published.gate
        assert report is not None
        assert report.held_out is not None
        assert report.against == before.published.bundle
        assert (report.held_out.first_offset, report.held_out.last_offset) == (ends[-2] + 1, ends[-1])
        assert learning.manifest(made).data.last_offset == ends[-2], "all that came before has been learnt from"
        before = made

    actions = Actions(learning.site.data, learning.config, lambda: learning.plan.hash)
    actions.undo(read_audit(learning.site.data, 1)[0].id, by="cli", reason="it was promoted too early", now_ms=1)
    assert learning.registry.current(learning.plan.hash) == before.warm
    standing = learning.learner._standing
    assert standing is not None
    rows = standing.renewal.rows
    assert learning.config.ranker.max_rows - 10 < len(rows.features) <= learning.config.ranker.max_rows
    at = rows.addresses.offset
    assert (np.diff(at) >= 0).all()
    assert ends[0] < at.max() <= ends[1], "the newest rows that the last bundle knew"
    with closing(LmdbLog(learning.site.data / "log", readonly=True)) as log:
        replayed = np.concatenate([part for _, _, part in answers(log, learning.plan, rows.addresses)])
    plain = rows.features[:, : len(learning.plan.columns)]
    assert plain.tobytes() == replayed.tobytes(), "what was kept is what a replay would assemble"


def test_what_was_kept_is_lost_without_a_loss(learning: Learning, monkeypatch: pytest.MonkeyPatch) -> None:
    learning.write(FIRST)
    first = learning.learner.round()
    end = learning.write(PART)
    with monkeypatch.context() as patched:

        def killed(*_: object, **__: object) -> None:
            raise StoppedError("in the middle of a round")

        patched.setattr(module, "publish_fitted", killed)
        with pytest.raises(StoppedError):
            learning.learner.round()
    assert learning.registry.current(learning.plan.hash) == first.published.bundle
    learning.anew()
    made = learning.learner.round()
    assert (made.published.promoted, made.warm, made.last_offset) == (True, first.published.bundle, end)
    report = made.published.gate
    assert report is not None
    assert report.held_out is not None
    assert report.held_out.first_offset > learning.manifest(first).data.last_offset, "what it has learnt is no question"
    assert learning.manifest(made).data.last_offset == report.held_out.first_offset - 1

    learning.registry.rollback(learning.plan.hash)
    end = learning.write(PART)
    again = learning.learner.round()
    assert (again.warm, again.last_offset) == (first.published.bundle, end), "it goes on from what serves"


def test_a_log_that_is_too_small_is_waited_for(tmp_path: Path) -> None:
    learning = start(tmp_path)
    with closing(learning):
        with pytest.raises(NotYetError, match="too little is in the log to train on: the log is empty"):
            learning.learner.round()
        learning.write(30)
        with pytest.raises(NotYetError, match=r"too little is in the log to train on: .* positive events"):
            learning.learner.round()
        learning.write(150)  # enough for the source, and not for the ranker behind it
        with pytest.raises(NotYetError, match=r"only \d+ of \d+ positive events .*at least 50 are needed"):
            learning.learner.round()
        told = list[Round]()
        failed = learn(
            learning.config, learning.site.data, every_s=1.0, rounds=1, threads=1, stop=learning.stop, clock=learning.clock, report=told.append,
        )  # fmt: skip
        assert (failed, told[0].waits, told[0].bundle) == (0, True, None)
        assert "at least 50 are needed" in str(told[0].reason)
        typed = ["learn", "--once", "--config", str(learning.site.config), "--data", str(learning.site.data)]
        done = subprocess.run(
            [sys.executable, "-m", "headwater.cli.main", *typed],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, "waits: too little is in the log" in done.stdout) == (0, True), done.stderr
        assert "no bundle was made" in done.stderr
        assert "round_failed" not in done.stderr
        learning.write(FIRST)
        assert learning.learner.round().published.promoted, "it goes on by itself"


def test_what_has_not_settled_is_waited_for(tmp_path: Path) -> None:
    learning = start(tmp_path)
    with closing(learning):
        learning.config = msgspec.structs.replace(
            learning.config, ranker=msgspec.structs.replace(learning.config.ranker, learn_from="auto")
        )
        learning.anew()
        learning.write(1)
        learning.now_ms = START_MS
        with pytest.raises(NotYetError, match="nothing new was logged until 10 s ago, which is what a round reads"):
            learning.learner.round()


def test_a_round_waits_for_enough_to_judge_by(tmp_path: Path) -> None:
    learning = start(tmp_path, questions=100, holdout="2h")
    with closing(learning):
        end = learning.write(FIRST)
        learning.learner.round()
        with pytest.raises(NotYetError, match=f"nothing new was logged since offset {end}"):
            learning.learner.round()
        learning.write(100)  # about thirty positive ones
        with pytest.raises(NotYetError, match=f"positive events have come since offset {end}"):
            learning.learner.round()
        later = learning.write(900)
        report = learning.learner.round().published.gate
        assert report is not None
        assert report.held_out is not None
        assert (report.held_out.first_offset, report.held_out.last_offset) == (end + 1, later), "none was passed over"


def test_a_round_that_was_asked_for_learns_what_has_come_but_for_the_newest(
    learning: Learning, folded: list[int]
) -> None:
    start = learning.write(FIRST)
    learning.learner.round()
    for begins_anew in (False, True):
        end = learning.write(PART)
        if begins_anew:
            learning.anew()
            folded.clear()
        made = learning.learner.round(at_once=True)
        report, learnt = made.published.gate, learning.manifest(made).data.last_offset
        assert report is not None
        assert report.held_out is not None
        assert report.held_out.questions == learning.config.gate.questions == 50
        assert (report.held_out.first_offset, report.held_out.last_offset) == (learnt + 1, end)
        assert start < learnt < end, "most of what came was learnt"
        assert sum(folded) == end == made.last_offset
        start = learnt


def test_a_round_that_was_asked_for_is_judged_by_the_newest_lists(tmp_path: Path) -> None:
    with closing(start(tmp_path, learn_from="lists", lists=50, holdout="1d")) as learning:
        learning.write(3_000)
        assert learning.learner.round().published.promoted
        before = learning.write(100)
        with pytest.raises(NotYetError, match="have come since offset"):
            learning.learner.round(at_once=True)
        learning.write(4 * PART)
        made = learning.learner.round(at_once=True)
        report = made.published.gate
        assert report is not None
        assert report.held_out is not None
        lists = report.held_out.lists
        assert lists is not None, report.held_out.no_lists
        assert 50 <= lists.lists < 60, "no more than judge are held out"
        assert report.metric == "shown_ndcg"
        assert report.passed == made.published.promoted
        learnt = learning.manifest(made)
        assert report.held_out.first_offset == learnt.data.last_offset + 1
        assert before < learnt.data.last_offset < made.last_offset, "it learnt what has come, but for these"
        with closing(LmdbLog(learning.site.data / "log", readonly=True)) as log:
            found = addresses(log, learning.config, split=learnt.data.last_offset, until=made.last_offset)
        assert len(found) == lists.lists


def test_without_a_gate_everything_is_learnt_at_once(tmp_path: Path, folded: list[int]) -> None:
    learning = start(tmp_path, enabled=False)
    with closing(learning):
        for events in (FIRST, PART):
            end = learning.write(events)
            made = learning.learner.round()
            assert (made.published.promoted, made.published.gate) == (True, None)
            assert learning.manifest(made).data.last_offset == end == sum(folded)


def test_what_is_refused_is_nothing_to_go_on_from(learning: Learning, monkeypatch: pytest.MonkeyPatch) -> None:
    learning.write(FIRST)
    first = learning.learner.round()
    learning.write(PART)
    with monkeypatch.context() as patched:
        patched.setattr(
            "headwater.offline.publish.verdict",
            lambda *a, **k: msgspec.structs.replace(verdict(*a, **k), passed=False, reasons=("no",)),
        )
        refused = learning.learner.round()
    assert not refused.published.promoted
    assert learning.registry.current(learning.plan.hash) == first.published.bundle
    learning.write(PART)
    made = learning.learner.round()
    assert (made.published.promoted, made.warm) == (True, first.published.bundle)


def test_a_stop_ends_a_round(learning: Learning) -> None:
    with pytest.raises(HeadwaterError, match="log is empty"):
        learning.learner.round()
    learning.write(FIRST)
    learning.stop.set()
    with pytest.raises(StoppedError):
        learning.learner.round()
    assert learning.registry.list() == []
