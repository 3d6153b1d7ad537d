"""How well the next event is found: one withheld event of some users, ranked among all items."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headwater.learning.sequence.ages import Births, age_logits
from headwater.learning.sequence.model import TwoTower
from headwater.learning.sequence.packing import Tokens, batch_of
from headwater.retrieval.sequence_inputs import age_moment

Int64 = npt.NDArray[np.int64]

TOP = 10
_TOKENS = 16_384
MIN_QUESTIONS = 10


class Quality(NamedTuple):
    """NDCG@10 and HR@10 of one answer a question: ``1 / log2(rank + 1)`` and 1 for a rank of at most 10, else 0."""

    ndcg: float
    hr: float


class Questions(NamedTuple):
    """``user`` int64[q]: positions of users; ``at`` int64[q]: the event that each has to be found from what came before."""

    user: Int64
    at: Int64


def withhold(tokens: Tokens, share: float, most: int, random: np.random.Generator) -> Questions:
    """Draw users whose last target is asked for and no longer trained on (``tokens.target`` changes).

    What a user met before is no question: it is not offered. None at all when there are too few to judge by.
    """
    places = np.flatnonzero(tokens.target)
    user = np.searchsorted(tokens.starts, places, side="right") - 1
    last = np.append(user[1:] != user[:-1], True) if len(user) else np.zeros(0, np.bool_)
    at, user = places[last], user[last]
    fresh = np.array(
        [a > tokens.starts[u] and tokens.rows[a] not in tokens.rows[tokens.starts[u] : a]
         for u, a in zip(user.tolist(), at.tolist(), strict=True)], np.bool_,
    )  # fmt: skip
    at, user = at[fresh], user[fresh]
    count = min(int(share * len(user)), most)
    if count < MIN_QUESTIONS:
        return Questions(np.zeros(0, np.int64), np.zeros(0, np.int64))
    drawn = np.sort(random.choice(len(user), count, replace=False))
    tokens.target[at[drawn]] = False
    return Questions(user[drawn], at[drawn])


def validate(
    model: TwoTower, vectors: Tensor, tokens: Tokens, questions: Questions, length: int, births: Births | None = None
) -> Quality:
    """Mean quality over ``questions``; ``vectors`` (v, D) are those of the vocabulary. Ties go to the lower row.

    With ``births`` items are as old as they were when the event came, and those that were not born yet are not offered.
    """
    device = vectors.device
    start = np.maximum(tokens.starts[questions.user], questions.at - length)
    size = questions.at - start
    every = torch.arange(len(vectors), device=device)
    ndcg = hr = 0.0
    order = np.argsort(size, kind="stable")
    per_batch = max(1, _TOKENS // length)
    for first in range(0, len(order), per_batch):
        chosen = order[first : first + per_batch]
        batch = batch_of(tokens, start[chosen], size[chosen])
        rows, types, gaps, idle = (
            torch.from_numpy(part).to(device) for part in (batch.rows, batch.types, batch.gaps, batch.idle)
        )
        hidden = model.encoder(vectors[rows], types, gaps, idle)
        users = hidden[torch.arange(len(chosen)), torch.from_numpy(size[chosen] - 1)]
        logits = users @ vectors.T
        if births is not None and model.ages is not None:
            moment_s = torch.from_numpy(age_moment(tokens.times_s[questions.at[chosen]])).to(device)
            logits += age_logits(users, model.ages).gather(1, births.columns(every, moment_s[:, None]))
        scores = logits.cpu().numpy()
        for k, question in enumerate(chosen.tolist()):
            wanted = int(tokens.rows[questions.at[question]])
            value, row = scores[k, wanted], scores[k]
            row[tokens.rows[tokens.starts[questions.user[question]] : questions.at[question]]] = -np.inf
            rank = int((row > value).sum() + (row[:wanted] == value).sum())
            if rank < TOP:
                ndcg += 1.0 / math.log2(rank + 2.0)
                hr += 1.0
    return Quality(ndcg / len(order), hr / len(order))
