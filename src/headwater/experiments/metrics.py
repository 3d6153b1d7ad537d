"""Metrics as definitions: what is counted, per what, how long after exposure.

A metric is ``numerator / denominator``, both added up per user within a window after the user's first exposure. Users are what is
randomised, so they are the unit of every variance, also where the denominator is lists.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from headwater.schema.config import Config
from headwater.schema.durations import Delay, Duration, parse_delay, parse_duration
from headwater.schema.errors import ConfigurationError
from headwater.schema.events import Name

Counted = Literal["events", "value", "users", "sessions", "lists"]

SESSION_GAP_MS = 30 * 60_000  # a longer silence begins another session


class Measure(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is added up of a user. ``of``:

    - "events": how many of the types ``types`` (none: of every type), retractions count −1;
    - "value": the sum of their values;
    - "users": 1 for a user with at least one of them;
    - "sessions": runs of them with no silence of 30 minutes (in log order: an event that comes late begins none);
    - "lists": served lists.

    ``after``: only from this long after exposure on ("0s": at once).
    """

    of: Counted
    types: tuple[Name, ...] = ()
    after: Delay = "0s"


class Metric(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``denominator`` None: the users, so the metric is a mean over users. ``window`` counts from each user's first exposure; a user
    counts once it is over, so that all had as long. ``winsorise``: the quantile over all users that larger numerators are cut at
    (1: none is cut). ``better``: the direction that is wanted.
    """

    name: Name
    numerator: Measure
    denominator: Measure | None = None
    unit: Literal["user"] = "user"
    window: Duration = "7d"
    winsorise: Annotated[float, Meta(gt=0.5, le=1.0)] = 1.0
    better: Literal["increase", "decrease"] = "increase"
    description: Annotated[str, Meta(max_length=512)] = ""

    @property
    def window_ms(self) -> int:
        """The window in ms."""
        return parse_duration(self.window)

    def __post_init__(self) -> None:
        for measure in (self.numerator, self.denominator):
            if measure is not None and parse_delay(measure.after) >= self.window_ms:
                raise ConfigurationError(
                    f'metric "{self.name}": `after` is {measure.after} and the window ends after {self.window}; make the window longer'
                )


class MetricFile(Struct, frozen=True, forbid_unknown_fields=True):
    """A file of definitions: ``[[metrics]]``."""

    metrics: tuple[Metric, ...]


def click_type(config: Config) -> str:
    """The event type whose events are clicks: ``click``, or the first positive one where there is none of that name."""
    positive = [kind.name for kind in config.events if kind.positive]
    return "click" if "click" in positive else positive[0]


def conversion_type(config: Config) -> str:
    """The event type whose events are conversions: the positive one of the greatest weight."""
    return max((kind for kind in config.events if kind.positive), key=lambda kind: kind.weight).name


def predefined(config: Config, window: str = "7d") -> dict[str, Metric]:
    """The metrics that come with the event types of ``config``, by name.

    "clicks" are events of :func:`click_type`, conversions of :func:`conversion_type`.
    """
    click, best = click_type(config), conversion_type(config)
    clicks, lists = Measure(of="events", types=(click,)), Measure(of="lists")
    day = "1d" if parse_duration(window) > parse_duration("1d") else "0s"
    made = (
        Metric(
            name="clicks_per_user", numerator=clicks, window=window, winsorise=0.999, description=f"`{click}` events of a user"
        ),
        Metric(
            name="clicks_per_list", numerator=clicks, denominator=lists, window=window,
            description=f"`{click}` events over served lists",
        ),
        Metric(
            name="conversion", numerator=Measure(of="users", types=(best,)), window=window,
            description=f"share of users with a `{best}`",
        ),
        Metric(
            name="value_per_user", numerator=Measure(of="value", types=(best,)), window=window, winsorise=0.999,
            description=f"sum of the values of a user's `{best}` events",
        ),
        Metric(name="sessions_per_user", numerator=Measure(of="sessions"), window=window, description="sessions of a user"),
        Metric(
            name="returned", numerator=Measure(of="users", after=day), window=window,
            description=f"share of users with any event later than {day} after exposure",
        ),
        Metric(
            name="hides_per_user", numerator=Measure(of="events", types=tuple(k.name for k in config.events if k.weight < 0)),
            window=window, better="decrease", description="events with a negative weight of a user",
        ),
    )  # fmt: skip
    negative = any(kind.weight < 0 for kind in config.events)
    return {metric.name: metric for metric in made if negative or metric.name != "hides_per_user"}


def parse_metrics(text: str, source: str) -> dict[str, Metric]:
    """Definitions from TOML; ``source`` is what errors call it.

    Raises:
        ConfigurationError: it is wrong, or names a metric twice.
    """
    try:
        found = msgspec.toml.decode(text.encode(), type=MetricFile).metrics
    except ConfigurationError as error:
        raise ConfigurationError(f"{source}: {error}") from error
    except msgspec.DecodeError as error:
        raise ConfigurationError(f"{source}: {error}") from error
    named = {metric.name: metric for metric in found}
    if len(named) < len(found):
        raise ConfigurationError(f"{source}: a metric is defined twice")
    return named


def check_types(metrics: Iterable[Metric], config: Config) -> None:
    """Raise :class:`ConfigurationError` for an event type that ``config`` does not have."""
    known = {kind.name for kind in config.events}
    for metric in metrics:
        for measure in (metric.numerator, metric.denominator):
            for name in () if measure is None else measure.types:
                if name not in known:
                    raise ConfigurationError(
                        f'metric "{metric.name}": there is no event type "{name}"; there are {", ".join(sorted(known))}'
                    )
