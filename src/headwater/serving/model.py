"""A bundle in service: its version, its opened ranker and its fitted sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from headwater.features.plan import Plan
from headwater.ranking.ranker import Headed, Ranker, RankerError, open_light, open_ranker, ranker_attends
from headwater.ranking.remote import RemoteRanker
from headwater.registry.bundle import Bundle
from headwater.retrieval.fitted import FittedSource, VectorSource, open_sources
from headwater.schema.config import Config
from headwater.schema.surfaces import Surface


@dataclass(frozen=True, slots=True)
class Model:
    """What the pipeline ranks with; swapped whole, between two requests. ``attended``: the source whose vectors an attending
    ranker gets. ``light``: the small ranker that was taught by the deep one. ``by_surface``: the same bundle for surfaces with an
    objective of their own. ``created_ms``: when it was made.
    """

    version: str
    ranker: Ranker | None
    sources: tuple[FittedSource, ...] = ()
    attended: VectorSource | None = None
    light: Ranker | None = None
    by_surface: Mapping[str, Model] = field(default_factory=dict)
    created_ms: int = 0

    def on(self, surface: str) -> Model:
        """What ranks lists of ``surface``."""
        return self.by_surface.get(surface, self)

    def close(self) -> None:
        """Let go of the ranker and the sources; calling it again changes nothing."""
        for other in self.by_surface.values():
            other.close()
        for ranker in (self.ranker, self.light):
            if ranker is not None:
                ranker.close()
        for source in self.sources:
            source.close()


def open_model(bundle: Bundle, config: Config, plan: Plan, *, remote: bool = False) -> Model:
    """Open the ranker and the sources of a loaded bundle. ``remote``: the ranker where ``ranker.remote`` says, if it says so
    (whether it is there is not asked).

    Raises:
        RankerError: a file is missing or damaged, or a surface has an objective that the ranker cannot follow.
        SourceError: a source cannot be opened.
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
    model = Model(
        bundle.version,
        ranker,
        sources,
        next((source for source in sources if isinstance(source, VectorSource)), None),
        open_light(bundle.files, manifest.columns),
        created_ms=manifest.created_ms,
    )
    objectives = [surface for surface in config.surfaces if surface.objective]
    return replace(model, by_surface={surface.name: _aiming(model, surface) for surface in objectives})


def _aiming(model: Model, surface: Surface) -> Model:
    """``model`` with the objective of ``surface``."""

    def weighing(ranker: Ranker) -> Ranker:
        if isinstance(ranker, RemoteRanker):
            raise RankerError(
                f'surfaces: surface "{surface.name}" has an objective, and the ranker is remote: it gives one score, weighed where it '
                "runs. Take the objective or ranker.remote out"
            )
        if not isinstance(ranker, Headed):
            raise RankerError(
                f'surfaces: surface "{surface.name}" has an objective, and the ranker of bundle {model.version} has no heads that it '
                "could weigh: it gives a single score (LightGBM does). Train a deep ranker with models.deep.heads, or take the "
                "objective out"
            )
        try:
            return ranker.weighing(surface.objective)
        except RankerError as error:
            raise RankerError(
                f'surfaces: the objective of surface "{surface.name}" does not fit bundle {model.version}: {error}'
            ) from error

    if model.ranker is None:
        return model
    light = None if model.light is None else weighing(model.light)
    return replace(model, ranker=weighing(model.ranker), light=light)
