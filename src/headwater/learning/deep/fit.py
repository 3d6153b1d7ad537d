"""Training of the deep ranker."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from msgspec import Struct
from torch import nn

from headwater.learning.deep.batches import Batch, batches
from headwater.learning.deep.calibration import fit_calibration
from headwater.learning.deep.distill import distill
from headwater.learning.deep.export import export_deep, export_light
from headwater.learning.deep.inputs import fit_inputs
from headwater.learning.deep.losses import listwise, pairwise, pointwise
from headwater.learning.deep.model import DeepNet, PositionTower, position_tower
from headwater.learning.deep.rows import RankingRows
from headwater.learning.gbdt import TrainingError
from headwater.ranking.calibration import Calibration
from headwater.ranking.deep import DEEP_FILE, DESCRIPTION_FILE, LIGHT_FILE, Description
from headwater.schema.models import DeepModel

Objective = Literal["listwise", "pointwise"]
Progress = Callable[[int, int, float | None], None]
Float32 = npt.NDArray[np.float32]

HOLDOUT = 0.1  # share of the groups, the last ones in time, that judges and is not trained on
MIN_HOLDOUT_GROUPS = 10
_JUDGED_ROWS = 16_384
_AVERAGED = 0.98  # how much of the averaged weights stays with each step
_WARM = 0.1  # share of the steps in which the rate rises
_LARGEST_GRADIENT = 1.0
_TOWER_RATE = 3.0  # positions are few and plain: they learn so many times as fast


class FitReport(Struct, frozen=True, kw_only=True):
    """What training did. ``losses`` are those of the holdout after each epoch (of the training rows where there is none).

    ``light`` is the share of the variance of the deep logits that the light ranker explains, a head each.
    """

    epochs: int
    best_epoch: int
    rows: int
    groups: int
    holdout_groups: int
    losses: list[float]
    weights: int
    light: dict[str, float]


def fit_deep(
    rows: RankingRows, params: DeepModel, *, columns: tuple[str, ...], heads: tuple[str, ...], objective: Objective,
    seed: int, threads: int, value: Mapping[str, float] | None = None, pair_weight: float = 0.0,
    holdout: float = HOLDOUT, progress: Progress | None = None,
) -> tuple[dict[str, bytes], FitReport]:  # fmt: skip
    """Train, calibrate, distil and export.

    The same rows, parameters, seed and build give the same files with one thread.

    Args:
        rows: groups in the order of time.
        columns: names of the columns of ``rows.features``.
        heads: names of the columns of ``rows.labels``.
        objective: "listwise" is a softmax over each group, and scores are ``Σ value · logit``; "pointwise" is binary cross entropy,
            and scores are ``Σ value · calibrated probability``.
        value: weight of each head where ``params.value`` does not say; heads without one weigh 1.
        pair_weight: with "pointwise", the weight of a pairwise loss inside the groups.
        holdout: share of the groups, the last ones, that judges, calibrates and is not trained on.
        progress: called as ``progress(epoch, epochs, loss)`` after every epoch.

    Returns:
        The files of a bundle, and a report.

    Raises:
        TrainingError: rows that do not fit together or cannot train anything, a value for a head that is not there, or an
            exported model that does not agree with the trained one.
    """
    rows.check(columns, heads)
    weights = _value(params, heads, value)
    held = int(len(rows.groups) * holdout)
    held = held if held >= MIN_HOLDOUT_GROUPS else 0
    learnt = np.arange(len(rows.groups) - held)
    judging = np.arange(len(rows.groups) - held, len(rows.groups)) if held else learnt
    trained = int(rows.starts[len(learnt)])
    if not np.any(rows.labels[:trained] > 0):
        raise TrainingError(
            "None of the training rows is positive. Import more events, or mark an event type `positive`."
        )
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inputs = fit_inputs(rows.features[:trained])
            size = 0 if rows.histories is None else rows.histories.vectors.shape[1]
            net = DeepNet(
                inputs, width=params.width, crosses=params.crosses, heads=len(heads), size=size, dropout=params.dropout
            )
            losses, best = _train(net, rows, learnt, judging, params, objective, pair_weight, seed, progress)
            logits = predict(net, rows)
            judged = slice(trained, None) if held else slice(None)
            light, explained = distill(inputs, rows, logits, trained, params, seed=seed)
            light_logits = predict(light, rows)
            description = Description(
                objective=objective, heads=heads, value=weights, columns=columns, size=size,
                calibration=_calibrate(objective, logits[judged], rows.labels[judged], rows.weights, judged),
                light_calibration=_calibrate(objective, light_logits[judged], rows.labels[judged], rows.weights, judged),
            )  # fmt: skip
            files = {
                DEEP_FILE: export_deep(net, rows),
                LIGHT_FILE: export_light(light, rows),
                DESCRIPTION_FILE: msgspec.json.encode(description),
            }
    finally:
        torch.set_num_threads(before)
    return files, FitReport(
        epochs=len(losses), best_epoch=best + 1, rows=trained, groups=len(learnt), holdout_groups=held, losses=losses,
        weights=sum(p.numel() for p in net.parameters()), light=dict(zip(heads, explained, strict=True)),
    )  # fmt: skip


def predict(net: nn.Module, rows: RankingRows) -> Float32:
    """Logits of all rows, ``float32[n, h]``: without dropout, without the position tower."""
    net.eval()
    out = []
    with torch.no_grad():
        for batch in batches(rows, np.arange(len(rows.groups)), _JUDGED_ROWS):
            out.append(_forward(net, batch).numpy())  # noqa: PERF401
    return np.concatenate(out)


def _forward(net: nn.Module, batch: Batch) -> torch.Tensor:
    given = (batch.features, batch.attended) if isinstance(net, DeepNet) else (batch.features,)
    return net(*given)  # type: ignore[no-any-return]


def _loss(
    net: DeepNet, tower: PositionTower | None, batch: Batch, objective: Objective, pair_weight: float
) -> torch.Tensor:
    """What training lowers, with the part that the position explains."""
    logits = _forward(net, batch)
    if tower is not None and batch.position is not None:
        logits = logits + tower(batch.position)
    if objective == "listwise":
        return listwise(logits, batch)
    loss = pointwise(logits, batch)
    return loss + pair_weight * pairwise(logits, batch) if pair_weight else loss


def _train(
    net: DeepNet, rows: RankingRows, learnt: npt.NDArray[np.int64], judging: npt.NDArray[np.int64], params: DeepModel,
    objective: Objective, pair_weight: float, seed: int, progress: Progress | None,
) -> tuple[list[float], int]:  # fmt: skip
    """Train in place and leave the best weights; the losses of the epochs and which was best."""
    tower = None
    if rows.position is not None and np.any(rows.position >= 0):
        known = int(rows.starts[len(learnt)])
        position = torch.from_numpy(rows.position[:known].astype(np.int64))
        tower = position_tower(position, torch.from_numpy(rows.labels[:known]))
    learning = list(net.parameters())
    slots = [{"params": learning}]
    if tower is not None:
        rate = params.learning_rate * _TOWER_RATE
        slots.append({"params": list(tower.parameters()), "lr": rate, "weight_decay": 0.0})  # type: ignore[dict-item]
    optimizer = torch.optim.AdamW(slots, lr=params.learning_rate, weight_decay=params.weight_decay, foreach=True)
    steps = max(1, params.epochs * -(-int(rows.starts[len(learnt)]) // params.batch))
    warm = max(1, int(steps * _WARM))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, max(0.02, (steps - step) / max(steps - warm, 1)))
    )
    averaged = copy.deepcopy(net)
    shuffling = np.random.default_rng(seed)
    losses: list[float] = []
    best, best_loss, kept = 0, np.inf, copy.deepcopy(net.state_dict())
    step = 0
    for epoch in range(params.epochs):
        net.train()
        for batch in batches(rows, shuffling.permutation(learnt), params.batch):
            loss = _loss(net, tower, batch, objective, pair_weight)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(learning, _LARGEST_GRADIENT)
            optimizer.step()
            schedule.step()
            step += 1
            _average(averaged, net, min(_AVERAGED, step / (step + 10.0)))
        loss_now = _judge(averaged, tower, rows, judging, objective, pair_weight)
        losses.append(loss_now)
        if progress is not None:
            progress(epoch + 1, params.epochs, loss_now)
        if not np.isfinite(loss_now):
            raise TrainingError(f"The loss is {loss_now} after epoch {epoch + 1}. Lower models.deep.learning_rate.")
        if loss_now < best_loss:
            best, best_loss, kept = epoch, loss_now, copy.deepcopy(averaged.state_dict())
        elif epoch - best >= params.patience:
            break
    net.load_state_dict(kept)
    return losses, best


def _average(averaged: nn.Module, net: nn.Module, keep: float) -> None:
    with torch.no_grad():
        for mean, now in zip(averaged.parameters(), net.parameters(), strict=True):
            mean.lerp_(now, 1.0 - keep)


def _judge(
    net: DeepNet, tower: PositionTower | None, rows: RankingRows, groups: npt.NDArray[np.int64], objective: Objective,
    pair_weight: float,
) -> float:  # fmt: skip
    net.eval()
    total = count = 0.0
    with torch.no_grad():
        for batch in batches(rows, groups, _JUDGED_ROWS):
            total += float(_loss(net, tower, batch, objective, pair_weight)) * len(batch.rows)
            count += len(batch.rows)
    return total / count


def _value(params: DeepModel, heads: tuple[str, ...], value: Mapping[str, float] | None) -> tuple[float, ...]:
    if unknown := [name for name in params.value if name not in heads]:
        raise TrainingError(
            f"models.deep.value weighs {', '.join(unknown)}, which is no head; the heads are {', '.join(heads)}."
        )
    given = params.value or dict(value or {})
    return tuple(float(given.get(name, 0.0 if params.value else 1.0)) for name in heads)


def _calibrate(
    objective: Objective, logits: Float32, labels: Float32, weights: Float32 | None, judged: slice
) -> tuple[Calibration, ...]:
    if objective == "listwise":  # a softmax knows no level, only differences
        return tuple(Calibration() for _ in range(logits.shape[1]))
    of = None if weights is None else weights[judged]
    return tuple(fit_calibration(logits[:, h], labels[:, h], of) for h in range(logits.shape[1]))
