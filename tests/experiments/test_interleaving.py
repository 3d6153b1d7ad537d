"""Team-draft lists, against a draft by hand; their analysis, against the textbook's tests."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_1samp

from headwater.experiments.drafts import Draft, credit, team_draft, team_drafts
from headwater.experiments.interleaving import preference

rankings = st.lists(st.integers(1, 12), max_size=9, unique=True)


def by_hand(first: list[int], second: list[int], coins: list[bool], k: int) -> list[tuple[int, int]]:
    shown: list[tuple[int, int]] = []
    for ahead in coins:
        for team in (1, 2) if ahead else (2, 1):
            taken = {item for item, _ in shown}
            left = {1: [i for i in first if i not in taken], 2: [i for i in second if i not in taken]}
            who = team if left[team] else 3 - team
            if len(shown) < k and left[who]:
                shown.append((left[who][0], who))
    return shown


@given(rankings, rankings, st.lists(st.booleans(), min_size=20, max_size=20), st.integers(1, 10))
@settings(max_examples=150, deadline=None)
def test_drafts_are_as_by_hand(first: list[int], second: list[int], coins: list[bool], k: int) -> None:
    def row(ranking: list[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        return np.array([[*ranking, *[0] * (9 - len(ranking))]], np.int64)

    items, team = team_drafts(row(first), row(second), np.array([coins]), k)
    found = [(i, t) for i, t in zip(items[0].tolist(), team[0].tolist(), strict=True) if i]
    assert found == by_hand(first, second, coins, k)


def test_one_list_is_fair_repeats_with_its_seed_and_credits_picks() -> None:
    first, second = np.array([1, 2, 3, 4]), np.array([4, 3, 2, 1])
    drafts = [team_draft(first, second, 3, seed) for seed in range(2_000)]
    again = team_draft(first, second, 3, 7)
    np.testing.assert_array_equal(again.items, drafts[7].items)
    np.testing.assert_array_equal(again.team, drafts[7].team)
    ahead = np.mean([draft.team[0] == 1 for draft in drafts])
    assert ahead == pytest.approx(0.5, abs=0.05)
    assert {tuple(draft.items[:2].tolist()) for draft in drafts} == {(1, 4), (4, 1)}
    draft = Draft(np.array([5, 9, 7]), np.array([1, 2, 1], np.int8))
    assert credit(draft, [7, 7, 5, 100]) == (2, 0)
    assert credit(draft, [9]) == (0, 1)
    assert credit(draft, []) == (0, 0)
    assert len(team_draft(np.zeros(0, np.int64), second, 9, 0).items) == 4


@pytest.mark.parametrize("wrong", [[1, 1], [0, 2], [-3]])
def test_rankings_with_a_repeat_are_refused(wrong: list[int]) -> None:
    with pytest.raises(ValueError, match="second ranking"):
        team_draft(np.array([1, 2]), np.array(wrong), 2, 0)


def test_the_analysis_is_that_of_the_users_mean_results() -> None:
    rng = np.random.default_rng(3)
    user = rng.integers(0, 400, 3_000)
    first, second = rng.binomial(2, 0.2, 3_000), rng.binomial(2, 0.3, 3_000)
    found = preference(user, first, second)
    outcome = np.sign(second - first)
    scores = np.array([outcome[user == u].mean() for u in np.unique(user)])
    test = ttest_1samp(scores, 0.0)
    assert found.score == pytest.approx(scores.mean())
    assert found.t_p == pytest.approx(test.pvalue)
    assert found.interval == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert found.sign_p == pytest.approx(binomtest(int((scores > 0).sum()), int((scores != 0).sum())).pvalue)
    assert (found.wins, found.losses, found.ties) == tuple(int((outcome == o).sum()) for o in (1, -1, 0))
    low, high = found.sequence
    assert low is not None
    assert high is not None
    assert 0.0 < low < found.score < high
    assert low < found.interval[0]
    assert found.p_value < 0.05
    swapped = preference(user, second, first)
    assert swapped.score == pytest.approx(-found.score)
    assert swapped.sequence == pytest.approx((-high, -low))


def test_few_users_and_no_clicks() -> None:
    found = preference(np.array([1, 2]), np.array([0, 0]), np.array([0, 0]))
    assert (found.score, found.t_p, found.sign_p, found.p_value, found.sequence) == (0.0, 1.0, 1.0, 1.0, (None, None))
    with pytest.raises(ValueError, match="two users"):
        preference(np.array([1, 1]), np.array([0, 1]), np.array([1, 0]))
