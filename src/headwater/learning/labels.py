"""Labels: which outcome, if any, followed an exposure.

An outcome belongs to the latest exposure of the same user and item at or before its time, at most ``window`` back.
Where the outcome and an exposure both name a request, the requests must be equal, and such a pair goes before any
other; an exposure of a stranger (user 0) is found by its request alone. Who answers a request cannot have done so before it was shown: an outcome
that names a request, was received at or after its first exposure, and by its own time happened before, comes from a clock that is slow,
and counts as of that exposure (delay 0). What counts is what is in the log when the
label *closes*, ``window + watermark`` after the exposure was received: an outcome that arrives later is none, a
retraction that has arrived by then takes its outcome back. So a label, once closed, never changes.

For that to hold, an exposure must itself arrive at most the watermark late; the caller leaves later ones out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from headwater.schema.config import Training
from headwater.schema.durations import parse_duration

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]
Float32 = npt.NDArray[np.float32]

NEVER = np.iinfo(np.int64).max
NO_DELAY = -1


@dataclass(frozen=True, slots=True)
class LabelRule:
    """A label of the configuration; ``types`` are names of event types."""

    name: str
    types: tuple[str, ...]
    window_ms: int


class Exposed(NamedTuple):
    """Exposures in the order of the log. ``time_ms`` is never after ``received_ms``; ``request`` 0: names none."""

    user: Int64  # (n,) 0: a stranger
    item: Int64
    time_ms: Int64
    received_ms: Int64
    request: UInt64  # hash of the request id


class Outcomes(NamedTuple):
    """Events that can fulfil a label, in the order of the log; times and requests as in :class:`Exposed`."""

    user: Int64  # (m,)
    item: Int64
    type: Int64  # dense event type
    time_ms: Int64
    received_ms: Int64
    request: UInt64
    value: Float32  # NaN: none
    retracted_ms: Int64  # when the retraction that takes it back was received; NEVER: none does


class Labels(NamedTuple):
    """One label for every exposure, from its first outcome that counts."""

    label: npt.NDArray[np.uint8]  # (n,) 1: fulfilled
    delay_ms: Int64  # NO_DELAY: no outcome
    value: Float32  # NaN: no outcome, or one without a value


def label_rules(training: Training) -> tuple[LabelRule, ...]:
    """The labels of the configuration with their windows in ms."""
    return tuple(LabelRule(label.name, label.types, parse_duration(label.window)) for label in training.labels)


def closes_after_ms(rules: Sequence[LabelRule], watermark_ms: int) -> int:
    """How long after it was received all labels of an exposure are closed."""
    return max((rule.window_ms for rule in rules), default=0) + watermark_ms


def join_labels(
    exposed: Exposed, outcomes: Outcomes, types: npt.NDArray[np.int64], window_ms: int, watermark_ms: int
) -> Labels:
    """The label of every exposure: events of the dense ``types`` within ``window_ms``."""
    n = len(exposed.user)
    labels = Labels(np.zeros(n, np.uint8), np.full(n, NO_DELAY, np.int64), np.full(n, np.nan, np.float32))
    chosen = np.flatnonzero(np.isin(outcomes.type, types))
    if n == 0 or len(chosen) == 0:
        return labels
    owner = _owners(exposed, outcomes, chosen, window_ms)
    chosen, owner = chosen[owner >= 0], owner[owner >= 0]
    closes = exposed.received_ms[owner] + (window_ms + watermark_ms)
    counts = (outcomes.received_ms[chosen] <= closes) & (outcomes.retracted_ms[chosen] > closes)
    chosen, owner = chosen[counts], owner[counts]
    first = np.lexsort((chosen, outcomes.time_ms[chosen], owner))
    owner, at = np.unique(owner[first], return_index=True)
    chosen = chosen[first][at]
    labels.label[owner] = 1
    labels.delay_ms[owner] = np.maximum(outcomes.time_ms[chosen] - exposed.time_ms[owner], 0)
    labels.value[owner] = outcomes.value[chosen]
    return labels


def _owners(exposed: Exposed, outcomes: Outcomes, chosen: Int64, window_ms: int) -> Int64:
    """The exposure that each chosen outcome belongs to, -1 for none."""
    asking = pl.DataFrame(
        {name: getattr(outcomes, name)[chosen] for name in ("user", "item", "time_ms", "received_ms", "request")}
    ).with_row_index("outcome")
    shown = pl.DataFrame({name: getattr(exposed, name) for name in ("user", "item", "time_ms", "request")})
    # among exposures of one moment the last of the log comes last, and is the one that the join takes
    shown = shown.with_row_index("exposure").sort("time_ms", "exposure")
    asking = asking.sort("time_ms", "outcome")
    known = pl.col("user") > 0
    named = pl.col("request") > 0
    naming = _not_before_shown(asking.filter(named), shown.filter(named))
    by_request = _latest(naming, shown.filter(named & known), ["request", "item", "user"], window_ms)
    by_stranger = _latest(naming, shown.filter(named & ~known), ["request", "item"], window_ms)
    nearest = _latest(asking.filter(~named), shown.filter(known), ["user", "item"], window_ms)
    unnamed = _latest(asking.filter(named), shown.filter(known & ~named), ["user", "item"], window_ms)

    owner = np.full(len(chosen), -1, np.int64)
    for outcome, exposure in (unnamed, nearest, by_request):  # later ones go before earlier ones
        owner[outcome] = exposure
    # one request asked for a user and for a stranger: the later exposure of the two
    outcome, exposure = by_stranger
    held = np.full(len(chosen), -1, np.int64)
    held[by_request[0]] = by_request[1]
    rank = np.empty(len(shown) + 1, np.int64)
    rank[shown["exposure"].to_numpy()] = np.arange(len(shown))
    rank[-1] = -1
    later = rank[exposure] > rank[held[outcome]]
    owner[outcome[later]] = exposure[later]
    return owner


def _not_before_shown(asking: pl.DataFrame, shown: pl.DataFrame) -> pl.DataFrame:
    """Outcomes whose clock says that they happened before their request showed the item, at the time when it did, if they were received by then."""
    first = shown.group_by("request", "item", "user").agg(pl.col("time_ms").min().alias("first_ms"))
    stranger = first.filter(pl.col("user") == 0).select("request", "item", pl.col("first_ms").alias("stranger_ms"))
    earliest = pl.min_horizontal("first_ms", "stranger_ms")
    slow = (earliest > pl.col("time_ms")) & (earliest <= pl.col("received_ms"))
    found = asking.join(first, on=["request", "item", "user"], how="left").join(
        stranger, on=["request", "item"], how="left"
    )
    return found.with_columns(pl.when(slow).then(earliest).otherwise("time_ms").alias("time_ms")).sort(
        "time_ms", "outcome"
    )


def _latest(asking: pl.DataFrame, shown: pl.DataFrame, by: list[str], window_ms: int) -> tuple[Int64, Int64]:
    """(outcome, exposure) pairs: the latest exposure equal in ``by``, at or before the outcome and within the window."""
    found = (
        asking.select("outcome", "time_ms", *by)
        .join_asof(
            shown.select("exposure", "time_ms", *by),
            on="time_ms",
            by=by,
            strategy="backward",
            tolerance=window_ms,
            check_sortedness=False,  # both sides are sorted above; polars cannot see it inside groups
        )
        .drop_nulls("exposure")
    )
    return found["outcome"].to_numpy().astype(np.int64), found["exposure"].to_numpy().astype(np.int64)


def retractions(
    user: Int64, item: Int64, type_: Int64, time_ms: Int64, received_ms: Int64, retract: npt.NDArray[np.bool_]
) -> tuple[Int64, int]:
    """When each event was taken back (``int64[n]``, NEVER: it stands), and how many retractions found nothing.

    Events are in the order of the log. A retraction takes back the latest event before it with the same user, item,
    type and ``time_ms`` (as sent) that still stands.
    """
    when = np.full(len(user), NEVER, np.int64)
    if not retract.any():
        return when, 0
    keys = pl.DataFrame({"user": user, "item": item, "type": type_, "time_ms": time_ms, "retract": retract})
    keys = keys.with_row_index("at")
    concerned = keys.join(keys.filter("retract").select("user", "item", "type", "time_ms").unique(), nulls_equal=False,
                          on=["user", "item", "type", "time_ms"], how="semi").sort("at")  # fmt: skip
    standing: dict[tuple[int, int, int, int], list[int]] = {}
    lost = 0
    for at, *key, is_retraction in concerned.iter_rows():
        stack = standing.setdefault((key[0], key[1], key[2], key[3]), [])
        if not is_retraction:
            stack.append(at)
        elif stack:
            when[stack.pop()] = received_ms[at]
        else:
            lost += 1
    return when, lost
