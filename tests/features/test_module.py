"""A team's own feature module: from ``headwater.toml`` to a plan, and what is said when it is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from headwater.features.defaults import default_columns
from headwater.features.module import configured_columns
from headwater.features.plan import compile_plan
from headwater.schema.config import Config, load_config
from headwater.schema.errors import ConfigurationError
from headwater.schema.events import Event
from headwater.testing.events import START_MS, Step, written
from tests.features.states import assembled, folded

START = "from headwater.features.declare import *\nfeatures = "


def configured(tmp_path: Path, module: str | None, toml: str = "") -> Config:
    """The configuration of a file beside which the module lies."""
    lines = "[features]\n" + toml
    if module is not None:
        (tmp_path / "mine.py").write_text(module)
        lines += '\nmodule = "mine.py"'
    (tmp_path / "headwater.toml").write_text(lines)
    return load_config(tmp_path / "headwater.toml")


def test_a_module_adds_its_features_to_the_defaults(tmp_path: Path) -> None:
    module = (
        START + '[mean("watched", "item", ["view"], half_life="1d", unit="s"), embedding("v", 2), [recent("r", 1)]]'
    )
    config = configured(tmp_path, module, 'without = ["co_last", "hour"]')
    plan = compile_plan(config)
    assert plan.columns[-4:] == ("watched", "v_0", "v_1", "r_0")
    assert len(plan.columns) == len(default_columns(config)) - 2 + 4
    log = written([Step(START_MS, [Event(user="u", item="i", type="view", value=12.5)])], config)
    fold = folded(plan, log)
    row = assembled(plan, fold, fold.users.user(1), [1], (0, 0), START_MS)
    assert row[0, -4] == np.float32(12.5)


def test_a_module_may_stand_alone(tmp_path: Path) -> None:
    config = configured(tmp_path, START + '(count("clicks", "user", ["click"]),)', "defaults = false")
    assert compile_plan(config).columns == ("clicks",)


def test_the_module_is_found_from_its_file_wherever_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(tmp_path, START + '[count("clicks", "user", ["click"])]')
    monkeypatch.chdir(tmp_path.parent)
    assert configured_columns(config)[-1].name == "clicks"


def test_the_hash_follows_what_a_module_computes_and_not_how_it_says_it(tmp_path: Path) -> None:
    def hash_of(module: str) -> str:
        return compile_plan(configured(tmp_path, module)).hash

    one = hash_of(START + '[count("clicks", "user", ["click"])]')
    assert one == hash_of("# a word\n" + START + '[count("clicks", "user", ("click",), description="ours")]')
    assert one != hash_of(START + '[count("clicks", "user", ["like"])]')
    assert one != compile_plan(Config()).hash


WRONG = {
    "an event type": ('[count("f", "user", ["clik"])]', '^feature "f": there is no event type "clik", did you mean "click"\\?$'),
    "a strange type": ('[count("f", "user", ["zzz"])]', 'there is no event type "zzz" \\(there are click, hide, impression, .*\\)'),
    "a type twice": ('[count("f", "user", ["click", "click"])]', 'feature "f": an event type stands there twice'),
    "a name twice": ('[count("f", "user", ["click"]), read("f", "age")]', 'feature "f" is declared twice: give one of the two'),
    "a default's name": ('[read("item_age", "age")]', 'feature "item_age" is declared twice'),
    "a name": ('[read("My feature", "age")]', 'feature "My feature": a name is lower-case letters, digits'),
    "a long name": (f'[read("{"a" * 65}", "age")]', "at most 64, a letter first"),
    "what followed, as a taste": ('[affinity("f", {"@followed": 1.0})]', 'feature "f": an affinity cannot weigh @followed'),
    "a segment key": ('[segment("f", 2)]', 'feature "f": segment key 2 does not exist; \\[segments\\] has 2 keys'),
    "a segment's code": ('[context("f", "segment", key=5)]', "segment key 5 does not exist"),
    "something else": ('[read("f", "age"), "age"]', "mine.py: `features` holds 'age', which is no feature: make features with"),
    "a single feature": ('read("f", "age")', "mine.py: Expected a list named `features`"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_feature_is_named(tmp_path: Path, what: str) -> None:
    features, message = WRONG[what]
    with pytest.raises(ConfigurationError, match=message):
        configured_columns(configured(tmp_path, START + features))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("\n\nraise ValueError('no luck')\n", r"mine\.py, line 3: no luck$"),
        ("import headwater.features.declare as d\n\nfeatures = [\n    d.read('f', 'mood'),\n]\n", r'mine\.py, line 4: feature f: there is no "mood"'),
        ("def broken(:\n", r"mine\.py, line 1: invalid syntax"),
        ("import nothing_of_that_name\n", r"mine\.py, line 1: No module named"),
        ("wrong = []\n", r"mine\.py: Expected a list named `features`, such as"),
    ],
)  # fmt: skip
def test_a_module_that_cannot_be_run_is_named_with_its_line(tmp_path: Path, module: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        configured_columns(configured(tmp_path, module))


def test_a_module_that_is_not_there(tmp_path: Path) -> None:
    config = configured(tmp_path, None, 'module = "none.py"')
    with pytest.raises(
        ConfigurationError, match=re.escape(f"features.module: There is no file {tmp_path / 'none.py'}")
    ):
        configured_columns(config)
    (tmp_path / "words.txt").write_text("features = []")
    with pytest.raises(ConfigurationError, match=r"features.module: .*words\.txt is not a Python file"):
        configured_columns(configured(tmp_path, None, 'module = "words.txt"'))


def test_what_is_left_out_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError,
        match=r'features.without\[1\]: There is no default feature "co_lst", did you mean "co_last"\?',
    ):
        configured_columns(configured(tmp_path, None, 'without = ["hour", "co_lst"]'))
    with pytest.raises(ConfigurationError, match=r'features.without\[0\]: There is no default feature "zzzzzz"$'):
        configured_columns(configured(tmp_path, None, 'without = ["zzzzzz"]'))
    with pytest.raises(ConfigurationError, match="there is no feature at all: keep `defaults`, or name a `module`"):
        configured_columns(configured(tmp_path, None, "defaults = false"))
