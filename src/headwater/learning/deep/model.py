"""The network: inputs and target attention, DCN-v2 crosses and an MLP, a head for each event type.

Shapes: B rows, G groups, L recent items, E size of a vector, W width, A = ``ATTENTION`` of all attention heads together.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from headwater.learning.deep.inputs import Inputs

ATTENTION = 32
ATTENTION_HEADS = 2
TYPES = 16  # type slots that are told apart
POSITIONS = 64  # places of a list that are told apart
DAY_S = 86_400.0


class InputLayer(nn.Module):
    """``Inputs`` in torch: (B, d) → (B, channels)."""

    fill: Tensor
    unit: Tensor
    mean: Tensor
    scale: Tensor
    low: Tensor
    slope: Tensor
    missing: Tensor
    single: Tensor
    values: Tensor

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        for name in ("fill", "unit", "mean", "scale", "low", "slope", "missing", "single", "values"):
            self.register_buffer(name, torch.from_numpy(getattr(inputs, name).copy()))
        self.size = inputs.size

    def forward(self, features: Tensor) -> Tensor:
        gone = torch.isnan(features)
        known = torch.where(gone, self.fill, features)
        bent = (functional.softsign(known * self.unit) - self.mean) / self.scale
        pieces = [((known - low) * slope).clamp(0.0, 1.0) for low, slope in zip(self.low, self.slope, strict=True)]
        single = (known[:, self.single] == self.values).float()
        return torch.cat([bent, *pieces, gone[:, self.missing].float(), single], 1)


class TargetAttention(nn.Module):
    """The candidate asks the recent items (DIN's idea, with dot products): (B, E) and (G, L, E) → (B, 2 A).

    A learned nothing stands beside the recent items, for people without any.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(size, ATTENTION) for _ in range(3))
        self.age = nn.Linear(3, ATTENTION, bias=False)
        self.kind = nn.Embedding(TYPES, ATTENTION)
        self.nothing = nn.Parameter(torch.zeros(2, ATTENTION))
        nn.init.normal_(self.kind.weight, std=0.1)

    def forward(
        self, candidate: Tensor, recent: Tensor, types: Tensor, age_s: Tensor, there: Tensor, group: Tensor
    ) -> Tensor:
        said = self.kind(types.clamp(0, TYPES - 1)) + self.age(ages(age_s))
        keys = torch.cat([self.nothing[0].expand(len(recent), 1, -1), self.key(recent) + said], 1)
        values = torch.cat([self.nothing[1].expand(len(recent), 1, -1), self.value(recent) + said], 1)
        hidden = torch.cat([torch.zeros_like(there[:, :1]), (1.0 - there) * -1e9], 1)
        query = self.query(candidate)
        each = ATTENTION // ATTENTION_HEADS
        parts = []
        for h in range(ATTENTION_HEADS):
            of = slice(h * each, (h + 1) * each)
            logits = torch.einsum("ba,bla->bl", query[:, of], keys[..., of][group]) / math.sqrt(each) + hidden[group]
            parts.append(torch.einsum("bl,bla->ba", torch.softmax(logits, 1), values[..., of][group]))
        found = torch.cat(parts, 1)
        return torch.cat([found, query * found], 1)


def ages(age_s: Tensor) -> Tensor:
    """Ages as (…, 3): on a logarithmic scale, and fading within an hour and a day."""
    age = age_s.clamp(min=0.0)
    return torch.stack([torch.log1p(age) / 10.0, torch.exp(-age / 3600.0), torch.exp(-age / DAY_S)], -1)


