"""The network: an item tower, and a causal transformer over the vectors that the tower makes.

Blocks are pre-norm with SwiGLU, and each sublayer's output is gated by its input (LiGR; Borisyuk et al. 2025). The
transformer sees items as vectors of the tower only, so an item that training never saw can stand in a sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from headwater.retrieval.sequence_inputs import AGE_SLOTS, GAP_SLOTS, IDLE_SLOTS, TYPE_SLOTS, Shape


def feed_width(size: int) -> int:
    """Width inside SwiGLU: as many weights as a plain layer of four times the size has."""
    return 8 * max(1, round(size / 3))


class Block(nn.Module):
    """One layer: causal self-attention, then SwiGLU; (B, L, D) → (B, L, D)."""

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout, self.inner = heads, dropout, feed_width(size)
        self.norm_a, self.norm_f = nn.LayerNorm(size), nn.LayerNorm(size)
        self.into_a = nn.Linear(size, 4 * size)  # queries, keys, values, gate
        self.out_a = nn.Linear(size, size)
        self.into_f = nn.Linear(size, 2 * self.inner + size)  # gate and value of SwiGLU, gate of the sublayer
        self.out_f = nn.Linear(self.inner, size)
        for layer in (self.into_a, self.out_a, self.into_f, self.out_f):
            nn.init.normal_(layer.weight, std=size**-0.5)
            nn.init.zeros_(layer.bias)
        for layer in (self.out_a, self.out_f):
            nn.init.normal_(layer.weight, std=0.5 * size**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        b, length, size = x.shape
        query, key, value, gate = self.into_a(self.norm_a(x)).split(size, dim=-1)
        heads = [part.view(b, length, self.heads, -1).transpose(1, 2) for part in (query, key, value)]
        attended = functional.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        attended = self.out_a(attended.transpose(1, 2).reshape(b, length, size))
        x = x + self._drop(torch.sigmoid(gate) * attended)
        opened, fed, gate = self.into_f(self.norm_f(x)).split([self.inner, self.inner, size], dim=-1)
        return x + self._drop(torch.sigmoid(gate) * self.out_f(functional.silu(opened) * fed))

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training)


class Encoder(nn.Module):
    """What a user did → a vector that is compared with those of items."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        size = shape.size
        self.dropout, self.scale = dropout, size**0.5
        self.types, self.gaps = nn.Embedding(TYPE_SLOTS, size), nn.Embedding(GAP_SLOTS, size)
        self.idle, self.positions = nn.Embedding(IDLE_SLOTS, size), nn.Embedding(shape.length, size)
        for table in (self.types, self.gaps, self.idle, self.positions):
            nn.init.normal_(table.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(size, shape.heads, dropout) for _ in range(shape.blocks))
        self.norm = nn.LayerNorm(size)

    def forward(self, vectors: Tensor, types: Tensor, gaps: Tensor, idle: Tensor) -> Tensor:
        """(B, L, D), int64 (B, L) × 3 → (B, L, D): the user's vector after each event, asked ``idle`` later."""
        x = vectors * self.scale + self.types(types) + self.gaps(gaps) + self.positions.weight[: vectors.shape[1]]
        x = functional.dropout(x, self.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        user: Tensor = self.norm(x + self.idle(idle))
        return user


class Tower(nn.Module):
    """Item tower: what training learned of the id, plus a projection of content and price; (n, D)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        inner = 2 * shape.size
        self.into = nn.Linear(shape.content + 1, inner)
        self.out = nn.Linear(inner, shape.size, bias=False)
        nn.init.normal_(self.into.weight, std=1.0)  # content has unit length: hidden units of about 1
        with torch.no_grad():
            self.into.weight[:, -1] *= 0.1  # logarithms of prices are larger
        nn.init.zeros_(self.into.bias)
        nn.init.normal_(self.out.weight, std=0.1 * shape.size**-0.5)

    def forward(self, ids: Tensor, content: Tensor, price: Tensor) -> Tensor:
        """(n, D), (n, content), (n, 1) → (n, D)."""
        made: Tensor = ids + self.out(functional.silu(self.into(torch.cat([content, price], dim=-1))))
        return made


class TwoTower(nn.Module):
    """Both towers and the id vectors of ``items`` items, the unknown one behind them.

    ``ages`` (AGE_SLOTS, D), with ``shape.item_age``: what an item of each bucket of age is worth beside its vector.
    """

    def __init__(self, shape: Shape, items: int, dropout: float) -> None:
        super().__init__()
        self.ids = nn.Parameter(torch.empty(items + 1, shape.size))
        nn.init.normal_(self.ids, std=0.05)
        self.tower, self.encoder = Tower(shape), Encoder(shape, dropout)
        self.ages = nn.Parameter(torch.zeros(AGE_SLOTS, shape.size)) if shape.item_age else None

    def items(self, content: Tensor, price: Tensor, unknown: Tensor | None = None) -> Tensor:
        """Vectors of the whole vocabulary (v, D); where ``unknown`` (bool, v) is set the id is hidden."""
        ids = self.ids[:-1]
        if unknown is not None:
            ids = torch.where(unknown[:, None], self.ids[-1], ids)
        made: Tensor = self.tower(ids, content, price)
        return made
