"""EASE, item-kNN and ALS against slow, obvious code."""

from __future__ import annotations

import builtins
import io
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from headwater.learning.als import fit_als
from headwater.learning.ease import fit_ease
from headwater.learning.fitting import FitError, FitJob, enabled_sources, fit_source
from headwater.learning.item_knn import fit_item_knn, sessions_of
from headwater.learning.sequences import Sequences, by_user
from headwater.schema.config import Config, FittedConfig, Sources
from headwater.schema.models import AlsModel, EaseModel, ItemKnnModel
from headwater.testing.events import DAY_MS, START_MS

MINUTE_MS = 60_000


def random_sequences(seed: int, events: int = 900, users: int = 60, items: int = 25) -> Sequences:
    """Item numbers with gaps, repeats, sessions of several lengths."""
    rng = np.random.default_rng(seed)
    owner = np.sort(rng.integers(1, users + 1, size=events)) * 3
    taste = (owner // 3 % 4) * (items // 4)
    chosen = 2 * (1 + (taste + rng.integers(0, items // 2, size=events)) % items)
    at = START_MS + np.cumsum(
        rng.choice([5_000, MINUTE_MS, 40 * MINUTE_MS, DAY_MS], size=events, p=[0.5, 0.3, 0.1, 0.1])
    )
    offset = np.arange(1, events + 1)
    return by_user(owner, chosen, np.ones(events, np.uint8), at, offset, np.ones(events, np.bool_))


def dense(name: str, files: dict[str, bytes]) -> npt.NDArray[np.float64]:
    """The weights of a neighbour source as a table by dense item."""
    starts, partners, weights = (
        np.load(io.BytesIO(files[f"{name}_{part}.npy"])) for part in ("starts", "partners", "weights")
    )
    made = np.zeros((len(starts) - 1, len(starts) - 1))
    for item in range(len(starts) - 1):
        row = slice(starts[item], starts[item + 1])
        assert len(np.unique(partners[row])) == len(partners[row])
        made[item, partners[row]] = weights[row]
    return made


def largest(row: npt.NDArray[np.float64], most: int) -> set[int]:
    return set(np.argsort(-np.abs(row), kind="stable")[:most].tolist())


@pytest.mark.parametrize("l2", [0.5, 30.0])
def test_ease_is_the_closed_form(l2: float) -> None:
    sequences = random_sequences(1)
    owners, items = np.unique(sequences.owner), np.unique(sequences.items)
    x = np.zeros((len(owners), len(items)))
    x[sequences.owner, np.searchsorted(items, sequences.items)] = 1.0
    p = np.linalg.inv(x.T @ x + l2 * np.eye(len(items)))
    b = -p / np.diag(p)[None, :]
    np.fill_diagonal(b, 0.0)
    found = dense("ease", fit_ease(sequences, EaseModel(l2=l2, neighbours=100)))
    np.testing.assert_allclose(found[np.ix_(items, items)], b, rtol=2e-3, atol=2e-5)
    others = np.setdiff1d(np.arange(len(found)), items)
    assert not found[others].any()
    assert not found[:, others].any()


def test_ease_keeps_the_strongest_neighbours_of_the_most_frequent_items() -> None:
    sequences = random_sequences(2)
    full = dense("ease", fit_ease(sequences, EaseModel(l2=5.0, neighbours=100)))
    few = dense("ease", fit_ease(sequences, EaseModel(l2=5.0, neighbours=4)))
    for item in np.unique(sequences.items):
        assert set(np.flatnonzero(few[item]).tolist()) == largest(full[item], 4)
    np.testing.assert_allclose(few[few != 0], full[few != 0])
    users: dict[int, set[int]] = {}
    for owner, item in zip(sequences.owner.tolist(), sequences.items.tolist(), strict=True):
        users.setdefault(item, set()).add(owner)
    frequent = sorted(users, key=lambda item: (-len(users[item]), item))[:10]
    cut = dense("ease", fit_ease(sequences, EaseModel(l2=5.0, neighbours=100, most_items=10)))
    assert set(np.flatnonzero(cut.any(axis=1)).tolist()) == set(frequent)
    alone = sequences.where(np.isin(sequences.items, frequent))
    np.testing.assert_allclose(
        cut, dense("ease", fit_ease(alone, EaseModel(l2=5.0, neighbours=100)))[: len(cut), : len(cut)], rtol=1e-3, atol=1e-5
    )  # fmt: skip


def slow_sessions(sequences: Sequences, longest: int) -> list[list[tuple[int, int]]]:
    """Sessions as lists of (item, time)."""
    made: list[list[tuple[int, int]]] = []
    for k in range(len(sequences.users)):
        current: list[tuple[int, int]] = []
        visit = 0
        for j in range(sequences.starts[k], sequences.starts[k + 1]):
            event = (int(sequences.items[j]), int(sequences.time_ms[j]))
            pause = j > sequences.starts[k] and event[1] - int(sequences.time_ms[j - 1]) > 30 * MINUTE_MS
            if pause:
                visit = 0
            if j == sequences.starts[k] or pause or visit % longest == 0:
                current = []
                made.append(current)
            current.append(event)
            visit += 1
    return made


@pytest.mark.parametrize(("longest", "shrink"), [(50, 10.0), (3, 0.0)])
def test_item_knn_counts_sessions_as_by_hand(longest: int, shrink: float) -> None:
    sequences = random_sequences(3)
    now_ms = int(sequences.time_ms.max())
    half_life = 5 * DAY_MS
    size = int(sequences.items.max()) + 1
    together = np.zeros((size, size))
    for session in slow_sessions(sequences, longest):
        weight = 2.0 ** (-(now_ms - session[-1][1]) / half_life)
        items = sorted({item for item, _ in session})
        together[np.ix_(items, items)] += weight
    norm = np.sqrt(np.diag(together))
    with np.errstate(invalid="ignore"):
        expected = np.nan_to_num(together / (norm[:, None] * norm[None, :] + shrink))
    np.fill_diagonal(expected, 0.0)
    params = ItemKnnModel(neighbours=200, half_life="5d", shrink=shrink)
    found = dense("item_knn", fit_item_knn(sequences, params, now_ms=now_ms, longest=longest))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
    few = dense("item_knn", fit_item_knn(sequences, ItemKnnModel(neighbours=3, half_life="5d", shrink=shrink),
                                         now_ms=now_ms, longest=longest))  # fmt: skip
    assert ((few != 0).sum(axis=1) <= 3).all()
    for item in np.unique(sequences.items):
        assert few[item].sum() == pytest.approx(np.sort(expected[item])[-3:].sum(), rel=1e-4)


def test_sessions_end_with_pauses_users_and_length() -> None:
    at = np.array([0, 10, 20, 20 + 31, 52, 0, 30]) * MINUTE_MS + START_MS
    user = np.array([1, 1, 1, 1, 1, 2, 2])
    sequences = by_user(user, np.arange(1, 8), np.ones(7, np.uint8), at, np.arange(7), np.ones(7, np.bool_))
    assert sessions_of(sequences, 50).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert sessions_of(sequences, 2).tolist() == [0, 0, 1, 2, 2, 3, 3]


def test_als_folds_a_user_in_as_a_full_step_does() -> None:
    """The served system with every weight alike gives the factors that one more step of ALS would give the user."""
    from headwater.retrieval.latest import Recency
    from headwater.testing.source_contract import taste_world

    world = taste_world(Config())
    params = AlsModel(size=8, l2=0.1, alpha=5.0, iterations=5)
    files = fit_als(world.sequences(), params, seed=3, threads=1, recency=Recency(1_000, 1.0, 1_800, 1.0))
    factors = np.load(io.BytesIO(files["als_factors.npy"])).astype(np.float64)
    from headwater.retrieval.als import open_als

    source = open_als(files, world.config, world.plan)
    asked = world.asked("p3")
    sequences = world.sequences()
    k = int(np.flatnonzero(sequences.users == world.log.user("p3"))[0])
    mine = np.unique(sequences.items[sequences.starts[k] : sequences.starts[k + 1]])
    confidence = np.ones(len(factors))
    confidence[mine] = 6.0
    preference = np.zeros(len(factors))
    preference[mine] = 1.0
    solved = np.linalg.solve(
        factors.T @ (confidence[:, None] * factors) + 0.1 * np.eye(8), factors.T @ (confidence * preference)
    )
    out = np.zeros(len(factors), np.float32)
    source.score(asked, world.view.index, np.arange(len(factors)), out)
    np.testing.assert_allclose(out, factors @ solved, atol=1e-4)


def test_als_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("implicit"):
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(FitError, match=r"pip install 'headwater\[train\]'"):
        fit_als(random_sequences(4), AlsModel(), seed=1, threads=1)


def test_what_cannot_be_trained_says_why() -> None:
    config, job = Config(), FitJob(now_ms=START_MS)
    nothing = random_sequences(5).where(np.zeros(900, np.bool_))
    with pytest.raises(FitError, match="no event to learn from"):
        fit_source("ease", nothing, config, job)
    with pytest.raises(FitError, match="there is: sequence, item_knn, ease, als"):
        fit_source("crystal ball", random_sequences(5), config, job)
    huge = random_sequences(6, users=2)
    with pytest.raises(FitError, match=r"models\.ease\.l2"):
        fit_source("ease", huge, msgspec.convert({"models": {"ease": {"l2": 1e-9}}}, Config), job)


def test_the_configuration_says_which_are_trained() -> None:
    assert enabled_sources(Config()) == ()
    on = FittedConfig(enabled=True)
    assert enabled_sources(Config(sources=Sources(als=on, item_knn=on))) == ("item_knn", "als")
