"""What MkDocs does not do by itself: pages and links that lie outside docs/, and the list of decision records."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig

ROOT = Path(__file__).parent
DOCS = ROOT / "docs"
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md", "README.md": "index.md"}
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"(?<=\]\()([^)#\s]+)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """``Decision records: adr`` in the navigation becomes one entry for each record."""
    records = sorted(path.relative_to(DOCS).as_posix() for path in (DOCS / "adr").glob("*.md"))
    config.nav = _filled(config.nav, sorted(records, key=lambda name: (not name.endswith("README.md"), name)))
    return config


def _filled(nav: Any, records: list[str]) -> Any:
    if isinstance(nav, dict):
        return {title: _filled(entry, records) for title, entry in nav.items()}
    if isinstance(nav, list):
        return [_filled(entry, records) for entry in nav]
    return records if nav == "adr" else nav


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the root, and a copy of each source file that a page links to."""
    for name, uri in PAGES.items():
        if name != "README.md":  # the site has a first page of its own
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / name)))
    for page in files.documentation_pages():
        for target in LINK.findall(Path(str(page.abs_src_path)).read_text(encoding="utf-8")):
            uri = _uri(Path(str(page.abs_src_path)), target)
            if uri is not None and files.get_file_from_path(uri) is None and uri.startswith("source/"):
                files.append(File.generated(config, uri, content=_source(uri).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to files outside docs/ lead to their copies; GitHub wants a `|` of code in a table escaped, MkDocs shows the escape."""

    def inside(match: re.Match[str]) -> str:
        uri = _uri(Path(page.file.abs_src_path), match[0])
        return match[0] if uri is None else os.path.relpath(uri, PurePosixPath(page.file.src_uri).parent)

    linked = LINK.sub(inside, markdown)
    return CODE.sub(lambda code: code[0].replace("\\|", "|"), linked)


def _uri(page: Path, target: str) -> str | None:
    """Where a file that a page links to lies in the site; None for addresses, and for what does not exist."""
    path = (page.parent / target).resolve()
    if "://" in target or not path.is_relative_to(ROOT) or not path.exists():
        return None
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    name = path.relative_to(ROOT).as_posix()
    if name in PAGES:
        return PAGES[name]
    return f"source/{name}/__init__.py.txt" if path.is_dir() else f"source/{name}.txt"


def _source(uri: str) -> Path:
    return ROOT / uri.removeprefix("source/").removesuffix(".txt")
