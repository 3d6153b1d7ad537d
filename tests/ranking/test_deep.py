"""The deep ranker in service: rows stand alone, threads do not meet, and what does not fit is named."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import pytest

from headwater.learning.deep import fit_deep
from headwater.ranking.calibration import Calibration
from headwater.ranking.deep import DEEP_FILE, DESCRIPTION_FILE, LIGHT_FILE, DeepRanker, LightRanker, describe
from headwater.ranking.ranker import RankerError, open_light, open_ranker
from headwater.ranking.remote import from_tensors, to_tensors
from headwater.retrieval.fitted import Attended
from headwater.schema.models import DeepModel
from tests.learning.deep_worlds import SIZE, attending, crossed

COLUMNS = ("a", "b")


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    rows = attending(60, 5, 3)
    files, _ = fit_deep(
        rows, DeepModel(width=32, epochs=1), columns=COLUMNS, heads=("click",), objective="pointwise", seed=1, threads=1
    )
    return files


@pytest.fixture
def ranker(files: dict[str, bytes]) -> DeepRanker:
    return DeepRanker(files[DEEP_FILE], files[DESCRIPTION_FILE], COLUMNS)


def asked(n: int, length: int, seed: int = 5) -> tuple[np.ndarray, Attended]:
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((n, 2)).astype(np.float32)
    features[::7, 1] = np.nan
    return features, Attended(
        rng.standard_normal((length, SIZE)).astype(np.float32), rng.integers(0, 20, length),
        rng.exponential(1e4, length).astype(np.float32), rng.standard_normal((n, SIZE)).astype(np.float32),
    )  # fmt: skip


def part(attention: Attended, of: slice) -> Attended:
    return attention._replace(candidates=attention.candidates[of])


@pytest.mark.parametrize("length", [0, 1, 50])
def test_a_row_has_the_same_score_in_any_company(ranker: DeepRanker, length: int) -> None:
    features, attention = asked(101, length)
    together = ranker.score(features, attention)
    for size in (1, 3, 16, 37):
        parts = [ranker.score(features[k : k + size], part(attention, slice(k, k + size))) for k in range(0, 101, size)]
        assert np.array_equal(np.concatenate(parts), together)
    assert len(np.unique(together)) == 101
    assert together.dtype == np.float32


def test_no_candidates_are_no_scores(ranker: DeepRanker) -> None:
    features, attention = asked(0, 3)
    assert ranker.score(features, attention).shape == (0,)
    assert ranker.heads(features, attention).shape == (0, 1)


def test_what_went_over_a_wire_has_the_same_scores(ranker: DeepRanker) -> None:
    for recent in (0, 4):
        features, attention = asked(5, recent)
        wire = {
            name: (list(rows.shape), msgspec.json.decode(msgspec.json.encode(rows.ravel().tolist())))
            for name, rows in to_tensors(features, attention).items()
        }
        assert np.array_equal(ranker.score(*from_tensors(wire)), ranker.score(features, attention))


def test_threads_do_not_meet(ranker: DeepRanker) -> None:
    questions = [asked(40, 10, seed) for seed in range(8)]
    wanted = [ranker.score(*question) for question in questions]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for found, score in zip(pool.map(lambda q: ranker.score(*q), questions), wanted, strict=True):
                assert np.array_equal(found, score)


def test_what_does_not_fit_is_named(ranker: DeepRanker, files: dict[str, bytes]) -> None:
    features, attention = asked(5, 4)
    with pytest.raises(RankerError, match=r"expects float32\[n, 2\], got float32\[5, 1\]"):
        ranker.score(features[:, :1], attention)
    with pytest.raises(RankerError, match="float64"):
        ranker.score(features.astype(np.float64), attention)
    with pytest.raises(RankerError, match="got no vectors"):
        ranker.score(features)
    with pytest.raises(RankerError, match=r"candidates\[4, 8\]"):
        ranker.score(features, part(attention, slice(0, 4)))
    with pytest.raises(RankerError, match=r"types\[3\]"):
        ranker.score(features, attention._replace(types=attention.types[:3]))
    attention.candidates[2] = np.nan
    with pytest.raises(RankerError, match="1 of 5 rows a score that is not finite"):
        ranker.score(features, attention)
    with pytest.raises(RankerError, match="trained on 2 columns"):
        DeepRanker(files[DEEP_FILE], files[DESCRIPTION_FILE], ("a", "c"))
    with pytest.raises(RankerError, match="cannot open"):
        DeepRanker(files[DEEP_FILE][:-100], files[DESCRIPTION_FILE], COLUMNS)
    with pytest.raises(RankerError, match="does not belong"):
        DeepRanker(files[LIGHT_FILE], files[DESCRIPTION_FILE], COLUMNS)
    with pytest.raises(RankerError, match="is damaged"):
        DeepRanker(files[DEEP_FILE], b"{}", COLUMNS)


def test_a_closed_ranker_says_so(ranker: DeepRanker) -> None:
    ranker.close()
    ranker.close()
    with pytest.raises(RankerError, match="was closed"):
        ranker.score(*asked(2, 2))


def test_bundles_open_by_kind(files: dict[str, bytes]) -> None:
    ranker = open_ranker("deep", files, COLUMNS)
    assert isinstance(ranker, DeepRanker)
    assert ranker.attends
    assert ranker.columns == COLUMNS
    light = open_light(files, COLUMNS)
    assert isinstance(light, LightRanker)
    assert not light.attends
    features, attention = asked(30, 4)
    assert np.array_equal(light.score(features), light.score(features, attention))
    assert open_light({}, COLUMNS) is None
    for missing in (DEEP_FILE, DESCRIPTION_FILE):
        with pytest.raises(RankerError, match=f"holds no {missing}"):
            open_ranker("deep", {name: text for name, text in files.items() if name != missing}, COLUMNS)
    with pytest.raises(RankerError, match=f"no {DESCRIPTION_FILE}"):
        open_light({LIGHT_FILE: files[LIGHT_FILE]}, COLUMNS)
    with pytest.raises(RankerError, match="knows 'lightgbm', 'deep' and 'none'"):
        open_ranker("wide", files, COLUMNS)


def test_listwise_scores_are_logits_and_heads_are_weighed() -> None:
    rows = crossed(40, 4, 1)
    files, _ = fit_deep(
        rows, DeepModel(width=16, epochs=1, value={"click": 3.0}), columns=("a", "b", "c", "d"), heads=("click",),
        objective="listwise", seed=1, threads=1,
    )  # fmt: skip
    ranker = DeepRanker(files[DEEP_FILE], files[DESCRIPTION_FILE], ("a", "b", "c", "d"))
    assert not ranker.attends
    told = ranker.heads(rows.features)
    assert np.array_equal(ranker.score(rows.features), np.float32(3.0) * told[:, 0])
    assert told.min() < 0.0


def test_calibration_is_what_it_says() -> None:
    z = np.array([-800.0, -3.0, 0.0, 2.0, 800.0])
    with np.errstate(over="ignore"):
        p = 1.0 / (1.0 + np.exp(-z))
    assert Calibration().apply(z) == pytest.approx(p)
    low, high, shift = 1.3, 0.7, -0.4
    inner = p[1:4]
    odds = inner**low / (1.0 - inner) ** high * np.exp(shift)
    assert Calibration(low, high, shift).apply(z)[1:4] == pytest.approx(odds / (1.0 + odds))
    assert np.isfinite(Calibration(low, high, shift).apply(z)).all()


def test_a_description_that_contradicts_itself_is_refused(files: dict[str, bytes]) -> None:
    broken = msgspec.json.decode(files[DESCRIPTION_FILE]) | {"value": [1.0, 2.0]}
    with pytest.raises(RankerError, match="for each of at least one head"):
        describe(msgspec.json.encode(broken))
