"""The slow, obvious twin of all peers: every question walks over all events before it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headwater.cli.bench.peers.workload import Feature, Workload, feature_table


def reference(workload: Workload) -> dict[str, npt.NDArray[np.float64]]:
    """Every feature of every question, in time proportional to events times questions."""
    asked = workload.questions
    table = feature_table()
    answers = {feature.name: np.zeros(len(asked.position)) for feature in table}
    for row in range(len(asked.position)):
        for feature in table:
            answers[feature.name][row] = answer(workload, feature, row)
    return answers


def answer(workload: Workload, feature: Feature, row: int) -> float:
    """One feature of one question.

    Raises:
        ValueError: the feature is of a kind that nobody defined.
    """
    events, asked = workload.events, workload.questions
    now = int(asked.now_ms[row])
    owners, who = (events.user, asked.user[row]) if feature.entity == "user" else (events.item, asked.item[row])
    at = [n for n in range(int(asked.position[row])) if owners[n] == who and int(events.type[n]) in workload.positive]
    if feature.tiles:
        tile = feature.span_ms // feature.tiles
        at = [n for n in at if int(events.time_ms[n]) // tile > now // tile - feature.tiles]
    values = [float(events.value[n]) for n in at]
    match feature.kind:
        case "count":
            return len(at)
        case "sum":
            return sum(values)
        case "mean":
            return sum(values) / len(values) if values else 0.0
        case "min":
            return min(values, default=0.0)
        case "max":
            return max(values, default=0.0)
        case "since_s":
            return (now - int(events.time_ms[at[-1]])) / 1000 if at else -1.0
        case "last_item":
            return float(events.item[at[-1]]) if at else -1.0
        case "decayed":
            return float(sum(2.0 ** (-(now - int(events.time_ms[n])) / feature.span_ms) for n in at))
    raise ValueError(f"no rule for {feature.kind}")
