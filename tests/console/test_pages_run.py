"""The pages of the groups Run and Manage in a browser, on a live system."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from headwater.experiments import store
from headwater.features.plan import compile_plan
from headwater.registry.audit import read_audit
from headwater.registry.listing import gate_report
from headwater.registry.registry import Registry
from headwater.schema.config import load_config
from tests.console.conftest import ITEMS, Site
from tests.console.windows import PHONE, Windows, first_paint_ms
from tests.online.running import publish_ranker

PAGES = ("models", "experiments", "rules", "alerts", "configuration", "keys", "audit")
RULES = '[[rules]]\nname = "less"\nfilter = "id != \'item-1\'"\n'
SLOW_MS = 120_000  # processes start beside other tests


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_sound(windows: Windows, record_property: Callable[[str, object], None], path: str) -> None:
    page = windows.open(f"/console/{path}")
    record_property("first_paint_ms", first_paint_ms(page))
    windows.assert_sound(page, f"{path}-light")
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    windows.assert_sound(page, f"{path}-dark")


def test_a_bundle_is_looked_at_compared_rolled_back_and_promoted_again(windows: Windows, site: Site) -> None:
    page = windows.open("/console/models")
    registry, plan = Registry(site.data / "models"), page.locator(".lead code").inner_text()
    before = registry.current(plan)
    assert before is not None
    page.get_by_role("button", name="Roll back", exact=True).click()
    _confirm(page, "rollback", "it shows worse lists")
    expect(page.locator("#toasts")).to_contain_text("serves again", timeout=SLOW_MS)
    expect(page.get_by_role("button", name=f"Promote {before}")).to_be_visible()
    page.get_by_role("button", name=f"Promote {before}").click()
    page.get_by_label("Do not ask it").check()
    _confirm(page, "promote", "it was the data")
    expect(page.locator("#toasts")).to_contain_text(f"{before} serves", timeout=SLOW_MS)
    assert registry.current(plan) == before
    page.get_by_role("link", name=before).click()
    expect(page.get_by_role("heading", name=before)).to_be_visible()
    windows.assert_sound(page, "bundle-light")


def test_a_bundle_is_promoted_through_the_gate_serves_and_is_rolled_back(windows: Windows, site: Site) -> None:
    registry, plan = Registry(site.data / "models"), compile_plan(site.config).hash
    before = registry.current(plan)
    # the gate asks at most a tenth of the clicks, and at least 50; what every item has as many of, popularity alone cannot tell
    clicks = [
        {"user": f"visitor-{n % 12}", "item": f"item-{(7 * n + n // ITEMS) % ITEMS}", "type": "click"}
        for n in range(600)
    ]
    site.ingest("/v1/events", clicks)
    # the model that serves, published once more: the gate finds it as good
    again = publish_ranker(site.data, site.config, seed=2, created_ms=1_772_200_000_000)
    registry.rollback(plan)
    assert registry.current(plan) == before == site.current
    page = windows.open("/console/models")
    page.get_by_role("button", name=f"Promote {again}").click()
    assert page.get_by_label("Ask it first").is_checked()
    _confirm(page, "promote", "it learnt today's events")
    _until_serves(page, site, again)
    expect(page.get_by_role("button", name=f"Promote {before}")).to_be_visible(timeout=SLOW_MS)
    row = page.get_by_role("row").filter(has_text=again)
    expect(row).to_contain_text("serves")
    expect(row).to_contain_text("passed")
    report = gate_report(registry, again)
    assert report is not None
    assert (report.against, report.passed) == (before, True)
    assert report.held_out is not None
    assert report.held_out.questions >= 50
    page.get_by_role("button", name="Roll back", exact=True).click()
    _confirm(page, "rollback", "it shows worse lists")
    _until_serves(page, site, site.current)
    expect(page.get_by_role("button", name=f"Promote {again}")).to_be_visible(timeout=SLOW_MS)
    back, forth = read_audit(site.data, 2)
    assert (forth.action, forth.subject, forth.by) == ("bundle.promote", again, "console")
    assert forth.reason.startswith("it learnt today's events; the gate lets it pass: ndcg@10 ")
    assert f"over {before} on " in forth.reason
    assert (back.action, back.subject, back.by, back.reason) == (
        "bundle.rollback",
        again,
        "console",
        "it shows worse lists",
    )
    page.goto("/console/audit")
    expect(page.locator("main")).to_contain_text("it learnt today's events")


def test_rules_are_checked_as_typed_tried_and_published(windows: Windows, site: Site) -> None:
    page = windows.open("/console/rules")
    text = page.get_by_label("[[rules]] in TOML")
    before, file = text.input_value(), site.config_path.read_text()
    text.fill(RULES.replace("id", "ide"))
    expect(page.locator("#findings")).to_contain_text('There is no field "ide"', timeout=SLOW_MS)
    text.fill(RULES)
    expect(page.locator("#findings")).to_contain_text("the linter finds nothing", timeout=SLOW_MS)
    page.get_by_role("button", name="Preview").click()
    expect(page.locator("#preview")).to_contain_text("made once more", timeout=SLOW_MS)
    windows.assert_sound(page, "rules-preview-light")
    page.get_by_role("button", name="Publish").click()
    _confirm(page, "publish", "a recall")
    expect(page.locator("#toasts")).to_contain_text("are in service", timeout=SLOW_MS)
    expect(page.locator("#past")).to_contain_text("a recall")
    assert [rule.name for rule in load_config(site.config_path).rules] == ["less"]
    assert site.http.get("/healthz").json()["rules"] in page.locator("#stands").inner_text()
    text.fill(before)
    page.get_by_role("button", name="Publish").click()
    _confirm(page, "publish", "it is over")
    expect(page.locator("#toasts")).to_contain_text("(none) are in service", timeout=SLOW_MS)
    expect(page.locator("#past")).to_contain_text("it is over", timeout=SLOW_MS)
    assert site.config_path.read_text().rstrip() == file.rstrip()


def test_a_control_is_moved_and_taken_back(windows: Windows) -> None:
    page = windows.open("/console/alerts")
    page.locator("#controls").get_by_role("button", name="Freeze").click()
    _confirm(page, "freeze", "labels are late")
    expect(page.locator("#controls")).to_contain_text("labels are late", timeout=SLOW_MS)
    expect(page.locator("#changes")).to_contain_text("labels are late", timeout=SLOW_MS)
    page.locator("#changes").get_by_role("button", name="Undo").first.click()
    _confirm(page, "undo", "they are there")
    expect(page.locator("#controls")).to_contain_text("bundles that pass the gate may serve", timeout=SLOW_MS)


def test_an_experiment_is_started_and_judged(windows: Windows, site: Site) -> None:
    page = windows.open("/console/experiments")
    page.get_by_role("button", name="New experiment").click()
    expect(page.locator("#create-check")).to_contain_text("fine", timeout=SLOW_MS)
    text = page.get_by_label("Definition in TOML").input_value()
    page.get_by_label("Definition in TOML").fill(text.replace("share = 0.1", "share = 1.0"))
    page.locator("#create-reason").fill("more candidates")
    page.locator("#create").get_by_role("button", name="Create").click()
    page.get_by_role("link", name="wide").click(timeout=SLOW_MS)
    expect(page.locator("html[data-ready]")).to_be_attached(timeout=SLOW_MS)  # a button does nothing before that
    page.get_by_role("button", name="Start", exact=True).click()
    _confirm(page, "start", "go")
    expect(page.locator("#live")).to_contain_text("running", timeout=SLOW_MS)
    assert store.read_experiment(site.data, "wide").is_running
    page.goto("/console/experiments/run/wide?window=10m")
    expect(page.locator("#report")).to_contain_text("As of", timeout=SLOW_MS)
    windows.assert_sound(page, "experiment-light")
    page.get_by_role("button", name="Stop", exact=True).click()
    _confirm(page, "stop", "tried")
    expect(page.locator("#live")).to_contain_text("console: tried", timeout=SLOW_MS)


def _until_serves(page: Page, site: Site, version: str) -> None:
    """Wait until lists are made with ``version``: what a page says of a change is gone after some seconds."""
    until = time.monotonic() + 1e-3 * SLOW_MS
    while (serves := site.recommend(user="user-1", k=3)["model"]) != version:
        said = page.locator("#toasts .bad").all_inner_texts()
        assert not any(said), said
        assert time.monotonic() < until, f"{serves} still serves"
        page.wait_for_timeout(100)


def _confirm(page: Page, dialog: str, reason: str) -> None:
    """Answer the question before a change."""
    page.locator(f"#{dialog}-reason").fill(reason)
    page.locator(f"#{dialog} button[type=submit]").click()
