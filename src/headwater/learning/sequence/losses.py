"""Softmax losses over item vectors: full, in pieces that stay in the cache, and sampled with log-Q correction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_PIECE = 1 << 20  # logits of a piece: 4 MiB
_LEAST = 1e-38


class _FullSoftmax(torch.autograd.Function):
    """Mean cross entropy of ``users @ items.T``; gradients come with the forward pass, logits are never kept."""

    @staticmethod
    def forward(ctx: Any, users: Tensor, items: Tensor, targets: Tensor) -> Tensor:
        n = len(users)
        grad_users, grad_items = torch.empty_like(users), torch.zeros_like(items)
        total = users.new_zeros(())
        rows = max(16, _PIECE // len(items))
        for start in range(0, n, rows):
            part, wanted = users[start : start + rows], targets[start : start + rows]
            share = torch.softmax(part @ items.T, dim=1)
            # a share that rounds to nothing bounds the loss that is reported; the gradient does not go through it
            total -= share.gather(1, wanted[:, None]).clamp_min(_LEAST).log().sum()
            torch.mm(share, items, out=grad_users[start : start + rows])
            grad_items.addmm_(share.T, part)
        grad_users -= items[targets]
        grad_items.index_add_(0, targets, users, alpha=-1)
        ctx.save_for_backward(grad_users.div_(n), grad_items.div_(n))
        return total / n

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None]:
        grad_users, grad_items = ctx.saved_tensors
        return grad_users * grads[0], grad_items * grads[0], None


def full_softmax(users: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    """Mean of ``-log softmax(users @ items.T)[target]``: (n, D), (v, D), int64 (n,) → ()."""
    loss: Tensor = _FullSoftmax.apply(users, items, targets)  # type: ignore[no-untyped-call]
    return loss


def sampled_softmax(users: Tensor, items: Tensor, targets: Tensor, drawn: Tensor, expected: Tensor) -> Tensor:
    """The same over the target and the ``drawn`` items (int64 m) only.

    ``exp`` of a drawn item's logit is divided by how often it is drawn (``expected`` float v), which makes the sum an
    unbiased estimate of that over all items; the target itself is not corrected and never counts as its own negative.
    """
    own = (users * items[targets]).sum(dim=1, keepdim=True)
    logits = users @ items[drawn].T - torch.log(expected[drawn])
    logits = logits.masked_fill(drawn[None, :] == targets[:, None], -torch.inf)
    return (torch.logsumexp(torch.cat([own, logits], dim=1), dim=1) - own[:, 0]).mean()
