"""Following the registry: the bundle in service is swapped whole, between two requests."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from headwater.features.plan import Plan
from headwater.online.metrics import Metrics
from headwater.online.recommender import Recommender
from headwater.ranking.ranker import UnreachableError
from headwater.ranking.remote import RemoteRanker
from headwater.registry.registry import BundleWatcher, Registry
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.serving.model import Model, open_model

log = structlog.get_logger()

POLL_S = 0.5
CHECK_S = 1.0  # a remote ranker has so long to say what it is


class ModelWatch:
    """Loads each bundle that becomes current and hands it to ``recommender``; a bad one is refused once.

    One whose remote ranker is not there yet waits for it as long as another one is in service.
    """

    def __init__(self, path: Path, config: Config, plan: Plan, recommender: Recommender, metrics: Metrics) -> None:
        self._watcher = BundleWatcher(Registry(path), plan.hash)
        self._config, self._plan = config, plan
        self._recommender = recommender
        self._metrics = metrics
        self._waiting: Model | None = None

    def load(self) -> Model | None:
        """The model that became current since the last call, opened; None when there is none or it was refused."""
        model: Model | None = None
        try:
            bundle = self._watcher.poll()
            if bundle is None:
                model = self._waiting
                return None if model is None else self._when_there(model)
            if self._waiting is not None:
                self._waiting.close()
                self._waiting = None
            model = open_model(bundle, self._config, self._plan, remote=True)
            for source in model.sources:  # here, in the loading thread, so that no request waits for it
                source.prepare(self._recommender.view.index)
            return self._when_there(model)
        except HeadwaterError as error:
            self._waiting = None
            if model is not None:
                model.close()
            in_service = self._recommender.model
            log.error("bundle_refused", reason=str(error), serving=in_service.version if in_service else None)
            self._metrics.model_refused.inc()
            return None

    def _when_there(self, model: Model) -> Model | None:
        """``model``, unless its ranker is elsewhere and not there yet while another one serves.

        Raises:
            RankerError: what is there is not the ranker of the bundle.
        """
        if isinstance(model.ranker, RemoteRanker):
            try:
                model.ranker.check(CHECK_S)
            except UnreachableError as error:
                waits = self._recommender.model is not None
                if model is not self._waiting:
                    log.warning("remote_ranker_missing", version=model.version, waits=waits, reason=str(error))
                if waits:
                    self._waiting = model
                    return None
        self._waiting = None
        return model

    def swap(self, model: Model | None) -> None:
        """Serve ``model`` from the next request on; None changes nothing."""
        if model is None:
            return
        before = self._recommender.model
        self._recommender.model = model
        if before is not None:
            self._metrics.model.labels(before.version).set(0)
            if isinstance(before.ranker, RemoteRanker):
                before.ranker.close()  # connections, which nobody else lets go of
        self._metrics.model.labels(model.version).set(1)
        log.info("bundle_in_service", version=model.version, before=before.version if before is not None else None)

    async def run(self) -> None:
        """Look for a new bundle until cancelled; loading happens in a thread, requests go on meanwhile."""
        while True:
            await asyncio.sleep(POLL_S)
            self.swap(await asyncio.to_thread(self.load))
