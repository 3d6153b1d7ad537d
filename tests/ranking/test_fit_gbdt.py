"""Training learns, repeats itself to the byte, stays quiet and names bad input."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from headwater.learning.gbdt import GbdtParams, TrainingError, fit_gbdt
from headwater.ranking.gbdt import GbdtRanker

COLUMNS = ("signal", "noise: a", "noise b", "item.count{30m}")
GROUPS, SIZE = 300, 12
PARAMS = GbdtParams(trees=60, leaves=7, min_rows_per_leaf=5, patience=10)

Training = tuple[npt.NDArray[np.float32], npt.NDArray[np.int32], npt.NDArray[np.int64]]


@pytest.fixture(scope="module")
def training() -> Training:
    rng = np.random.default_rng(5)
    features = rng.standard_normal((GROUPS * SIZE, len(COLUMNS))).astype(np.float32)
    noisy = (features[:, 0] + 0.5 * rng.standard_normal(len(features))).reshape(GROUPS, SIZE)
    labels = np.zeros((GROUPS, SIZE), np.int32)
    labels[np.arange(GROUPS), noisy.argmax(axis=1)] = 1
    return features, labels.ravel(), np.full(GROUPS, SIZE)


def _fit(training: Training, params: GbdtParams = PARAMS, **more: object) -> tuple[bytes, object]:
    options: dict[str, object] = {"columns": COLUMNS, "params": params, "seed": 7, "num_threads": 1}
    return fit_gbdt(*training, None, **(options | more))  # type: ignore[arg-type]


@pytest.mark.parametrize("objective", ["lambdarank", "rank_xendcg"])
def test_it_learns_the_signal_and_stops_early(
    training: Training, objective: str, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[int, int, float | None]] = []
    params = GbdtParams(objective=objective, trees=400, leaves=7, min_rows_per_leaf=5, patience=10)  # type: ignore[arg-type]
    text, report = fit_gbdt(
        *training, None, columns=COLUMNS, params=params, seed=7, num_threads=1, progress=lambda *step: seen.append(step)
    )
    assert capfd.readouterr() == ("", "")
    assert report.holdout_groups == 30
    assert report.groups == 270
    assert report.rows == 270 * SIZE
    assert report.holdout_ndcg10 is not None
    assert report.holdout_ndcg10 > 0.75
    assert next(iter(report.gain)) == "signal"
    assert 1 <= report.trees <= len(seen) - 10 < 390
    assert seen[report.trees - 1] == (report.trees, 400, report.holdout_ndcg10)
    assert text.decode().count("Tree=") == report.trees
    features, labels, _ = training
    scores = GbdtRanker(text, COLUMNS).score(features).reshape(GROUPS, SIZE)
    assert np.mean(scores.argmax(axis=1) == labels.reshape(GROUPS, SIZE).argmax(axis=1)) > 0.5


def test_equal_seeds_give_equal_bytes(training: Training) -> None:
    params = GbdtParams(trees=15, leaves=7, min_rows_per_leaf=5, column_share=0.5)
    first, again, other = (_fit(training, params, seed=seed)[0] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_the_holdout_is_the_last_groups_in_time(training: Training) -> None:
    features, labels, sizes = training
    flipped = labels.copy()
    flipped[270 * SIZE :] = np.roll(labels[270 * SIZE :], 5)
    params = GbdtParams(trees=8, leaves=7, min_rows_per_leaf=5, patience=8)
    kept, told = ([], [])  # type: tuple[list[object], list[object]]
    fit_gbdt(
        features,
        labels,
        sizes,
        None,
        columns=COLUMNS,
        params=params,
        seed=7,
        num_threads=1,
        progress=lambda *s: kept.append(s),
    )
    fit_gbdt(
        features,
        flipped,
        sizes,
        None,
        columns=COLUMNS,
        params=params,
        seed=7,
        num_threads=1,
        progress=lambda *s: told.append(s),
    )
    assert kept != told


def test_few_groups_train_without_a_holdout(training: Training) -> None:
    features, labels, sizes = training
    report = _fit((features[: 50 * SIZE], labels[: 50 * SIZE], sizes[:50]))[1]
    assert report.trees == 60  # type: ignore[attr-defined]
    assert report.holdout_ndcg10 is None  # type: ignore[attr-defined]


def test_weights_count(training: Training) -> None:
    features, labels, sizes = training
    weights = np.where(features[:, 1] > 0, 3.0, 1.0).astype(np.float32)
    options = {"columns": COLUMNS, "params": PARAMS, "seed": 7, "num_threads": 1}
    assert fit_gbdt(features, labels, sizes, weights, **options)[0] != _fit(training)[0]  # type: ignore[arg-type]


def test_bad_input_is_named(training: Training) -> None:
    features, labels, sizes = training
    with pytest.raises(TrainingError, match="add up to 3600"):
        _fit((features, labels, sizes[:-1]))
    with pytest.raises(TrainingError, match="None of the training rows is positive"):
        _fit((features, np.zeros_like(labels), sizes))
    with pytest.raises(TrainingError, match="whole-numbered labels"):
        _fit((features, labels - 1, sizes))
    with pytest.raises(TrainingError, match=r"float32\[n, 4\]"):
        _fit((features[:, :3], labels, sizes))
    with pytest.raises(TrainingError, match="no training rows"):
        _fit((features[:0], labels[:0], sizes[:0]))
    with pytest.raises(TrainingError, match=r"<= 64 - at `\$.leaves`"):
        _fit(training, GbdtParams(leaves=1024))
    broken = features.copy()
    broken[5, 2] = np.inf
    with pytest.raises(TrainingError, match="'noise b' has an infinite"):
        _fit((broken, labels, sizes))


def test_a_warm_start_goes_on_from_half_the_trees_and_never_grows_beyond_them(training: Training) -> None:
    params = GbdtParams(trees=20, leaves=7, min_rows_per_leaf=5, holdout=0.0)
    cold, _ = _fit(training, params)
    warm, report = _fit(training, params, warm=cold)
    again, _ = _fit(training, params, warm=warm)
    assert report.trees == 20  # type: ignore[attr-defined]
    trees = [text.decode().split("Tree=")[1:] for text in (cold, warm, again)]
    assert [len(of) for of in trees] == [20, 20, 20]
    for before, after in pairwise(trees):
        assert [tree.split("shrinkage")[0] for tree in after[:10]] == [
            tree.split("shrinkage")[0] for tree in before[:10]
        ]
    assert _fit(training, params, warm=cold)[0] == warm
    features, labels, _ = training
    best = GbdtRanker(again, COLUMNS).score(features).reshape(GROUPS, SIZE).argmax(axis=1)
    assert np.mean(best == labels.reshape(GROUPS, SIZE).argmax(axis=1)) > 0.5
    with pytest.raises(TrainingError, match="has 4 columns, the rows have 3"):
        fit_gbdt(
            np.ascontiguousarray(features[:, :3]), labels, training[2], None, columns=COLUMNS[:3], params=params, seed=7,
            num_threads=1, warm=cold,
        )  # fmt: skip


def test_what_the_place_explains_is_not_taken_for_worth() -> None:
    """Places follow the second column, clicks the first one and the place: beside the place, only the first is learnt."""
    rng = np.random.default_rng(4)
    lists, length = 800, 8
    worth, shown_by = rng.random((2, lists, length)).astype(np.float32)
    place = np.argsort(np.argsort(-shown_by - 0.5 * rng.random((lists, length)), axis=1), axis=1)
    clicked = rng.random((lists, length)) < worth * 0.75**place
    keep = clicked.any(axis=1)
    features = np.stack([worth[keep].ravel(), shown_by[keep].ravel()], axis=1)
    labels, places = clicked[keep].ravel().astype(np.int32), place[keep].ravel()
    sizes = np.full(int(keep.sum()), length, np.int32)
    options = {"columns": ("worth", "shown_by"), "seed": 1, "num_threads": 1}
    params = GbdtParams(trees=20, leaves=4, holdout=0.0)
    new = rng.random((500, 2)).astype(np.float32)
    share = {}
    for name, positions in (("blind", None), ("beside", places)):
        text, _ = fit_gbdt(features, labels, sizes, None, params=params, positions=positions, **options)  # type: ignore[arg-type]
        scores = GbdtRanker(text, ("worth", "shown_by")).score(new)
        share[name] = np.corrcoef(scores, new[:, 0])[0, 1] ** 2
    assert share["beside"] > share["blind"] + 0.1, share


def test_places_are_one_a_row_and_for_lambdarank() -> None:
    rows = np.zeros((4, 1), np.float32)
    labels, sizes = np.array([1, 0, 0, 1], np.int32), np.array([2, 2], np.int32)
    for params, places in ((GbdtParams(), np.zeros(3)), (GbdtParams(objective="rank_xendcg"), np.zeros(4))):
        with pytest.raises(TrainingError, match="positions, one a row"):
            fit_gbdt(
                rows, labels, sizes, None, columns=("a",), params=params, seed=1, num_threads=1, positions=places.astype(np.int64)
            )  # fmt: skip
