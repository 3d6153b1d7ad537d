"""docs/features.md is what the definitions say."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import get_args

from headwater.features import declare
from headwater.features.aggregations import Aggregation
from headwater.features.defaults import default_columns
from headwater.features.definitions import version_of
from headwater.features.reference import declarations, reference
from headwater.schema.config import Config

PAGE = Path(__file__).parent.parent.parent / "docs" / "features.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), (
        "run: python -m headwater.features.reference docs/features.md"
    )


def test_nothing_is_left_out() -> None:
    text = reference()
    tree = ast.parse(Path(declare.__file__).read_text(encoding="utf-8"))
    public = [n.name for n in tree.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]
    assert [function.__name__ for function in declarations()] == public
    for name in (*public, *(kind.__name__ for kind in get_args(Aggregation))):
        assert f"### `{name}`" in text
    for column in default_columns(Config()):
        assert re.search(rf"^\| `{column.name}` \|.*\| `{version_of(column)}` \|$", text, re.MULTILINE)
    assert not re.search(r"\{[A-Z_]+\}", text), "a placeholder of the template is not filled in"


def test_signatures_are_python() -> None:
    for example in re.findall(r"```python\n(.*?)```", reference(), re.DOTALL):
        ast.parse(example)
