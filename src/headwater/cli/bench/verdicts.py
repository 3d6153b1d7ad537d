"""Whole reports of A/A tests: how often a verdict is wrong, all its metrics, guardrails and looks together."""

from __future__ import annotations

from collections import Counter

import numpy as np

from headwater.cli.bench.trials import clicks_per_list, clicks_per_user, conversion
from headwater.experiments.analysis import analyse
from headwater.experiments.definitions import Guardrail
from headwater.experiments.exposures import Arms
from headwater.experiments.metrics import Measure, Metric
from headwater.experiments.outcomes import Outcomes

_CLICKS, _LISTS = Measure(of="events", types=("click",)), Measure(of="lists")
METRICS = (
    Metric(name="clicks_per_user", numerator=_CLICKS),
    Metric(name="conversion", numerator=Measure(of="users", types=("purchase",))),
    Metric(name="clicks_per_list", numerator=_CLICKS, denominator=_LISTS),
)
GUARDRAILS = (Guardrail(metric="clicks_per_list"),)  # any drop is harm


def aa_verdicts(*, runs: int, users: int, lift: float, seed: int) -> dict[str, int]:
    """How many of ``runs`` experiments came to each verdict.

    Two primary metrics, a guardrail without a margin, 50 looks, a split by a coin; the treated click ``lift`` more (0: an A/A test). A
    verdict is reached when the evidence stood at any of the looks.
    """
    rng = np.random.default_rng(seed)
    found: Counter[str] = Counter()
    for _ in range(runs):
        variant = rng.integers(0, 2, users)
        treated = clicks_per_user(rng, (users,), lift)
        values = {
            "clicks_per_user": np.where((variant == 1)[:, None], treated, clicks_per_user(rng, (users,))),
            "conversion": conversion(rng, (users,)), "clicks_per_list": clicks_per_list(rng, (users,)),
        }  # fmt: skip
        done = dict.fromkeys(values, np.ones(users, np.bool_))
        outcomes = Outcomes(values, done, np.zeros((users, 2), np.int64), 0)
        arms = Arms(np.arange(users, dtype=np.uint32), variant, np.arange(users), 0)
        report = analyse(
            "aa", arms, outcomes, METRICS, variants=("control", "treatment"), weights=(1.0, 1.0),
            primary=("clicks_per_user", "conversion"), guardrails=GUARDRAILS, planned_users=users,
        )  # fmt: skip
        found[report.verdicts[0].decision] += 1
    return dict(sorted(found.items()))
