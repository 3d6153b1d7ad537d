"""The merged order against a slow one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from headwater.retrieval.index import NOTHING, Ranked
from headwater.retrieval.merge import RANK_OFFSET, Merger
from tests.features.states import STABLE

merge = Merger().merge  # one for all tests: nothing of a call may be left for the next
Offers = list[tuple[float, int, list[int]]]
OFFERS = st.lists(
    st.tuples(st.sampled_from([0.15, 0.35, 0.5, 1.0]), st.integers(1, 8), st.lists(st.integers(1, 15), unique=True)),
    max_size=5,
)


def ranked(items: list[int]) -> Ranked:
    return Ranked(np.array(items, np.int64), np.linspace(1, 0, len(items)).astype(np.float32))


def slowly(offers: Offers, limit: int, barred: set[int]) -> list[tuple[int, float, int]]:
    """(item, score, source) best first: every source gives what it has left after the filter, by rank."""
    parts: dict[int, list[tuple[float, int]]] = {}
    for source, (weight, width, items) in enumerate(offers):
        for rank, item in enumerate([item for item in items if item not in barred][:width], 1):
            parts.setdefault(item, []).append((weight / (RANK_OFFSET + rank), source))
    found = []
    for item, contributions in parts.items():
        contributions.sort(key=lambda pair: (-pair[0], pair[1]))
        found.append((item, sum(score for score, _ in contributions), contributions[0][1]))
    return sorted(found, key=lambda one: (-one[1], one[0]))[:limit]


@STABLE
@given(offers=OFFERS, limit=st.integers(1, 12), barred=st.sets(st.integers(1, 15)))
def test_merge_equals_the_slow_merge(offers: Offers, limit: int, barred: set[int]) -> None:
    def eligible(items: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        return np.array([item not in barred for item in items.tolist()], np.bool_)

    merged = merge([(weight, width, ranked(items)) for weight, width, items in offers], limit, eligible)
    expected = slowly(offers, limit, barred)
    assert merged.items.tolist() == [item for item, _, _ in expected]
    assert merged.scores.tolist() == [float(np.float32(score)) for _, score, _ in expected]
    assert merged.source.tolist() == [source for _, _, source in expected]


def everything(items: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    return np.ones(len(items), np.bool_)


def test_what_two_sources_offer_stands_above_what_one_does() -> None:
    merged = merge([(1.0, 9, ranked([1, 2, 3])), (1.0, 9, ranked([4, 2, 5]))], 9, everything)
    assert merged.items.tolist() == [2, 1, 4, 3, 5]


def test_nothing_merges_to_nothing() -> None:
    for offers in ([], [(1.0, 5, NOTHING)], [(1.0, 5, ranked([]))]):
        assert len(merge(offers, 5, everything)) == 0
    assert len(merge([(1.0, 5, ranked([1, 2]))], 5, lambda items: np.zeros(len(items), np.bool_))) == 0
