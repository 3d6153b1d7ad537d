"""Policies and delays compared on the same seeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec
from msgspec import Struct

from headwater.evaluation.closed_loop.figures import Figures, Versus, figures_of, versus
from headwater.evaluation.closed_loop.policies import POPULAR, Policy
from headwater.evaluation.closed_loop.run import Ledger, run_policy
from headwater.evaluation.closed_loop.system import Start
from headwater.simulator import Scenario, World

START_MS = 1_772_409_600_000  # Monday, 2 March 2026, 00:00 UTC

Progress = Callable[[str, int, int], None]


class Sizes(Struct, frozen=True, kw_only=True):
    """How large the world is, and how long it goes on.

    ``history_hours`` of people on their own come before; ``births`` items a day are born when creators are content;
    ``share`` of the clicks train the ranker; ``impressions`` are a new item's first.
    """

    users: int = 400
    items: int = 500
    days: int = 5
    history_hours: int = 48
    visits_per_day: float = 1.5
    births: float = 30.0
    share: float = 0.5
    impressions: int = 10


class ClosedLoopReport(Struct, frozen=True, kw_only=True):
    """What ``headwater closed-loop --json`` prints. ``over_popular`` has every policy but that one; ``delays`` are the full system with
    late events. ``impressions_per_item_day`` of the policy with the most says what first impressions mean in this world, ``impressions_to_know``
    how many a good estimate takes, on average over seeds.
    """

    protocol: str
    scenario: str
    sizes: Sizes
    seeds: list[int]
    history_events: int
    policies: dict[str, Figures]
    over_popular: dict[str, Versus]
    delays: dict[str, Figures]
    over_first_delay: dict[str, Versus]
    impressions_per_item_day: float
    impressions_to_know: float
    seconds: float


def closed_loop(
    sizes: Sizes, seeds: Sequence[int], policies: Sequence[Policy], delays: Sequence[Policy] = (), *,
    scenario: Scenario | None = None, progress: Progress | None = None,
) -> ClosedLoopReport:  # fmt: skip
    """Run every policy, and the full system with every delay, on worlds of the same seeds.

    Raises:
        ValueError: no policy, or a world in which nobody came.
    """
    if not policies and not delays:
        raise ValueError("there is nothing to compare")
    began = time.perf_counter()
    ledgers: dict[Policy, list[Ledger]] = {}
    wanted = list(dict.fromkeys(_nameless(policy) for policy in (*policies, *delays)))
    events = 0
    for s, seed in enumerate(seeds):
        world = World(
            seed, start_ms=START_MS, users=sizes.users, items=sizes.items, hours=sizes.history_hours,
            visits_per_day=sizes.visits_per_day,
        )  # fmt: skip
        start = Start(world)
        events += len(start.history)
        for p, policy in enumerate(wanted):
            if progress is not None:
                progress("runs", s * len(wanted) + p, len(seeds) * len(wanted))
            ledger = run_policy(
                policy, start, seed=seed, days=sizes.days, births_per_day=sizes.births, share=sizes.share, scenario=scenario
            )  # fmt: skip
            ledgers.setdefault(policy, []).append(ledger)

    def found(policy: Policy) -> list[Ledger]:
        return ledgers[_nameless(policy)]

    base = next((policy for policy in policies if policy.name == POPULAR), None)
    return ClosedLoopReport(
        protocol="closed-loop", scenario="" if scenario is None else scenario.name, sizes=sizes, seeds=list(seeds),
        history_events=events,
        policies={policy.name: figures_of(policy.says, found(policy), sizes.impressions) for policy in policies},
        over_popular={
            policy.name: versus(found(policy), found(base))
            for policy in policies if base is not None and policy is not base
        },
        delays={policy.name: figures_of(policy.says, found(policy), sizes.impressions) for policy in delays},
        over_first_delay={policy.name: versus(found(policy), found(delays[0])) for policy in delays[1:]},
        impressions_per_item_day=round(
            max(sum(_impressions_per_item(each, sizes.days) for each in runs) / len(runs) for runs in ledgers.values()), 2
        ),
        impressions_to_know=round(sum(ledger.to_know for ledger in next(iter(ledgers.values()))) / len(seeds), 1),
        seconds=round(time.perf_counter() - began, 1),
    )  # fmt: skip


def _nameless(policy: Policy) -> Policy:
    """Two policies that do the same are run once."""
    return replace(policy, name="", says="")


def _impressions_per_item(ledger: Ledger, days: int) -> float:
    return float(ledger.shown.sum()) / days / max(int(ledger.eligible.sum()), 1)


def encode(report: ClosedLoopReport) -> bytes:
    """The report as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
