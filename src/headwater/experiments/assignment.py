"""Which variants a request gets. Pure: the same id, the same experiments, the same answer, on every server.

Two hashes (BLAKE2b-64, keyed) of the external user id decide. The first, keyed with the layer's name, is a bucket of 10,000 in the
layer, and so at most one of its experiments; the second, keyed with the experiment's salt, a point in [0, 1) among the variants
by their weights. Layers are independent of each other because their keys differ, and so are variants of experiments that
follow one another on the same buckets. A larger share adds buckets and moves nobody.

The id that counts is the one that the request names. Somebody who logs in goes on with another id, and may get another variant; to
keep one variant through a login, ask with an id that does not change there.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate, product
from typing import NamedTuple

import numpy as np

from headwater.experiments.definitions import BUCKETS, Experiment, hashed_id
from headwater.schema.experiments import INTERLEAVED

_FULL = float(1 << 64)

ArmKey = tuple[tuple[str, str], ...]
"""What a request gets that is not the control: (experiment, variant), by the experiment's name. Empty: the configuration as it is."""

Targeted = Callable[[str], bool]
"""Whether the experiment of that name is for who asks: its ``when`` holds."""


def everybody(_: str) -> bool:
    """Every experiment is for everybody."""
    return True


class Acting(NamedTuple):
    """A running experiment and where it acts: the surfaces, None: all."""

    experiment: Experiment
    surfaces: frozenset[str] | None

    def acts_on(self, surface: str) -> bool:
        """Whether its variants may differ on ``surface``."""
        return self.surfaces is None or surface in self.surfaces


class Choice(NamedTuple):
    """A user's variant of an experiment. ``forced``: by ``overrides``, so it is no part of the comparison. ``challenger``: the variant
    whose list is interleaved with the control's ("": none is, and ``variant`` answers).
    """

    experiment: str
    variant: str
    version: str
    is_control: bool
    forced: bool
    challenger: str = ""


def bucket_of(layer: str, user: str) -> int:
    """The user's bucket of a layer, 0 to 9,999."""
    return _hash(layer, "layer", user) % BUCKETS


def point_of(experiment: Experiment, user: str) -> float:
    """Where the user stands among the variants of an experiment, in [0, 1)."""
    return _hash(experiment.salt or experiment.name, "variant", user) / _FULL


def variant_of(experiment: Experiment, user: str) -> str:
    """The variant of a user who takes part."""
    total = list(accumulate(variant.weight for variant in experiment.variants))
    at = bisect_right(total, point_of(experiment, user) * total[-1])
    return experiment.variants[min(at, len(total) - 1)].name


class Assigner:
    """Assigns users to the variants of running experiments."""

    def __init__(self, acting: Sequence[Acting] = ()) -> None:
        acting = [each for each in acting if not each.experiment.shadow]
        self._everywhere = _layers([each for each in acting if each.surfaces is None])
        named = {name for each in acting for name in each.surfaces or ()}
        self._on = {name: _layers([each for each in acting if each.acts_on(name)]) for name in named}

    def choose(self, user: str | None, surface: str, targeted: Targeted = everybody) -> tuple[Choice, ...]:
        """The variants of ``user`` on ``surface``, at most one of each layer; of nobody (None) none. ``targeted`` is asked of an experiment that has a
        condition and the user's bucket.
        """
        if user is None:
            return ()
        layers = self._on.get(surface, self._everywhere)
        if not layers:
            return ()
        found = (layer.choose(user, targeted) for layer in layers)
        return tuple(choice for choice in found if choice is not None)


def arm_of(choices: Sequence[Choice], *, challenging: bool = False) -> ArmKey:
    """What of ``choices`` is not the control; where a list is interleaved, that of its control, or of its challenger (``challenging``)."""
    named = [
        (each.experiment, each.challenger if challenging else "") if each.challenger else (each.experiment, each.variant)
        for each in choices if not each.is_control
    ]  # fmt: skip
    return tuple(sorted(pair for pair in named if pair[1]))


def arms_of(acting: Sequence[Acting]) -> set[ArmKey]:
    """Every arm that a request can have: on each surface one variant at most of each layer; and the variants of shadows, each alone."""
    shadows = [each.experiment for each in acting if each.experiment.shadow]
    acting = [each for each in acting if not each.experiment.shadow]
    places: list[str | None] = [None, *sorted({name for each in acting for name in each.surfaces or ()})]
    found: set[ArmKey] = set()
    for place in places:
        here = [each for each in acting if each.surfaces is None or (place is not None and place in each.surfaces)]
        by_layer: dict[str, list[tuple[str, str] | None]] = {}
        for each in here:
            options = by_layer.setdefault(each.experiment.layer, [None])
            options += [(each.experiment.name, variant.name) for variant in each.experiment.variants[1:]]
        for chosen in product(*by_layer.values()):
            found.add(tuple(sorted(pair for pair in chosen if pair is not None)))
    return (found - {()}) | {((each.name, variant.name),) for each in shadows for variant in each.variants[1:]}


class _Arranged:
    """An experiment with what a choice asks, ready."""

    __slots__ = ("control", "experiment", "version")

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.control = experiment.control
        self.version = experiment.version

    def choice(self, variant: str, *, forced: bool) -> Choice:
        return Choice(self.experiment.name, variant, self.version, variant == self.control, forced)

    def choice_of(self, user: str) -> Choice:
        if self.experiment.interleave:
            challenger = self.experiment.variant_names[1]
            return Choice(self.experiment.name, INTERLEAVED, self.version, False, False, challenger)
        return self.choice(variant_of(self.experiment, user), forced=False)


class _Layer:
    """The experiments of one layer on one surface."""

    def __init__(self, name: str, experiments: Sequence[Experiment]) -> None:
        self._name = name
        self._arranged = [_Arranged(experiment) for experiment in experiments]
        self._of_bucket = np.zeros(BUCKETS, np.int64)  # position of the experiment from 1, 0: none
        for number, experiment in enumerate(experiments, 1):
            for first, end in experiment.buckets:
                self._of_bucket[first:end] = number
        self._tested = [one for one in self._arranged if one.experiment.overrides]

    def choose(self, user: str, targeted: Targeted) -> Choice | None:
        for one in self._tested:
            if (variant := one.experiment.overrides.get(hashed_id(one.experiment, user))) is not None:
                return one.choice(variant, forced=True)
        number = int(self._of_bucket[bucket_of(self._name, user)])
        if not number:
            return None
        one = self._arranged[number - 1]
        if one.experiment.when and not targeted(one.experiment.name):
            return None
        return one.choice_of(user)


def _layers(acting: Sequence[Acting]) -> tuple[_Layer, ...]:
    by_name: dict[str, list[Experiment]] = {}
    for each in acting:
        by_name.setdefault(each.experiment.layer, []).append(each.experiment)
    return tuple(_Layer(name, experiments) for name, experiments in sorted(by_name.items()))


def _hash(key: str, purpose: str, user: str) -> int:
    digest = hashlib.blake2b(
        user.encode(errors="surrogatepass"), digest_size=8, key=key.encode(), person=purpose.encode()
    )
    return int.from_bytes(digest.digest(), "big")
