"""The import table: which room may import which. An arrow that is not here is a design change, not a detail."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "src" / "headwater"
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
MAX_LINES = 500

# Root modules that every room may import: the package itself (version), the door to numba, the breaker, the way to define metrics.
EVERYWHERE = {"", "jit", "breaker", "prometheus"}

STAGES = {"log", "features", "retrieval", "ranking", "policy", "serving", "registry", "learning", "evaluation"}
PLANES = {"offline", "nearline", "online"}
OBSERVERS = {"experiments", "monitoring", "console"}

ALLOWED: dict[str, set[str]] = {
    "schema": set(),
    "log": {"schema"},
    "features": {"schema", "log"},
    "retrieval": {"schema", "features"},
    "ranking": {"schema", "features"},
    "policy": {"schema"},
    "registry": {"schema"},
    "serving": {"schema", "log", "features", "retrieval", "ranking", "policy", "registry"},
    "learning": {"schema", "log", "features", "retrieval", "ranking", "policy", "serving", "registry"},
    "evaluation": {"schema", "simulator"} | (STAGES - {"evaluation"}),
    "offline": {"schema"} | STAGES,
    "nearline": {"schema"} | STAGES,
    "online": {"schema"} | STAGES,
    "experiments": {"schema", "log", "registry"},
    "monitoring": {"schema", "log", "registry", "experiments"},
    "console": {"schema", "log", "registry", "experiments", "monitoring"},
    "simulator": {"schema", "client"},
    "client": {"schema"},
    "cli": {"schema", "client", "simulator"} | STAGES | PLANES | OBSERVERS,
    "testing": {"schema", "client", "simulator", "cli"} | STAGES | PLANES | OBSERVERS,
    "jit": set(),
    "breaker": set(),
    "prometheus": set(),
    "": set(),
}
# `online` may ask which variant a user is in, what the variant changes and how two lists are interleaved, and nothing else of the observers.
ALLOWED_MODULES: dict[str, set[str]] = {
    "online": {f"headwater.experiments.{name}" for name in ("assignment", "changes", "definitions", "drafts", "store")}
}
# Only this room may import torch.
ROOM_OF_TORCH = "learning"

MODULES = sorted(ROOT.rglob("*.py"))


def name_of(path: Path) -> str:
    """``src/headwater/log/record.py`` → ``headwater.log.record``."""
    parts = list(path.relative_to(ROOT.parent).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """``headwater.log.record`` → ``log``; ``headwater`` → the empty text."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports_of(source: str, module: str, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """(line, imported module) of every import statement, those inside functions and ``TYPE_CHECKING`` too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".")
                package = package[: len(package) - node.level + is_package]
                base = ".".join([*package, base] if base else package)
            if base == "headwater":  # `from headwater import log` imports the room
                for alias in node.names:
                    yield node.lineno, base if alias.name.startswith("__") else f"headwater.{alias.name}"
            else:
                yield node.lineno, base


def forbidden_arrows(source: str, module: str, is_package: bool = False) -> list[str]:
    room = room_of(module)
    if room not in ALLOWED:
        return [f"{module}: there is no room `{room}` in the import table"]
    found = []
    for line, target in imports_of(source, module, is_package):
        if target.split(".")[0] == "torch" and room != ROOM_OF_TORCH:
            found.append(f"{module}:{line}: only `{ROOM_OF_TORCH}` may import torch")
        if target != "headwater" and not target.startswith("headwater."):
            continue
        other = room_of(target)
        if other == room or other in EVERYWHERE or other in ALLOWED[room]:
            continue
        if target in ALLOWED_MODULES.get(room, set()):
            continue
        found.append(f"{module}:{line}: `{room or 'headwater'}` may not import `{target}`")
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_import_is_an_arrow_of_the_table(path: Path) -> None:
    arrows = forbidden_arrows(path.read_text(encoding="utf-8"), name_of(path), path.name == "__init__.py")
    assert not arrows, "\n".join(arrows)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_are_named_for_what_they_do_and_short(path: Path) -> None:
    names = {part.removesuffix(".py").strip("_") for part in path.relative_to(ROOT).parts}
    assert not names & FORBIDDEN_NAMES, f"{path}: name the module after what it does"
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{path}: {lines} lines; split it (at most {MAX_LINES})"


def test_every_folder_is_a_room() -> None:
    folders = {path.parent.relative_to(ROOT).parts[0] for path in MODULES if path.parent != ROOT}
    assert folders <= set(ALLOWED), f"not in the import table: {sorted(folders - set(ALLOWED))}"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("headwater.schema.x", "from headwater.log import record"),
        ("headwater.log.x", "def f():\n    import headwater.features.state"),
        ("headwater.log.x", "from ..features import state"),
        ("headwater.online.x", "from headwater.nearline.fold import run"),
        ("headwater.serving.x", "from headwater import online"),
        ("headwater.cli.x", "from headwater.testing import clock"),
        ("headwater.ranking.x", "import torch.nn"),
        ("headwater.attic.x", "import os"),
        ("headwater.jit", "from headwater.schema import events"),
    ],
)
def test_the_check_finds_a_forbidden_arrow(module: str, source: str) -> None:
    assert forbidden_arrows(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("headwater.log.x", "from headwater.schema.events import Event\nfrom headwater.jit import kernel"),
        ("headwater.online.x", "from headwater.experiments.assignment import variant"),
        ("headwater.evaluation.x", "from headwater.serving import pipeline\nfrom headwater.simulator import world"),
        ("headwater.cli.x", "from headwater.simulator import world\nfrom headwater import __version__"),
        ("headwater.learning.x", "import torch"),
        ("headwater.features.x", "from . import state\nfrom .state import LmdbState"),
    ],
)
def test_the_check_lets_an_allowed_arrow_pass(module: str, source: str) -> None:
    assert not forbidden_arrows(source, module)
