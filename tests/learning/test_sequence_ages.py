"""Ages of items in the training of the sequence model, against a vector for each item and moment."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from headwater.learning.gbdt import TrainingError
from headwater.learning.sequence.ages import Births, age_logits, drop_unborn
from headwater.learning.sequence.fit import FitReport, fit_sequence
from headwater.learning.sequence.losses import full_softmax, sampled_softmax
from headwater.learning.sequence.packing import Tokens
from headwater.learning.sequences import Sequences, by_user
from headwater.retrieval.sequence_inputs import (
    AGE_SLOTS,
    AGES_FILE,
    META_FILE,
    age_moment,
    age_slots,
    born_seconds,
    read_meta,
)
from headwater.schema.models import SequenceModel
from tests.learning.chains import TYPES, bare

DAY_S = 86_400
CPU = torch.device("cpu")
MODEL = SequenceModel(
    size=8, heads=1, blocks=1, length=6, epochs=4, batch_tokens=512, learning_rate=0.02, dropout=0.0, item_age=True
)


class Asked:
    """Questions at many moments about items of all ages, of births that are not known, and of items that come later."""

    def __init__(self, n: int, v: int) -> None:
        random = np.random.default_rng(4)
        born_ms = 1_000 * random.integers(1, 500 * DAY_S, v)
        born_ms[random.random(v) < 0.1] = 0
        self.born_s = born_seconds(born_ms)
        self.times_s = np.sort(random.integers(400 * DAY_S, 500 * DAY_S, n))
        self.moments_s = age_moment(self.times_s)
        there = [np.flatnonzero(self.born_s < at) for at in self.times_s.tolist()]
        self.targets = torch.tensor([int(random.choice(born)) for born in there])
        torch.manual_seed(1)
        shapes = ((n, 6), (v, 6), (AGE_SLOTS, 6))
        self.parts = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
        self.births = Births.of(self.born_s, CPU)

    def leaves(self) -> list[Tensor]:
        return [part.clone().requires_grad_() for part in self.parts]

    def slow(self, users: Tensor, items: Tensor, ages: Tensor) -> Tensor:
        """Cross entropy, the vector of every item made anew for each question."""
        rows = []
        for k, moment_s in enumerate(self.moments_s.tolist()):
            vectors = items + ages[torch.from_numpy(age_slots(self.born_s, moment_s))]
            later = torch.from_numpy(self.born_s > moment_s)
            rows.append((vectors @ users[k]).masked_fill(later, -torch.inf))
        return functional.cross_entropy(torch.stack(rows), self.targets)


@pytest.mark.parametrize("loss", ["full", "sampled"])
def test_logits_are_those_of_a_vector_for_each_item_and_moment(loss: str) -> None:
    asked = Asked(300, 90)
    (users, items, ages), theirs = asked.leaves(), asked.leaves()
    births, moments_s = asked.births, torch.from_numpy(asked.moments_s)
    extra = age_logits(users, ages)
    runs = births.lengths(moments_s)
    assert (runs[:, 0] > 0).any(), "some items come after some questions"
    assert (runs[:, -1] > 0).all(), "of some items nobody knows when they came"
    if loss == "full":
        mine = full_softmax(users, items[births.order], births.place[asked.targets], extra, runs)
    else:
        every = torch.arange(len(items))
        own, others = (births.columns(rows, moments_s[:, None]) for rows in (asked.targets[:, None], every))
        added = extra.gather(1, own), extra.gather(1, others)
        mine = sampled_softmax(users, items, asked.targets, every, torch.ones(len(items), dtype=torch.float64), added)
    wanted = asked.slow(*theirs)
    assert torch.allclose(mine, wanted)
    (2.0 * mine).backward()  # type: ignore[no-untyped-call]
    (2.0 * wanted).backward()  # type: ignore[no-untyped-call]
    for a, b in zip((users, items, ages), theirs, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.allclose(a.grad, b.grad)


def test_an_event_that_its_item_came_with_is_no_target() -> None:
    tokens = Tokens(
        np.array([0, 4]), np.array([0, 1, 0, 2]), np.ones(4, np.int64), np.array([100, 200, 201, 202]), np.ones(4, np.bool_)
    )  # fmt: skip
    drop_unborn(tokens, born_seconds(np.array([100_000, 250_000, 0])))
    assert tokens.target.tolist() == [False, False, True, True]


def test_moments_are_minutes_and_buckets_begin_where_they_say() -> None:
    assert age_moment(np.array([0, 59, 60])).tolist() == [60, 60, 120]
    assert age_moment(119) == 120
    born_s = born_seconds(np.array([0, 1_000_000, 2_000_000]))
    assert age_slots(born_s, 1_600).tolist() == [AGE_SLOTS - 1, 1, 0]
    assert age_slots(born_s, 1_599)[1] == 0


def news(users: int, items: int, seed: int) -> tuple[Sequences, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """An item comes every hour, and all that anybody wants is one of the last three; births in ms by dense item."""
    random = np.random.default_rng(seed)
    born_ms = np.concatenate([[0], 3_600_000 * np.arange(10, 10 + items)])
    user = np.repeat(np.arange(1, users + 1), 5)
    time_ms = random.integers(born_ms[4], born_ms[-1] + 3_600_000, len(user)) + 60_000
    newest = np.searchsorted(born_ms, time_ms, side="right") - 1
    item = newest - random.integers(0, 3, len(user))
    n = len(user)
    return by_user(user, item, np.ones(n, np.uint8), time_ms, np.arange(n), np.ones(n, np.bool_)), born_ms


def fit(sequences: Sequences, params: SequenceModel, **more: Any) -> tuple[dict[str, bytes], FitReport]:
    content, price = bare(60)
    return fit_sequence(sequences, content, price, params, event_types=TYPES, seed=3, threads=1, **more)


def test_what_is_wanted_while_it_is_new_is_found_by_its_age() -> None:
    sequences, born_ms = news(800, 60, 1)
    files, aged = fit(sequences, MODEL, born_ms=born_ms)
    timeless = msgspec.structs.replace(MODEL, item_age=False)
    plain, ageless = fit(sequences, timeless, born_ms=born_ms)
    assert aged.ndcg10 is not None
    assert ageless.ndcg10 is not None
    assert aged.ndcg10 > 0.55
    assert ageless.ndcg10 < 0.45, "one of three at random would have 0.71, had the model a clock"
    assert AGES_FILE in files
    assert read_meta(files[META_FILE]).shape.item_age
    assert AGES_FILE not in plain
    assert b"item_age" not in plain[META_FILE], "as earlier versions wrote it"
    assert fit(sequences, timeless)[0] == plain
    one = msgspec.structs.replace(MODEL, epochs=1)
    assert fit(sequences, one, born_ms=born_ms, warm=files)[1].warm_rows == aged.items
    assert fit(sequences, one, born_ms=born_ms, warm=plain)[1].warm_rows == 0, "of another shape"


def test_ages_without_births_are_refused() -> None:
    with pytest.raises(TrainingError, match="births of all 61 items"):
        fit(news(20, 60, 1)[0], MODEL)
