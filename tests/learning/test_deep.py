"""The deep ranker learns what trees cannot see, forgets where things stood, tells probabilities, and exports what it is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from headwater.learning.deep import FitReport, RankingRows, fit_deep
from headwater.learning.deep.batches import batches
from headwater.learning.deep.export import verify
from headwater.learning.deep.inputs import NEVER, fit_inputs
from headwater.learning.deep.losses import listwise, pairs
from headwater.learning.deep.model import DeepNet, InputLayer, LightNet
from headwater.learning.gbdt import GbdtParams, TrainingError, fit_gbdt
from headwater.ranking.deep import DEEP_FILE, DESCRIPTION_FILE, LIGHT_FILE, DeepRanker, LightRanker
from headwater.ranking.gbdt import GbdtRanker
from headwater.retrieval.fitted import Attended
from headwater.schema.models import DeepModel
from tests.learning.deep_worlds import attending, clicked, crossed, top_one

PARAMS = DeepModel(width=32, crosses=1, dropout=0.0, epochs=12, patience=4, batch=512, learning_rate=0.01)


def fit(rows: RankingRows, params: DeepModel = PARAMS, **more: object) -> tuple[dict[str, bytes], FitReport]:
    columns = tuple(f"column {c}" for c in range(rows.features.shape[1]))
    heads = tuple(f"head {h}" for h in range(rows.labels.shape[1]))
    options: dict[str, object] = {"objective": "listwise", "seed": 7, "threads": 1}
    return fit_deep(rows, params, columns=columns, heads=heads, **(options | more))  # type: ignore[arg-type]


def deep(files: dict[str, bytes], columns: int) -> DeepRanker:
    return DeepRanker(files[DEEP_FILE], files[DESCRIPTION_FILE], tuple(f"column {c}" for c in range(columns)))


def served(ranker: DeepRanker, rows: RankingRows) -> np.ndarray:
    """Scores as requests would get them."""
    out = []
    for g, (start, stop) in enumerate(zip(rows.starts[:-1], rows.starts[1:], strict=True)):
        attention = None
        if rows.histories is not None:
            h = rows.histories
            there = h.recent[g] > 0
            attention = Attended(
                h.vectors[h.recent[g][there]], h.types[g][there], h.age_s[g][there], h.vectors[h.item[start:stop]]
            )
        out.append(ranker.score(rows.features[start:stop], attention))
    return np.concatenate(out)


def test_it_learns_a_cross_and_teaches_the_light_ranker() -> None:
    rows, later = crossed(1_500, 8, 1), crossed(300, 8, 2)
    seen: list[tuple[int, int, float | None]] = []
    files, report = fit(rows, progress=lambda *step: seen.append(step))
    assert top_one(deep(files, 4).score(later.features), later) > 0.8
    assert report.holdout_groups == 150
    assert report.rows == 1_350 * 8
    assert seen == [(k + 1, PARAMS.epochs, loss) for k, loss in enumerate(report.losses)]
    assert report.losses[report.best_epoch - 1] == min(report.losses)
    light = LightRanker(files[LIGHT_FILE], files[DESCRIPTION_FILE], tuple(f"column {c}" for c in range(4)))
    assert report.light["head 0"] > 0.7
    assert top_one(light.score(later.features), later) > 0.5


def test_it_attends_to_the_one_recent_item_that_tells() -> None:
    rows, later = attending(1_500, 6, 1), attending(300, 6, 2)
    histories = rows.histories
    assert histories is not None
    assert later.histories is not None
    later = dataclasses.replace(later, histories=dataclasses.replace(later.histories, vectors=histories.vectors))
    # the later world has vectors of its own: what is near is worked out again with those of the first
    near = np.einsum(
        "gse,ge->gs", histories.vectors[later.histories.item].reshape(300, 6, -1),  # type: ignore[union-attr]
        histories.vectors[later.histories.recent[np.arange(300), later.histories.types.argmax(1)]],  # type: ignore[union-attr]
    )  # fmt: skip
    labels = np.zeros((300, 6), np.float32)
    labels[np.arange(300), near.argmax(1)] = 1.0
    later = dataclasses.replace(later, labels=labels.reshape(-1, 1))
    files, _ = fit(rows, DeepModel(width=64, dropout=0.0, epochs=12, patience=6, batch=256, learning_rate=0.005))
    ranker = deep(files, 2)
    assert ranker.attends
    assert top_one(served(ranker, later), later) > 0.7
    text, _ = fit_gbdt(
        rows.features, rows.labels[:, 0].astype(np.int32), rows.groups, None, columns=("a", "b"),
        params=GbdtParams(trees=20), seed=7, num_threads=1,
    )  # fmt: skip
    assert top_one(GbdtRanker(text, ("a", "b")).score(later.features), later) < 0.35


def test_where_things_stood_is_not_learnt_as_what_they_are() -> None:
    rows, liked = clicked(1_500, 6, 1)
    later, liked = clicked(400, 6, 2)
    debiased = deep(fit(rows, objective="pointwise")[0], 2).score(later.features)
    plain = deep(fit(dataclasses.replace(rows, position=None), objective="pointwise")[0], 2).score(later.features)
    favourite = later.features[:, 1]
    assert np.corrcoef(debiased, liked)[0, 1] > np.corrcoef(plain, liked)[0, 1] + 0.05
    assert np.corrcoef(plain, favourite)[0, 1] > 0.4
    assert abs(np.corrcoef(debiased, favourite)[0, 1]) < 0.15


def test_probabilities_are_calibrated_and_weighed() -> None:
    rng = np.random.default_rng(4)
    features = rng.standard_normal((24_000, 3)).astype(np.float32)
    p = 1.0 / (1.0 + np.exp(-np.stack([features[:, 0], 2.0 * features[:, 1] - 3.0], 1)))
    labels = (rng.random(p.shape) < p).astype(np.float32)
    labels[::5, 1] = np.nan
    rows = RankingRows(features, labels, np.full(6_000, 4, np.int32))
    params = DeepModel(width=32, dropout=0.0, epochs=5, batch=512, learning_rate=0.01, value={"head 0": 2.0})
    files, _ = fit(rows, params, objective="pointwise", pair_weight=0.3)
    ranker = deep(files, 3)
    told = ranker.heads(features)
    assert np.abs(told - p).mean(0).max() < 0.03
    assert np.array_equal(ranker.score(features), np.float32(2.0) * told[:, 0])
    files, _ = fit(rows, DeepModel(width=32, epochs=1), objective="pointwise", value={"head 1": 4.0})
    ranker = deep(files, 3)
    told = ranker.heads(features)
    assert np.allclose(ranker.score(features), told[:, 0] + 4.0 * told[:, 1], atol=1e-6)


def test_equal_seeds_give_equal_files() -> None:
    rows = attending(60, 5, 3)
    params = DeepModel(width=16, epochs=2, batch=64)
    first, again, other = (fit(rows, params, seed=seed)[0] for seed in (1, 1, 2))
    assert first == again
    assert first[DEEP_FILE] != other[DEEP_FILE]


def test_the_random_state_and_threads_of_the_caller_stay() -> None:
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    fit(crossed(30, 4, 1), DeepModel(width=16, epochs=1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads


def test_an_export_that_differs_is_refused() -> None:
    rows = crossed(40, 4, 1)
    net = DeepNet(fit_inputs(rows.features), width=16, crosses=1, heads=1, size=0, dropout=0.0)
    from headwater.learning.deep.export import export_deep

    model = export_deep(net, rows)
    assert verify(model, net, rows) <= 1e-4
    with torch.no_grad():
        net.head.bias.add_(0.001)
    with pytest.raises(TrainingError, match=r"differs from the trained one by 0\.001"):
        verify(model, net, rows)


def test_pieces_that_no_value_reaches_are_left_out_of_the_export() -> None:
    import onnx

    from headwater.learning.deep.export import export_deep, export_light

    rng = np.random.default_rng(3)
    rows = crossed(200, 4, 1)
    often_0 = np.where(rng.random(rows.features.shape) < 0.1, np.abs(rows.features), np.float32(0.0))
    rows = dataclasses.replace(rows, features=np.concatenate([rows.features, often_0], 1))
    inputs = fit_inputs(rows.features)
    dead = int((inputs.low == np.float32(NEVER)).sum())
    assert dead >= often_0.shape[1]  # a column that is mostly 0 has one piece, not two
    exported = (  # compared with torch by themselves
        export_deep(DeepNet(inputs, width=16, crosses=1, heads=1, size=0, dropout=0.0), rows),
        export_light(LightNet(inputs, width=16, heads=1), rows),
    )
    for model in exported:
        weights = [list(weight.dims) for weight in onnx.load_from_string(model).graph.initializer]
        assert [inputs.size - dead, 16] in weights
        assert [inputs.size, 16] not in weights


def test_inputs_of_any_scale_come_out_around_zero() -> None:
    rng = np.random.default_rng(1)
    features = np.stack(
        [rng.lognormal(8.0, 3.0, 5_000), 1e-6 * rng.random(5_000), rng.integers(0, 4, 5_000), np.full(5_000, 7.0)], 1
    ).astype(np.float32)
    features[::10, 1] = np.nan
    inputs = fit_inputs(features)
    assert inputs.missing.tolist() == [1]
    assert list(zip(inputs.single.tolist(), inputs.values.tolist(), strict=True)) == [(2, float(v)) for v in range(4)]
    channels = InputLayer(inputs)(torch.from_numpy(features)).numpy()
    assert channels.shape == (5_000, inputs.size)
    assert np.abs(channels).max() <= 6.0
    assert channels[:, :3].std(0) == pytest.approx(np.ones(3), abs=0.1)
    assert channels[:, 3].std() == 0.0
    assert np.array_equal(channels[:, -4:].argmax(1), features[:, 2])
    assert np.array_equal(channels[:, -5] == 1.0, np.isnan(features[:, 1]))


def test_weights_that_decayed_for_years_make_no_channel_infinite() -> None:
    decayed = np.repeat(np.array([0.0, 1e-42, 1e-40, 1.0], np.float32), 100)[:, None]
    channels = InputLayer(fit_inputs(decayed))(torch.from_numpy(decayed)).numpy()
    assert np.isfinite(channels).all()
    assert len(np.unique(channels, axis=0)) > 1


def test_listwise_loss_is_the_mean_of_the_softmax() -> None:
    rng = np.random.default_rng(2)
    rows = RankingRows(
        np.zeros((9, 1), np.float32), (rng.random((9, 1)) < 0.5).astype(np.float32), np.array([2, 3, 4], np.int32),
        weights=rng.random(9).astype(np.float32),
    )  # fmt: skip
    (batch,) = batches(rows, np.arange(3), 100)
    logits = rng.standard_normal(9)
    total = weight = 0.0
    for start, stop in ((0, 2), (2, 5), (5, 9)):
        share = np.exp(logits[start:stop]) / np.exp(logits[start:stop]).sum()
        for k in range(start, stop):
            w = float(rows.weights[k] * rows.labels[k, 0])  # type: ignore[index]
            total, weight = total - w * np.log(share[k - start]), weight + w
    found = float(listwise(torch.from_numpy(logits.astype(np.float32)).unsqueeze(1), batch))
    assert found == pytest.approx(total / weight, rel=1e-5)


def test_pairs_are_those_inside_groups() -> None:
    rows = RankingRows(np.zeros((6, 1), np.float32), np.zeros((6, 1), np.float32), np.array([1, 3, 2], np.int32))
    (batch,) = batches(rows, np.arange(3), 100)
    left, right = pairs(batch)
    wanted = {(a, b) for group in ((1, 2, 3), (4, 5)) for a in group for b in group if a != b}
    assert sorted(zip(left.tolist(), right.tolist(), strict=True)) == sorted(wanted)


def test_batches_hold_whole_groups() -> None:
    rows = attending(50, 4, 1)
    order = np.random.default_rng(1).permutation(50)
    found = list(batches(rows, order, 30))
    assert [b.groups for b in found] == [8] * 6 + [2]
    assert np.concatenate([b.rows for b in found]).tolist() == [r for g in order for r in range(g * 4, g * 4 + 4)]
    again = rows.take(order)
    assert np.array_equal(again.features, rows.features[np.concatenate([b.rows for b in found])])


def test_bad_input_is_named() -> None:
    rows = crossed(20, 4, 1)
    with pytest.raises(TrainingError, match="add up to 80"):
        fit(dataclasses.replace(rows, groups=rows.groups[:-1]))
    with pytest.raises(TrainingError, match="None of the training rows is positive"):
        fit(dataclasses.replace(rows, labels=np.zeros_like(rows.labels)))
    with pytest.raises(TrainingError, match="labels from 0 to 1"):
        fit(dataclasses.replace(rows, labels=rows.labels * 2))
    with pytest.raises(TrainingError, match="weighs nothing, which is no head"):
        fit(rows, DeepModel(value={"nothing": 1.0}))
    broken = rows.features.copy()
    broken[5, 2] = np.inf
    with pytest.raises(TrainingError, match="'column 2' has an infinite"):
        fit(dataclasses.replace(rows, features=broken))
    told = attending(20, 4, 1)
    assert told.histories is not None
    far = dataclasses.replace(told.histories, item=told.histories.item + 200)
    with pytest.raises(TrainingError, match="rows of vectors from 0 to 199"):
        fit(dataclasses.replace(told, histories=far))
