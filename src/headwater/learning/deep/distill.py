"""The light ranker: a small network that has learnt what the deep one says."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from headwater.learning.deep.inputs import Inputs
from headwater.learning.deep.model import LightNet
from headwater.learning.deep.rows import RankingRows
from headwater.schema.models import DeepModel

Float32 = npt.NDArray[np.float32]

EPOCHS = 4
LEAST_STEPS = 400
_RATE = 0.005
_SMALLEST = 16


def distill(
    inputs: Inputs, rows: RankingRows, logits: Float32, trained: int, params: DeepModel, *, seed: int
) -> tuple[LightNet, list[float]]:
    """Regress the deep ``logits`` float32[n, h] on the features of the first ``trained`` rows.

    Returns the network and, for each head, the share of the variance that it explains on all rows.
    """
    light = LightNet(inputs, width=max(_SMALLEST, params.width // 4), heads=logits.shape[1])
    target = torch.from_numpy(logits)
    scale = target[:trained].std(0, correction=0).clamp(min=1e-3)
    level = target[:trained].mean(0)
    with torch.no_grad():
        light.head.bias.copy_(level)
    features = torch.from_numpy(rows.features)
    size = min(params.batch, 1_024)
    steps = -(-trained // size)
    epochs = max(EPOCHS, -(-LEAST_STEPS // steps))
    steps *= epochs
    optimizer = torch.optim.AdamW(light.parameters(), lr=_RATE, foreach=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.02, 1.0 - step / steps))
    shuffling = np.random.default_rng(seed)
    for _ in range(epochs):
        order = torch.from_numpy(shuffling.permutation(trained))
        for at in torch.split(order, size):
            error = ((light(features[at]) - target[at]) / scale).square().mean()
            optimizer.zero_grad(set_to_none=True)
            error.backward()
            optimizer.step()
            schedule.step()
    light.eval()
    with torch.no_grad():
        left = torch.cat([light(part) for part in torch.split(features, 16_384)]) - target
    explained = 1.0 - left.square().mean(0) / target.var(0, correction=0).clamp(min=1e-12)
    return light, [round(float(share), 4) for share in explained]
