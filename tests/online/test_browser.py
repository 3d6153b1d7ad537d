"""Pages of another origin in a real browser: what people do there is in the log once, and the next list knows it."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator

import msgspec
import pytest

from headwater.log.identity import LmdbIdentity
from headwater.log.lmdb import LmdbLog
from headwater.log.record import Kind, Namespace
from headwater.online.browser import script
from headwater.schema.events import EventDetail
from headwater.schema.users import ANONYMOUS
from tests.online.browser import Browser
from tests.online.conftest import Site
from tests.online.pages import LossyLine, Pages
from tests.online.running import PATIENCE_S
from tests.online.test_serve import ids

PAGE = """<!doctype html><title>Shop</title><script src="{url}/v1/headwater.js" {attributes}></script>
<style>a {{ display: block; height: 60px }}</style>
<div data-headwater-request="list-7" data-headwater-surface="home">
<a href="/next" data-headwater-item="item-31" data-headwater-position="0">one</a>
<a href="/next" data-headwater-item="item-32" data-headwater-position="1">two</a>
<a href="/next" data-headwater-item="item-33" data-headwater-position="2" style="margin-top: 5000px">far below</a>
</div>"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


def events_of(site: Site, user: str) -> list[tuple[str, str, EventDetail]]:
    """(type, item, details) of every event in the log of ``user``, in its order."""
    event_log, identity = LmdbLog(site.data / "log", readonly=True), LmdbIdentity(site.data / "identity", readonly=True)
    try:
        key, words, found, offset = identity.lookup(user), event_log.vocabulary(), [], 0
        while key is not None and (block := event_log.read(offset)) is not None:
            offset = block.last_offset
            for at, record in enumerate(block.records):
                if record["kind"] == Kind.EVENT and record["user"] == key.user:
                    detail = msgspec.msgpack.decode(block.payload(at), type=EventDetail)
                    item = words.text(Namespace.ITEM, int(record["item"]))
                    found.append((str(words.text(Namespace.EVENT_TYPE, int(record["type"]))), str(item), detail))
        return found
    finally:
        identity.close()
        event_log.close()


def wait_for(right: Callable[[], bool], what: Callable[[], str]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not right():
        assert time.monotonic() < until, what()
        time.sleep(0.05)


def test_what_a_visitor_does_counts_once_and_the_next_list_knows_it(
    server: Site, pages: Pages, browser: Browser
) -> None:
    with LossyLine(server.url, "/v1/events", lost=1) as line:
        for path in ("/", "/next"):
            pages.pages[path] = PAGE.format(url=line.origin, attributes="")
        browser.open(pages.origin + "/")
        wait_for(
            lambda: len(line.posts) >= 2, lambda: f"no other try after the lost answer: {line.asked} {browser.said()}"
        )
        visitor = browser.run("return localStorage.headwater").split()[0]
        assert re.fullmatch(ANONYMOUS, visitor)
        first, second = ({event["event_id"] for event in json.loads(body)} for body in line.posts[:2])
        assert first <= second, "the same events, under the same ids"
        seen = events_of(server, visitor)
        assert Counter((kind, item) for kind, item, _ in seen) == {
            ("impression", "item-31"): 1,
            ("impression", "item-32"): 1,
        }
        assert {(d.request_id, d.position) for _, _, d in seen} == {("list-7", 0), ("list-7", 1)}

        browser.click("[data-headwater-item=item-31]")  # which leaves the page
        wait_for(
            lambda: any(kind == "click" for kind, _, _ in events_of(server, visitor)),
            lambda: f"the click did not arrive: {line.asked} {line.posts} {browser.said()}",
        )
        answer = browser.run("return await headwater.recommend({k: 200})")
        shown = ids(answer)
        assert "item-31" not in shown
        assert "item-32" in shown, "what was shown and not clicked may come back"
        assert Counter(kind for kind, _, _ in events_of(server, visitor))["click"] == 1

        browser.run("return headwater.identify('member-5')")
        assert "item-31" not in ids(server.recommend(user="member-5", k=200))
        assert browser.run("return localStorage.headwater").split()[0] != visitor, "who comes next is somebody else"
        browser.run("headwater.track('like', 'item-40'); return headwater.flush()")
        assert ("like", "item-40") in {(kind, item) for kind, item, _ in events_of(server, "member-5")}
        assert "OPTIONS /v1/events" in line.asked, "the page is of another origin"
        with pytest.raises(AssertionError, match="no surface"):
            browser.run("return headwater.recommend({surface: 'hom'})")


def test_nothing_is_stored_before_consent(server: Site, pages: Pages, browser: Browser) -> None:
    pages.pages["/asks"] = PAGE.format(url=server.url, attributes='data-storage="consent"')
    browser.open(pages.origin + "/asks")
    browser.run("localStorage.clear(); sessionStorage.clear()")
    browser.open(pages.origin + "/asks")
    stored = "return [localStorage.length, sessionStorage.length]"
    assert browser.run(f"headwater.track('view', 'item-41'); await headwater.flush(); {stored}") == [0, 0]
    browser.run("headwater.consent(true)")
    visitor = browser.run("return localStorage.headwater").split()[0]
    assert ("view", "item-41") in {(kind, item) for kind, item, _ in events_of(server, visitor)}
    browser.open(pages.origin + "/asks")
    assert browser.run("return localStorage.headwater").split()[0] == visitor, "a consent is remembered"
    assert browser.run(f"headwater.consent(false); {stored}") == [0, 0]


def test_a_page_that_nobody_named_is_kept_out(server: Site, pages: Pages, browser: Browser) -> None:
    with Pages({"/": PAGE.format(url=server.url, attributes="")}) as stranger:
        browser.open(stranger.origin + "/")
        browser.said()
        browser.run("headwater.track('view', 'item-42'); await headwater.flush()")
        assert any("blocked by CORS policy" in line for line in browser.said())


def test_the_script_is_small_and_whole(server: Site) -> None:
    assert len(script()) < 4096
    first = server.http.get("/v1/headwater.js")
    assert (first.content, first.headers["content-type"]) == (script(), "text/javascript; charset=utf-8")
    again = server.http.get("/v1/headwater.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
