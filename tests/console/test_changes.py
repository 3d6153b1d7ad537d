"""What the pages of "Run" and "Manage" change, in process on a real data directory: audited, refused where it must be, taken back."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import pytest

from headwater.console.desk import _templates
from headwater.console.pages.alerts import _stretches
from headwater.console.pages.configuration import lines_of
from headwater.console.pages.experiments import Judged
from headwater.experiments import store
from headwater.experiments.definitions import parse_experiment
from headwater.monitoring.alerts import AlertState
from headwater.monitoring.behind import BEHIND
from headwater.monitoring.history import HISTORY_FILE, History, Series
from headwater.monitoring.samples import sample
from headwater.monitoring.standing import read_ack, write_standing
from headwater.registry.audit import AuditEntry, read_audit
from headwater.registry.controls import change_controls, read_controls
from headwater.schema.config import parse_config
from headwater.schema.explanation import Placed, ShadowShown
from headwater.schema.keys import Scope
from headwater.schema.seen import Card
from tests.console.inside import Console, cookie_of
from tests.online.running import publish_ranker

ALERTS, EXPERIMENTS, KEYS, MODELS = "/console/alerts", "/console/experiments", "/console/keys", "/console/models"
DRAFT = """name = "wide"
share = 0.5

[[variants]]
name = "control"

