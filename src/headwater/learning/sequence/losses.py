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
    def forward(
        ctx: Any, users: Tensor, items: Tensor, targets: Tensor, extra: Tensor | None, runs: Tensor | None, bf16: bool
    ) -> Tensor:
        n = len(users)
        grad_users, grad_items = torch.empty_like(users), torch.zeros_like(items)
        grad_extra = None if extra is None else torch.empty_like(extra)
        total = users.new_zeros(())
        kind = torch.bfloat16 if bf16 else users.dtype
        asking, offered = users.to(kind), items.to(kind)
        rows = max(16, _PIECE // len(items))
        for start in range(0, n, rows):
            piece = slice(start, start + rows)
            part = asking[piece]
            logits = part @ offered.T
            if extra is not None and runs is not None:
                logits += _in_runs(extra[piece], runs[piece])
            share = torch.softmax(logits, dim=1)
            # a share that rounds to nothing bounds the loss that is reported; the gradient does not go through it
            total -= share.gather(1, targets[piece, None]).to(users.dtype).clamp_min(_LEAST).log().sum()
            if bf16:  # sums over pieces are those of float32
                grad_users[piece] = share @ offered
                grad_items += share.T @ part
            else:
                torch.mm(share, offered, out=grad_users[piece])
                grad_items.addmm_(share.T, part)
            if grad_extra is not None and runs is not None:
                grad_extra[piece] = _of_runs(share.to(users.dtype), runs[piece])
        grad_users -= items[targets]
        grad_items.index_add_(0, targets, users, alpha=-1)
        if grad_extra is not None and runs is not None:
            own = (targets[:, None] >= runs.cumsum(dim=1)).sum(dim=1, keepdim=True)
            grad_extra.scatter_add_(1, own, grad_extra.new_full((n, 1), -1.0)).div_(n)
        ctx.save_for_backward(grad_users.div_(n), grad_items.div_(n), grad_extra)
        return total / n

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None, Tensor | None, None, None]:
        grad_users, grad_items, grad_extra = ctx.saved_tensors
        of_extra = None if grad_extra is None else grad_extra * grads[0]
        return grad_users * grads[0], grad_items * grads[0], None, of_extra, None, None


def _in_runs(values: Tensor, runs: Tensor) -> Tensor:
    """Each of ``values`` (n, c) as many times as ``runs`` (n, c) says: (n, v), where every row of ``runs`` sums to v."""
    size = int(runs[0].sum())
    return values.reshape(-1).repeat_interleave(runs.reshape(-1), output_size=len(values) * size).view(-1, size)


def _of_runs(values: Tensor, runs: Tensor) -> Tensor:
    """The sum of each run of ``values`` (n, v): (n, c)."""
    summed = torch.segment_reduce(values.reshape(-1), "sum", lengths=runs.reshape(-1), initial=0.0)
    return summed.view(runs.shape)


def full_softmax(
    users: Tensor, items: Tensor, targets: Tensor, extra: Tensor | None = None, runs: Tensor | None = None,
    *, bf16: bool = False,
) -> Tensor:  # fmt: skip
    """Mean of ``-log softmax(users @ items.T)[target]``: (n, D), (v, D), int64 (n,) → ().

    ``extra`` (n, c) is added to the logits: row by row, ``runs`` int64 (n, c) says for how many items, one after the other, each of its
    numbers stands. −∞ leaves items out. ``bf16``: logits and their products are computed in that; sums stay in the precision given.
    """
    loss: Tensor = _FullSoftmax.apply(users, items, targets, extra, runs, bf16)  # type: ignore[no-untyped-call]
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
