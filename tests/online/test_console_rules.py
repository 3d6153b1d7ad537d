"""The rules of the console: checked as typed, written into the configuration file, taken out again when no server takes them up."""

from __future__ import annotations

from pathlib import Path

import pytest

from headwater.features.plan import compile_plan
from headwater.online import console_rules
from headwater.online.console_rules import ConsoleRules, item_rule, rules_text
from headwater.registry.audit import read_audit
from headwater.schema.config import load_config
from headwater.schema.errors import ConfigurationError, UnavailableError
from headwater.schema.rules import Rule, encoded

NOW = 1_700_000_000_000
ONE = '[[rules]]\nname = "one"\nfilter = "price < 50"\n'
HEAD = "# kept\n[serving]\nport = 1234\n\n"


def _console(folder: Path) -> ConsoleRules:
    path = folder / "headwater.toml"
    if not path.exists():
        path.write_text(HEAD + ONE)
    config = load_config(path)
    return ConsoleRules(folder, path, compile_plan(config), lambda: load_config(path), lambda: NOW, lambda: NOW)


@pytest.fixture
def taking(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A server that takes up whatever it is asked to; the versions that it was asked for."""
    asked: list[str] = []

    def publish(_: Path, version: str, __: float) -> str:
        asked.append(version)
        return ""

    monkeypatch.setattr(console_rules, "publish", publish)
    return asked


def test_findings_stand_at_the_line_of_their_rule(tmp_path: Path) -> None:
    rules = _console(tmp_path)
    checked = rules.check(
        ONE + '\n[[rules]]\nname = "two"\nfilter = "prize < 50"\n\n[[rules]]\nname = "one"\nfilter = "true"\n'
    )
    assert any(each.line == 0 and "twice" in each.message for each in checked.errors)
    checked = rules.check(ONE + '\n[[rules]]\nname = "two"\nfilter = "prize < 50"\n')
    assert [(each.line, each.rules) for each in checked.errors] == [(5, ("two",))]
    checked = rules.check(ONE)
    assert not checked.findings
    assert checked.version == rules.text().version
    assert rules.check("[[rules]\n").errors[0].line == 1


def test_what_is_published_can_be_gone_back_to(tmp_path: Path, taking: list[str]) -> None:
    rules = _console(tmp_path)
    before = rules.text()
    two = ONE.replace("one", "two")
    version = rules.publish(two, by="console", reason="trying", expect=before.version)
    assert taking == [version]
    assert (tmp_path / "headwater.toml").read_text() == HEAD + two
    kept = rules.publications()
    assert [(each.by, each.version, each.text) for each in kept] == [
        ("console", version, two), ("file", before.version, ONE),
    ]  # fmt: skip
    entry = read_audit(tmp_path)[0]
    assert (entry.action, entry.by, entry.reason) == ("rules.publish", "console", "trying")
    assert entry.undo is not None
    assert entry.undo.before == {"version": before.version}
    with pytest.raises(ConfigurationError, match="changed since"):
        rules.publish(ONE, by="console", reason="", expect=before.version)
    with pytest.raises(ConfigurationError, match="prize"):
        rules.publish('[[rules]]\nname = "x"\nfilter = "prize < 1"\n', by="console", reason="")
    assert (tmp_path / "headwater.toml").read_text() == HEAD + two


def test_what_no_server_takes_up_is_taken_out_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = _console(tmp_path)
    with pytest.raises(UnavailableError):  # there is none at all
        rules.publish(ONE.replace("one", "two"), by="console", reason="")
    assert (tmp_path / "headwater.toml").read_text() == HEAD + ONE
    monkeypatch.setattr(console_rules, "publish", lambda *_: "it reads another file")
    monkeypatch.setattr(console_rules, "read_again", lambda _: "")
    with pytest.raises(ConfigurationError, match="it reads another file"):
        rules.publish(ONE.replace("one", "two"), by="console", reason="")
    assert (tmp_path / "headwater.toml").read_text() == HEAD + ONE
    assert rules.publications() == []


def test_items_are_hidden_boosted_buried_and_pinned_by_rules(tmp_path: Path, taking: list[str]) -> None:
    rules = _console(tmp_path)
    until = NOW + 86_400_000
    hidden = rules.act_on_item("it's", "hide", by="console", reason="recall", until_ms=until)
    rules.act_on_item("a", "boost", by="console", reason="", factor=3.0)
    rules.act_on_item("a", "pin", by="console", reason="", position=2, surfaces=["home"])
    [rule] = rules.rules_about("it's")
    assert (rule.name, rule.filter, rule.until_ms) == (hidden, 'id != "it\'s"', until)
    boosted, pinned = rules.rules_about("a")
    assert boosted.boost is not None
    assert boosted.boost.factor == 3.0
    assert pinned.pin is not None
    assert pinned.pin.position == 2
    assert pinned.surfaces == ("home",)
    rules.act_on_item("a", "boost", by="console", reason="", factor=4.0)  # in the place of the one before
    assert [r.boost.factor for r in rules.rules_about("a") if r.boost] == [4.0]
    rules.withdraw(hidden, by="console", reason="")
    assert rules.rules_about("it's") == []
    assert len(rules.rules_about("a")) == 2
    assert rules.rules_about("price") == []
    with pytest.raises(ConfigurationError, match="no rule"):
        rules.withdraw(hidden, by="console", reason="")
    with pytest.raises(ConfigurationError, match="cannot name"):
        item_rule("'\"", "hide")
    text = (tmp_path / "headwater.toml").read_text()
    assert text.startswith(HEAD + ONE)
    config = load_config(tmp_path / "headwater.toml")
    assert rules_text(config.rules) == rules_text(parsed_again(rules_text(config.rules), tmp_path))


def parsed_again(text: str, folder: Path) -> tuple[Rule, ...]:
    """The rules of a file that holds ``text`` alone."""
    path = folder / "again.toml"
    path.write_text(text)
    found = load_config(path).rules
    assert all(encoded(rule) for rule in found)
    return found