class DeepNet(nn.Module):
    """All of it: logits (B, heads). ``size`` of the vectors is 0 without attention."""

    def __init__(self, inputs: Inputs, *, width: int, crosses: int, heads: int, size: int, dropout: float) -> None:
        super().__init__()
        self.inputs = InputLayer(inputs)
        self.attention = TargetAttention(size) if size else None
        channels = self.inputs.size + (2 * ATTENTION if size else 0)
        rank = max(width // 4, 8)
        self.first = nn.Linear(channels, width)
        self.down = nn.ModuleList(nn.Linear(width, rank, bias=False) for _ in range(crosses))
        self.up = nn.ModuleList(nn.Linear(rank, width) for _ in range(crosses))
        self.hidden = nn.Linear(width, width // 2)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width + width // 2, heads)

    def forward(self, features: Tensor, attended: tuple[Tensor, ...] | None) -> Tensor:
        x = self.inputs(features)
        if self.attention is not None and attended is not None:
            x = torch.cat([x, self.attention(*attended)], 1)
        start = crossed = self.first(self.dropout(x))
        for down, up in zip(self.down, self.up, strict=True):
            crossed = start * up(down(crossed)) + crossed
        deep = self.dropout(torch.relu(self.hidden(crossed)))
        return self.head(torch.cat([crossed, deep], 1))  # type: ignore[no-any-return]


class LightNet(nn.Module):
    """A cross and a hidden layer over the features alone: logits (B, heads)."""

    def __init__(self, inputs: Inputs, *, width: int, heads: int) -> None:
        super().__init__()
        self.inputs = InputLayer(inputs)
        self.first = nn.Linear(self.inputs.size, width)
        self.down = nn.Linear(width, width // 2, bias=False)
        self.up = nn.Linear(width // 2, width)
        self.head = nn.Linear(2 * width, heads)

    def forward(self, features: Tensor) -> Tensor:
        first = self.first(self.inputs(features))
        crossed = first * self.up(self.down(first)) + first
        return self.head(torch.cat([crossed, torch.relu(first)], 1))  # type: ignore[no-any-return]


class PositionTower(nn.Module):
    """What the place in the list adds to a logit, in training only: (B,) → (B, heads), 0 on average over the rows seen.

    Being seen is a matter of the place, being liked one of the item: the tower takes the first, so the rest need not learn it.
    ``share`` (POSITIONS + 1,) of the training rows at each place; ``start`` (POSITIONS + 1, heads) what it says at first.
    """

    share: Tensor

    def __init__(self, share: Tensor, start: Tensor) -> None:
        super().__init__()
        self.bias = nn.Embedding(start.shape[0], start.shape[1], _weight=start.clone())
        self.register_buffer("share", share)

    def forward(self, position: Tensor) -> Tensor:
        at = place(position)
        shift = self.bias.weight - (self.share.unsqueeze(1) * self.bias.weight).sum(0)
        added: Tensor = shift[at] * (at > 0).float().unsqueeze(1)  # an unknown place adds nothing
        return added


def position_tower(position: Tensor, labels: Tensor) -> PositionTower:
    """A tower for these rows, which starts from the log-odds of each place (B,), (B, heads)."""
    at = place(position)
    rows = torch.zeros(POSITIONS + 1).index_add(0, at, torch.ones(len(at)))
    rows[0] = 0.0
    known = (~torch.isnan(labels)).float()
    shown = torch.zeros(POSITIONS + 1, labels.shape[1]).index_add(0, at, known)
    hit = torch.zeros(POSITIONS + 1, labels.shape[1]).index_add(0, at, torch.nan_to_num(labels))
    rate = (torch.nan_to_num(labels).sum(0) / known.sum(0).clamp(min=1.0)).clamp(1e-4, 1.0 - 1e-4)
    smooth = (hit + 20.0 * rate) / (shown + 20.0)
    return PositionTower(rows / rows.sum().clamp(min=1.0), torch.logit(smooth, 1e-4) - torch.logit(rate, 1e-4))


def place(position: Tensor) -> Tensor:
    """Rows of the tower's table: 0 for an unknown position, then one a place, the last for all behind."""
    return position.long().clamp(-1, POSITIONS - 1) + 1
