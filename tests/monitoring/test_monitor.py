"""Rounds of the monitor on a data directory: alert → action → audit log → recovery → the way back, and telling others."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from headwater.cli.monitor import found_by
from headwater.experiments import store
from headwater.monitoring import paced as paced_module
from headwater.monitoring.actions import ActionError, Actions
from headwater.monitoring.behind import BEHIND, CAUGHT_UP_S
from headwater.monitoring.experiments import HARM
from headwater.monitoring.history import History
from headwater.monitoring.monitor import Monitor
from headwater.monitoring.notify import Notifier
from headwater.monitoring.paced import Paced
from headwater.monitoring.rehearsal import rehearsed
from headwater.monitoring.samples import Sample, sample
from headwater.monitoring.standing import acknowledge, read_standing
from headwater.registry.audit import read_audit
from headwater.registry.bundle import ManifestFields
from headwater.registry.controls import change_controls, read_controls
from headwater.registry.registry import Registry
from headwater.schema.alerts import Action, AlertRule
from headwater.schema.config import Config
from headwater.schema.default_alerts import DEFAULT_ALERTS
from headwater.schema.errors import HeadwaterError
from tests.registry.conftest import FIELDS

EVERY_MS = 5_000
EXPERIMENT = """
name = "wide"
metrics = ["clicks_per_user"]
share = 0.5
[[variants]]
name = "control"
[[variants]]
name = "wide"
[[variants.rules]]
name = "only-one"
filter = "category == 'c1'"
"""


class Heat:
    """A watch with one figure that a test sets; None: it fails."""

    name = "heat"

    def __init__(self) -> None:
        self.value: float | None = 1.0
        self.label = ""

    def look(self, now_ms: int) -> Iterator[Sample]:  # noqa: ARG002  (the figure is set by the test)
        if self.value is None:
            raise OSError("no thermometer")
        yield sample("heat", self.value, experiment=self.label)


class Site:
    """A monitor on a folder of its own, and its clock."""

    def __init__(self, data: Path, *actions: Action, urls: tuple[str, ...] = (), **said: Any) -> None:
        self.data, self.now_ms, self.heat = data, 1_000_000_000, Heat()
        self.rule = AlertRule(name="hot", metric="heat", above=10.0, clear_for="0s", actions=actions, **said)
        self.actions = Actions(data, Config(), lambda: FIELDS.plan_hash)
        self.history = History(data / "monitoring" / "history.sqlite")
        self.notifier = Notifier(urls, first_pause_s=0.01)
        self.monitor = self.made()

    def made(self) -> Monitor:
        return Monitor(
            self.data, [self.heat], [self.rule], history=self.history, actions=self.actions, notifier=self.notifier
        )

    def round(self, value: float | None, rounds: int = 1) -> list[str]:
        self.heat.value, happened = value, list[str]()
        for _ in range(rounds):
            self.now_ms += EVERY_MS
            happened += [event.change for event in self.monitor.round(self.now_ms)]
        return happened


def published(data: Path, *, created: int) -> str:
    fields = ManifestFields(
        **{name: getattr(FIELDS, name) for name in FIELDS.__struct_fields__}
        | {"created_ms": FIELDS.created_ms + created}
    )
    registry = Registry(data / "models")
    version = registry.publish(fields, {}).version
    registry.put_in_service(version)
    return version


def test_a_bad_bundle_is_rolled_back_once_an_incident_and_promotion_is_frozen(tmp_path: Path) -> None:
    good, bad = published(tmp_path, created=0), published(tmp_path, created=1)
    registry, site = Registry(tmp_path / "models"), Site(tmp_path, "rollback", "freeze_promotion")
    assert site.round(11.0, 3) == ["fires"]
    assert registry.current(FIELDS.plan_hash) == good
    assert registry.frozen == "alert:hot"
    assert [(entry.by, entry.action, entry.subject) for entry in read_audit(tmp_path)] == [
        ("alert:hot", "controls.change", "promotion_frozen"), ("alert:hot", "bundle.rollback", bad),
    ]  # fmt: skip
    assert "it is 11" in read_audit(tmp_path)[0].reason
    assert site.round(1.0) == ["resolves"]
    assert site.round(11.0, 2) == ["fires"]  # within the cooldown: there is nothing to go back to either
    assert len(read_audit(tmp_path)) == 2
    undone = site.actions.undo(read_audit(tmp_path)[1].id[:8], by="cli", reason="it was the world", now_ms=site.now_ms)
    assert (undone.action, undone.undoes) == ("bundle.promote", read_audit(tmp_path)[2].id)
    assert registry.current(FIELDS.plan_hash) == bad
    with pytest.raises(ActionError, match="taken back already"):
        site.actions.undo(str(undone.undoes), by="cli", reason="", now_ms=site.now_ms)


def test_two_who_roll_back_the_same_bundle_go_back_once(tmp_path: Path) -> None:
    first, good, bad = (published(tmp_path, created=created) for created in range(3))
    registry, actions = Registry(tmp_path / "models"), Site(tmp_path, "rollback").actions
    begun, problems = threading.Barrier(8), list[str]()

    def roll_back() -> None:
        begun.wait()
        try:
            actions.roll_back(by="console", reason="it is bad", now_ms=1, of=bad)
        except ActionError as error:
            problems.append(str(error))

    people = [threading.Thread(target=roll_back) for _ in range(8)]
    for each in people:
        each.start()
    for each in people:
        each.join()
    assert registry.current(FIELDS.plan_hash) == good
    assert problems == [f"the bundle was changed since: {good} serves, not {bad}"] * 7
    assert [entry.subject for entry in read_audit(tmp_path)] == [bad]
    with pytest.raises(ActionError, match="was changed since"):
        actions.roll_back(by="console", reason="an old page", now_ms=2, of=bad)
    actions.roll_back(by="console", reason="one more", now_ms=3)
    assert registry.current(FIELDS.plan_hash) == first


def test_the_first_bundle_is_not_rolled_back_and_the_failure_is_said(tmp_path: Path) -> None:
    version, site = published(tmp_path, created=0), Site(tmp_path, "rollback", "retrain")
    with capture_logs() as logs:
        assert site.round(11.0) == ["fires"]
    assert Registry(tmp_path / "models").current(FIELDS.plan_hash) == version
    assert [line["reason"] for line in logs if line["event"] == "alert_action_failed"] == [
        f"bundle {version} is the first of its plan: there is none to roll back to"
    ]
    assert read_controls(tmp_path).retrain_asked_ms == site.now_ms


def test_the_ladder_is_walked_down_step_by_step_and_up_again(tmp_path: Path) -> None:
    site = Site(tmp_path, "walk_down", cooldown="20s", restore_after="1m")
    floors = []
    for _ in range(20):
        site.round(11.0)
        floors.append(read_controls(tmp_path).tier_floor)
    assert floors == [*[1] * 4, *[2] * 4, *[3] * 12]
    assert site.round(1.0) == ["resolves"]
    assert site.round(1.0, 11) == []
    assert site.round(1.0) == ["restores"]
    assert read_controls(tmp_path).tier_floor == 0
    assert [entry.undoes is not None for entry in read_audit(tmp_path)] == [True] * 3 + [False] * 3


def test_what_somebody_changed_since_is_left_to_them(tmp_path: Path) -> None:
    site = Site(tmp_path, "raise_exploration", restore_after="5s")
    site.round(11.0)
    assert read_controls(tmp_path).exploration == 2.0
    change_controls(tmp_path, by="console", reason="mine", time_ms=site.now_ms, exploration=3.0)
    with capture_logs() as logs:
        assert site.round(1.0, 4) == ["resolves", "restores"]
    assert read_controls(tmp_path).exploration == 3.0
    assert any("changed since" in str(line.get("reason")) for line in logs)


def test_a_harmful_experiment_is_stopped_and_can_go_on(tmp_path: Path) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "wide.toml").write_text(EXPERIMENT)
    store.start(tmp_path, "wide", Config(), now_ms=5)
    site = Site(tmp_path, "stop_experiment", by="experiment")
    site.heat.label = "wide"
    assert site.round(11.0) == ["fires"]
    stopped = store.read_experiment(tmp_path, "wide")
    assert (stopped.status, stopped.stopped_why[:10]) == ("stopped", "alert:hot:")
    site.actions.undo(read_audit(tmp_path)[0].id, by="console", reason="a false alarm", now_ms=site.now_ms)
    assert store.read_experiment(tmp_path, "wide").is_running


def test_a_new_monitor_goes_on_with_the_same_incident(tmp_path: Path) -> None:
    site = Site(tmp_path, "retrain")
    site.round(11.0)
    first = read_audit(tmp_path)
    site.monitor = site.made()
    assert site.round(11.0, 3) == []
    assert read_audit(tmp_path) == first
    assert read_standing(tmp_path).states[0].incident == f"hot@{1_000_000_000 + EVERY_MS}"


def test_a_watch_that_fails_is_said_once_and_its_alert_goes_missing(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with capture_logs() as logs:
        assert site.round(None, 20) == ["goes_missing"]
    assert [line["reason"] for line in logs if line["event"] == "watch_failed"] == ["OSError: no thermometer"]
    assert site.history.names() == []


def test_history_is_played_to_a_rule(tmp_path: Path) -> None:
    site = Site(tmp_path)
    began_ms = site.now_ms
    site.round(1.0, 3)
    site.round(11.0, 3)
    site.round(1.0, 3)
    rule = AlertRule(name="warm", metric="heat", above=5.0, for_="5s", clear_for="0s")
    rounds, events = rehearsed(rule, site.history, began_ms, site.now_ms)
    assert (rounds, [event.change for event in events]) == (9, ["fires", "resolves"])
    assert events[0].time_ms == began_ms + 5 * EVERY_MS
    assert read_audit(tmp_path) == []


def test_a_damaged_acknowledgement_stops_no_monitor(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.round(11.0)
    acknowledge(tmp_path, "hot", by="cli", reason="known", now_ms=site.now_ms)
    (file,) = (tmp_path / "monitoring" / "acks").iterdir()
    file.write_bytes(b"")
    with capture_logs() as logs:
        assert site.round(1.0) == ["resolves"]
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == ["ack_unreadable"]


def test_what_does_not_fire_cannot_be_acknowledged(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with pytest.raises(HeadwaterError, match="not firing"):
        acknowledge(tmp_path, "hot", by="cli", reason="", now_ms=1)
    site.round(11.0)
    (entry,) = acknowledge(tmp_path, "hot", by="cli", reason="seen", now_ms=1)
    assert entry.subject == read_standing(tmp_path).states[0].incident


# -- telling others ------------------------------------------------------------------------------------


@pytest.fixture
def hook() -> Iterator[tuple[str, list[Any], list[int]]]:
    """The URL of a server on this machine, what it was sent, and the status codes that it answers with, one after the other."""
    got, codes = list[Any](), list[int]()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(codes.pop(0) if codes else 204)
            self.send_header("location", "http://127.0.0.1:1/elsewhere")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/secret-path", got, codes
        server.shutdown()


def test_webhooks_are_told_of_alerts_and_what_was_done(tmp_path: Path, hook: tuple[str, list[Any], list[int]]) -> None:
    url, got, codes = hook
    codes += [503, 200]
    site = Site(tmp_path, "walk_down", urls=(url,), text="too hot")
    with capture_logs() as logs:
        site.round(11.0)
        site.round(1.0)
        site.monitor.close()
    assert [message["state"] for message in got] == ["firing", "firing", "resolved"]  # the first was tried twice
    assert got[1]["actions"] == [{"action": "walk_down", "outcome": "done", "entry": read_audit(tmp_path)[0].id}]
    assert "too hot" in got[1]["why"]
    assert "secret-path" not in str(logs)


def test_a_webhook_that_is_gone_or_points_elsewhere_delays_nothing(hook: tuple[str, list[Any], list[int]]) -> None:
    url, got, codes = hook
    codes += [302]
    notifier = Notifier([url, "http://127.0.0.1:9/gone?token=secret"], first_pause_s=0.001)
    with capture_logs() as logs:
        notifier.tell({"alert": "x"})
        notifier.close()
    assert len(got) == 1
    failed = sorted(line["reason"] for line in logs if line["event"] == "notification_failed")
    assert failed == ["HTTP 302", "URLError"]
    assert "secret" not in str(logs)


def test_a_slow_watch_is_looked_at_at_its_own_pace(wait_until: Callable[[Callable[[], bool]], None]) -> None:
    asked = list[int]()

    class Slow:
        name = "slow"

        def look(self, now_ms: int) -> list[Sample]:
            asked.append(now_ms)
            if len(asked) == 2:
                raise OSError("once")
            return [sample("x", float(now_ms))]

    paced = Paced(Slow(), 60_000)
    paced.look(1_000_000)
    wait_until(lambda: list(paced.look(1_001_000)) == [sample("x", 1_000_000.0)])
    assert list(paced.look(1_059_000)) == [sample("x", 1_000_000.0)]
    assert asked == [1_000_000]
    paced.look(1_060_000)
    with pytest.raises(OSError, match="once"):
        wait_until(lambda: not paced.look(1_061_000))
    paced.look(1_120_000)
    wait_until(lambda: list(paced.look(1_121_000)) == [sample("x", 1_120_000.0)])


def test_what_is_not_so_any_more_is_not_shown_until_the_next_look(
    wait_until: Callable[[Callable[[], bool]], None],
) -> None:
    running = {"one", "two"}

    class Judging:
        name = "judging"

        def look(self, now_ms: int) -> list[Sample]:  # noqa: ARG002
            return [sample("harm", 1.0, of=name) for name in sorted(running)]

    paced = Paced(Judging(), 60_000, still=lambda found: dict(found.labels)["of"] in running)
    paced.look(1_000_000)
    wait_until(lambda: len(list(paced.look(1_001_000))) == 2)
    running.remove("one")
    assert list(paced.look(1_002_000)) == [sample("harm", 1.0, of="two")]


def test_what_the_first_look_takes_does_not_put_off_the_second(
    wait_until: Callable[[Callable[[], bool]], None],
) -> None:
    """It imports and compiles; the pace of the second is kept as it is."""
    asked = list[int]()

    class Slow:
        name = "slow"

        def look(self, now_ms: int) -> list[Sample]:
            asked.append(now_ms)
            time.sleep(0.05)
            return []

    paced = Paced(Slow(), 100)
    for at in (1_000, 1_100, 1_200):
        paced.look(at)
        wait_until(lambda: not (paced._looking and paced._looking.is_alive()))
    assert asked == [1_000, 1_100]


def test_one_that_is_behind_reads_on_between_rounds_a_tenth_of_the_time(
    wait_until: Callable[[Callable[[], bool]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    rests = list[float]()

    class Away:
        name, left_s = "away", 300.0

        def look(self, now_ms: int) -> list[Sample]:  # noqa: ARG002
            self.left_s -= CAUGHT_UP_S
            time.sleep(0.01)
            return [sample(BEHIND, self.left_s, watch=self.name)]

    monkeypatch.setattr(paced_module, "rest", rests.append)
    paced = Paced(Away(), 60_000)
    paced.look(1_000_000)
    wait_until(lambda: list(paced.look(1_001_000)) == [sample(BEHIND, CAUGHT_UP_S, watch="away")])
    assert len(rests) == 3
    assert all(seconds > 0.09 - 1e-9 for seconds in rests)


def test_rules_wait_for_a_watch_that_is_behind(tmp_path: Path) -> None:
    """Neither is what fires over, nor does what is right go missing; and what says how far it is is judged."""
    site = Site(tmp_path)
    behind_rule = AlertRule(name="behind", metric=BEHIND, above=3_600.0, clear_for="0s")

    class Catching:
        name, left_s = "heat", 0.0

        def look(self, now_ms: int) -> list[Sample]:
            said = [sample(BEHIND, self.left_s, watch="heat")]
            return said if self.left_s > CAUGHT_UP_S else [*said, *site.heat.look(now_ms)]

    catching = Catching()
    site.monitor = Monitor(
        tmp_path, [catching], [msgspec.structs.replace(site.rule, missing="ok"), behind_rule], history=site.history,
        actions=site.actions, notifier=site.notifier, found_by={"heat": frozenset({"heat", BEHIND})},
    )  # fmt: skip
    assert site.round(11.0) == ["fires"]
    catching.left_s = 7_200.0
    assert site.round(1.0, 30) == ["fires"]  # the rule about being behind
    assert {state.alert: state.state for state in read_standing(tmp_path).states} == {
        "hot": "firing",
        "behind": "firing",
    }
    catching.left_s = 0.0
    assert sorted(site.round(1.0, 2)) == ["resolves", "resolves"]


def test_what_the_guard_of_experiments_found_stands_until_it_has_looked_again(
    tmp_path: Path, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    """The first look of a new monitor takes as long as the log is; meanwhile nothing is over that nobody has judged."""
    site, harm = Site(tmp_path), [1.0]
    harmful = next(rule for rule in DEFAULT_ALERTS if rule.metric == HARM)
    site.rule = msgspec.structs.replace(harmful, actions=())
    may_look = threading.Event()

    class Guard:
        name = "experiments"

        def look(self, now_ms: int) -> list[Sample]:  # noqa: ARG002
            assert may_look.wait(30.0)
            return [sample(HARM, harm[0], experiment="wide")]

    def start() -> None:
        site.monitor = Monitor(
            tmp_path, [Paced(Guard(), EVERY_MS)], [site.rule], history=site.history, actions=site.actions, notifier=site.notifier,
            found_by=found_by(),
        )  # fmt: skip

    def state() -> str:
        (found,) = read_standing(tmp_path).states
        return found.state

    start()
    assert site.round(1.0, 3) == []
    may_look.set()
    wait_until(lambda: site.round(1.0) == ["fires"])
    may_look.clear()
    start()
    assert site.round(1.0, 30) == []
    assert state() == "firing"
    harm[0] = 0.0
    may_look.set()
    wait_until(lambda: site.round(1.0) == ["resolves"])
    assert state() == "ok"


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    """Ask again and again until it is so."""

    def wait(so: Callable[[], bool]) -> None:
        until = time.monotonic() + 30.0
        while not so():
            assert time.monotonic() < until
            time.sleep(0.005)

    return wait
