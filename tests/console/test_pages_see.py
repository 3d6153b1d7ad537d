"""Overview, playground and Why in a browser, on a live system."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, expect

from headwater.log.lmdb import LmdbLog
from headwater.log.record import FLAG_TRIAL, Kind
from headwater.monitoring.alerts import AlertState
from headwater.monitoring.behind import BEHIND
from headwater.monitoring.history import HISTORY_FILE, History
from headwater.monitoring.samples import Sample, sample
from headwater.monitoring.standing import write_standing
from headwater.registry.audit import read_audit
from tests.console.conftest import Site
from tests.console.windows import DESKTOP, PHONE, Theme, Windows, first_paint_ms
from tests.online.running import START_S

LOOKS: list[tuple[Theme, tuple[int, int]]] = [("light", DESKTOP), ("dark", PHONE)]


@pytest.mark.parametrize(("theme", "size"), LOOKS)
def test_the_overview_is_sound_and_alive(
    windows: Windows, site: Site, theme: Theme, size: tuple[int, int], record_property: Callable[[str, object], None]
) -> None:
    page = windows.open("/console", theme=theme, size=size)
    record_property("first_paint_ms", first_paint_ms(page))
    site.recommend(user="user-1", k=4)
    expect(page.locator(".verdict").nth(1)).to_contain_text("P50")  # it refreshed by itself
    expect(page.locator(".planes")).to_contain_text("Event log")
    windows.assert_sound(page, f"overview-{theme}")


@pytest.fixture
def remembered(site: Site) -> Iterator[None]:
    """What a monitor would have written within the last minute."""
    now_ms = time.time_ns() // 1_000_000
    history = History(site.data / HISTORY_FILE)
    for step in range(6):
        history.append(now_ms - 60_000 + 10_000 * step, _scraped(float(step)))
    history.close()
    slow = AlertState(alert="slow-answers", severity="warning", state="firing", since_ms=now_ms - 90_000, value=0.25)
    write_standing(site.data, now_ms, [slow, AlertState(alert="errors", severity="critical", since_ms=now_ms)])
    yield
    shutil.rmtree(site.data / HISTORY_FILE.parent)


@pytest.mark.usefixtures("remembered")
def test_the_overview_remembers_what_the_monitor_wrote(windows: Windows) -> None:
    page = windows.open("/console?span=15+min")
    for name in ("latency", "freshness", "quality", "tiers"):
        expect(page.locator(f'[data-chart*="{name}"] canvas')).to_have_count(1)
    expect(page.locator("#news")).to_contain_text("slow-answers")
    expect(page.locator("#news")).not_to_contain_text("errors")
    expect(page.locator("#news")).to_contain_text("The monitor catches up: 2 h of the log are left for drift")
    expect(page.locator(".planes")).to_contain_text("2 h behind")
    expect(page.locator(".verdict").nth(2)).to_contain_text("12.5%")
    windows.assert_sound(page, "overview-charts")


def test_a_visitor_acts_and_sees_what_it_changes(windows: Windows, site: Site) -> None:
    tried = _tried(site)
    page = windows.open("/console/playground?k=6")
    expect(page.locator(".tile")).to_have_count(6)
    clicked = page.locator(".tile strong").nth(2).inner_text()
    page.locator(".tile").nth(2).get_by_role("button", name="click").click()
    expect(page.locator(".fresh .big")).to_contain_text("ms")
    expect(page.locator(".recent").first).to_contain_text(clicked)
    assert clicked not in page.locator(".tile strong").all_inner_texts()
    expect(page.locator("#stage table")).to_contain_text("user_")
    assert [entry.action for entry in read_audit(site.data, 1)] == ["playground.event"]
    assert read_audit(site.data, 1)[0].subject == "a visitor of the playground"
    page.locator("#way").select_option(f"bundle:{site.former}")
    page.get_by_role("button", name="Compare").click()
    expect(page.locator(".sides ol")).to_have_count(2)
    windows.assert_sound(page, "playground-light")

    until = time.monotonic() + START_S  # lists reach the log a moment after they were given
    while (found := _tried(site) - tried)[Kind.SERVED] < 2:
        assert time.monotonic() < until, found
        time.sleep(0.1)
    assert found == {Kind.EVENT: 1, Kind.SERVED: 2}

    user = page.locator("#user").input_value()
    page.get_by_role("button", name="Forget this visitor").click()
    page.wait_for_function("user => document.querySelector('#user').value !== user", arg=user)
    be(page, user)
    expect(page.locator("#stage")).to_contain_text("Nothing yet: a new visitor")


def test_who_looks_at_a_user_leaves_no_trace_until_they_say_so(windows: Windows, site: Site) -> None:
    page = windows.open("/console/playground?number=5&k=5", theme="dark", size=PHONE)
    before = _answered(site)
    be(page, "user-3")
    expect(page.locator(".tile")).to_have_count(5)
    expect(page.locator(".recent").first).to_contain_text("purchase")
    expect(page.get_by_role("button", name="click").first).to_be_disabled()
    windows.assert_sound(page, "playground-dark")
    assert _answered(site) == before
    page.get_by_role("button", name="Act as this user").click()
    page.get_by_role("button", name="Act as them").click()
    expect(page.get_by_role("button", name="click").first).to_be_enabled()
    assert _answered(site) == before + 1


def test_three_clicks_from_the_first_page_to_why_an_item_was_recommended(windows: Windows) -> None:
    page = windows.open("/console")
    page.locator("#news").get_by_role("link", name="Why list").first.click()  # one: the first item is open already
    _wait_explained(page)
    expect(page.locator(".whylist > li").first).to_contain_text("effect", ignore_case=True)
    expect(page.locator(".funnel")).to_contain_text("Listed")
    windows.assert_sound(page, "why-light")


def test_why_not_an_item_and_what_another_bundle_gives(windows: Windows, site: Site) -> None:
    page = windows.open(f"/console/why/{site.lists[2]}?item=item-hidden&bundle={site.former}", theme="dark", size=PHONE)
    _wait_explained(page)
    expect(page.locator("#fate")).to_contain_text("not available")
    expect(page.locator("#explained .whylist > li")).to_have_count(8)
    expect(page.locator("#other")).to_contain_text(site.former)
    expect(page.locator("#item")).to_have_value("item-hidden")
    windows.assert_sound(page, "why-dark")


def test_what_cannot_be_explained_says_why(windows: Windows) -> None:
    page = windows.open("/console/why")
    expect(page.locator("#newest tbody tr").first).to_contain_text("home")
    windows.assert_sound(page, "why-newest")
    page.goto("/console/why/nothing-like-it")
    expect(page.locator("#explained")).to_contain_text("32 hexadecimal digits")
    windows.assert_sound(page)


def test_a_wrong_question_of_the_playground_says_what_is_wrong(windows: Windows) -> None:
    page = windows.open("/console/playground?number=5&k=2&surface=nowhere")
    expect(page.locator(".tile")).to_have_count(2)
    for way, said in (("sideways", "There is no way"), ("bundle:20200101T000000000Z-000000000000", "cannot be used")):
        answer = page.request.get("/console/playground/compare", params={"number": 5, "way": way})
        assert (answer.status, said in answer.text()) == (200, True), answer.text()


def _tried(site: Site) -> Counter[int]:
    """Records of the log that are marked as trials, by kind."""
    log, found, after = LmdbLog(site.data / "log", readonly=True), Counter[int](), 0
    while (block := log.read(after)) is not None:
        found.update(block.records["kind"][(block.records["flags"] & FLAG_TRIAL) != 0].tolist())
        after = block.last_offset
    log.close()
    return found


def be(page: Page, user: str) -> None:
    """Be ``user`` in the playground."""
    page.get_by_label("Be the user").fill(user)
    page.get_by_role("button", name="See the list").click()
    expect(page.locator(".notice code, .notice dialog")).to_contain_text([user])
    assert user not in page.url


def _wait_explained(page: Page) -> None:
    """A server gives an explanation half a minute, which beside other work may be too short: the page then offers to look again."""
    until, again = time.monotonic() + START_S, page.get_by_role("button", name="Look again")
    while not page.locator(".whylist").count():
        assert time.monotonic() < until, page.locator("#explained").inner_text()
        if again.count():
            again.click()
        page.wait_for_timeout(200)


def _answered(site: Site) -> int:
    text: str = site.http.get("/metrics").text
    (line,) = [
        line for line in text.splitlines() if line.startswith('headwater_answers_total{surface="home",tier="0"}')
    ]
    return int(float(line.split()[1]))


def _scraped(step: float) -> list[Sample]:
    """What a monitor reads of a server at one moment: ten answers more at each step, all of them between 5 and 10 ms."""
    slow, came = {"le": "+Inf", "status": "200", "route": "/v1/recommend"}, 10.0 * step
    return [
        sample("headwater_request_seconds_bucket", 0.0, **{**slow, "le": "0.005"}),
        sample("headwater_request_seconds_bucket", came, **{**slow, "le": "0.01"}),
        sample("headwater_request_seconds_bucket", came, **slow),
        sample("headwater_token_wait_seconds_bucket", came, le="0.001"),
        sample("headwater_token_wait_seconds_bucket", came, le="+Inf"),
        sample("headwater_answers_total", came, tier="0", surface="home"),
        sample("headwater_answers_total", came / 10.0, tier="1", surface="home"),
        sample("headwater_online_ctr", 0.125, surface="home", by="all", group=""),
        sample("headwater_online_lists", 50.0, surface="home", by="all", group=""),
        sample(BEHIND, 7_200.0, watch="drift"),
    ]
