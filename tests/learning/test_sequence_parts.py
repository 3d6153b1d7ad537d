"""Windows, batches, losses and questions of the sequence model, each against what is slow and obvious."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from headwater.learning.sequence.losses import full_softmax, sampled_softmax
from headwater.learning.sequence.packing import Tokens, batch_of, epoch, tokens_of, windows
from headwater.learning.sequence.validation import withhold
from headwater.learning.sequences import by_user
from headwater.retrieval.sequence_inputs import gap_slots, idle_slots
from tests.learning.chains import circle

lengths = st.lists(st.integers(1, 23), min_size=1, max_size=12)


def tokens_with(sizes: list[int], seed: int) -> Tokens:
    random = np.random.default_rng(seed)
    n = sum(sizes)
    return Tokens(
        np.concatenate([[0], np.cumsum(sizes)]), np.arange(n), np.ones(n, np.int64), np.sort(random.integers(0, 10**6, n)),
        random.random(n) < 0.7,
    )  # fmt: skip


@given(lengths, st.integers(1, 9), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_every_target_is_asked_for_once_and_nothing_else(sizes: list[int], length: int, seed: int) -> None:
    tokens = tokens_with(sizes, seed)
    found: list[int] = []
    for start, size in epoch(tokens, length, 30, np.random.default_rng(seed)):
        batch = batch_of(tokens, start, size)
        assert batch.rows.shape == (len(start), size.max())
        assert batch.tokens <= max(30, length)
        assert size.max() <= length
        found += batch.targets[batch.asked].tolist()
    firsts = set(tokens.starts[:-1].tolist())
    assert sorted(found) == [k for k in np.flatnonzero(tokens.target).tolist() if k not in firsts]


def test_windows_of_an_epoch_begin_elsewhere_than_those_of_another() -> None:
    tokens = tokens_with([100], 1)
    cuts = {tuple(windows(tokens, 10, np.random.default_rng(seed))[0].tolist()) for seed in range(8)}
    assert len(cuts) > 3


def test_a_batch_says_what_came_when() -> None:
    tokens = Tokens(
        np.array([0, 4]), np.array([5, 6, 7, 8]), np.array([1, 2, 1, 1]), np.array([100, 103, 4_000, 90_000]),
        np.array([True, False, True, True]),
    )  # fmt: skip
    batch = batch_of(tokens, np.array([0, 1]), np.array([3, 1]))
    assert batch.rows.tolist() == [[5, 6, 7], [6, 6, 6]]
    assert batch.targets[0].tolist() == [6, 7, 8]
    assert batch.asked.tolist() == [[False, True, True], [True, False, False]]
    assert batch.gaps[0].tolist() == gap_slots(np.array([100, 103, 4_000])).tolist()
    assert batch.gaps[1, 0] == 0, "the first event of a window has none before it"
    assert batch.idle[0].tolist() == idle_slots(np.array([3, 3_897, 86_000])).tolist()


def test_events_of_one_second_stand_in_the_order_of_the_log() -> None:
    ones = np.ones(3, np.int64)
    sequences = by_user(ones, np.array([1, 2, 3]), np.ones(3, np.uint8), np.array([1_900, 1_100, 1_500]), np.array([1, 2, 3]),
                        np.ones(3, np.bool_))  # fmt: skip
    assert sequences.items.tolist() == [2, 3, 1]
    assert tokens_of(sequences, np.arange(4), 1).rows.tolist() == [1, 2, 3]
    assert len(tokens_of(sequences, np.arange(4), 4).rows) == 0


def test_the_full_softmax_is_cross_entropy() -> None:
    torch.manual_seed(1)
    users, items = torch.randn(300, 6, dtype=torch.float64), torch.randn(40, 6, dtype=torch.float64)
    targets = torch.randint(0, 40, (300,))
    mine, theirs = [[part.clone().requires_grad_() for part in (users, items)] for _ in range(2)]
    loss = full_softmax(mine[0], mine[1], targets)
    wanted = functional.cross_entropy(theirs[0] @ theirs[1].T, targets)
    assert torch.allclose(loss, wanted)
    (3.0 * loss).backward()  # type: ignore[no-untyped-call]
    (3.0 * wanted).backward()  # type: ignore[no-untyped-call]
    for a, b in zip(mine, theirs, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.allclose(a.grad, b.grad)


def test_a_softmax_in_bf16_is_nearly_that_of_float32() -> None:
    torch.manual_seed(3)
    users, items, targets = torch.randn(600, 16), 0.5 * torch.randn(4_000, 16), torch.randint(0, 4_000, (600,))
    made = []
    for bf16 in (False, True):
        mine = [part.clone().requires_grad_() for part in (users, items)]
        loss = full_softmax(mine[0], mine[1], targets, bf16=bf16)
        loss.backward()  # type: ignore[no-untyped-call]
        made.append([loss.detach(), *(part.grad for part in mine)])
    for exact, near in zip(*made, strict=True):
        assert exact is not None
        assert near is not None
        assert near.dtype == torch.float32
        assert float((exact - near).norm() / exact.norm()) < 0.02


def test_the_sampled_softmax_estimates_the_full_one() -> None:
    torch.manual_seed(2)
    users, items = torch.randn(50, 4, dtype=torch.float64), torch.randn(30, 4, dtype=torch.float64)
    targets = torch.randint(0, 30, (50,))
    wanted = functional.cross_entropy(users @ items.T, targets)
    everything = sampled_softmax(users, items, targets, torch.arange(30), torch.ones(30, dtype=torch.float64))
    assert torch.allclose(everything, wanted)
    share = torch.rand(30, dtype=torch.float64)
    share /= share.sum()
    drawn = torch.multinomial(share, 20_000, replacement=True)
    assert abs(float(sampled_softmax(users, items, targets, drawn, 20_000 * share) - wanted)) < 0.02


def test_withheld_events_are_the_last_targets_and_are_not_trained_on() -> None:
    tokens = tokens_of(circle(100, 20, 1, views=0.3), np.arange(21), 1)
    before = tokens.target.copy()
    questions = withhold(tokens, 0.5, 20, np.random.default_rng(1))
    assert len(questions.at) == 20
    assert sorted(np.flatnonzero(before & ~tokens.target).tolist()) == sorted(questions.at.tolist())
    for user, at in zip(questions.user.tolist(), questions.at.tolist(), strict=True):
        start, stop = tokens.starts[user], tokens.starts[user + 1]
        assert start < at < stop
        assert not before[at + 1 : stop].any()
        assert tokens.rows[at] not in tokens.rows[start:at]
