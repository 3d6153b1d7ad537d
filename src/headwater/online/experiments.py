"""Experiments in a worker: their files are followed, arms are made beside the requests and swapped between two of them.

A variant that cannot be served (its bundle is refused, its rules do not compile) takes its whole experiment out of service: everybody gets
the control and nobody is counted as exposed, for a comparison with one side missing would be none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import structlog

from headwater.experiments.assignment import Acting, ArmKey, Assigner, arms_of
from headwater.experiments.changes import changed
from headwater.experiments.definitions import ExperimentError, Variant
from headwater.experiments.drafts import team_draft
from headwater.experiments.store import ExperimentFiles, Mark, mark
from headwater.features.plan import Plan, compile_plan
from headwater.log.commands import ExposureEntry
from headwater.log.protocol import Vocabulary
from headwater.online.arms import Arm, Arms, Shadow, branched
from headwater.online.metrics import Metrics
from headwater.online.recommender import Asked, Recommender
from headwater.ranking.remote import RemoteRanker
from headwater.registry.registry import Registry
from headwater.retrieval.fitted import OPENERS
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.schema.experiments import ExposureRecord
from headwater.serving.model import Model, open_model
from headwater.serving.rules import open_rules
from headwater.serving.targeting import Target, Targets, compile_target

log = structlog.get_logger()

POLL_S = 0.25
HOUR_MS = 3_600_000
MOST_EXPOSED = 200_000  # users and variants of an hour that a worker remembers; about 15 MB

_ONE = np.ones(1, np.int64)

_encode = msgspec.msgpack.Encoder().encode


class Loaded(NamedTuple):
    """What is to come into service; ``refused`` says by experiment why it is not served as its file says."""

    arms: Arms
    running: tuple[str, ...]
    refused: dict[str, str]


class _Seen(NamedTuple):
    files: Mark
    config: Config
    bundle: str | None


class ExperimentsWatch:
    """Hands ``recommender`` the arms of the experiments in ``data``, and says whom they were shown to."""

    def __init__(
        self, data: Path, plan: Plan, vocabulary: Callable[[], Vocabulary], recommender: Recommender, metrics: Metrics
    ) -> None:
        self._data, self._plan, self._vocabulary = data, plan, vocabulary
        self._recommender, self._metrics = recommender, metrics
        self._files = ExperimentFiles(data)
        self._registry = Registry(data / "models")
        self._seen: _Seen | None = None
        self._running: tuple[str, ...] = ()
        self._refused: dict[str, str] = {}
        self._models: dict[object, Model] = {}
        self._exposed = _Exposed()

    # -- following -------------------------------------------------------------------------------------

    def load(self) -> Loaded | None:
        """The experiments as they are now; None when nothing that they depend on has changed since the last call."""
        seen = self._now()  # taken before reading: a change in between is seen by the next call
        if seen == self._seen:
            return None
        self._seen = seen
        models: dict[object, Model] = {}
        arms: dict[ArmKey, Arm] = {}
        accepted: list[Acting] = []
        try:
            found = self._files.read(seen.config)
        except HeadwaterError as error:
            log.error("experiments_unreadable", reason=str(error), serving=self._running)
            return None
        refused = dict(self._files.problems)
        targets: dict[str, Target] = {}
        for each in found:
            try:
                arms = self._with(arms, [*accepted, each], seen.config, models)
                if each.experiment.when:
                    targets[each.experiment.name] = compile_target(each.experiment.when, seen.config, self._plan)
                accepted.append(each)
            except HeadwaterError as error:
                refused[each.experiment.name] = str(error)
        if any(each.experiment.interleave for each in accepted):
            team_draft(_ONE, _ONE, 1, 0)  # here, in the loading thread, so that no request waits for the kernel
        self._models = models
        wanted = arms_of(accepted)
        kept = {key: arm for key, arm in arms.items() if key in wanted}
        running = tuple(sorted(each.experiment.name for each in accepted))
        shadows = tuple(
            Shadow(
                each.experiment.name, variant.name, each.experiment.version, each.experiment.shadow, each.experiment.shadow_logged, each.surfaces,
                kept[((each.experiment.name, variant.name),)],
            )
            for each in accepted if each.experiment.shadow for variant in each.experiment.variants[1:]
        )  # fmt: skip
        whom = Targets(targets, self._plan, self._vocabulary(), self._recommender.pipeline.zones)
        return Loaded(Arms(Assigner(accepted), kept, shadows, whom), running, refused)

    def swap(self, loaded: Loaded | None) -> None:
        """Serve with ``loaded`` from the next request on; None changes nothing."""
        if loaded is None:
            return
        self._recommender.arms = loaded.arms
        self._metrics.experiments_refused.set(len(loaded.refused))
        for name, why in loaded.refused.items():
            if self._refused.get(name) != why:
                serving = "what was in force" if name in loaded.running else "the control, to everybody"
                log.error("experiment_refused", experiment=name, reason=why, serving=serving)
        if loaded.running != self._running:
            log.info("experiments_in_service", experiments=loaded.running, arms=len(loaded.arms.by_key))
        self._running, self._refused = loaded.running, loaded.refused

    async def run(self) -> None:
        """Follow the files until cancelled; arms are made in a thread, requests go on meanwhile."""
        while True:
            await asyncio.sleep(POLL_S)
            if self._now() != self._seen:
                self.swap(await asyncio.to_thread(self.load))

    def _now(self) -> _Seen:
        model = self._recommender.model
        return _Seen(mark(self._data), self._recommender.config, None if model is None else model.version)

    # -- making arms -----------------------------------------------------------------------------------

    def _with(
        self, arms: dict[ArmKey, Arm], acting: Sequence[Acting], config: Config, models: dict[object, Model]
    ) -> dict[ArmKey, Arm]:
        """``arms`` and those that the last of ``acting`` brings. Raises :class:`HeadwaterError`: one of them cannot be made."""
        by_name = {each.experiment.name: each.experiment for each in acting}
        made = dict(arms)
        for key in sorted(arms_of(acting) - arms.keys(), key=lambda key: (len(key), key)):
            variants = [by_name[experiment].variant(variant) for experiment, variant in key]
            name = ";".join(f"{experiment}={variant}@{by_name[experiment].version}" for experiment, variant in key)
            shadow = any(by_name[experiment].shadow for experiment, _ in key)
            made[key] = self._arm(f"shadow of {name}" if shadow else name, variants, config, models, shadow=shadow)
        return made

    def _arm(
        self, name: str, variants: Sequence[Variant], base: Config, models: dict[object, Model], *, shadow: bool
    ) -> Arm:
        before = next((arm for arm in self._recommender.arms.by_key.values() if arm.name == name), None)
        if before is not None and before.base == base:
            return Arm(name, base, before.config, before.pipeline, self._model(variants, before.config, base, models))
        config = changed(base, variants)
        if (plan := compile_plan(config).hash) != self._plan.hash:
            raise ExperimentError(
                f"The variant changes what the state holds (plan {plan} in place of {self._plan.hash}), which all users share"
            )
        model = self._model(variants, config, base, models)
        rules = open_rules(config, self._plan, self._vocabulary())
        if rules is not None:
            rules.warm_up()  # here, in the loading thread, so that no request waits for the kernel
        return Arm(name, base, config, branched(self._recommender.pipeline, config, rules, shadow=shadow), model)

    def _model(
        self, variants: Sequence[Variant], config: Config, base: Config, models: dict[object, Model]
    ) -> Model | None:
        """The bundle of the variants, opened for ``config``; None: the one in service will do, whichever that is."""
        current = self._recommender.model
        own = next((variant.bundle for variant in variants if variant.bundle), "")
        opened_alike = _opening(config) == _opening(base)
        version = own or (current.version if current is not None else "")
        if not version or (opened_alike and not own):
            return None
        if (
            opened_alike
            and current is not None
            and current.version == version
            and not isinstance(current.ranker, RemoteRanker)
        ):
            return current
        key = version, msgspec.json.encode(_opening(config))
        found = models.get(key) or self._models.get(key)
        if found is None:
            # in process, also where ranker.remote is set: what runs there is the bundle in service
            found = open_model(self._registry.load(version, plan_hash=self._plan.hash), config, self._plan)
            for source in found.sources:
                source.prepare(self._recommender.view.index)
        models[key] = found
        return found

    # -- exposures -------------------------------------------------------------------------------------

    def exposures(self, asked: Asked, now_ms: int) -> list[ExposureEntry]:
        """Count the answer to ``asked``, and what of it is to be recorded: each user, variant and hour once."""
        entries = []
        for choice in asked.choices:
            self._metrics.experiment_answers[choice.experiment, choice.variant] += 1.0
            key = asked.external, choice.experiment, choice.version, choice.variant
            if choice.forced or not self._exposed.is_new(key, now_ms):
                continue
            record = ExposureRecord(choice.experiment, choice.variant, choice.version, asked.query.request_id)
            known = asked.user.user > 0
            external = "" if known or asked.external is None else asked.external
            entries.append(ExposureEntry(asked.user.user, asked.user.surrogate, external, _encode(record)))
        return entries


class _Exposed:
    """Who was exposed to what in this hour of the request clock, as hashes; when there are too many, it begins anew."""

    def __init__(self, most: int = MOST_EXPOSED) -> None:
        self._most = most
        self._hour = -1
        self._known: set[int] = set()

    def is_new(self, key: tuple[str | None, ...], now_ms: int) -> bool:
        hour, hashed = now_ms // HOUR_MS, hash(key)
        if hour != self._hour or len(self._known) >= self._most:
            self._hour, self._known = hour, set()
        if hashed in self._known:
            return False
        self._known.add(hashed)
        return True


def _opening(config: Config) -> list[object]:
    """What of ``config`` decides how a bundle is opened: the settings of fitted sources, and the objectives of surfaces."""
    sources = [getattr(config.sources, name) for name in OPENERS]
    return [*sources, {surface.name: surface.objective for surface in config.surfaces if surface.objective}]
