"""A bundle in service: its version, its opened ranker and its fitted sources."""

from __future__ import annotations

from dataclasses import dataclass

from headwater.features.plan import Plan
from headwater.ranking.ranker import Ranker, open_light, open_ranker, ranker_attends
from headwater.ranking.remote import RemoteRanker
from headwater.registry.bundle import Bundle
from headwater.retrieval.fitted import FittedSource, VectorSource, open_sources
from headwater.schema.config import Config


@dataclass(frozen=True, slots=True)
class Model:
    """What the pipeline ranks with; swapped whole, between two requests. ``attended``: the source whose vectors an attending
    ranker gets. ``light``: the small ranker that was taught by the deep one.
    """

    version: str
    ranker: Ranker | None
    sources: tuple[FittedSource, ...] = ()
    attended: VectorSource | None = None
    light: Ranker | None = None

    def close(self) -> None:
        """Let go of the ranker and the sources; calling it again changes nothing."""
        for ranker in (self.ranker, self.light):
            if ranker is not None:
                ranker.close()
        for source in self.sources:
            source.close()


def open_model(bundle: Bundle, config: Config, plan: Plan, *, remote: bool = False) -> Model:
    """Open the ranker and the sources of a loaded bundle. ``remote``: the ranker where ``ranker.remote`` says, if it says so
    (whether it is there is not asked).
    """
    manifest = bundle.manifest
    sources = open_sources(manifest.sources, bundle.files, config, plan)
    ranker: Ranker | None
    if remote and config.ranker.remote and manifest.ranker != "none":
        ranker = RemoteRanker(
            config.ranker.remote, version=bundle.version, plan_hash=manifest.plan_hash, columns=manifest.columns,
            attends=ranker_attends(manifest.ranker, bundle.files),
        )  # fmt: skip
    else:
        ranker = open_ranker(manifest.ranker, bundle.files, manifest.columns)
    return Model(
        bundle.version,
        ranker,
        sources,
        next((source for source in sources if isinstance(source, VectorSource)), None),
        open_light(bundle.files, manifest.columns),
    )
