"""Off-policy evaluation of a bundle of the registry, and of those that were in service meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager

import structlog

from headwater.evaluation.off_policy.replay import Progress
from headwater.evaluation.off_policy.report import OffPolicyReport, Question, judge_bundle
from headwater.features.fold import Unseal
from headwater.features.plan import Plan
from headwater.log.protocol import EventLog
from headwater.registry.registry import Registry
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.serving.model import Model, open_model
from headwater.serving.request import NO_MODEL

log = structlog.get_logger()


def judge_version(
    event_log: EventLog, plan: Plan, config: Config, registry: Registry, version: str, question: Question, *,
    unseal: Unseal | None = None, progress: Progress | None = None,
) -> OffPolicyReport:  # fmt: skip
    """Judge bundle ``version`` by the log.

    Raises:
        BundleError: the bundle is damaged, or of another plan.
        HeadwaterError: as :func:`judge_bundle`.
    """
    with (
        closing(open_model(registry.load(version, plan_hash=plan.hash), config, plan)) as policy,
        logging_bundles(registry, config, plan) as logging,
    ):
        return judge_bundle(event_log, plan, config, policy, logging, question, unseal=unseal, progress=progress)


@contextmanager
def logging_bundles(registry: Registry, config: Config, plan: Plan) -> Iterator[Callable[[str], Model | None]]:
    """Opens bundles that were in service once, by version, each once; None for one that is gone. They are closed in the end."""
    with ExitStack() as opened:
        before: dict[str, Model | None] = {}

        def logging(version: str) -> Model | None:
            if version not in before:
                before[version] = _opened(opened, registry, version, config, plan)
            return before[version]

        yield logging


def _opened(opened: ExitStack, registry: Registry, version: str, config: Config, plan: Plan) -> Model | None:
    """A bundle that was in service once; None, and a line in the log: it is gone, or was trained on another plan."""
    if version == NO_MODEL:
        return Model(NO_MODEL, None)
    try:
        return opened.enter_context(closing(open_model(registry.load(version, plan_hash=plan.hash), config, plan)))
    except (HeadwaterError, OSError) as error:
        log.warning("logging_bundle_gone", version=version, error=str(error))
        return None
