"""What off-policy evaluation has against a new bundle: for the gate (``gate.off_policy``)."""

from __future__ import annotations

from headwater.evaluation.off_policy.bundles import logging_bundles
from headwater.evaluation.off_policy.feedback import Overlap
from headwater.evaluation.off_policy.report import OVERLAP, Question, judge_bundle
from headwater.features.fold import Unseal
from headwater.features.plan import Plan
from headwater.log.protocol import EventLog
from headwater.registry.registry import Registry
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.serving.model import Model

# the first of these that could be had decides: what stands below an item is taken not to matter, what stands above may
_DECIDES = ("SNRIPS", "RIPS", "IIPS", "SIPS")


def objections(
    event_log: EventLog,
    plan: Plan,
    config: Config,
    registry: Registry,
    policy: Model,
    *,
    since: int,
    unseal: Unseal | None = None,
) -> tuple[list[str], list[str]]:
    """Reasons against ``policy``, and notes, from the lists of all surfaces that explore, from offset ``since`` on: what it was not trained on.

    It may not be clearly worth less than what was logged: the upper end of the 95% interval of the difference may not lie more than ``gate.margin`` (a
    share of the logged value) below 0. Where the log cannot say, that is a reason too.
    """
    reasons, notes = list[str](), list[str]()
    overlap = Overlap(least_ess=config.gate.off_policy_ess, most_uncovered=OVERLAP.most_uncovered)
    with logging_bundles(registry, config, plan) as logging:
        for surface in config.surfaces:
            if surface.exploration.share <= 0.0:
                continue
            question = Question(surface=surface.name, since=since, overlap=overlap)
            try:
                found = judge_bundle(event_log, plan, config, policy, logging, question, unseal=unseal)
            except HeadwaterError as error:
                reasons.append(f"off-policy: {error}")
                continue
            name = next(name for name in _DECIDES if name in found.estimates)
            over, value = found.difference[name], found.logging.value
            said = (
                f"off-policy: on {surface.name} a list is worth {over.value:+.4f} [{over.ci95[0]:+.4f}, {over.ci95[1]:+.4f}] beside {value:.4f} as "
                f"logged ({name}, {found.lists} lists, effective sample size {found.estimates[name].ess or 0.0:.0f})"
            )
            if over.ci95[1] < -config.gate.margin * value:
                reasons.append(f"{said}; gate.margin allows {-config.gate.margin * value:+.4f}")
            else:
                notes.append(said)
    return reasons, notes
