"""Business rules in a running system: every action on real answers, the linter on what was served."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headwater.cli.options import EXIT_CHECK_FAILED, EXIT_INPUT
from headwater.online.rules import taken
from headwater.schema.config import load_config
from tests.online.running import CONFIG, PATIENCE_S, Running, catalogue
from tests.online.test_flip import Watcher

RULES = """
[[rules]]
name = "keep"
filter = "category != 'topic-3'"

[[rules]]
name = "lift"
surfaces = ["home"]
boost = {where = "category == 'topic-5'", factor = 100.0}

[[rules]]
name = "first"
when = "context.country == 'NL'"
pin = {item = "item-44", position = 1}

[[rules]]
name = "variety"
surfaces = ["cart"]
cap = {by = "category", at_most = 1}

[[rules]]
name = "empty"
surfaces = ["bare"]
filter = "price > 5"
"""
SURFACES = "".join(f'[[surfaces]]\nname = "{name}"\n' for name in ("home", "cart", "bare"))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    config = CONFIG.replace("[serving]", '[ranker]\nkind = "none"\n\n[serving]') + SURFACES + RULES
    with Running(tmp_path_factory.mktemp("shop"), config) as site:
        site.ingest("/v1/users", {"id": "nina", "country": "NL"})
        click = {"user": "nina", "item": "item-7", "type": "click", "attributes": {"country": "NL"}}
        site.ingest("/v1/items", catalogue(50))
        site.reflected(site.ingest("/v1/events", click))
        yield site


def topics(answer: dict[str, Any]) -> list[str]:
    """The category of each item, as ``catalogue`` gave it."""
    return [f"topic-{int(item['id'].removeprefix('item-')) % 10}" for item in answer["items"]]


def command(site: Running, *words: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "headwater.cli.main", *words, "--config", str(site.config_path)]
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


def test_filter_boost_pin_and_cap_act(shop: Running) -> None:
    home = shop.recommend(k=30)
    assert "topic-3" not in topics(home)
    assert topics(home)[:5] == ["topic-5"] * 5
    assert len(home["items"]) == 30

    dutch = shop.recommend(k=5, user="nina", context={"country": "NL"})
    assert dutch["items"][0]["id"] == "item-44"
    assert shop.recommend(k=5)["items"][0]["id"] != "item-44"

    cart = shop.recommend(k=30, surface="cart")
    assert sorted(topics(cart)) == sorted(f"topic-{n}" for n in range(10) if n != 3)
    assert any(reason.startswith('9 of 30 items: rule "keep" removed 5') for reason in cart["reasons"])
    assert any(reason.startswith('9 of 30 items: rule "variety" kept out') for reason in cart["reasons"])

    bare = shop.recommend(k=3, surface="bare")
    assert bare["items"] == []
    assert '0 of 3 items: rule "empty" removed 45 candidates' in bare["reasons"]


def test_what_rules_did_is_counted(shop: Running) -> None:
    shop.recommend(k=3, surface="bare")
    lines = shop.http.get("/metrics").text.splitlines()
    counted = {
        line.partition("{")[2].partition("}")[0]: float(line.split()[-1])
        for line in lines
        if line.startswith("headwater_rule_items_total{")
    }
    assert counted['rule="empty"'] >= 45
    assert {'rule="keep"', 'rule="lift"', 'rule="variety"'} <= set(counted)


def test_the_linter_asks_what_was_served(shop: Running, tmp_path: Path) -> None:
    for _ in range(3):
        shop.recommend(k=4, surface="cart")
    del_cart = shop.config_path.read_text() + (
        '[[rules]]\nname = "no-cart"\nsurfaces = ["cart"]\nfilter = "price > 5"\n'
        '[[rules]]\nname = "some"\nsurfaces = ["cart"]\nfilter = "category in [\'topic-1\', \'topic-2\']"\n'
    )
    changed = tmp_path / "headwater.toml"
    changed.write_text(del_cart)
    arguments = ["rules", "lint", "--json", "--config", str(changed), "--data", str(shop.data)]
    by_rule: dict[str, Any] = {}
    for _ in range(200):  # served lists reach the log a moment later
        done = subprocess.run(
            [sys.executable, "-m", "headwater.cli.main", *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr + done.stdout
        report = json.loads(done.stdout.splitlines()[-1])
        by_rule = {effect["rule"]: effect for effect in report["effects"]}
        if by_rule and by_rule["no-cart"]["acts"] >= 3:
            break
    assert report["errors"] == 0
    assert by_rule["no-cart"]["emptied"] == by_rule["no-cart"]["shortened"] == by_rule["no-cart"]["acts"] >= 3
    assert by_rule["some"]["touched"] >= 3
    assert by_rule["some"]["emptied"] == 0
    assert by_rule["lift"]["acts"] < by_rule["keep"]["acts"] == by_rule["keep"]["lists"]
    assert by_rule["keep"]["touched"] == 0, "what was served had passed it"


def test_show_prints_rules_and_fields(shop: Running) -> None:
    done = command(shop, "rules", "show")
    assert done.returncode == 0
    assert "variety\n  surfaces  cart\n  cap       by category, at_most 1\n" in done.stdout
    shown = json.loads(command(shop, "rules", "show", "--json").stdout)
    assert [rule["name"] for rule in shown["rules"]] == ["keep", "lift", "first", "variety", "empty"]
    assert {"name": "category", "kind": "texts", "of": "item", "optional": True, "about": "its categories"} in shown[
        "fields"
    ]


def test_rules_change_without_a_restart_and_bad_ones_do_not(shop: Running) -> None:
    """After the others of this file that ask this server."""

    def versions() -> set[str]:
        return {shop.http.get("/healthz").json()["rules"] for _ in range(3)}

    text, workers, before = shop.config_path.read_text(), shop.pids("api"), taken(shop.config).version
    assert versions() == {before}
    with Watcher(shop.url, keep=True) as watcher:
        shop.config_path.write_text(
            text.replace("category != 'topic-3'", "category != 'topic-4'").replace(
                'name = "bare"', 'name = "bare"\ndiversity = 0.5', 1
            )
        )
        done = command(shop, "rules", "publish", "--json")
        assert done.returncode == 0, done.stderr
        published = json.loads(done.stdout)
        assert published["in_service"]
        assert versions() == {published["version"]} == {taken(load_config(shop.config_path)).version}
        assert {"topic-3"} == {topic for topic in topics(shop.recommend(k=50)) if topic in ("topic-3", "topic-4")}
        lines = shop.http.get("/metrics").text.splitlines()
        assert f'headwater_rules_info{{version="{published["version"]}"}} 1.0' in lines
        assert f'headwater_rules_info{{version="{before}"}} 0.0' in lines

        shop.config_path.write_text(text + "[[rules]]\nname = 'never'\nfilter = 'price < 5 and price > 9'\n")
        refused = command(shop, "rules", "publish")
        assert refused.returncode == EXIT_INPUT, "the command reads the file first"
        shop.process.send_signal(signal.SIGHUP)  # the server, too, reads it before it takes it up
        until = time.monotonic() + PATIENCE_S
        while "rules_refused" not in shop.log_path.read_text():
            assert time.monotonic() < until, "nobody read the rules again"
            time.sleep(0.02)
        assert "`filter` can never hold" in shop.log_path.read_text()
        assert versions() == {published["version"]}
    assert watcher.seen
    assert watcher.failures == []
    assert shop.pids("api") == workers
    shop.wait_replaced("api", shop.kill("api"))
    shop.wait_ready()
    assert versions() == {published["version"]}, "a new process serves what was taken up last"


WRONG = "[[rules]]\nname = 'a'\nfilter = 'prise < 5'\n[[rules]]\nname = 'b'\nfilter = 'price < 5 and price > 9'\n"


def test_lint_without_data_says_what_it_could_not_ask(tmp_path: Path) -> None:
    (tmp_path / "headwater.toml").write_text(WRONG)
    arguments = [
        sys.executable,
        "-m",
        "headwater.cli.main",
        "rules",
        "lint",
        "--config",
        str(tmp_path / "headwater.toml"),
    ]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == EXIT_CHECK_FAILED
    assert 'error: rule "a": filter: column 1: There is no field "prise", did you mean "price"?' in done.stdout
    assert 'error: rule "b": `filter` can never hold, so it removes everything' in done.stdout
    assert "not asked of served lists: there is no state of this configuration to ask" in done.stdout
    assert done.stdout.endswith("2 rules, 2 errors, 0 warnings\n")


def test_a_server_does_not_start_with_rules_that_do_not_compile(tmp_path: Path) -> None:
    (tmp_path / "headwater.toml").write_text(CONFIG + WRONG)
    arguments = [sys.executable, "-m", "headwater.cli.main", "serve", "--config", str(tmp_path / "headwater.toml")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == EXIT_INPUT
    assert 'rule "a": filter: column 1: There is no field "prise", did you mean "price"?' in done.stderr
    assert not (tmp_path / "data").exists()
