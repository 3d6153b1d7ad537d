"""``headwater ope``: the value of a bundle, and of what served, from the lists that were drawn by lot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np
from msgspec import Struct

from headwater.evaluation.off_policy.estimators import Estimate
from headwater.evaluation.off_policy.feedback import Overlap
from headwater.evaluation.off_policy.lists import ListFeedback, judge_lists
from headwater.evaluation.off_policy.logged import drawn, read_lists
from headwater.evaluation.off_policy.replay import Progress, replay_lists
from headwater.features.fold import Unseal
from headwater.features.plan import Plan
from headwater.log.protocol import EventLog
from headwater.schema.config import Config
from headwater.schema.surfaces import Exploration
from headwater.serving.model import Model

OVERLAP = Overlap(most_uncovered=0.1)  # two rankers never draw from quite the same candidates
LEAST_REPRODUCED = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked: the value of a bundle on ``surface``, counting ``reward`` (None: any positive event) on an item of a list within ``window_ms``, if lists are
    drawn with ``temperature`` (None: as the surface is configured). Of the log from offset ``since`` on, the newest ``limit`` lists (None: all).
    """

    surface: str = "home"
    reward: str | None = None
    window_ms: int = 1_800_000
    temperature: float | None = None
    since: int = 1
    limit: int | None = None
    overlap: Overlap = OVERLAP
    draws: int = 1_000
    seed: int = 7


class OffPolicyReport(Struct, frozen=True, kw_only=True):
    """The value of ``policy``: the expected number of items of a list that are taken up, by estimator; ``difference`` is that less the value of
    what was logged (``logging``), on the same lists.

    ``reproduced`` is the share of the lists whose logging policy could be asked again. ``ess`` is the effective sample size of whole lists; ``uncovered`` the mean share of the policy's first draw that lies on candidates that the log
    never drew from. ``refused`` says of an estimator why it gives no value. ``bundles`` counts the lists by the bundle that was
    in service.
    """

    policy: str
    surface: str
    reward: str
    window_ms: int
    temperature: float
    lists: int
    users: int
    rewarded: int
    skipped: dict[str, int]
    bundles: dict[str, int]
    reproduced: float
    uncovered: float
    ess: float
    max_weight: float
    mean_weight: float
    logging: Estimate
    estimates: dict[str, Estimate]
    difference: dict[str, Estimate]
    refused: dict[str, str]
    last_offset: int
    draws: int
    seed: int


def judge_bundle(
    event_log: EventLog, plan: Plan, config: Config, policy: Model, logging: Callable[[str], Model | None], question: Question, *,
    unseal: Unseal | None = None, progress: Progress | None = None,
) -> OffPolicyReport:  # fmt: skip
    """Judge ``policy`` by the log. ``logging`` opens the bundle of a version (None: it is gone; without it there is no IIPS).

    Raises:
        OverlapError: no estimator can say anything; why, and what to do.
        HeadwaterError: nothing was drawn by lot, or ``policy`` could not rank a list.
    """
    logged = read_lists(
        event_log, config, surface=question.surface, reward=question.reward, window_ms=question.window_ms, since=question.since,
        limit=question.limit,
    )  # fmt: skip
    exploration = _exploration(config, question)
    lists, places = logged.served, logged.places
    replayed = replay_lists(
        event_log, plan, config, lists, places, policy, logging, exploration, unseal=unseal, progress=progress
    )  # fmt: skip
    propensities = np.zeros((len(lists), places))
    for n, served in enumerate(lists):
        said = drawn(served).log_propensities
        propensities[n, : len(said)] = said
    reproduced = float(replayed.reproduced.mean())
    with_places = reproduced >= LEAST_REPRODUCED
    # RIPS assumes less than IIPS, so where the logging policy cannot be asked again its weights do as well
    marginal = np.where(
        replayed.reproduced[:, None], replayed.marginal, np.exp(np.cumsum(replayed.evaluated - propensities, axis=1))
    )
    feedback = ListFeedback(
        logged.rewards, propensities, replayed.evaluated, np.array([served.user for served in lists], np.int64),
        replayed.uncovered, marginal if with_places else None, replayed.features, replayed.expected,
    )  # fmt: skip
    judgement, refused = judge_lists(feedback, overlap=question.overlap, draws=question.draws, seed=question.seed)
    if not with_places:
        refused["IIPS"] = (
            f"the logging policy could be asked again about {reproduced:.1%} of the lists only: {replayed.why_not}. RIPS needs no such thing"
        )
    return OffPolicyReport(
        policy=policy.version, surface=question.surface, reward=question.reward or "any positive event",
        window_ms=question.window_ms, temperature=exploration.temperature, lists=judgement.rows, users=judgement.users,
        rewarded=int((logged.rewards.sum(axis=1) > 0).sum()), skipped=logged.skipped,
        bundles=dict(Counter(served.answer.address.bundle for served in lists)), reproduced=reproduced,
        uncovered=float(replayed.uncovered.mean()), ess=judgement.ess, max_weight=judgement.max_weight,
        mean_weight=judgement.mean_weight, logging=judgement.logging, estimates=judgement.estimates,
        difference=judgement.difference, refused=refused, last_offset=logged.last_offset, draws=question.draws,
        seed=question.seed,
    )  # fmt: skip


def _exploration(config: Config, question: Question) -> Exploration:
    said = next((one.exploration for one in config.surfaces if one.name == question.surface), Exploration())
    return said if question.temperature is None else msgspec.structs.replace(said, temperature=question.temperature)
