"""Bundles whose every answer shows which one gave it: a ranker that scores all rows with the bundle's own number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from headwater.features.plan import compile_plan
from headwater.ranking.gbdt import MODEL_FILE
from headwater.registry.bundle import DataRange, ManifestFields
from headwater.registry.registry import Registry
from headwater.schema.config import Config


class Listed(msgspec.Struct):
    """A line of an answer."""

    score: float


class Where(msgspec.Struct):
    """What an answer says about where it comes from."""

    bundle: str


class Reply(msgspec.Struct):
    """What is looked at in an answer."""

    items: list[Listed]
    model: str
    address: Where


def constant(value: float, columns: int) -> bytes:
    """A LightGBM model of one leaf."""
    lines = [
        "tree",
        "version=v4",
        "num_class=1",
        "num_tree_per_iteration=1",
        f"max_feature_idx={columns - 1}",
        "tree_sizes=1",
    ]
    leaf = ["Tree=0", "num_leaves=1", "num_cat=0", f"leaf_value={value}", "is_linear=0"]
    return ("\n".join(lines) + "\n\n" + "\n".join(leaf) + "\n\nend of trees\n").encode()


def publish_marked(data: Path, config: Config, number: int, **changes: Any) -> str:
    """Publish (but do not promote) a bundle that gives every item the score ``number``; returns its version."""
    plan = compile_plan(config)
    fields = ManifestFields(
        created_ms=1_760_000_000_000 + number, plan_hash=plan.hash, columns=plan.columns, ranker="lightgbm",
        event_types=plan.event_types, data=DataRange(first_offset=1, last_offset=1, first_ms=0, last_ms=0),
    )  # fmt: skip
    files = {MODEL_FILE: constant(float(number), len(plan.columns))}
    return Registry(data / "models").publish(msgspec.structs.replace(fields, **changes), files).version
