"""Our scoring of LightGBM's trees equals LightGBM's, to the last bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import lightgbm
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.ranking.gbdt import MODEL_FILE, GbdtRanker
from headwater.ranking.ranker import RankerError, open_ranker

Rows = npt.NDArray[np.float32]


def _rows(seed: int, rows: int, columns: int, missing: float = 0.0) -> Rows:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, columns)).astype(np.float32)
    values[:, 1::3] = np.round(values[:, 1::3])  # few distinct values, many zeros: thresholds fall on values
    values[:, 2::3] = np.maximum(values[:, 2::3], 0)
    values[rng.random(values.shape) < missing] = np.nan
    return values


def _booster(
    seed: int, columns: int = 6, leaves: int = 31, trees: int = 12, missing: float = 0.0, rows: int = 1500
) -> str:
    values = _rows(seed, rows, columns, missing)
    target = np.nan_to_num(values).sum(axis=1) > 0.5
    data = lightgbm.Dataset(values, label=target.astype(int), group=[10] * (rows // 10), params={"verbosity": -1})
    params = {
        "objective": "lambdarank",
        "num_leaves": leaves,
        "verbosity": -1,
        "seed": seed,
        "num_threads": 1,
        "min_data_in_leaf": 3,
    }
    text: str = lightgbm.train(params, data, trees).model_to_string()
    return text


def _names(count: int) -> tuple[str, ...]:
    return tuple(f"column_{i}" for i in range(count))


def _expected(text: str, rows: Rows) -> Rows:
    scores = lightgbm.Booster(model_str=text).predict(rows, raw_score=True, num_threads=1)
    return np.asarray(scores).astype(np.float32)


MODELS = {
    (seed, leaves, missing): _booster(seed, leaves=leaves, missing=missing)
    for seed, leaves, missing in [(1, 31, 0.0), (2, 32, 0.1), (3, 2, 0.0), (4, 40, 0.2), (5, 64, 0.0)]
}


@pytest.mark.parametrize("key", MODELS)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.sampled_from([1, 2, 255, 256, 257, 700]),
    missing=st.sampled_from([0.0, 0.2]),
)
@settings(max_examples=15, deadline=None)
def test_scores_equal_lightgbm(key: tuple[int, int, float], seed: int, rows: int, missing: float) -> None:
    text = MODELS[key]
    values = _rows(seed, rows, 6, missing)
    rng = np.random.default_rng(seed)
    values[rng.random(values.shape) < 0.02] = np.inf
    values[rng.random(values.shape) < 0.02] = -np.inf
    np.testing.assert_array_equal(GbdtRanker(text.encode(), _names(6)).score(values), _expected(text, values))


def test_values_on_a_threshold_go_where_lightgbm_sends_them() -> None:
    text = MODELS[1, 31, 0.0]
    thresholds = np.array(
        [t for line in text.split("\n") if line.startswith("threshold=") for t in line[10:].split()], float
    )
    near = thresholds.astype(np.float32)
    near = np.concatenate([near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))])
    values = np.repeat(near[:, None], 6, axis=1)
    np.testing.assert_array_equal(GbdtRanker(text.encode(), _names(6)).score(values), _expected(text, values))


def test_a_model_of_single_leaves_scores_all_rows_alike() -> None:
    text = _booster(1, rows=20, trees=3).replace("\r", "")
    values = _rows(3, 5, 6)
    scores = GbdtRanker(text.encode(), _names(6)).score(values)
    np.testing.assert_array_equal(scores, _expected(text, values))


def test_a_row_scores_the_same_alone_and_in_a_batch_and_in_threads() -> None:
    ranker = GbdtRanker(MODELS[2, 32, 0.1].encode(), _names(6))
    values = _rows(9, 600, 6, 0.1)
    together = ranker.score(values)
    np.testing.assert_array_equal(
        np.concatenate([ranker.score(values[i : i + 1]) for i in range(0, 600, 7)]), together[::7]
    )
    with ThreadPoolExecutor(4) as pool:
        for scores in pool.map(ranker.score, [values] * 40):
            np.testing.assert_array_equal(scores, together)


def test_no_rows_and_strided_rows() -> None:
    ranker = GbdtRanker(MODELS[1, 31, 0.0].encode(), _names(6))
    assert ranker.score(np.zeros((0, 6), np.float32)).shape == (0,)
    wide = _rows(1, 50, 12)
    np.testing.assert_array_equal(ranker.score(wide[:, ::2]), ranker.score(np.ascontiguousarray(wide[:, ::2])))


def test_wrong_columns_are_refused() -> None:
    text = MODELS[1, 31, 0.0].encode()
    with pytest.raises(RankerError, match="trained on 6 columns, its bundle names 5"):
        GbdtRanker(text, _names(5))
    ranker = GbdtRanker(text, _names(6))
    with pytest.raises(RankerError, match=r"expects float32\[n, 6\], got float32\[4, 5\]"):
        ranker.score(np.zeros((4, 5), np.float32))
    with pytest.raises(RankerError, match="got float64"):
        ranker.score(np.zeros((4, 6)))  # type: ignore[arg-type]


def test_a_score_that_is_not_finite_is_refused() -> None:
    text = MODELS[3, 2, 0.0]
    at = text.index("leaf_value=") + len("leaf_value=")
    end = text.index("\n", at)
    huge = text[:at] + "1e308 1e308" + text[end:]
    with pytest.raises(RankerError, match="not finite"):
        GbdtRanker(huge.encode(), _names(6))


@pytest.mark.parametrize("cut", [0, 5, 300, 0.3, 0.6, 0.9])
def test_a_truncated_model_is_refused(cut: float) -> None:
    text = MODELS[1, 31, 0.0].encode()
    trees_end = text.index(b"end of trees")
    with pytest.raises(RankerError):
        GbdtRanker(text[: int(cut if cut >= 1 or cut == 0 else cut * trees_end)], _names(6))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("version=v4", "version=v9"),
        ("num_class=1", "num_class=3"),
        ("num_cat=0", "num_cat=1"),
        ("is_linear=0", "is_linear=1"),
        ("decision_type=2", "decision_type=1"),
        ("left_child=1", "left_child=0"),
        ("right_child=", "right_child=99 "),
        ("split_feature=", "split_feature=77 "),
        ("leaf_value=", "leaf_value=nan "),
    ],
)
def test_a_damaged_or_foreign_model_is_refused(old: str, new: str) -> None:
    text = MODELS[1, 31, 0.0]
    assert old in text
    with pytest.raises(RankerError):
        GbdtRanker(text.replace(old, new).encode(), _names(6))


def test_opening_from_a_bundle() -> None:
    text = MODELS[1, 31, 0.0].encode()
    assert open_ranker("none", {}, ()) is None
    ranker = open_ranker("lightgbm", {MODEL_FILE: text}, _names(6))
    assert ranker is not None
    assert ranker.columns == _names(6)
    ranker.close()
    ranker.close()
    with pytest.raises(RankerError, match="closed"):
        ranker.score(np.zeros((1, 6), np.float32))
    with pytest.raises(RankerError, match="holds no ranker"):
        open_ranker("lightgbm", {}, _names(6))
    with pytest.raises(RankerError, match="of kind 'dcn'"):
        open_ranker("dcn", {}, _names(6))
