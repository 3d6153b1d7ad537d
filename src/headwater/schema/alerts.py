"""``[[alerts]]``: what is watched, when it is wrong, and what is done about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field

from headwater.schema.durations import Delay, Duration, parse_delay, parse_duration
from headwater.schema.errors import ConfigurationError
from headwater.schema.events import Name
from headwater.schema.models import Limit
from headwater.schema.strict import key_and_reason, nearest

Metric = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{1,127}$")]
MaybeMetric = Annotated[str, Meta(pattern=r"^([a-z][a-z0-9_]{1,127})?$")]
MaybeName = Annotated[str, Meta(max_length=64, pattern=r"^[A-Za-z0-9_.:\-]*$")]
Labels = dict[Name, Annotated[str, Meta(max_length=200)]]
Of = Literal["value", "relative", "rate", "increase", "ratio", "quantile"]
Missing = Literal["tell", "ok", "fire"]
Severity = Literal["info", "warning", "critical"]
Action = Literal[
    "rollback", "freeze_promotion", "retrain", "walk_down", "walk_up", "stop_experiment", "raise_exploration"
]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical")


class AlertRule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rule as it is in force.

    It looks at the series of ``metric`` whose ``labels`` have these values (``*``, ``?`` and ``[...]`` as in file names), for each value
    of the label ``by`` alone. ``of`` says what of them: the ``value`` now (of several the worst), that over the value of ``over`` (``relative``), what counters gained in ``window`` (``increase``)
    or a second (``rate``), that over what ``over`` gained (``ratio``), or a ``quantile`` of what a histogram saw in ``window``.
    ``at_least``: of the denominator or the histogram so much must have come in ``window``, or there is nothing to judge; of values, so much must
    the gauge ``count`` of the same labels show.

    It fires when that was ``above`` or ``below`` for ``for_``, and is over when it was back beyond ``clear`` (absent: the
    threshold) for ``clear_for``. ``missing``: a figure that is not there is told, counts as right, or as wrong.

    ``actions`` are done once for each incident, and not within ``cooldown`` of the last time; ``restore_after``: what they changed is taken
    back when the incident has been over for so long.
    """

    name: Name
    metric: Metric
    enabled: bool = True
    labels: Labels = {}
    of: Of = "value"
    quantile: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.95
    over: MaybeMetric = ""
    over_labels: Labels = {}
    count: MaybeMetric = ""
    by: MaybeName = ""
    at_least: Annotated[float, Meta(ge=0.0)] = 0.0
    above: float | None = None
    below: float | None = None
    clear: float | None = None
    window: Duration = "1m"
    for_: Delay = field(name="for", default="0s")
    clear_for: Delay = "1m"
    missing: Missing = "tell"
    severity: Severity = "warning"
    actions: tuple[Action, ...] = ()
    cooldown: Duration = "15m"
    restore_after: Limit = "never"
    text: Annotated[str, Meta(max_length=500)] = ""

    @property
    def window_ms(self) -> int:
        """The window in ms."""
        return parse_duration(self.window)

    @property
    def for_ms(self) -> int:
        """How long it must be wrong, in ms."""
        return parse_delay(self.for_)

    @property
    def clear_for_ms(self) -> int:
        """How long it must be right again, in ms."""
        return parse_delay(self.clear_for)

    @property
    def cooldown_ms(self) -> int:
        """How long nothing more is done after something was, in ms."""
        return parse_duration(self.cooldown)

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics whose samples it needs, as they are sampled."""
        first = f"{self.metric}_bucket" if self.of == "quantile" else self.metric
        return tuple(name for name in (first, self.over, self.count) if name)


class Alert(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the configuration says of a rule: all of an own one, or what differs of a default one of that name."""

    name: Name
    metric: Metric | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET
    labels: Labels | UnsetType = UNSET
    of: Of | UnsetType = UNSET
    quantile: Annotated[float, Meta(gt=0.0, lt=1.0)] | UnsetType = UNSET
    over: MaybeMetric | UnsetType = UNSET
    over_labels: Labels | UnsetType = UNSET
    count: MaybeMetric | UnsetType = UNSET
    by: MaybeName | UnsetType = UNSET
    at_least: Annotated[float, Meta(ge=0.0)] | UnsetType = UNSET
    above: float | UnsetType = UNSET
    below: float | UnsetType = UNSET
    clear: float | UnsetType = UNSET
    window: Duration | UnsetType = UNSET
    for_: Delay | UnsetType = field(name="for", default=UNSET)
    clear_for: Delay | UnsetType = UNSET
    missing: Missing | UnsetType = UNSET
    severity: Severity | UnsetType = UNSET
    actions: tuple[Action, ...] | UnsetType = UNSET
    cooldown: Duration | UnsetType = UNSET
    restore_after: Limit | UnsetType = UNSET
    text: Annotated[str, Meta(max_length=500)] | UnsetType = UNSET


