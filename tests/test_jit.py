"""Kernels do without Numba's reference counts: a private option of Numba, so what it does is looked at."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from headwater import jit
from headwater.features.assemble import Context, assemble, new_scratch
from headwater.features.fold import Fold
from headwater.features.plan import compile_plan
from headwater.features.recent import co_visit_candidates
from headwater.schema.config import Config
from headwater.schema.events import Event
from headwater.testing.events import Step, written

CONFIG = Config()
COUNTED = "NRT_"  # how the functions of Numba's run-time for arrays begin: NRT_incref, NRT_decref, ...


def compiled() -> Iterator[tuple[str, Any]]:
    """Every function of a module with kernels that Numba has compiled by now, or loaded from its cache."""
    for path in jit._kernel_sources():
        if path.name == "jit.py":
            continue
        module = importlib.import_module(".".join(("headwater", *path.relative_to(jit._ROOT).with_suffix("").parts)))
        for name, found in vars(module).items():
            if getattr(found, "overloads", None) and found.py_func.__module__ == module.__name__:
                yield f"{module.__name__}.{name}", found


def modules_of(function: Any) -> str:
    """The LLVM modules of all signatures, as text; those loaded from the cache too."""
    return "\n".join(str(entry.library._get_module_for_linking()) for entry in function.overloads.values())


@pytest.fixture(scope="module")
def used() -> dict[str, Any]:
    """What is compiled once a log was folded, a row assembled and co-visits looked up."""
    plan = compile_plan(CONFIG)
    event = Event(user="ada", item="tide", type="click", time=1_000)
    with capture_logs():
        log = written([Step(1_000, [event])], CONFIG)
        fold = Fold(plan)
        for block in log.blocks():
            fold.apply(block)
    user, items = fold.users.user(log.user("ada")), fold.items.rows
    scratch = new_scratch(len(items.i8), 1, plan)
    out = np.zeros((1, len(plan.columns)), np.float32)
    assemble(plan, user, items, np.array([1]), Context((0, 0)), 2_000, scratch, out)
    scores = np.zeros(len(items.i8), np.float32)
    co_visit_candidates(user, items, plan.layout, plan.lives, 2_000, scores, np.zeros(10, np.int64), scores.copy())
    return dict(compiled())


def test_kernels_count_no_references(used: dict[str, Any]) -> None:
    kernels = {name: function for name, function in used.items() if function.targetoptions.get("_nrt") is False}
    assert {"headwater.features.fold_kernel.fold_events", "headwater.features.assemble._assemble"} <= set(kernels)
    for name, kernel in kernels.items():
        assert COUNTED not in modules_of(kernel), f"{name} calls Numba's run-time: see docs/adr/0010"


def test_the_test_would_see_it(used: dict[str, Any]) -> None:
    """A kernel that makes arrays does count."""
    allocating = used["headwater.features.recent.co_visit_candidates"]
    assert "_nrt" not in allocating.targetoptions
    assert f"{COUNTED}incref" in modules_of(allocating)
