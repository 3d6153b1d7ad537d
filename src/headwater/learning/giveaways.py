"""Columns that give the answer away when a question is asked just before its event.

Whoever clicks on an item was shown it a moment ago, and where impressions are events, the state before the click holds that impression: "shown
a moment ago" then tells the item of the click from other candidates, and a ranker that learns it shows again what was just shown.
A request has no such impression before it. So such columns are withheld from rankers that learn from questions; lists as they
were served have no such leak, for all their items were about to be shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from headwater.features.definitions import Formula, Side
from headwater.features.plan import Plan
from headwater.schema.config import Config

Float32 = npt.NDArray[np.float32]


def giveaways(plan: Plan, config: Config) -> npt.NDArray[np.int64]:
    """Positions of the columns that count or date impressions of the candidate and nothing else: ``fatigue.types`` says which events these are."""
    shown = frozenset(config.fatigue.types)
    found = []
    for position, column in enumerate(plan.declared):
        read = [term.reads for term in column.terms if term.side is Side.ITEM and term.reads is not None]
        types = [frozenset(getattr(aggregation, "types", ())) for aggregation in read]
        if column.formula is not Formula.RATE and any(each and each <= shown for each in types):
            found.append(position)
    return np.array(found, np.int64)


@contextmanager
def withheld(features: Float32, plan: Plan, config: Config) -> Iterator[None]:
    """Meanwhile the :func:`giveaways` among the columns of ``features`` float32[n, d] hold their defaults in every row, and are put back then."""
    columns = giveaways(plan, config)
    kept = features[:, columns]
    features[:, columns] = plan.reads.default[columns]
    try:
        yield
    finally:
        features[:, columns] = kept
