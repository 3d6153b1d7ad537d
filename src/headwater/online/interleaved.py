"""One answer of two: the lists of two variants, drafted in turns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from headwater.experiments.drafts import FIRST, team_draft
from headwater.policy.exploration import seed_of
from headwater.serving.request import Answer
from headwater.serving.run import Lap


def interleaved(request_id: str, control: Answer, other: Answer, k: int) -> Answer:
    """The ``k`` best of both by team draft, whose coins are of ``request_id``; ``teams`` says whose pick each is.

    Each item comes with score, source, reason and cause of the list that it was picked from, so scores do not fall from place to place. Address and
    context are the control's. There are no feature rows: they would be of two bundles. Filters hold, both lists keep to them; caps, quotas
    and pins hold within each list and not for what is made of both.
    """
    draft = team_draft(control.items, other.items, k, seed_of(request_id, b"interleaving"))
    lists = (control, other)
    places = [{item: place for place, item in enumerate(one.items.tolist())} for one in lists]
    picks = []
    for item, team in zip(draft.items.tolist(), draft.team.tolist(), strict=True):
        number = team - FIRST
        picks.append((lists[number], places[number][item]))
    return replace(
        control,
        items=draft.items,
        scores=np.array([one.scores[place] for one, place in picks], np.float32),
        sources=[one.sources[place] for one, place in picks],
        reasons=[one.reasons[place] for one, place in picks],
        causes=np.array([one.causes[place] for one, place in picks], np.int64),
        degraded=list(dict.fromkeys([*control.degraded, *other.degraded])),
        features=control.features[:0],
        modelled=control.modelled[:0],
        trace=_both(control.trace, other.trace),
        widths=_sum(control.widths, other.widths),
        rules=_sum(control.rules, other.rules),
        quality=min(control.quality, other.quality),
        teams=draft.team.tobytes(),
    )


def _sum(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in one | other}


def _both(one: dict[str, Lap], other: dict[str, Lap]) -> dict[str, Lap]:
    """What each stage did for both lists; one that did not go well for one of them is said to."""
    laps = {}
    for name in one | other:
        a, b = one.get(name), other.get(name)
        if a is None or b is None:
            laps[name] = a or b or Lap(0.0)
        else:
            laps[name] = Lap(
                a.ms + b.ms, a.width + b.width, a.outcome if a.outcome not in ("ok", "skipped") else b.outcome
            )
    return laps
