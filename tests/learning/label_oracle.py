"""The label join, said slowly: for every outcome, look at every exposure."""

from __future__ import annotations

import math

import numpy as np

from headwater.learning.labels import Exposed, Outcomes


def owner_of(exposed: Exposed, outcomes: Outcomes, o: int, window_ms: int) -> int | None:
    """The exposure that outcome ``o`` belongs to."""
    eligible: list[tuple[int, int]] = []
    same_request: list[tuple[int, int]] = []
    answers = [int(exposed.time_ms[e]) for e in range(len(exposed.user)) if _answers(exposed, outcomes, o, e)]
    answered_ms = int(outcomes.time_ms[o])
    if answers and answered_ms < min(answers) <= outcomes.received_ms[o]:
        answered_ms = min(answers)
    for e in range(len(exposed.user)):
        requests = int(exposed.request[e]), int(outcomes.request[o])
        same = requests[0] == requests[1] != 0
        delay = (answered_ms if same else int(outcomes.time_ms[o])) - int(exposed.time_ms[e])
        if exposed.item[e] != outcomes.item[o] or not 0 <= delay <= window_ms:
            continue
        if exposed.user[e] != outcomes.user[o] and not (exposed.user[e] == 0 and same):
            continue
        if 0 not in requests and not same:
            continue
        (same_request if same else eligible).append((int(exposed.time_ms[e]), e))
    return max(same_request or eligible, default=(0, None))[1]


def _answers(exposed: Exposed, outcomes: Outcomes, o: int, e: int) -> bool:
    """Whether an outcome names the request of an exposure, to the same user or to a stranger."""
    same = exposed.request[e] == outcomes.request[o] != 0 and exposed.item[e] == outcomes.item[o]
    return bool(same and exposed.user[e] in (0, outcomes.user[o]))


def labels_slowly(
    exposed: Exposed, outcomes: Outcomes, types: set[int], window_ms: int, watermark_ms: int
) -> list[tuple[int, int, float]]:
    """(label, delay, value) of every exposure."""
    found: list[list[tuple[int, int]]] = [[] for _ in exposed.user]
    for o in range(len(outcomes.user)):
        if int(outcomes.type[o]) not in types:
            continue
        e = owner_of(exposed, outcomes, o, window_ms)
        if e is None:
            continue
        closes = int(exposed.received_ms[e]) + window_ms + watermark_ms
        if outcomes.received_ms[o] <= closes < outcomes.retracted_ms[o]:
            found[e].append((int(outcomes.time_ms[o]), o))
    rows = []
    for e, mine in enumerate(found):
        if not mine:
            rows.append((0, -1, math.nan))
        else:
            time_ms, o = min(mine)
            rows.append((1, max(time_ms - int(exposed.time_ms[e]), 0), float(np.float32(outcomes.value[o]))))
    return rows
