"""The pages of the group "Look into" in a browser, on a live system: users, items, the map of the catalogue, features."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect

from headwater.registry.audit import AuditEntry, read_audit
from tests.console.conftest import Site
from tests.console.windows import DESKTOP, PHONE, Theme, Windows, first_paint_ms

PATIENCE_MS = 120_000  # the machine that runs tests does other things meanwhile


def _await(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_MS / 1e3
    while not condition():
        assert time.monotonic() < until, "it did not come true"
        time.sleep(0.02)


def _loaded(page: Page) -> None:
    """Wait until all parts of the page are there and its charts are drawn."""
    expect(page.locator("[hx-trigger='load']")).to_have_count(0, timeout=PATIENCE_MS)
    for chart in page.locator("[data-chart]").all():
        expect(chart).to_have_attribute("data-state", "drawn", timeout=PATIENCE_MS)


def _page_of(windows: Windows, user: str) -> Page:
    page = windows.open("/console/users")
    find(page, user)
    return page


def find(page: Page, user: str) -> None:
    """From the page of users to that of ``user``."""
    page.get_by_label("Id, as your systems send it").fill(user)
    page.get_by_role("button", name="Look").click()
    expect(page.locator("h1")).not_to_have_text("Users", timeout=PATIENCE_MS)
    assert user not in page.url


@pytest.mark.parametrize(
    ("path", "name", "theme", "size"),
    [
        ("/console/users", "users", "light", PHONE),
        ("", "user", "light", DESKTOP),
        ("", "user", "dark", PHONE),
        ("/console/items?sort=item_click_6h&text=topic%203", "items", "dark", DESKTOP),
        ("/console/items/item-3", "item", "light", DESKTOP),
        ("/console/items/item-3", "item", "dark", PHONE),
        ("/console/map", "map", "dark", DESKTOP),
        ("/console/features?text=click", "features", "light", DESKTOP),
        ("/console/features/item_click_rate", "feature", "dark", PHONE),
    ],
)
def test_the_page_is_sound(
    windows: Windows,
    record_property: Callable[[str, object], None],
    path: str,
    name: str,
    theme: Theme,
    size: tuple[int, int],
) -> None:
    page = windows.open(path or "/console/users", theme=theme, size=size)
    if not path:
        find(page, "user-3")
    _loaded(page)
    record_property("first_paint_ms", first_paint_ms(page))  # what it may be is asked by tests.console.at_scale
    windows.assert_sound(page, f"{name}-{theme}-{size[0]}")


def test_a_user_is_found_with_history_profile_state_and_lists(windows: Windows, site: Site) -> None:
    page = windows.open("/console/users")
    _loaded(page)
    assert page.locator("main tbody tr").count() >= 12  # those who were active lately
    page.get_by_label("Id, as your systems send it").fill("nobody")
    page.get_by_role("button", name="Look").click()
    expect(page.get_by_role("alert")).to_contain_text("Nobody is known by that id")
    page.get_by_label("Id, as your systems send it").fill("user-5")
    page.get_by_role("button", name="Look").click()
    expect(page.locator("h1")).to_have_text(re.compile(r"User [0-9a-f]{16}"))
    _loaded(page)
    assert "user-5" not in page.content()  # ids are in no page that may be bookmarked, and in no log of requests
    past = page.locator("#past")
    for kind, number in (("click", 15), ("purchase", 45)):
        row = past.locator("tr", has_text=re.compile(rf"{kind}.*Number {number} of"))
        expect(row.get_by_role("link").first).to_have_attribute("href", f"/console/items/item-{number}")
    expect(past.locator(f"a[href='/console/why/{site.lists[5]}']")).to_have_count(1)
    expect(past).to_contain_text("All of the log was looked at")
    expect(page.locator("#profile")).to_contain_text("countryDE")
    expect(page.get_by_role("row", name=re.compile(r"^user_count 3 events"))).to_have_count(1)  # two clicks, a purchase
    expect(page.locator("main")).to_contain_text("country=DE")


def test_erasing_takes_the_id_and_leaves_a_certificate_and_an_entry_that_names_nobody(
    windows: Windows, site: Site
) -> None:
    name = "somebody/who wants@to.go"
    site.ingest("/v1/users", {"id": name, "country": "DE"})
    site.reflected(site.ingest("/v1/events", [{"user": name, "item": "item-21", "type": "click"}]))
    page = _page_of(windows, name)
    _loaded(page)
    page.get_by_role("button", name="Erase this user …").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("To confirm, type the user's id").fill("user-1")
    dialog.get_by_label("Why").fill("they asked us to")
    dialog.get_by_role("button", name="Erase").click()
    expect(page.locator("#toasts")).to_contain_text("That is not the id of this user")
    dialog.get_by_label("To confirm, type the user's id").fill(name)
    dialog.get_by_label("Why").fill(f"{name} asked us to")
    dialog.get_by_role("button", name="Erase").click()
    expect(page.locator("#toasts")).to_contain_text("Leave the user's id out of the reason")
    assert not [entry for entry in read_audit(site.data) if entry.action == "user.erase"]
    dialog.get_by_label("Why").fill("request 4711")
    dialog.get_by_role("button", name="Erase").click()
    expect(page.locator("#erased")).to_contain_text("Certificate", timeout=PATIENCE_MS)
    expect(page.locator("#toasts")).to_contain_text("The user is erased")
    figures = {
        each.locator("dt").inner_text(): each.locator("dd").first.inner_text()
        for each in page.locator("#erased .figure").all()
    }
    assert (figures["Erased"], figures["Recoverable"], figures["Rows of state left"]) == ("1", "0", "0")
    (entry,) = [entry for entry in read_audit(site.data) if entry.action == "user.erase"]
    assert (entry.subject, entry.reason, entry.by) == ("a user", "request 4711", "console")
    assert name not in (site.data / "audit.jsonl").read_text()
    assert name not in site.log_path.read_text()
    assert site.http.get(page.url).status_code == 404
    page.goto("/console/users")
    page.get_by_label("Id, as your systems send it").fill(name)
    page.get_by_role("button", name="Look").click()
    expect(page.get_by_role("alert")).to_contain_text("Nobody is known by that id")


def test_an_item_is_hidden_shown_and_deleted_with_a_reason(windows: Windows, site: Site) -> None:
    name = "an item/with a slash?"
    site.reflected(site.ingest("/v1/items", [{"id": name, "title": "For a moment", "categories": ["topic-9"]}]))

    def is_listed() -> bool:
        return name in {item["id"] for item in site.recommend(k=100, trace=True)["items"]}

    assert is_listed()
    page = windows.open(f"/console/items/{quote(name, safe='')}")
    head = page.locator("#item-head")
    expect(head.locator("h1")).to_have_text("For a moment")

    def change(action: str) -> AuditEntry:
        page.get_by_role("button", name=f"{action} …").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_role("button", name=action).click()
        expect(dialog).to_be_visible()  # without a reason the browser sends nothing
        dialog.get_by_label("Why").fill(f"to {action.lower()} it")
        dialog.get_by_role("button", name=action).click()
        expect(dialog).to_be_hidden()
        return read_audit(site.data, 1)[0]

    entry = change("Hide")
    assert (entry.action, entry.subject, entry.reason, entry.by) == ("item.hide", name, "to hide it", "console")
    expect(head.locator(".badge")).to_have_text("hidden")
    _await(lambda: not is_listed())
    assert change("Show").action == "item.show"
    expect(head.locator(".badge")).to_have_text("shown")
    _await(is_listed)
    assert change("Delete").action == "item.delete"
    expect(head.locator(".badge")).to_have_text("deleted")
    _await(lambda: not is_listed())


def test_an_item_is_pinned_for_a_while_and_the_rule_withdrawn(windows: Windows, site: Site) -> None:
    def first() -> str:
        found: str = site.recommend(user="user-2", k=5, trace=True)["items"][0]["id"]
        return found

    name = "item-58"
    assert first() != name
    page = windows.open(f"/console/items/{name}")
    rules = page.locator("#item-rules")
    expect(rules).to_contain_text("it stands where it ranks")
    rules.get_by_role("button", name="Pin …").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("For how many hours").fill("2")
    dialog.get_by_label("Why").fill("the launch")
    dialog.get_by_role("button", name="Pin").click()
    expect(rules).to_contain_text("pinned at place 1", timeout=PATIENCE_MS)
    expect(page.locator("#toasts")).to_contain_text(f"{name} is pinned")
    _await(lambda: first() == name)
    windows.assert_sound(page)
    rules.get_by_role("button", name="Withdraw …").click()
    dialog.get_by_label("Why").fill("it is over")
    dialog.get_by_role("button", name="Withdraw").click()
    expect(rules).to_contain_text("it stands where it ranks", timeout=PATIENCE_MS)
    _await(lambda: first() != name)
    assert {entry.reason for entry in read_audit(site.data, 10)} >= {"the launch", "it is over"}


def test_the_catalogue_is_searched_filtered_sorted_and_paged(site: Site) -> None:
    def items(**query: object) -> list[str]:
        answer = site.http.get("/console/items", params={name: str(value) for name, value in query.items()})
        assert answer.status_code == 200
        return re.findall(r'<div class="with-cover">.*?href="/console/items/([^"]+)"', answer.text, re.DOTALL)

    assert len(items(sort="id")) == 50
    both = [*items(sort="id", order="rising"), *items(sort="id", order="rising", start=50)]
    assert both == sorted(both)
    assert {f"item-{number}" for number in range(60)} <= set(both)
    assert set(items(text="OF TOPIC 7", category="topic-7")) == {f"item-{number}" for number in range(7, 60, 10)}
    assert items(category="no such thing") == []
    assert "item-hidden" in items(status="hidden")
    clicked = items(sort="item_click_3d")
    assert set(clicked[:24]) == {f"item-{(user + 10 * step) % 60}" for user in range(12) for step in (1, 3)}
    assert items(text="item-59") == ["item-59"]
    for path in ("/console/items/never%20heard%20of", "/console/users/0123456789abcdef", "/console/features/nothing"):
        assert site.http.get(path).status_code == 404


def test_an_item_page_tells_what_became_of_it(windows: Windows, site: Site) -> None:
    site.ingest("/v1/events", [{"user": "user-1", "item": "item-15", "type": "skip"}])
    page = windows.open("/console/items/item-15")
    _loaded(page)
    figures = {
        each.locator("dt").inner_text(): each.locator("dd").first.inner_text()
        for each in page.locator("#item-past .figure").all()
    }
    assert int(figures["skip"]) >= 1
    assert int(figures["Positive events"]) >= 1
    expect(page.locator("main")).to_contain_text("cosine of content vectors")
    alike = page.locator("h3", has_text="content").locator("xpath=following-sibling::div[1]")
    expect(alike.get_by_role("link").first).to_have_text(re.compile(r"of topic 5$"))


def test_a_point_of_the_map_leads_to_its_item(windows: Windows) -> None:
    page = windows.open("/console/map")
    _loaded(page)
    expect(page.locator("main")).to_contain_text("principal components")
    at, name = page.evaluate(
        """() => {
          const chart = echarts.getInstanceByDom(document.querySelector("[data-chart] .canvas"));
          const point = chart.getOption().series.at(-1).data.at(-1);
          return [chart.convertToPixel({ xAxisIndex: 0, yAxisIndex: 0 }, point.value), point.href];
        }"""
    )
    box = page.locator("[data-chart] .canvas").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + at[0], box["y"] + at[1])
    page.wait_for_url("**/console/items/*")
    assert name.startswith("/console/items/item-")


def test_features_are_searched_while_one_types(windows: Windows) -> None:
    page = windows.open("/console/features")
    _loaded(page)
    everything = page.locator("#spread tbody tr").count()
    page.get_by_role("searchbox").press_sequentially("co-visits")
    expect(page.locator("#spread tbody tr").first).to_contain_text("co_last")
    assert 0 < page.locator("#spread tbody tr").count() < everything
    page.get_by_role("link", name="co_last").click()
    expect(page.locator("h1")).to_have_text("co_last")
    expect(page.locator("main")).to_contain_text("At default")
