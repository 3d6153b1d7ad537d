"""The breaker and the budget against a clock that stands until it is moved."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.breaker import JITTER, Breaker, RetryBudget, jittered


class Clock:
    """Stands until it is moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def made(clock: Clock, *, first_s: float = 1.0, longest_s: float = 4.0, draw: float = 0.0) -> Breaker:
    return Breaker(first_s, longest_s, clock=clock, draw=lambda: draw)


def test_a_failure_opens_it_and_one_trial_a_pause_decides() -> None:
    clock = Clock()
    breaker = made(clock)
    assert not breaker.is_open
    assert not breaker.trial(), "nothing is tried while it is closed: everybody asks"
    breaker.failed()
    for pause_s in (1.0, 2.0, 4.0, 4.0):
        clock.now_s += 0.99 * pause_s
        assert not breaker.trial()
        clock.now_s += 0.02 * pause_s
        assert breaker.trial()
        assert not breaker.trial(), "a second trial beside the first"
        breaker.failed()
        assert breaker.is_open
    clock.now_s += 4.1
    assert breaker.trial()
    breaker.succeeded()
    assert not breaker.is_open
    breaker.failed()
    clock.now_s += 1.01
    assert breaker.trial(), "the pauses begin anew"
    assert breaker.opened == 2
    assert breaker.since_s == pytest.approx(clock.now_s - 1.01)


def test_failures_of_calls_from_before_do_not_lengthen_the_pause() -> None:
    clock = Clock()
    breaker = made(clock)
    for _ in range(5):
        breaker.failed()
    clock.now_s += 1.01
    assert breaker.trial()


def test_a_reason_to_think_that_it_is_well_ends_the_pause() -> None:
    clock = Clock()
    breaker = made(clock)
    breaker.failed()
    breaker.hasten()
    assert breaker.trial()


@given(draw=st.floats(0.0, 1.0))
def test_pauses_are_shorter_by_chance_and_never_longer(draw: float) -> None:
    assert 1.0 - JITTER <= jittered(1.0, lambda: draw) <= 1.0
    clock = Clock()
    breaker = made(clock, draw=draw)
    breaker.failed()
    clock.now_s += (1.0 - JITTER) * 0.999
    assert not breaker.trial()
    clock.now_s = 101.001
    assert breaker.trial()


def test_of_many_threads_one_gets_the_trial() -> None:
    clock = Clock()
    breaker = made(clock)
    breaker.failed()
    clock.now_s += 2.0
    got: list[bool] = []
    threads = [threading.Thread(target=lambda: got.append(breaker.trial())) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(got) == 1


@given(tries=st.lists(st.booleans(), max_size=300))
def test_second_tries_are_never_more_than_a_tenth_of_the_calls(tries: list[bool]) -> None:
    budget = RetryBudget()
    for again in tries:
        budget.call()
        if again:
            budget.retry()
        assert budget.retries <= 0.1 * budget.calls + 1e-9
    assert budget.calls == len(tries)


def test_a_budget_does_not_grow_for_ever() -> None:
    budget = RetryBudget(share=0.1, most=10.0)
    for _ in range(10):
        budget.call()
    assert [budget.retry(), budget.retry()] == [True, False]
    for _ in range(10_000):
        budget.call()
    assert sum(budget.retry() for _ in range(100)) == 10
