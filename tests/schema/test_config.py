"""The configuration: a typed tree that round-trips, and mistakes that are named."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headwater.schema.config import (
    Config,
    EventType,
    known_keys,
    load_config,
    parse_config,
    resolve_data_dir,
)
from headwater.schema.errors import ConfigurationError
from headwater.schema.presets import CHANGES, Preset
from headwater.schema.rules import ACTIONS
from headwater.schema.segments import Segments
from headwater.schema.surfaces import Surface
from headwater.schema.template import config_template


def keys_of(table: dict[str, Any], prefix: str = "") -> set[str]:
    found = set()
    for name, value in table.items():
        if isinstance(value, dict) and value:
            found |= keys_of(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for entry in value:
                found |= keys_of(entry, f"{prefix}{name}[].")
        else:
            found.add(f"{prefix}{name}")
    return found


def test_the_template_loads_to_the_defaults() -> None:
    assert parse_config(config_template()) == Config()


@pytest.mark.parametrize("preset", list(Preset))
def test_a_preset_changes_what_it_says_and_nothing_else(preset: Preset) -> None:
    assert parse_config(config_template(preset)) == msgspec.convert(_changed(preset), Config)


def _changed(preset: Preset) -> dict[str, Any]:
    """The template of the defaults with the changes made in what it loads to."""
    loaded = tomllib.loads(config_template())
    for key, value in CHANGES[preset].items():
        *tables, name = key.split(".")
        inner = loaded
        for table in tables:
            inner = inner[table]
        inner[name] = value
    return loaded


def test_the_template_holds_every_key() -> None:
    lines = config_template().splitlines()
    rules_at, tables_at, alerts_at = (lines.index(f"# [[{name}]]") for name in ("rules", "tables", "alerts"))
    rules, alerts = (
        "\n".join(line.removeprefix("# ") for line in lines[begin : lines.index("", begin)])
        for begin in (rules_at, alerts_at)
    )
    tables = "\n".join(line.removeprefix("# ") for line in lines[tables_at:])
    assert [rule.action for rule in parse_config(rules).rules] == [*ACTIONS[:4], "pin", *ACTIONS[4:]]
    assert parse_config(tables).tables[0].name == "quality"
    assert [alert.name for alert in parse_config(alerts).alerts] == ["slow-answers", "few-lists"]
    assert keys_of(tomllib.loads("\n".join([config_template(), rules, alerts, tables]))) == set(known_keys())


def test_no_file_means_the_defaults() -> None:
    assert load_config(None) == Config()


def test_a_file_changes_only_what_it_names(tmp_path: Path) -> None:
    path = tmp_path / "headwater.toml"
    path.write_text("[features.co_visits]\ndepth = 3\n")
    config = load_config(path)
    assert config.features.co_visits.depth == 3
    assert config.features.co_visits.window == Config().features.co_visits.window
    assert config.events == Config().events


def test_seen_and_sequence_follow_positive() -> None:
    config = parse_config('[[events]]\nname = "buy"\npositive = true\n[[events]]\nname = "look"\nseen = true\n')
    assert config.events == (
        EventType(name="buy", positive=True, seen=True, sequence=True),
        EventType(name="look", seen=True, sequence=False),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clocks = 'log'", "my.toml: Unknown key `clocks`; did you mean `clock`?"),
        (
            "[monitoring]\nexperiments_window = '5s'",
            'my.toml: monitoring: experiments_window: "5s" leaves nothing to judge, for its first 5 s',
        ),
        ("[serving]\nprt = 1", "my.toml: Unknown key `serving.prt`; did you mean `serving.port`?"),
        ("depth = 3", "my.toml: Unknown key `depth`; did you mean `features.co_visits.depth`?"),
        (
            "[[events]]\nname = 'a'\npositve = true",
            "my.toml: Unknown key `events[0].positve`; did you mean `events[0].positive`?",
        ),
        ("[log]\nqqqq = 1", "my.toml: Unknown key `log.qqqq`; the nearest known key is `log."),
        ("[serving]\nport = '80'", "my.toml: serving.port: Expected `int`, got `str`"),
        ("[serving]\nport = 70000", "my.toml: serving.port: Expected `int` <= 65535"),
        ("serving = 3", "my.toml: serving: Expected `object`, got `int`"),
        ("[ranker]\nkind = 'xgboost'", "my.toml: ranker.kind: Invalid enum value 'xgboost'"),
        (
            "[features]\nsegment_half_life = '5 days'",
            "my.toml: features.segment_half_life: Expected a duration such as",
        ),
        ("[features.co_visits]\nwindow = '0s'", "my.toml: features.co_visits.window: Expected a duration from 1ms"),
        ("[features]\nitem_half_lives = ['1h', '0s']", "my.toml: features.item_half_lives: Expected a duration from"),
        ("[features]\nitem_half_lives = []", "my.toml: features.item_half_lives: Expected `array` of length >= 1"),
        ("[[events]]\nname = 'a'", "my.toml: events: Expected at least one event type with `positive = true`"),
        ("[[events]]\nname='a'\npositive=true\n[[events]]\nname='a'", 'my.toml: events[1]: "a" stands there twice'),
        ("[[surfaces]]\nname='a'\n[[surfaces]]\nname='a'", 'my.toml: surfaces[1]: "a" stands there twice'),
        (
            "[[surfaces]]\nname='a'\nsources=['trendng']",
            'my.toml: surfaces[0].sources: There is no source "trendng", did you mean "trending"?',
        ),
        (
            "[features.factors]\nhidden = 48",
            "my.toml: features.factors.hidden: Expected features.factors.size, such as 24, beside it",
        ),
        ("[segments]\nkeys = ['a', 'b', 'c']", "my.toml: segments.keys: Expected at most 2 keys, got 3"),
        (
            "[segments]\nkeys = ['a', 'b+']",
            "my.toml: segments.keys[1]: Expected an attribute, or different ones joined",
        ),
        ("[segments]\nkeys = ['a+a']", "my.toml: segments.keys[0]: Expected an attribute, or different ones joined"),
        ("[segments]\nkeys = ['a', 'a']", 'my.toml: segments.keys[1]: "a" stands there twice'),
        ("x = [", "my.toml: Not valid TOML"),
        (
            "[[rules]]\nname='a'",
            'my.toml: rules: rule "a": Expected exactly one action of filter, boost, bury, pin, cap, quota, got none',
        ),
        (
            "[[rules]]\nname='a'\nfilter='true'\ncap={by='category', at_most=1}",
            'my.toml: rules: rule "a": Expected exactly one action of filter, boost, bury, pin, cap, quota, got filter and cap',
        ),
        (
            "[[rules]]\nname='a'\nfilter='true'\n[[rules]]\nname='a'\nfilter='true'",
            'my.toml: rules[1]: "a" stands there twice',
        ),
        (
            "[[rules]]\nname='a'\nfilter='true'\nsurfaces=['hom']",
            'my.toml: rules[0].surfaces: There is no surface "hom", did you mean "home"?',
        ),
        (
            "[[rules]]\nname='a'\nboost={where='true', facter=2.0}",
            "my.toml: Unknown key `rules[0].boost.facter`; did you mean `rules[0].boost.factor`?",
        ),
        (
            "[[rules]]\nname='a'\nboost={where='true', factor=0.5}",
            "my.toml: rules[0].boost.factor: Expected `float` > 1.0",
        ),
        (
            "[[rules]]\nname='a'\npin={position=1}",
            'my.toml: rules: rule "a": Expected a pin with either `item` or `where`',
        ),
        ("[[rules]]\nname='a'\nfilter='true'\nfrom='soon'", 'my.toml: rules: rule "a": Expected a time such as'),
        (
            "[[rules]]\nname='a'\nfilter='true'\nfrom='2026-01-02'\nuntil='2026-01-02'",
            'my.toml: rules: rule "a": Expected `until` after `from`',
        ),
        (
            "[[rules]]\nname='a'\nfilter='true'\nhours='9-5'",
            'my.toml: rules: rule "a": Expected `hours` such as "18:00-23:30"',
        ),
        (
            "[[rules]]\nname='a'\nquota={where='true', at_least=3, within=2}",
            'my.toml: rules: rule "a": A quota of 3 items does not fit into the first 2; raise `within`',
        ),
    ],
)
def test_a_mistake_is_named_with_file_and_key(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_config(text, "my.toml")
    assert str(caught.value).startswith(message)


def test_at_most_fifteen_event_types() -> None:
    events = tuple(EventType(name=f"e{i}", positive=True) for i in range(16))
    assert len(Config(events=events[:15]).events) == 15
    with pytest.raises(ConfigurationError, match="1 to 15 event types, got 16"):
        Config(events=events)


def test_an_object_is_checked_like_a_file() -> None:
    with pytest.raises(ConfigurationError, match=r"segments\.keys"):
        Config(segments=Segments(keys=("a", "b", "c")))
    with pytest.raises(ConfigurationError, match="no source"):
        Config(surfaces=(Surface(name="home", sources=("nowhere",)),))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"absent\.toml: Cannot read"):
        load_config(tmp_path / "absent.toml")


def test_the_data_directory_stands_beside_the_file(tmp_path: Path) -> None:
    assert resolve_data_dir(Config(), tmp_path / "headwater.toml") == tmp_path / "data"
    assert resolve_data_dir(Config(data_dir="/var/lib/x"), tmp_path / "headwater.toml") == Path("/var/lib/x")
    assert resolve_data_dir(Config(), None) == Path("data")


def test_labels_are_the_positive_types_unless_the_file_names_some() -> None:
    assert [label.name for label in Config().training.labels] == ["click", "like", "purchase"]
    own = parse_config('[[events]]\nname = "buy"\npositive = true\n[training]\nwatermark = "1m"\n')
    assert [(label.name, label.types, label.window) for label in own.training.labels] == [("buy", ("buy",), "30m")]
    named = parse_config('[[training.labels]]\nname = "engaged"\ntypes = ["click", "view"]\nwindow = "2h"\n')
    assert [(label.name, label.types) for label in named.training.labels] == [("engaged", ("click", "view"))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[[training.labels]]\nname = 'a'\ntypes = ['clck']",
            'my.toml: training.labels[0].types: There is no event type "clck", did you mean "click"?',
        ),
        ("[[training.labels]]\nname = 'click'\nwindow = '0s'", "my.toml: training.labels[0].window: Expected a dura"),
        (
            "[[training.labels]]\nname = 'click'\n[[training.labels]]\nname = 'click'",
            'my.toml: training.labels[1]: "click" stands there twice',
        ),
    ],
)
def test_a_mistake_in_a_label_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_config(text, "my.toml")
    assert str(caught.value).startswith(message)
