"""A bundle in service: its version and its opened ranker."""

from __future__ import annotations

from dataclasses import dataclass

from headwater.ranking.ranker import Ranker, open_ranker
from headwater.registry.bundle import Bundle


@dataclass(frozen=True, slots=True)
class Model:
    """What the pipeline ranks with; swapped whole, between two requests."""

    version: str
    ranker: Ranker | None


def open_model(bundle: Bundle) -> Model:
    """Open the ranker of a loaded bundle."""
    manifest = bundle.manifest
    return Model(bundle.version, open_ranker(manifest.ranker, bundle.files, manifest.columns))
