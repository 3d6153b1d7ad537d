"""How the measured site ranks: the tables of its configuration for a ranker and a number of candidates."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headwater.cli.local import TomlTable


class KeepBy(StrEnum):
    """What chooses the candidates that come to the deep ranker."""

    MERGED = "merged"
    LIGHT = "light"


class RankerKind(StrEnum):
    """What orders the candidates."""

    NONE = "none"
    LIGHTGBM = "lightgbm"
    DEEP = "deep"


_ROWS, _ROWS_FOR = 60_000, 50_000
"""Rows of training, enough for so many items: the more items drawn clicks spread over, the fewer of them a source could have found."""


def tables_of(
    kind: RankerKind, candidates: int, ranked: int, keep_by: KeepBy = KeepBy.MERGED, *, items: int = _ROWS_FOR
) -> dict[str, TomlTable]:
    """A site of ``items`` whose sources offer enough for ``candidates`` and whose ranker orders ``ranked`` of them.

    With the deep ranker all sources are on, the sequence source too, and ``keep_by`` chooses those that it gets. Models have the sizes of the defaults and are trained as briefly as they can be: how long they take does
    not depend on what they learnt, and a benchmark of speed has no use for the gate.
    """
    width = max(200, 2 * candidates // 5)
    tables: dict[str, TomlTable] = {
        f"sources.{name}": {"width": width} for name in ("popular", "trending", "covisit", "content", "fresh")
    }
    ranker: dict[str, str | int | float | bool | list[str]] = {
        "kind": kind.value,
        "candidates": candidates,
        "max_rows": max(_ROWS, _ROWS * items // _ROWS_FOR),
    }
    tables["gate"] = {"enabled": False}
    # a server that is driven to its limit would walk down the ladder by itself, and the cost of something else be measured
    tables["monitoring"] = {"default_alerts": False}
    if kind is RankerKind.DEEP:
        if ranked < candidates:
            ranker |= {"light_keep": ranked, "keep_by": keep_by.value}
        tables["sources.sequence"] = {"enabled": True, "width": width}
        tables["models"] = {"refit": False}
        tables["models.sequence"] = {"epochs": 1, "loss": "sampled", "negatives": 64, "most_minutes": 0.5}
        tables["models.deep"] = {"epochs": 1}
    return tables | {"ranker": ranker}
