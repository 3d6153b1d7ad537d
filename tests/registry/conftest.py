"""Bundles small enough to write hundreds of."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from headwater.registry.bundle import DataRange, ManifestFields

FIELDS = ManifestFields(
    created_ms=1_700_000_000_123,
    plan_hash="plan-a",
    columns=("item.count.click.30m", "user.age"),
    ranker="none",
    event_types=("view", "click"),
    data=DataRange(first_offset=1, last_offset=900, first_ms=1_699_000_000_000, last_ms=1_700_000_000_000),
    metrics={"ndcg@10": 0.31},
    training={"seed": 7, "objective": "lambdarank", "learning_rate": 0.08, "early": True, "note": None},
)


@pytest.fixture
def fields() -> Callable[..., ManifestFields]:
    """Manifest fields; the number moves the creation time on by that many milliseconds."""

    def make(later_ms: int = 0, **changes: object) -> ManifestFields:
        return msgspec.structs.replace(FIELDS, **({"created_ms": FIELDS.created_ms + later_ms} | changes))

    return make
