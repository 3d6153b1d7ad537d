"""Honest experiments (#25, #26): A/A tests that are looked at all the time find nothing, the split's alarm is never false and never missing.

Everything is simulated with a known truth, and goes through the functions that judge real experiments.
"""

from __future__ import annotations

import argparse
import sys

import msgspec
from msgspec import Struct

from headwater.cli.bench.experiments import LEAST_FOUND, MOST_ALARMS, MOST_FALSE, aa_tests, mismatch_test, split_tests


class Sound(Struct, frozen=True, kw_only=True):
    """#25. ``false_positives``: the largest of the metrics' shares; ``naive``: of a t-test at each look."""

    seed: int
    tests: int
    looks: int
    false_positives: float
    naive: float
    srm_runs: int
    srm_false_alarms: float

    @property
    def good(self) -> bool:
        return self.false_positives <= MOST_FALSE and self.srm_false_alarms <= MOST_ALARMS


class Sighted(Struct, frozen=True, kw_only=True):
    """#26. ``found``: the share of ``runs`` whose alarm was raised within ``users``, half of them within ``median_users``."""

    seed: int
    runs: int
    users: int
    found: float
    median_users: int | None

    @property
    def good(self) -> bool:
        return self.found >= LEAST_FOUND


def sound(*, tests: int, looks: int, splits: int, seed: int) -> Sound:
    """``tests`` A/A tests a metric, ``splits`` experiments whose split is as intended."""
    aa, split = aa_tests(tests, looks, 100, seed), split_tests(splits, seed)
    return Sound(
        seed=seed, tests=tests, looks=looks, false_positives=aa["false_positives"], naive=aa["naive_false_positives"],
        srm_runs=splits, srm_false_alarms=split["srm_false_alarms"],
    )  # fmt: skip


def sighted(*, splits: int, seed: int) -> Sighted:
    """``splits`` experiments whose split is off by 1%."""
    found = mismatch_test(splits, seed)
    at: float | None = found["mismatch"]["users_at_alarm"]
    return Sighted(
        seed=seed, runs=splits, users=found["mismatch"]["users"], found=found["mismatch_found"],
        median_users=None if at is None else round(at),
    )  # fmt: skip


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=("aa", "mismatch"), default="aa", help="#25 or #26")
    parser.add_argument("--tests", type=int, default=2_000)
    parser.add_argument("--looks", type=int, default=100)
    parser.add_argument("--splits", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    outcome: Sound | Sighted
    if given.part == "aa":
        outcome = sound(tests=given.tests, looks=given.looks, splits=given.splits, seed=given.seed)
    else:
        outcome = sighted(splits=given.splits, seed=given.seed)
    sys.stdout.write(msgspec.json.encode(outcome).decode() + "\n")
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