def alerts_in_force(given: Sequence[Alert], defaults: Sequence[AlertRule]) -> tuple[AlertRule, ...]:
    """The rules of the configuration and the default ones, each once, those that are switched off too.

    Raises:
        ConfigurationError: a name twice, a rule that lacks its metric, or one whose parts do not go together.
    """
    rules = {rule.name: rule for rule in defaults}
    seen = set[str]()
    for index, alert in enumerate(given):
        key = f"alerts[{index}]"
        if alert.name in seen:
            raise ConfigurationError(f'{key}.name: There are two alerts "{alert.name}"')
        seen.add(alert.name)
        said: dict[str, Any] = msgspec.to_builtins(alert)
        before = rules.get(alert.name)
        if before is None and "metric" not in said:
            hint = nearest(alert.name, list(rules)) if rules else ""
            raise ConfigurationError(f'{key}.metric: Expected a metric: there is no default alert "{alert.name}"{hint}')
        base: dict[str, Any] = {} if before is None else msgspec.to_builtins(before)
        if "above" in said or "below" in said:
            base |= {"above": None, "below": None, "clear": None}
        try:
            rules[alert.name] = rule = msgspec.convert({**base, **said}, AlertRule)
        except msgspec.ValidationError as error:
            where, why = key_and_reason(error)
            raise ConfigurationError(f"{key}.{where}: {why}") from error
        _check_rule(key, rule)
    return tuple(rules.values())


def _check_rule(key: str, rule: AlertRule) -> None:
    """Raises :class:`ConfigurationError` where two parts of a rule contradict each other."""
    if (rule.above is None) == (rule.below is None):
        raise ConfigurationError(f"{key}.above: Expected exactly one of above and below")
    if rule.clear is not None:
        if rule.above is not None and rule.clear > rule.above:
            raise ConfigurationError(f"{key}.clear: Expected at most above ({rule.above:g}), got {rule.clear:g}")
        if rule.below is not None and rule.clear < rule.below:
            raise ConfigurationError(f"{key}.clear: Expected at least below ({rule.below:g}), got {rule.clear:g}")
    if (rule.of in ("ratio", "relative")) != bool(rule.over):
        raise ConfigurationError(
            f'{key}.over: Expected a metric to divide by with of = "ratio" or "relative", and only there'
        )
    if rule.count and rule.of not in ("value", "relative"):
        raise ConfigurationError(f'{key}.count: Expected of = "value" or "relative": "{rule.of}" counts by itself')
    if rule.at_least and rule.of not in ("ratio", "quantile") and not rule.count:
        raise ConfigurationError(
            f'{key}.at_least: Expected of = "ratio" or "quantile", or a count: of "{rule.of}" nothing is counted'
        )
    if "stop_experiment" in rule.actions and rule.by != "experiment":
        raise ConfigurationError(
            f'{key}.actions: Expected by = "experiment" with stop_experiment: which one is to stop?'
        )
    if "walk_down" in rule.actions and "walk_up" in rule.actions:
        raise ConfigurationError(f"{key}.actions: Expected one of walk_down and walk_up")
    for name, said in (("window", rule.window), ("cooldown", rule.cooldown)):
        try:
            parse_duration(said)
        except ConfigurationError as error:
            raise ConfigurationError(f"{key}.{name}: {error}") from error


SUFFIXES = {"counter": (), "gauge": (), "histogram": ("_bucket", "_count", "_sum")}


def check_metrics(rules: Sequence[AlertRule], known: Mapping[str, tuple[str, tuple[str, ...]]]) -> None:
    """Hold ``rules`` against the metrics that there are: the kind and the labels of each, by name (counters with ``_total``).

    Raises:
        ConfigurationError: a metric or a label that nobody writes, or one of a kind of which there is no such figure.
    """
    written = {
        f"{name}{suffix}": (kind if not suffix else "counter", labels if suffix != "_bucket" else (*labels, "le"))
        for name, (kind, labels) in known.items()
        for suffix in ("", *SUFFIXES[kind])
    }
    for rule in rules:
        if not rule.enabled:
            continue
        wanted = "histogram" if rule.of == "quantile" else "gauge" if rule.of in ("value", "relative") else "counter"
        for key, metric, labels in (
            ("metric", rule.metric, rule.labels), ("over", rule.over, rule.over_labels), ("count", rule.count, rule.labels),
        ):  # fmt: skip
            if not metric:
                continue
            if metric not in written:
                raise ConfigurationError(
                    f'alerts: "{rule.name}": {key}: There is no metric "{metric}"{nearest(metric, sorted(written))}'
                )
            kind, there = written[metric]
            if kind != wanted:
                raise ConfigurationError(
                    f'alerts: "{rule.name}": of = "{rule.of}" is of a {wanted}, and {metric} is a {kind}'
                    + (f": take {metric}_count, {metric}_sum, or a quantile" if kind == "histogram" else "")
                )
            for label in (*labels, *((rule.by,) if rule.by else ())):
                if label not in there:
                    raise ConfigurationError(
                        f'alerts: "{rule.name}": {metric} has no label "{label}"{nearest(label, there) if there else ""}'
                    )
