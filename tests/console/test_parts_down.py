"""The pages of the group See while what they show cannot be reached: they say so, and stay pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from headwater.console.guard import ROOT
from headwater.console.pages.playground import MADE_UP
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
        ("/playground/people", ""),
        ("/playground?number=7", "you look"),
        ("/playground/list?number=7", "the state is away"),
        ("/playground/compare?number=7&way=no+rules", "the state is away"),
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
    form = {"as": be(console, cookie, USER, act=True), "item": "item-1", "kind": "click", "shown": "not json"}
    for path, more, says in (
        ("event", {}, "the writer is away"),
        ("event", {"as": be(console, cookie, USER)}, "You only look"),
        ("event", {"item": ""}, "The event is wrong"),
        ("forget", {}, "the writer is away"),
        ("forget", {"as": be(console, cookie, "ada")}, "Only visitors that were made up"),
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
    handle = be(console, cookie, USER, act=True)
    page = console.ask("GET", f"{ROOT}/playground?as={handle}", cookie=cookie).text
    assert "you act" not in page
    assert 'hx-get="/console/playground/list"' in page
    headers = {"x-csrf-token": console.token(cookie)}
    for path in ("list", "event", "forget"):
        answer = console.ask("POST", f"{ROOT}/playground/{path}", cookie=cookie, headers=headers, form={"as": handle})
        assert answer.status_code == 403


def test_a_chart_that_there_is_not_and_a_visitor_who_is_new(console: Console) -> None:
    assert console.ask("GET", f"{ROOT}/figures/nothing", host="localhost").status_code == 404
    me = console.visit()
    for headers, acts in (({}, True), ({"sec-fetch-site": "none"}, True), ({"sec-fetch-site": "cross-site"}, False)):
        new = console.ask("GET", f"{ROOT}/playground?k=7", headers=headers, cookie=me, host="localhost")
        assert new.status_code == 303
        there = new.headers["location"]
        assert there.startswith("/console/playground?as=")
        assert there.endswith("&surface=home&k=7")
        page = console.ask("GET", there, cookie=me, host="localhost").text
        assert (MADE_UP in page, f'hx-{"post" if acts else "get"}="/console/playground/list"' in page) == (True, True)
    found = console.ask("GET", f"{ROOT}/why?id=a%2Fb", host="localhost")
    assert found.headers["location"] == "/console/why/a%2Fb"


def test_no_address_of_the_playground_names_a_user_or_acts_in_their_name(console: Console) -> None:
    cookie = console.log_in(console.key("ada", Scope.READ, Scope.ADMIN))
    handle = be(console, cookie, "eve", act=True)
    assert "you act" in console.ask("GET", f"{ROOT}/playground?as={handle}", cookie=cookie).text
    asked = console.ask("GET", f"{ROOT}/playground?user=eve&act=1", cookie=cookie)
    assert "eve" not in asked.headers["location"]
    other = console.log_in(console.key("bob", Scope.READ, Scope.ADMIN))
    stolen = console.ask("GET", f"{ROOT}/playground?as={handle}", cookie=other)
    assert (stolen.status_code, "name the user again" in stolen.text) == (404, True)
    looks = be(console, cookie, "mallory", handle=handle)  # typing another id never acts as them
    assert "you look" in console.ask("GET", f"{ROOT}/playground?as={looks}", cookie=cookie).text


def be(console: Console, cookie: str, user: str, *, act: bool = False, handle: str = "") -> str:
    """What stands for ``user`` in addresses, as the pages of a session get it."""
    headers = {"x-csrf-token": console.token(cookie), "hx-request": "true"}
    for form in [{"user": user, "as": handle}, *([{"act": "1"}] if act else [])]:
        led = console.ask(
            "POST", f"{ROOT}/playground", cookie=cookie, headers=headers, form={"as": handle, **form}
        ).headers["hx-redirect"]
        assert user not in led
        handle = re.search("as=([^&]*)", led)[1]  # type: ignore[index]
    return handle
