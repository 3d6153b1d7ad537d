"""Drift (#27): windows in which nothing has changed raise no alarm, a shift of 0.2 standard deviations does.

Columns are normal, heavy-tailed, discrete and zero-inflated; every window goes through the judgement that served lists go through. The other judgements of drift are
counted on sites that are well (``alarms``).
"""

from __future__ import annotations

import argparse
import sys

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from headwater.cli.bench.drift import LEAST_FOUND, MOST_ALARMS, judgements, lists_of_users
from tests.reliability.alarms import Counted, counted


class Judged(Struct, frozen=True, kw_only=True):
    """``false_alarms``: the share of windows with any; ``of_users``: the same where twenty rows of a list are of one user, beside what a
    chi-square for independent rows says at 1%; ``detected``: the smallest of the columns' shares. ``others`` are the other judgements, ``alarms_of`` their false alarms alone.
    """

    seed: int
    windows: int
    rows: int
    shift: float
    false_alarms: float
    false_alarms_of_users: float
    chi_square_of_users: float
    detected: float
    alarms_of: dict[str, float] = {}
    others: dict[str, Counted] = {}

    @property
    def good(self) -> bool:
        alarms = (self.false_alarms, self.false_alarms_of_users, *self.alarms_of.values())
        return max(alarms) <= MOST_ALARMS and self.detected >= LEAST_FOUND


def judged(*, windows: int, rows: int, shift: float, seed: int) -> Judged:
    """``windows`` without drift and as many with it."""
    found, of_users = judgements(windows, rows, shift, seed), lists_of_users(windows, rows, seed)
    return Judged(
        seed=seed, windows=windows, rows=rows, shift=shift, false_alarms=found["false_alarms"],
        false_alarms_of_users=of_users["false_alarms"], chi_square_of_users=of_users["chi_square_false_alarms"],
        detected=found["detected"],
    )  # fmt: skip


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=1_000)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--shift", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--scale", type=float, default=1.0, help="of the days of sites that are well")
    given = vars(parser.parse_args())
    others = counted(scale=given.pop("scale"), seed=given["seed"])
    rates = {name: one.rate for name, one in others.items()}
    outcome = replace(judged(**given), alarms_of=rates, others=others)
    sys.stdout.write(msgspec.json.encode(outcome).decode() + "\n")
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
