"""The pages of the group See while what they show cannot be reached: they say so, and stay pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from headwater.console.guard import ROOT
from headwater.registry.audit import read_audit
from headwater.schema.keys import Scope
from tests.console.inside import Console, Quiet

USER = "playground-0123abcd"
REQUEST = "0" * 32


@pytest.fixture
def console(tmp_path: Path) -> Console:
    return Console(tmp_path, live=Quiet(reasons=["fold: not connected", "writer: no answer"]))


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("", "writer: no answer"),
        ("/pulse", "the figures are away"),
        ("/news", "The monitor is off"),
        ("/figures/latency", "The monitor is off"),
        ("/playground?user=ada", "you look"),
        ("/playground/people", ""),
        ("/playground/list?user=ada", "the state is away"),
        ("/playground/compare?user=ada&way=no+rules", "the state is away"),
        ("/why", "Newest lists"),
        ("/why-newest", "the log is away"),
        (f"/why/{REQUEST}", "Replaying"),
        (f"/why-explained/{REQUEST}", "the log is away"),
    ],
)
def test_a_page_says_what_is_away(console: Console, path: str, says: str) -> None:
    answer = console.ask("GET", ROOT + path, host="localhost")
    assert answer.status_code == 200
    assert says in answer.text


def test_an_event_that_cannot_be_taken_in_says_so_beside_the_list(console: Console) -> None:
    cookie = console.log_in(console.key("ada", Scope.READ, Scope.ADMIN))
    headers = {"x-csrf-token": console.token(cookie), "hx-request": "true"}
    form = {"user": USER, "act": "1", "item": "item-1", "kind": "click", "shown": "not json"}
    for path, more, says in (
        ("event", {}, "the writer is away"),
        ("event", {"act": "0"}, "You only look"),
        ("event", {"item": ""}, "The event is wrong"),
        ("forget", {}, "the writer is away"),
        ("forget", {"user": "ada"}, "Only visitors that were made up"),
    ):
        answer = console.ask("POST", f"{ROOT}/playground/{path}", cookie=cookie, headers=headers, form=form | more)
        assert (answer.status_code, answer.headers["hx-retarget"]) == (200, "#trouble")
        assert says in answer.text
    told = read_audit(console.data)
    assert [(entry.action, entry.subject) for entry in told] == [
        ("playground.forget", "a visitor of the playground"), ("playground.event", "a visitor of the playground"),
    ]  # fmt: skip
    assert all(entry.by.startswith("key:") and USER not in entry.reason for entry in told)


def test_who_may_only_look_never_acts(console: Console) -> None:
    cookie = console.log_in(console.key("eve", Scope.READ))
    page = console.ask("GET", f"{ROOT}/playground?user={USER}&act=1", cookie=cookie).text
    assert "you act" not in page
    assert 'hx-get="/console/playground/list"' in page
    headers = {"x-csrf-token": console.token(cookie)}
    for path in ("list", "event", "forget"):
        answer = console.ask("POST", f"{ROOT}/playground/{path}", cookie=cookie, headers=headers, form={"user": USER})
        assert answer.status_code == 403


def test_a_chart_that_there_is_not_and_a_visitor_who_is_new(console: Console) -> None:
    assert console.ask("GET", f"{ROOT}/figures/nothing", host="localhost").status_code == 404
    new = console.ask("GET", f"{ROOT}/playground?k=7", host="localhost")
    assert new.status_code == 303
    assert new.headers["location"].startswith("/console/playground?user=playground-")
    assert new.headers["location"].endswith("&act=1&k=7")
    found = console.ask("GET", f"{ROOT}/why?id=a%2Fb", host="localhost")
    assert found.headers["location"] == "/console/why/a%2Fb"
