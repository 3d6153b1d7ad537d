"""Following the registry: the bundle in service is swapped whole, between two requests."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from headwater.features.plan import Plan
from headwater.online.metrics import Metrics
from headwater.online.recommender import Recommender
from headwater.registry.registry import BundleWatcher, Registry
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.serving.model import Model, open_model

log = structlog.get_logger()

POLL_S = 0.5


class ModelWatch:
    """Loads each bundle that becomes current and hands it to ``recommender``; a bad one is refused once."""

    def __init__(self, path: Path, config: Config, plan: Plan, recommender: Recommender, metrics: Metrics) -> None:
        self._watcher = BundleWatcher(Registry(path), plan.hash)
        self._config, self._plan = config, plan
        self._recommender = recommender
        self._metrics = metrics

    def load(self) -> Model | None:
        """The model that became current since the last call, opened; None when there is none or it was refused."""
        try:
            bundle = self._watcher.poll()
            if bundle is None:
                return None
            model = open_model(bundle, self._config, self._plan)
            for source in model.sources:  # here, in the loading thread, so that no request waits for it
                source.prepare(self._recommender.view.index)
            return model
        except HeadwaterError as error:
            in_service = self._recommender.model
            log.error("bundle_refused", reason=str(error), serving=in_service.version if in_service else None)
            self._metrics.model_refused.inc()
            return None

    def swap(self, model: Model | None) -> None:
        """Serve ``model`` from the next request on; None changes nothing."""
        if model is None:
            return
        before = self._recommender.model
        self._recommender.model = model
        if before is not None:
            self._metrics.model.labels(before.version).set(0)
        self._metrics.model.labels(model.version).set(1)
        log.info("bundle_in_service", version=model.version, before=before.version if before is not None else None)

    async def run(self) -> None:
        """Look for a new bundle until cancelled; loading happens in a thread, requests go on meanwhile."""
        while True:
            await asyncio.sleep(POLL_S)
            self.swap(await asyncio.to_thread(self.load))
