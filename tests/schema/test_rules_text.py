"""Rules as text: taken out of a configuration file and put back without touching the rest."""

from __future__ import annotations

import pytest

from headwater.schema.config import parse_config
from headwater.schema.errors import ConfigurationError
from headwater.schema.rules_text import line_of, parse_rules, rules_in, with_rules
from headwater.schema.template import config_template

ONE = '[[rules]]\nname = "one"\nfilter = "price < 50"\n'
TWO = '[[rules]]\nname = "two"\n[rules.boost]\nwhere = "age < \'3d\'"\n'
TABLES = '# tables from elsewhere\n[[tables]]\nname = "quality"\npath = "q.parquet"\nentity = "item"\nkey = "id"\nvalid_from = "at"\n'


def test_the_rest_of_the_file_stays_as_it_was_byte_for_byte() -> None:
    head = 'data_dir = "data"  # here\n\n[serving]\nport = 1234\n\n'
    file = head + "# what the business wants\n" + ONE + "\n# lift\n" + TWO + "\n\n" + TABLES
    assert rules_in(file) == ONE + "\n# lift\n" + TWO
    assert with_rules(file, ONE) == head + "# what the business wants\n" + ONE + "\n\n" + TABLES
    assert with_rules(file, "") == head + "# what the business wants\n\n\n" + TABLES
    assert with_rules(file, rules_in(file)) == file


def test_rules_that_stand_in_several_places_come_together() -> None:
    file = ONE + "\n" + TABLES + "\n" + TWO
    assert rules_in(file) == ONE + "\n" + TWO
    changed = with_rules(file, TWO)
    assert changed == TWO + "\n" + TABLES + "\n"


def test_a_file_without_rules_gets_them_at_its_end() -> None:
    template = config_template()
    assert rules_in(template) == ""
    made = with_rules(template, ONE)
    assert made.startswith(template.rstrip())
    assert made.endswith("\n\n" + ONE)
    assert [rule.name for rule in parse_config(made).rules] == ["one"]
    assert with_rules(template, "# nothing\n") != made


def test_what_would_damage_the_file_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="inline array"):
        rules_in('rules = [{name = "one", filter = "price < 50"}]\n')
    hidden = f'[features]\nmodule = """\n{ONE}"""\n'
    with pytest.raises(ConfigurationError, match="told from the rest"):
        with_rules(hidden, TWO)
    with pytest.raises(ConfigurationError, match="`serving`"):
        with_rules("", ONE + "[serving]\nport = 1\n")


def test_each_rule_is_read_by_itself() -> None:
    wrong = '\n[[rules]]\nname = "three"\nbost = 1\n\n[[rules]]\nname = "four"\n'
    found = parse_rules(ONE + wrong)
    assert [(each.line, each.name, each.rule is None) for each in found] == [
        (1, "one", False), (5, "three", True), (9, "four", True),
    ]  # fmt: skip
    assert "did you mean `boost`" in found[1].problem
    assert "exactly one action" in found[2].problem
    with pytest.raises(ConfigurationError) as raised:
        parse_rules("[[rules]]\nname = \n")
    assert line_of(raised.value) == 2
