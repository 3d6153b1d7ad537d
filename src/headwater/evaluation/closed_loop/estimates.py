"""After how many impressions an item's own click rate says more about the item than about chance."""

from __future__ import annotations

import math

import numpy as np

from headwater.simulator import Life
from headwater.simulator.response import POSITION_DECAY

PEOPLE = 100  # whose true chances of a click are averaged


def impressions_to_know(life: Life, *, k: int, seed: int) -> int:
    """``n = m (1 − m) / σ²``: after ``n`` impressions half of the variance between the click rates of items is that of their true rates.

    The reliability of a rate of ``n`` impressions is ``σ² / (σ² + m (1 − m) / n)`` (C. Spearman 1910; it is also the weight that an empirical Bayes estimate
    gives to the item's own rate), and here it is one half. ``m`` and ``σ`` are mean and standard deviation of the true rates of the items that live at the start: the chance of
    a click of a person that did not see the item yet, averaged over people and the ``k`` places of a list.
    """
    items = np.flatnonzero(life.alive)
    people = np.random.default_rng([seed, 44]).choice(life.humans, min(PEOPLE, life.humans), replace=False)
    first = np.mean([life.click_probability(int(user), items, life.start_ms, -1) for user in people], axis=0)
    rates = first * np.mean(POSITION_DECAY ** np.arange(k))
    mean = float(rates.mean())
    return math.ceil(mean * (1.0 - mean) / float(rates.var()))
