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
    def forward(ctx: Any, users: Tensor, items: Tensor, targets: Tensor, extra: Tensor | None, runs: Tensor) -> Tensor:
        n = len(users)
        grad_extra = None if extra is None else torch.empty_like(extra)
        grad_users, grad_items = torch.empty_like(users), torch.zeros_like(items)
        total = users.new_zeros(())
        rows = max(16, _PIECE // len(items))
        for start in range(0, n, rows):
            part, wanted = users[start : start + rows], targets[start : start + rows]
            logits = part @ items.T
            if extra is not None:
                run = runs[start : start + rows].reshape(-1)
                logits += (
                    extra[start : start + rows]
                    .reshape(-1)
                    .repeat_interleave(run, output_size=logits.numel())
                    .view_as(logits)
                )
            share = torch.softmax(logits, dim=1)
            if grad_extra is not None:
                summed = torch.segment_reduce(share.view(-1), "sum", lengths=run, initial=0.0)
                grad_extra[start : start + rows] = summed.view(len(part), -1)
            # a share that rounds to nothing bounds the loss that is reported; the gradient does not go through it
            total -= share.gather(1, wanted[:, None]).clamp_min(_LEAST).log().sum()
            torch.mm(share, items, out=grad_users[start : start + rows])
            grad_items.addmm_(share.T, part)
        grad_users -= items[targets]
        grad_items.index_add_(0, targets, users, alpha=-1)
        if grad_extra is not None:
            hit = (targets[:, None] >= runs.cumsum(dim=1)).sum(dim=1)
            grad_extra[torch.arange(n), hit] -= 1.0
            grad_extra.div_(n)
        ctx.save_for_backward(grad_users.div_(n), grad_items.div_(n), grad_extra)
        return total / n

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None, Tensor | None, None]:
        grad_users, grad_items, grad_extra = ctx.saved_tensors
        return (
            grad_users * grads[0], grad_items * grads[0], None, None if grad_extra is None else grad_extra * grads[0], None
        )  # fmt: skip


def full_softmax(
    users: Tensor, items: Tensor, targets: Tensor, extra: Tensor | None = None, runs: Tensor | None = None
) -> Tensor:
    """Mean of ``-log softmax(users @ items.T)[target]``: (n, D), (v, D), int64 (n,) → ().

    ``extra`` (n, c) is added to the logits: row by row, ``runs`` int64 (n, c) says for how many items, one after the other, each of its
    numbers stands. −∞ leaves items out.
    """
    loss: Tensor = _FullSoftmax.apply(users, items, targets, extra, runs)  # type: ignore[no-untyped-call]
    return loss


def sampled_softmax(
    users: Tensor,
    items: Tensor,
    targets: Tensor,
    drawn: Tensor,
    expected: Tensor,
    extra: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The same over the target and the ``drawn`` items (int64 m) only.

    ``exp`` of a drawn item's logit is divided by how often it is drawn (``expected`` float v), which makes the sum an
    unbiased estimate of that over all items; the target itself is not corrected and never counts as its own negative. ``extra`` is added
    to the logits of the targets (n, 1) and of the drawn items (n, m).
    """
    own = (users * items[targets]).sum(dim=1, keepdim=True)
    logits = users @ items[drawn].T - torch.log(expected[drawn])
    if extra is not None:
        own, logits = own + extra[0], logits + extra[1]
    logits = logits.masked_fill(drawn[None, :] == targets[:, None], -torch.inf)
    return (torch.logsumexp(torch.cat([own, logits], dim=1), dim=1) - own[:, 0]).mean()
