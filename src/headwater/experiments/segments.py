"""Breakdowns by segment, with the warning that belongs to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from headwater.experiments.effects import effect
from headwater.experiments.fixed import Interval, fixed_horizon
from headwater.experiments.metrics import Metric
from headwater.experiments.moments import moments_by_look
from headwater.experiments.multiplicity import holm
from headwater.experiments.outcomes import Outcomes
from headwater.experiments.sequences import FIRST_LOOK

MOST = 10  # segments that are shown, those with the most users


class Slice(Struct, frozen=True, kw_only=True):
    """One metric of one treatment among the users of one segment: a fixed-horizon result. ``p_holm`` is adjusted for all slices."""

    segment: str
    metric: str
    variant: str
    users: tuple[int, int]
    relative: float
    interval: Interval
    p_value: float
    p_holm: float = 1.0


class Breakdown(Struct, frozen=True, kw_only=True):
    """``warning`` is part of the result: show it with the slices."""

    warning: str
    slices: list[Slice]


def breakdown(
    variant: npt.NDArray[np.integer], outcomes: Outcomes, metrics: Sequence[Metric], *, variants: Sequence[str],
    alpha: float, names: Mapping[int, str],
) -> Breakdown:  # fmt: skip
    """The metrics within each segment that users had before exposure, as ``names`` calls them, largest first."""
    slices: list[Slice] = []
    counts = np.bincount(outcomes.segments.ravel(), minlength=1) if len(outcomes.segments) else np.zeros(1, np.int64)
    known = [number for number in np.argsort(-counts, kind="stable").tolist() if number in names and counts[number]]
    for number in known[:MOST]:
        inside = (outcomes.segments == number).any(axis=1)
        for metric in metrics:
            rows = np.flatnonzero(inside & outcomes.complete[metric.name])
            values = outcomes.values[metric.name][rows]
            found = moments_by_look(values, variant[rows], np.zeros(len(rows), np.int64), len(variants), 1)[0]
            for treatment in range(1, len(variants)):
                control, treated = found[0], found[treatment]
                if min(control.users, treated.users) < FIRST_LOOK:
                    continue
                ours = effect(control, treated)
                if not (ours.error > 0.0 and np.isfinite(ours.relative)):
                    continue
                result = fixed_horizon(control, treated, alpha=alpha)
                slices.append(
                    Slice(
                        segment=names[number], metric=metric.name, variant=variants[treatment],
                        users=(int(control.users), int(treated.users)), relative=result.relative,
                        interval=result.relative_interval, p_value=result.p_value,
                    )
                )  # fmt: skip
    adjusted = holm([one.p_value for one in slices]).tolist()
    slices = [replace(one, p_holm=p_value) for one, p_value in zip(slices, adjusted, strict=True)]
    return Breakdown(warning=_warning(len(slices), alpha), slices=slices)


def _warning(count: int, alpha: float) -> str:
    if not count:
        return f"No segment has {FIRST_LOOK} users in control and treatment whose window is over."
    return (
        f"{count} slices are shown: if nothing had any effect, {count * alpha:.1f} of them would still be expected to have p ≤ {alpha:g} "
        "at a single look. Go by p_holm; take a slice as an idea for the next experiment, never as a reason to ship."
    )
