"""Lists that are kept: fresh, stale while one is renewed, made once, bounded."""

from __future__ import annotations

import pytest

from headwater.retrieval.kept import KeptLists


class Maker:
    """Makes a list of the moment it was made at, and knows how often it did."""

    def __init__(self) -> None:
        self.made: list[int] = []

    def __call__(self, now_ms: int) -> list[int]:
        self.made.append(now_ms)
        return [now_ms]


def test_a_stale_list_is_served_while_the_next_one_is_made_once() -> None:
    lists, make, told = KeptLists[list[int]](100, 50), Maker(), list[int]()
    lists.on_stale = lambda: told.append(1)
    assert lists.get(("a",), 0, make) == lists.get(("a",), 99, make) == [0]
    for now_ms in (100, 120, 149):
        assert lists.get(("a",), now_ms, make) == [0]
    assert (make.made, told) == ([0], [1]), "no request waited, and the list is due once"
    assert not lists.renew(149)
    assert lists.get(("a",), 150, make) == [149]
    assert make.made == [0, 149]
    assert not lists.renew(150), "nothing is due"
    assert make.made == [0, 149]
    assert lists.get(("a",), 299, make) == [299], "too old to be served: it is made while the request waits"
    assert (lists.hits, lists.stale, lists.misses) == (2, 3, 2)


def test_without_a_promise_to_renew_nothing_stale_is_served() -> None:
    lists, make = KeptLists[list[int]](100, 50), Maker()
    lists.get(("a",), 0, make)
    assert lists.get(("a",), 100, make) == [100]
    assert lists.stale == 0


def test_what_is_renewed_is_made_of_what_is_fresh() -> None:
    lists, make = KeptLists[list[int]](100, 50), Maker()
    lists.on_stale = lambda: None

    def blend(now_ms: int) -> list[int]:
        return [*lists.get(("part",), now_ms, make), now_ms]

    assert lists.get(("whole",), 0, blend) == [0, 0]
    assert lists.get(("whole",), 110, blend) == [0, 0]
    lists.renew(120)
    assert lists.get(("whole",), 121, blend) == [120, 120]


def test_several_lists_are_renewed_one_at_a_time() -> None:
    lists, make, told = KeptLists[list[int]](100, 50), Maker(), list[int]()
    lists.on_stale = lambda: told.append(1)
    for key in "abc":
        lists.get((key,), 0, make)
    for key in "abc":
        lists.get((key,), 100, make)
    assert told == [1]
    assert [lists.renew(101), lists.renew(102), lists.renew(103)] == [True, True, False]
    assert make.made[3:] == [101, 102, 103]


def test_a_list_that_cannot_be_renewed_is_not_due_for_ever() -> None:
    lists = KeptLists[list[int]](100, 50)
    lists.on_stale = lambda: None
    lists.get(("a",), 0, Maker())

    def fail(_: int) -> list[int]:
        raise ValueError("broken")

    lists.get(("a",), 100, fail)
    with pytest.raises(ValueError, match="broken"):
        lists.renew(101)
    assert not lists.renew(102)


def test_the_least_lately_used_go_and_empty_ones_are_not_kept() -> None:
    lists, make = KeptLists[list[int]](100, most=2), Maker()
    for key in ("a", "b", "a", "c"):
        lists.get((key,), 0, make)
    assert (len(lists), lists.evictions) == (2, 1)
    lists.get(("a",), 0, make)
    assert make.made == [0, 0, 0], "`b` went"
    lists.get(("nothing",), 0, lambda _: [])
    assert len(lists) == 2
