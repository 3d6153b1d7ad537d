"""``headwater bench experiments``: what the analysis of experiments promises, on simulated ones whose truth is known."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwater.cli.bench.report import SeedOption, table
from headwater.cli.options import EXIT_CHECK_FAILED, JsonOption, print_json

if TYPE_CHECKING:
    from headwater.cli.bench.trials import Rate

MOST_FALSE, MOST_ALARMS, LEAST_FOUND = 0.05, 0.001, 0.99
SPLITS: dict[str, tuple[float, ...]] = {"50/50": (0.5, 0.5), "90/10": (0.9, 0.1), "40/30/30": (0.4, 0.3, 0.3)}
OFF = (0.505, 0.495)  # 1% more in the first variant than the half that was meant
LOOKS, EACH = 200, 5_000  # at the split: a million users
LIFT = 0.05


def register(app: typer.Typer) -> None:
    """Add ``experiments``."""
    app.command("experiments")(experiments)


def experiments(
    tests: Annotated[int, typer.Option(min=10, help="A/A tests a metric.")] = 2_000,
    looks: Annotated[int, typer.Option(min=2, help="Looks a test.")] = 100,
    each: Annotated[int, typer.Option(min=10, help="New users a look.")] = 100,
    splits: Annotated[int, typer.Option(min=10, help="Experiments whose split is watched.")] = 20_000,
    users: Annotated[int, typer.Option(min=1_000, help="Users whose lists are interleaved.")] = 100_000,
    seed: SeedOption = 7,
    as_json: JsonOption = False,
) -> None:
    """False positives of A/A tests that are looked at all the time, false and right alarms of the split, what CUPED and interleaving save.

    Exit code 1 when a promise is missed: at most 5% false positives, at most 0.1% false alarms, a split that is off by 1% found in
    at least 99% of experiments of a million users.

    Example: headwater bench experiments --json
    """
    from headwater.cli.bench.measure import machine, versions

    began = time.process_time()
    figures: dict[str, Any] = {
        "tests": tests, "looks": looks, "users_per_test": looks * each,
        **aa_tests(tests, looks, each, seed), **split_tests(splits, seed), **mismatch_test(splits, seed), **verdict_tests(max(tests // 5, 10), seed), **gains(tests, users, seed),
    }  # fmt: skip
    figures["missed"] = missed(figures)
    figures |= {"cpu_s": time.process_time() - began, "seed": seed, "machine": machine(), "versions": versions()}
    if as_json:
        print_json(figures)
    else:
        table("experiments whose truth is known", figures)
    if figures["missed"]:
        raise typer.Exit(EXIT_CHECK_FAILED)


def aa_tests(tests: int, looks: int, each: int, seed: int) -> dict[str, Any]:
    """False positives by metric and method."""
    from headwater.cli.bench.trials import METRICS, looked_at

    found: dict[str, Any] = {}
    for name, outcomes in METRICS.items():
        rates, left = looked_at(outcomes, tests=tests, looks=looks, each=each, seed=seed)
        found[name] = {"variance_ratio": left} | {method: asdict(one) for method, one in rates.items()}
    return {
        "aa": found,
        "false_positives": max(one["always_valid"]["share"] for one in found.values()),
        "naive_false_positives": max(one["naive"]["share"] for one in found.values()),
    }


def verdict_tests(runs: int, seed: int) -> dict[str, Any]:
    """Verdicts of whole reports, where nothing differs and where the treated click more."""
    from headwater.cli.bench.verdicts import aa_verdicts

    users = 5_000
    nothing = aa_verdicts(runs=runs, users=users, lift=0.0, seed=seed)
    return {
        "verdicts": {
            "runs": runs, "users": users, "nothing": nothing, f"clicks +{2 * LIFT:.0%}": aa_verdicts(runs=runs, users=users, lift=2 * LIFT, seed=seed),
            f"clicks -{2 * LIFT:.0%}": aa_verdicts(runs=runs, users=users, lift=-2 * LIFT, seed=seed),
        },
        "wrong_verdicts": 1.0 - nothing.get("continue", 0) / runs,
    }  # fmt: skip


def split_tests(runs: int, seed: int) -> dict[str, Any]:
    """False alarms of sound splits, over a million users each, and over the first 4,000 looked at every 20."""
    from headwater.cli.bench.trials import split_alarms
    from headwater.experiments.srm import ALARM

    found = {
        name: asdict(split_alarms(shares, shares, runs=runs, looks=LOOKS, each=EACH, seed=seed))
        for name, shares in SPLITS.items()
    }
    found["50/50, first 4,000 users"] = asdict(
        split_alarms((0.5, 0.5), (0.5, 0.5), runs=runs, looks=200, each=20, seed=seed + 1)
    )
    return {
        "srm_runs": runs, "srm_level": ALARM, "srm_users": LOOKS * EACH, "srm": found,
        "srm_false_alarms": max(one["alarms"]["share"] for one in found.values()),
    }  # fmt: skip


def mismatch_test(runs: int, seed: int) -> dict[str, Any]:
    """How often a split that is off by 1% is found among a million users."""
    from headwater.cli.bench.trials import split_alarms

    off = split_alarms((0.5, 0.5), OFF, runs=runs, looks=LOOKS, each=EACH, seed=seed)
    return {
        "mismatch": {"intended": [0.5, 0.5], "actual": list(OFF), "users": LOOKS * EACH} | asdict(off),
        "mismatch_found": off.alarms.share,
    }


def gains(tests: int, users: int, seed: int) -> dict[str, Any]:
    """What CUPED and interleaving save."""
    from functools import partial

    from headwater.cli.bench.trials import clicks_per_user, interleaving_gain, looked_at

    treated = partial(clicks_per_user, lift=LIFT)

    def found(each: int, cuped: bool) -> tuple[dict[str, Rate], float]:
        return looked_at(
            clicks_per_user, treated=treated, tests=tests // 2, looks=20, each=each, seed=seed, cuped=cuped
        )

    with_cuped, left = found(500, True)
    powers = {
        "cuped": with_cuped,
        "plain": found(500, False)[0],
        "plain_with_the_factor_more_users": found(round(500 / left), False)[0],
    }
    compared = interleaving_gain(users=users, noise=(0.7, 0.6), resamples=400, seed=seed)
    return {
        "cuped": {
            "metric": "clicks_per_user", "lift": LIFT, "users": 10_000, "variance_ratio": left, "sample_size_factor": 1.0 / left,
            "power": {name: {method: one[method].share for method in ("fixed", "always_valid")} for name, one in powers.items()},
        },
        "cuped_factor": 1.0 / left, "interleaving": asdict(compared), "interleaving_factor": compared.factor,
    }  # fmt: skip


def missed(figures: dict[str, Any]) -> list[str]:
    """The promises that the figures do not keep."""
    kept = {
        "false positives": figures["false_positives"] <= MOST_FALSE,
        "false alarms of the split": figures["srm_false_alarms"] <= MOST_ALARMS,
        "mismatch found": figures["mismatch_found"] >= LEAST_FOUND,
    }
    return [name for name, good in kept.items() if not good]
