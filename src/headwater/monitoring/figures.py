"""What a rule looks at: one figure for each group of series, from the samples of the rounds so far."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from math import isnan

from headwater.monitoring.samples import Sample
from headwater.schema.alerts import AlertRule

Sums = dict[str, float]
"""What counters of one group stand at: "" the metric's own sum, "/" that of the denominator, else the upper bound of a bucket."""
MAX_GROUPS = 500
FULL = 0.9
"""A rule judges when it has seen this share of its window: after a start it does not take seconds for minutes."""


class Figure:
    """The figure of ``rule``, round after round. :meth:`read` returns it by group (the value of ``by``; "" without).

    ``filling``: since the start too little of the window was seen, so that nobody can say yet how the rule stands.
    """

    def __init__(self, rule: AlertRule) -> None:
        self.rule = rule
        self._rounds: deque[tuple[int, dict[str, Sums]]] = deque()
        self.filling = False

    def read(self, now_ms: int, samples: Mapping[str, Iterable[Sample]]) -> dict[str, float]:
        """Take up a round and give what is to be judged; a group that is not there has nothing to judge."""
        rule = self.rule
        if rule.of in ("value", "relative"):
            return self._judgeable(samples)
        now = self._sums(samples)
        self._rounds.append((now_ms, now))
        while len(self._rounds) > 1 and self._rounds[1][0] <= now_ms - rule.window_ms:
            self._rounds.popleft()
        since_ms, before = self._rounds[0]
        self.filling = now_ms - since_ms < FULL * rule.window_ms or now_ms == since_ms
        if self.filling:
            return {}
        found = {}
        for group, sums in now.items():
            value = self._figure(sums, before.get(group, {}), (now_ms - since_ms) / 1e3)
            if value is not None:
                found[group] = value
        return found

    def _judgeable(self, samples: Mapping[str, Iterable[Sample]]) -> dict[str, float]:
        """Values of which enough is behind them, each over the one value of the denominator if there is one."""
        rule = self.rule
        values = self._values(samples.get(rule.metric, ()), rule.labels, rule.by, highest=rule.above is not None)
        if rule.count:
            counts = self._values(samples.get(rule.count, ()), rule.labels, rule.by, highest=False)
            values = {group: value for group, value in values.items() if counts.get(group, 0.0) >= rule.at_least}
        if rule.of == "relative":
            over = self._values(samples.get(rule.over, ()), rule.over_labels, "", highest=True).get("", 0.0)
            values = {group: value / over for group, value in values.items()} if over > 0.0 else {}
        return values

    @staticmethod
    def _values(samples: Iterable[Sample], labels: Mapping[str, str], by: str, *, highest: bool) -> dict[str, float]:
        """By group the highest (``highest``) or the lowest value."""
        found: dict[str, float] = {}
        for sample in samples:
            if not isnan(sample.value) and (group := _group(sample, labels, by)) is not None:
                found[group] = (max if highest else min)(found.get(group, sample.value), sample.value)
        return found

    def _sums(self, samples: Mapping[str, Iterable[Sample]]) -> dict[str, Sums]:
        rule, found = self.rule, dict[str, Sums]()
        parts = [(rule.names[0], rule.labels, "")]
        if rule.over:
            parts.append((rule.over, rule.over_labels, "/"))
        for name, labels, part in parts:
            for sample in samples.get(name, ()):
                group = _group(sample, labels, rule.by)
                if group is None or (group not in found and len(found) >= MAX_GROUPS):
                    continue
                sums = found.setdefault(group, {})
                key = dict(sample.labels)["le"] if rule.of == "quantile" else part
                sums[key] = sums.get(key, 0.0) + sample.value
        return found

    def _figure(self, sums: Sums, before: Sums, seconds: float) -> float | None:
        rule = self.rule
        gained = {key: _gained(value, before.get(key, 0.0)) for key, value in sums.items()}
        if rule.of == "quantile":
            return quantile_of(gained, rule.quantile, rule.at_least)
        if rule.of == "ratio":
            over = gained.get("/", 0.0)
            return gained.get("", 0.0) / over if over > 0.0 and over >= rule.at_least else None
        return gained[""] / (seconds if rule.of == "rate" else 1.0)


def _group(sample: Sample, wanted: Mapping[str, str], by: str) -> str | None:
    """The group that a sample belongs to; None: the rule is not about it."""
    if not wanted and not by:
        return ""
    labels = dict(sample.labels)
    if not all(fnmatchcase(labels.get(name, ""), pattern) for name, pattern in wanted.items()):
        return None
    return labels.get(by, "") if by else ""


def quantile_of(buckets: Mapping[str, float], quantile: float, at_least: float) -> float | None:
    """The quantile of a histogram from what its cumulative buckets (by upper bound) gained, linear inside a bucket; None: fewer
    than ``at_least`` came. Above the last finite bound it is that bound: it is at least so much.
    """
    bounds = sorted((float(bound), count) for bound, count in buckets.items())
    total = bounds[-1][1] if bounds else 0.0
    if total <= 0.0 or total < at_least:
        return None
    wanted, low, below = quantile * total, 0.0, 0.0
    for bound, count in bounds:
        if count >= wanted:
            return low if bound == float("inf") else low + (bound - low) * (wanted - below) / (count - below)
        low, below = bound, count
    return low


def _gained(now: float, before: float) -> float:
    """What a counter gained; one that fell began anew."""
    return now - before if now >= before else now
