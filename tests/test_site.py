"""The documentation as a site: every page is in its navigation, it builds without a warning, and reading it needs no network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
NAVIGATION = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r"^ +- (?:[^\n]*: )?([a-z/-]+\.md)$", NAVIGATION, re.MULTILINE)
    pages = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if path.parent.name != "adr"]
    missing = sorted(set(pages) - set(listed))
    assert not missing, f"give these pages a line under `nav` in mkdocs.yml: {missing}"
    assert len(listed) == len(set(listed))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make docs` builds it: links, anchors and navigation that lead nowhere are errors."""
    out = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return out


def test_it_builds_with_nothing_fetched_and_nothing_unrendered(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(list(DOCS.rglob("*.md")))  # those, and the ones of the root
    for page in pages:
        html = page.read_text(encoding="utf-8")
        foreign = re.findall(r"<(?:script|img|iframe)[^>]* src=\"?(?:https?:)?//[^\s>]*", html)
        foreign += re.findall(r"<link[^>]* rel=\"?(?:stylesheet|preconnect|icon)[^>]*//[^>]*", html)
        foreign += re.findall(r"class=\"?mermaid", html)  # the theme would fetch its script
        assert not foreign, f"{page.name} needs the network: {foreign}"
        article = html[html.find("<article") : html.find("</article>")]
        raw = re.findall(r"<p>(?:[|] |- |\d+\. )[^\n]*|<p>[^<]*\n- [^\n]*", article)
        assert not raw, f"{page.name} shows a table or a list as text; put an empty line before it: {raw}"