[[variants]]
name = "wide"
set = {"ranker.candidates" = 400}
"""


@pytest.fixture
def console(tmp_path: Path) -> Console:
    return Console(tmp_path)


def last(console: Console) -> AuditEntry:
    """The newest entry of the audit log."""
    return read_audit(console.data, 1)[0]


def said(answer: httpx.Response) -> str:
    """The message that a change is answered with."""
    assert answer.status_code == 200, answer.text
    event: dict[str, str] = json.loads(answer.headers["hx-trigger"])
    return event["headwater:done"]


def test_every_page_holds_with_an_empty_system(console: Console) -> None:
    me = console.visit()
    for path in (
        MODELS, EXPERIMENTS, "/console/rules", ALERTS, f"{ALERTS}/firings", "/console/audit", "/console/configuration", KEYS,
    ):  # fmt: skip
        answer = console.ask("GET", path, cookie=me, host="localhost")
        assert answer.status_code == 200, (path, answer.text)
    assert "monitor does not look" in console.ask("GET", ALERTS, cookie=me, host="localhost").text
    assert "no history yet" in console.ask("GET", f"{ALERTS}/firings", cookie=me, host="localhost").text
    assert console.ask("GET", f"{MODELS}/card/20260101", cookie=me, host="localhost").status_code == 404
    assert console.ask("GET", f"{EXPERIMENTS}/run/none", cookie=me, host="localhost").status_code == 404


def test_looking_changes_nothing_and_shows_no_way_to(console: Console) -> None:
    cookie = console.log_in(console.key("ada", Scope.READ))
    token = console.token(cookie)
    for path in (f"{MODELS}/rollback", f"{ALERTS}/controls", KEYS, f"{EXPERIMENTS}/switch", "/console/rules/publish"):
        answer = console.ask("POST", path, cookie=cookie, headers={"x-csrf-token": token}, form={"reason": "x"})
        assert answer.status_code == 403, path
    assert read_audit(console.data) == []
    buttons = re.findall(r"<button[^>]*data-opens[^>]*>", console.ask("GET", ALERTS, cookie=cookie).text)
    assert buttons
    assert all("disabled" in button for button in buttons)


def test_controls_are_moved_with_a_reason_and_put_back(console: Console) -> None:
    me = console.visit()
    assert console.change(f"{ALERTS}/controls", me, tier_floor="2").status_code == 409, "no reason was given"
    said(console.change(f"{ALERTS}/controls", me, tier_floor="2", reason="the ranker is slow"))
    said(console.change(f"{ALERTS}/controls", me, exploration="0.5", reason="sale"))
    said(console.change(f"{ALERTS}/controls", me, promotion="freeze", reason="labels are late"))
    said(console.change(f"{ALERTS}/controls", me, retrain="now", reason="new season"))
    controls = read_controls(console.data)
    assert (controls.tier_floor, controls.exploration, controls.promotion_frozen) == (2, 0.5, "labels are late")
    assert controls.retrain_asked_ms == console.clock.now_ms
    first = read_audit(console.data)[-1]
    assert (first.by, first.reason, first.subject) == ("console", "the ranker is slow", "tier_floor")
    said(console.change(f"{ALERTS}/undo", me, entry=first.id, reason="it is fast again"))
    assert read_controls(console.data).tier_floor == 0
    assert last(console).undoes == first.id
    again = console.change(f"{ALERTS}/undo", me, entry=first.id, reason="twice")
    assert (again.status_code, "already" in again.text) == (409, True)
    for wrong in ({"tier_floor": "9"}, {"tier_floor": "x"}, {"exploration": "-1"}, {}):
        assert console.change(f"{ALERTS}/controls", me, reason="x", **wrong).status_code == 409, wrong
    shown = console.ask("GET", "/console/audit?what=slow", cookie=me, host="localhost").text
    assert "the ranker is slow" in shown
    assert "labels are late" not in shown


def test_who_takes_notice_of_an_alert_is_kept(console: Console) -> None:
    now = console.clock.now_ms
    state = AlertState(
        alert="errors", severity="critical", state="firing", since_ms=now - 60_000, value=0.2, incident="errors-1"
    )
    (console.data / "monitoring").mkdir()
    write_standing(console.data, now, [state])
    history = History(console.data / HISTORY_FILE)
    history.append(now, [sample(BEHIND, 7_200.0, watch="drift")])
    history.close()
    me = console.visit()
    page = console.ask("GET", ALERTS, cookie=me, host="localhost").text
    assert "2 h of the log are left for drift" in page
    assert "monitor does not look" not in page
    assert page.index(">errors<") < page.index(">slow-answers<"), "what fires stands first"
    said(console.change(f"{ALERTS}/notice", me, alert="errors", reason="looking"))
    ack = read_ack(console.data, "errors-1")
    assert ack is not None
    assert (ack.by, ack.reason) == ("console", "looking")
    assert "noticed by console" in console.ask("GET", ALERTS, cookie=me, host="localhost").text


def test_stretches_of_firing_are_read_from_the_history() -> None:
    series = Series({"alert": "errors", "severity": "critical"}, [1, 2, 3, 4, 5, 6], [0.0, 1.0, 1.0, 0.0, 1.0, 1.0])
    assert [(each.since_ms, each.until_ms) for each in _stretches(series)] == [(2, 4), (5, None)]


def test_the_first_key_closes_the_console_behind_whoever_makes_it(console: Console) -> None:
    me = console.visit()
    refused = console.change(KEYS, me, name="shop", scope="ingest", reason="x")
    assert (refused.status_code, "first key" in refused.text) == (409, True)
    answer = console.change(KEYS, me, name="ada", scope=["read", "admin"], expires="30d", reason="closing")
    said(answer)
    found = re.search(r"hw_[0-9a-f]{16}_[\w-]+", answer.text)
    assert found is not None
    inside = cookie_of(answer)
    assert console.ask("GET", KEYS, cookie=me, host="localhost").status_code == 303, "the open session has ended"
    page = console.ask("GET", KEYS, cookie=inside, host="localhost")
    assert page.status_code == 200
    assert found[0] not in page.text, "a key is shown once"
    assert (last(console).action, last(console).by, last(console).subject) == (
        "key.add",
        "console",
        "ada (read, admin)",
    )
    assert console.log_in(found[0])

    made = console.change(KEYS, inside, name="shop", scope="ingest", reason="the shop")
    said(made)
    assert last(console).by.startswith("key:")
    number = re.search(r"hw_([0-9a-f]{16})_", made.text)
    assert number is not None
    said(console.change(f"{KEYS}/revoke", inside, id=number[1], reason="leaked"))
    assert last(console).action == "key.revoke"
    own = found[0].split("_")[1]
    kept = console.change(f"{KEYS}/revoke", inside, id=own, reason="x")
    assert (kept.status_code, "last one" in kept.text) == (409, True)
    wrong = console.change(KEYS, inside, name="x y", scope="read", reason="x")
    assert wrong.status_code == 409


def test_a_bundle_is_promoted_and_rolled_back_unless_that_is_frozen(console: Console) -> None:
    config = parse_config("")
    first = publish_ranker(console.data, config, seed=1, created_ms=1_772_000_000_000)
    second = publish_ranker(console.data, config, seed=2, created_ms=1_772_000_100_000)
    me = console.visit()
    page = console.ask("GET", MODELS, cookie=me, host="localhost").text
    assert page.index(second) < page.index(first)
    assert "next rollback" in page
    assert console.ask("GET", f"{MODELS}/card/{first}", cookie=me, host="localhost").status_code == 200
    compared = console.ask("GET", f"{MODELS}/compare?first={first}&second=current", cookie=me, host="localhost")
    assert "created ms" in compared.text.lower()
    stale = console.change(f"{MODELS}/rollback", me, reason="worse", of=first)
    assert (stale.status_code, "was changed since" in stale.text) == (409, True)
    assert f'data-fills="of={second}&amp;to={first}"' in page
    assert second in said(console.change(f"{MODELS}/rollback", me, reason="worse", of=second))
    assert last(console).action == "bundle.rollback"
    change_controls(console.data, by="alert:drift", reason="x", time_ms=1, promotion_frozen="drift")
    frozen = console.change(f"{MODELS}/promote", me, version=second, gate="skip", reason="x")
    assert (frozen.status_code, "frozen (drift)" in frozen.text) == (409, True)
    change_controls(console.data, by="cli", reason="x", time_ms=2, promotion_frozen="")
    assert (
        said(console.change(f"{MODELS}/promote", me, version=second, gate="skip", reason="better"))
        == f"{second} serves"
    )
    entry = last(console)
    assert (entry.action, entry.subject, entry.reason) == ("bundle.promote", second, "better")
    nothing = console.change(f"{MODELS}/promote", me, version="2031", gate="skip", reason="x")
    assert (nothing.status_code, "no bundle begins" in nothing.text) == (409, True)


def test_an_experiment_is_created_started_stopped_and_all_are_switched_off(console: Console) -> None:
    me = console.visit()
    checked = console.change(f"{EXPERIMENTS}/check", me, text=DRAFT.replace("share", "shar"))
    assert "did you mean" in checked.text
    targeted = DRAFT.replace("share = 0.5", "when = \"context.country = 'NL'\"")
    assert "column 17: Write == to compare" in console.change(f"{EXPERIMENTS}/check", me, text=targeted).text
    assert console.change(EXPERIMENTS, me, text=targeted, reason="x").status_code == 409
    noted = console.change(f"{EXPERIMENTS}/check", me, text=targeted.replace("country = ", "app == ")).text
    assert "context.app is none of segments.keys" in noted
    unknown = console.change(EXPERIMENTS, me, text=DRAFT.replace("ranker.candidates", "ranker.candidate"), reason="x")
    assert unknown.status_code == 409
    said(console.change(EXPERIMENTS, me, text=DRAFT, reason="trying"))
    said(console.change(f"{EXPERIMENTS}/run/wide/start", me, share="20", reason="go"))
    found = store.read_experiment(console.data, "wide")
    assert (found.status, found.share, found.started_ms) == ("running", 0.2, console.clock.now_ms)
    page = console.ask("GET", f"{EXPERIMENTS}/run/wide", cookie=me, host="localhost").text
    assert "running" in page
    said(console.change(f"{EXPERIMENTS}/switch", me, on="no", reason="trouble"))
    assert store.is_off(console.data)
    assert console.change(f"{EXPERIMENTS}/run/wide/start", me, share="30", reason="x").status_code == 409
    said(console.change(f"{EXPERIMENTS}/switch", me, on="yes", reason="over"))
    said(console.change(f"{EXPERIMENTS}/run/wide/stop", me, reason="no effect"))
    assert store.read_experiment(console.data, "wide").stopped_why == "console: no effect"
    actions = [entry.action for entry in read_audit(console.data)]
    assert actions[:5] == [
        "experiment.stop",
        "experiments.on",
        "experiment.start",
        "experiments.off",
        "experiment.start",
    ]
    broken = console.data / "experiments" / "broken.toml"
    broken.write_text("name = \n")
    assert "broken.toml" in console.ask("GET", EXPERIMENTS, cookie=me, host="localhost").text


def test_what_a_shadow_would_have_shown_is_told_and_what_it_does_not_prove() -> None:
    mean = {"value": 0.25, "ci95": [0.125, 0.375]}
    one = {
        "variant": "next", "lists": 1200, "users": 300, "degraded": 3, "overlap": mean, "clicked": 90, "found": mean, "higher": 10, "same": 20, "lower": 30,
        "lost": 30, "served_rr": 0.5, "shadow_rr": 0.25, "difference": {"value": -0.25, "ci95": None},
    }  # fmt: skip
    nothing = one | {"variant": "quiet", "overlap": None, "clicked": 0, "found": None, "difference": None}
    judged = Judged(1_772_000_000_000, {"variants": [one, nothing]}, "")
    experiment = parse_experiment(DRAFT.replace("share = 0.5", "shadow = 0.5"), "test")
    page = _templates().get_template("admin/shadow.html").render(judged=judged, experiment=experiment, window="1h")
    assert '0.250 <span class="soft">(0.125 to 0.375)</span>' in page
    assert "10 · 20 · 30 · 30" in page
    assert "-0.2500</dd>" in page
    assert "no proof that they are worse" in page
    assert "away" in _templates().get_template("admin/shadow.html").render(
        judged=Judged(0, None, "the log is away"), experiment=experiment, window="1h"
    )


def test_why_shows_what_a_shadow_would_have_given() -> None:
    shadow = ShadowShown(
        experiment="next",
        variant="shadow",
        bundle="2026",
        tier=0,
        items=[Placed("i1", 0.5), Placed("i2", 0.25)],
        shared=1,
    )
    cards = {name: Card(name, f"title of {name}", []) for name in ("i1", "i2")}
    page = (
        _templates()
        .get_template("why_shadows.html")
        .render(why={"shadows": [shadow], "served": [1, 2, 3]}, cards=cards)
    )
    assert "1 of the 3 items were given too" in page
    assert page.index("title of i1") < page.index("title of i2")


def test_the_configuration_shows_no_secret() -> None:
    config = parse_config(
        """
        [state]
        store = "redis"
        url = "redis://user:hunter2@localhost:6379/0"

        [monitoring]
        webhooks = ["https://hooks.test/services/T0/B0/sesame"]

        [limits]
        hosts = ["localhost", "hooks.test"]
        """
    )
    lines = {line.key: line for line in lines_of(config)}
    assert lines["state.url"].value == "redis://•••@localhost:6379/0"
    assert lines["monitoring.webhooks"].value == "https://hooks.test/•••"
    assert lines["state.store"].differs
    assert not lines["console.enabled"].differs
    text = " ".join(line.value for line in lines.values())
    assert "hunter2" not in text
    assert "sesame" not in text
