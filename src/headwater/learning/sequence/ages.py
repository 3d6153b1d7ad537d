"""What the age of each item at the moment of a question adds to its logit, without a vector for each item and moment.

The vector of an item of age ``a`` is ``item + age[slot(a)]``, so a logit is ``user · item`` plus one of :data:`COLUMNS` numbers of the
user. With the items in the order of their births, the newest first, those of one slot stand beside each other: all that a
question needs is where the slots begin. An item that was not born yet at the moment is no negative: its column is −∞.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from headwater.learning.sequence.packing import Tokens
from headwater.retrieval.sequence_inputs import AGE_SLOTS, Int64, age_bounds

COLUMNS = AGE_SLOTS + 1
"""Not born yet, then the slots of age."""


class Births(NamedTuple):
    """When the items of the vocabulary were born: ``born_s`` int64 (v,); ``order`` (v,) rows, the newest first, ``place`` (v,) in it."""

    born_s: Tensor
    order: Tensor
    place: Tensor

    @classmethod
    def of(cls, born_s: Int64, device: torch.device) -> Births:
        """``born_s`` int64[v] as ``born_seconds`` gives them."""
        order = np.argsort(-born_s, kind="stable")
        return cls(*(torch.from_numpy(part).to(device) for part in (born_s, order, np.argsort(order))))

    def lengths(self, moments_s: Tensor) -> Tensor:
        """int64 (n,) → (n, COLUMNS): of the items in their order, how many stand in each column at that moment."""
        bounds = torch.from_numpy(age_bounds()).to(moments_s.device)
        begins = torch.searchsorted(-self.born_s[self.order], bounds - moments_s[:, None])
        return torch.diff(
            begins,
            dim=1,
            prepend=torch.zeros_like(begins[:, :1]),
            append=torch.full_like(begins[:, :1], len(self.order)),
        )

    def columns(self, rows: Tensor, moments_s: Tensor) -> Tensor:
        """The column of ``rows`` (m,) at each moment (n, 1), or of one row (n, 1) at each: int64 (n, m)."""
        bounds = torch.from_numpy(age_bounds()).to(moments_s.device)
        return torch.bucketize(moments_s - self.born_s[rows], bounds, right=True)


def age_logits(users: Tensor, ages: Tensor) -> Tensor:
    """(n, D), (AGE_SLOTS, D) → (n, COLUMNS): what an item of each column gets beside ``user · item``."""
    return torch.cat([users.new_full((len(users), 1), -torch.inf), users @ ages.T], dim=1)


def drop_unborn(tokens: Tokens, born_s: Int64) -> None:
    """Events that their items were born by (``born_s`` int64[v]), or that came before, are no targets (``tokens.target`` changes).

    Just before such an event there was no item to recommend; asked for, it would teach that whatever is seconds old is clicked next.
    """
    tokens.target[born_s[tokens.rows] >= tokens.times_s] = False
