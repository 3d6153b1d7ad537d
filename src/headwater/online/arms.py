"""The arms of experiments in a worker: for each combination of variants that a request can have, what answers it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from headwater.experiments.assignment import ArmKey, Assigner, Choice, Targeted, arm_of, everybody
from headwater.schema.config import Config
from headwater.serving.model import Model
from headwater.serving.pace import MeasuredPace
from headwater.serving.pipeline import Conditions, Pipeline
from headwater.serving.rules import Rules
from headwater.serving.targeting import Asking
from headwater.serving.view import View


@dataclass(frozen=True, slots=True)
class Arm:
    """What differs from the control. ``name`` tells its lists from those of others, whatever its variants are later; ``base`` is the
    configuration that ``config`` was made of; ``model`` None: the bundle in service.
    """

    name: str
    base: Config
    config: Config
    pipeline: Pipeline
    model: Model | None


@dataclass(frozen=True, slots=True)
class Shadow:
    """An arm that is asked copies of a ``share`` of the requests to its ``surfaces`` (None: all), and answers nobody; ``logged`` of its lists
    go to the log. ``version`` is that of the experiment.
    """

    experiment: str
    variant: str
    version: str
    share: float
    logged: float
    surfaces: frozenset[str] | None
    arm: Arm


class Chosen(NamedTuple):
    """The variants of a user, what answers (None: the control), and what its list is interleaved with (None: nothing)."""

    choices: tuple[Choice, ...] = ()
    arm: Arm | None = None
    challenger: Arm | None = None


Targets = Callable[[str, Asking, View, int], bool]
"""Whether the experiment of that name is for who asks, by the state of a view at a time (:class:`headwater.serving.targeting.Targets`)."""


class Arms:
    """Who gets which arm, and the shadows; ``targets`` says whom the experiments are for. It does not change: another one takes its place."""

    def __init__(
        self, assigner: Assigner, by_key: Mapping[ArmKey, Arm], shadows: tuple[Shadow, ...] = (), targets: Targets = lambda *_: True
    ) -> None:  # fmt: skip
        self._choose = assigner.choose
        self.by_key = by_key
        self.shadows = shadows
        self.targets = targets

    def choose(
        self, user: str | None, surface: str, targeted: Targeted = everybody, *, interleave: bool = True
    ) -> Chosen:
        """What ``user`` gets on ``surface``. ``interleave`` False: the list cannot be, so who would get such a one gets the control and is
        not counted.
        """
        choices = self._choose(user, surface, targeted)
        if not choices:
            return _CONTROL
        if not interleave:
            choices = tuple(choice for choice in choices if not choice.challenger)
        own, challenging = arm_of(choices), arm_of(choices, challenging=True)
        challenger = self.by_key[challenging] if challenging != own else None
        return Chosen(choices, self.by_key[own] if own else None, challenger)


_CONTROL = Chosen()
NO_ARMS = Arms(Assigner(), {})


def branched(control: Pipeline, config: Config, rules: Rules | None, *, shadow: bool = False) -> Pipeline:
    """A pipeline with another configuration that shares all that is not configuration with ``control``: caches, the ranker's thread,
    what is popular. Its pace is its own, so that a slow variant narrows itself and not the others. A ``shadow`` keeps no lists, for nobody
    is to get them, and its requests walk no tier.
    """
    ours = Conditions(control.conditions.scorer) if shadow else control.conditions
    pipeline = Pipeline(
        config, control.plan, stored_region=control.stored_region, zones=control.zones, timer=control.timer,
        conditions=replace(ours, pace=MeasuredPace()), rules=rules,
    )  # fmt: skip
    pipeline.popular = control.popular
    return pipeline
