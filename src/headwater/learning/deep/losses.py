"""What training makes small."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from headwater.learning.deep.batches import Batch


def listwise(logits: Tensor, batch: Batch) -> Tensor:
    """Softmax cross entropy inside each group, every positive by its weight against all rows of its group.

    ``−Σ w y log softmax(z) / Σ w y``, a mean over the heads that have a positive in the batch.
    """
    log_share = logits - log_sum(logits, batch)[batch.group]
    target = torch.nan_to_num(batch.labels) * batch.weights.unsqueeze(1)
    found = target.sum(0)
    some = found > 0
    if not bool(some.any()):
        return logits.sum() * 0.0
    return (-(target * log_share).sum(0)[some] / found[some]).mean()


def log_sum(logits: Tensor, batch: Batch) -> Tensor:
    """``log Σ e^z`` over the rows of each group: (groups, heads)."""
    index = batch.group.unsqueeze(1).expand_as(logits)
    top = torch.full((batch.groups, logits.shape[1]), -torch.inf).scatter_reduce(0, index, logits.detach(), "amax")
    sums = torch.zeros_like(top).scatter_add(0, index, torch.exp(logits - top[batch.group]))
    return torch.log(sums) + top


def pointwise(logits: Tensor, batch: Batch) -> Tensor:
    """Binary cross entropy of the rows whose label is known, by weight; a mean over heads."""
    known = ~torch.isnan(batch.labels)
    target = torch.nan_to_num(batch.labels)
    each = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    weight = known * batch.weights.unsqueeze(1)
    return ((each * weight).sum(0) / weight.sum(0).clamp(min=1e-6)).mean()


def pairwise(logits: Tensor, batch: Batch) -> Tensor:
    """``Σ log(1 + e^−(z⁺ − z⁻)) / rows`` over the pairs of a positive and a negative of one group, all heads together.

    Pointwise losses mostly tell people apart; this one speaks of the order of what one person was shown. Divided by
    rows and not by pairs, because a rare label with two pairs in a batch would else speak as loud as a frequent one.
    """
    left, right = pairs(batch)
    labels = batch.labels
    loss = logits.sum() * 0.0
    for h in range(logits.shape[1]):
        ordered = labels[left, h] > labels[right, h]  # NaN is in no order
        loss = loss + functional.softplus(logits[right, h][ordered] - logits[left, h][ordered]).sum()
    return loss / len(batch.group)


def pairs(batch: Batch, most: int = 32) -> tuple[Tensor, Tensor]:
    """Ordered pairs of rows of one group at most ``most`` places apart."""
    n = len(batch.group)
    lefts, rights = [], []
    for step in range(1, min(most, n - 1) + 1):
        same = torch.nonzero(batch.group[:-step] == batch.group[step:]).squeeze(1)
        if not len(same):
            break
        lefts += [same, same + step]
        rights += [same + step, same]
    if not lefts:
        nothing = torch.zeros(0, dtype=torch.long)
        return nothing, nothing
    return torch.cat(lefts), torch.cat(rights)
