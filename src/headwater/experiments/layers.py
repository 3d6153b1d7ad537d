"""How experiments share users: those of one layer divide its buckets, those of different layers overlap."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from headwater.experiments.changes import clash
from headwater.experiments.definitions import BUCKETS, Experiment, ExperimentError

Ranges = tuple[tuple[int, int], ...]


def check_together(experiments: Iterable[Experiment]) -> None:
    """Whether these may run at the same time.

    Raises:
        ExperimentError: two of one layer have a bucket in common or say different holdouts, or two of different layers change the same.
    """
    before: list[Experiment] = []
    for experiment in experiments:
        for other in before:
            check_pair(experiment, other)
        held = holdout_begins(experiment)
        if any(last > held for _, last in experiment.buckets):
            raise ExperimentError(
                f'experiment "{experiment.name}": buckets: The holdout of layer "{experiment.layer}" begins at bucket {held}'
            )
        before.append(experiment)


def check_pair(one: Experiment, other: Experiment) -> None:
    """Whether two may run at the same time. Raises :class:`ExperimentError`."""
    if one.layer == other.layer:
        if one.holdout != other.holdout:
            raise ExperimentError(
                f'experiment "{one.name}": holdout: "{other.name}" says {other.holdout:g} of layer "{one.layer}", this says '
                f"{one.holdout:g}; a layer has one holdout"
            )
        for first, last in one.buckets:
            for start, end in other.buckets:
                if first < end and start < last:
                    raise ExperimentError(
                        f'experiment "{one.name}": buckets: "{other.name}" has {max(first, start)} to {min(last, end)} of layer '
                        f'"{one.layer}" already; `headwater experiments start` gives out free ones'
                    )
    elif one.interleave and other.interleave:
        raise ExperimentError(
            f'experiment "{one.name}": interleave: "{other.name}" interleaves too, and a list has two teams: put them into one layer (this is in '
            f'"{one.layer}", that in "{other.layer}")'
        )
    elif (what := clash(one, other)) is not None:
        raise ExperimentError(
            f'experiment "{one.name}": "{other.name}" changes {what} too, and both would act on the same users: '
            f'put them into one layer (this is in "{one.layer}", that in "{other.layer}")'
        )


def holdout_begins(experiment: Experiment) -> int:
    """The first of the layer's buckets that are in no experiment."""
    return BUCKETS - round(experiment.holdout * BUCKETS)


def with_buckets(experiment: Experiment, running: Sequence[Experiment]) -> Experiment:
    """``experiment`` with as many buckets as its share asks for, free of those of ``running`` in its layer.

    It keeps those that it has, so that nobody who is in is moved; with a smaller share the last ones go.

    Raises:
        ExperimentError: the layer has not so many free.
    """
    taken = {n for other in running if other.layer == experiment.layer for a, b in other.buckets for n in range(a, b)}
    end = holdout_begins(experiment)
    own = [n for a, b in experiment.buckets for n in range(a, b) if n not in taken and n < end]
    kept = set(own)
    free = [n for n in range(end) if n not in taken and n not in kept]
    missing = experiment.wanted_buckets - len(own)
    if missing > len(free):
        held = f", and {BUCKETS - end} are held out" if end < BUCKETS else ""
        others = ", ".join(f'"{o.name}" ({o.share:g})' for o in running if o.layer == experiment.layer)
        room = len(own) + len(free)
        raise ExperimentError(
            f'experiment "{experiment.name}": share: Layer "{experiment.layer}" has room for {room / BUCKETS:g}, not for '
            f"{experiment.share:g}: {others or 'nobody'} runs there{held}. Take a smaller share, or another layer"
        )
    chosen = own + free[:missing] if missing >= 0 else own[:missing]
    return replace(experiment, buckets=_ranges(chosen))


def find(experiments: Iterable[Experiment], name: str) -> Experiment:
    """The experiment called ``name``.

    Raises:
        ExperimentError: there is none; the message names the nearest.
    """
    known = {experiment.name: experiment for experiment in experiments}
    if (found := known.get(name)) is not None:
        return found
    close = difflib.get_close_matches(name, known, n=1)
    hint = f'; did you mean "{close[0]}"?' if close else f" (there are {', '.join(known) or 'none'})"
    raise ExperimentError(f'There is no experiment "{name}"{hint}')


def _ranges(buckets: Sequence[int]) -> Ranges:
    """``buckets`` as ranges, in the order in which they came in, so that the last ones are the first to go."""
    found: list[tuple[int, int]] = []
    for bucket in buckets:
        if found and found[-1][1] == bucket:
            found[-1] = (found[-1][0], bucket + 1)
        else:
            found.append((bucket, bucket + 1))
    return tuple(found)
