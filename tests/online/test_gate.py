"""The gate on a clock of its own: who goes, who waits, who is turned away."""

from __future__ import annotations

import pytest

from headwater.online.gate import FIRST_GUESS_S, PATIENCE, Gate, Priority
from headwater.schema.limits import Overload

TARGET_S = 0.05


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def ignore(go: bool) -> None:
    """For requests whose fate the test does not follow."""


def gate_of(clock: Clock, adapt: bool = True, overload: Overload | None = None) -> Gate:
    return Gate(overload or Overload(), TARGET_S, clock=clock, adapt=adapt)


def test_an_idle_worker_lets_one_in_each_turn() -> None:
    gate = gate_of(Clock())
    assert gate.goes_at_once()
    assert not gate.goes_at_once()
    assert not gate.turn()
    assert gate.goes_at_once()
    assert gate.running == 2


def test_the_queue_goes_by_priority_then_by_order() -> None:
    gate, went = gate_of(Clock()), list[str]()
    assert gate.goes_at_once()
    for name, priority in (("l1", 2), ("n1", 1), ("l2", 2), ("h1", 0), ("n2", 1)):
        gate.wait(Priority(priority), lambda go, name=name: went.append(f"{name} {go}"))  # type: ignore[misc]  # a default binds it
    assert gate.waiting == 5
    while gate.turn():
        pass
    assert went == ["h1 True", "n1 True", "n2 True", "l1 True", "l2 True"]
    assert gate.running == 6


def test_the_expected_wait_decides() -> None:
    gate = gate_of(Clock())
    places = {Priority.HIGH: 0, Priority.NORMAL: 0, Priority.LOW: 0}
    for priority, share in ((Priority.LOW, 0.2), (Priority.NORMAL, 0.8), (Priority.HIGH, 0.9)):
        while not gate.full_for(priority):
            gate.wait(Priority.HIGH, ignore)
            places[priority] = gate.waiting
        assert gate.waiting == int(share * TARGET_S / FIRST_GUESS_S)
    assert places[Priority.LOW] < places[Priority.NORMAL] < places[Priority.HIGH]


def test_lower_priorities_that_wait_are_not_ahead() -> None:
    gate = gate_of(Clock())
    for _ in range(1_000):
        gate.wait(Priority.LOW, ignore)
    assert gate.full_for(Priority.LOW)
    assert not gate.full_for(Priority.NORMAL)


def test_whoever_waited_too_long_is_told_so() -> None:
    clock = Clock()
    gate, told = gate_of(clock), list[bool]()
    assert gate.goes_at_once()
    for _ in range(3):
        waiter = gate.wait(Priority.NORMAL, told.append)
        clock.now += 0.04
    gate.expire(waiter)  # its timer: it stands behind others
    assert gate.turn()
    assert told == [False, False, True], "the last by its timer, the first by its time; the second goes"
    gate.expire(waiter)
    assert not gate.turn()
    assert told == [False, False, True]
    assert gate.waiting == 0


def test_whoever_waits_alone_goes_however_late() -> None:
    clock = Clock()
    gate, told = gate_of(clock), list[bool]()
    assert gate.goes_at_once()
    waiter = gate.wait(Priority.LOW, told.append)
    clock.now += 10 * TARGET_S  # the process did not get a core
    gate.expire(waiter)
    assert told == []
    assert gate.turn()
    assert told == [True]


def test_a_long_stall_does_not_keep_the_gate_shut() -> None:
    clock = Clock()
    gate = gate_of(clock)
    for _ in range(50):
        for _ in range(2):
            gate.wait(Priority.NORMAL, ignore)
            gate.turn()
        clock.now += 30.0
    assert gate.between_s <= TARGET_S
    while gate.turn():
        pass
    assert not gate.full_for(Priority.LOW), "nobody is ahead of it"


def test_the_limit_follows_the_time_that_requests_take() -> None:
    gate = gate_of(Clock(), overload=Overload(min_concurrency=3, max_concurrency=40))

    def finish(count: int, held_s: float, full: bool) -> None:
        for _ in range(count):
            gate.running = gate.limit if full else 1
            gate.turn()
            gate.finish(held_s)

    finish(20, 2 * TARGET_S, full=True)
    assert gate.limit == 36
    finish(2_000, 2 * TARGET_S, full=True)
    assert gate.limit == 3
    finish(2_000, TARGET_S / 2, full=False)
    assert gate.limit == 3, "it was never reached"
    finish(60, TARGET_S / 2, full=True)
    assert gate.limit == 6
    finish(2_000, TARGET_S / 2, full=True)
    assert gate.limit == 40


def test_the_limit_of_writes_stays() -> None:
    gate = gate_of(Clock(), adapt=False)
    for _ in range(1_000):
        gate.running = 1
        gate.finish(9.0)
    assert gate.limit == Overload().max_concurrency


def test_nobody_is_let_in_above_the_limit() -> None:
    gate = gate_of(Clock(), overload=Overload(min_concurrency=1, max_concurrency=2))
    for _ in range(2):
        assert gate.goes_at_once()
        gate.turn()
    assert not gate.goes_at_once()
    gate.wait(Priority.HIGH, ignore)
    assert not gate.turn()
    gate.finish(0.001)
    assert gate.turn()


class Simulated:
    """A loop that computes one request after the other for ``service_s`` each, with arrivals at even distances."""

    def __init__(self, service_s: float) -> None:
        self.clock, self.service_s = Clock(), service_s
        self.gate = gate_of(self.clock)
        self.waits: list[float] = []
        self.outcomes: dict[Priority, dict[str, int]] = {p: {"good": 0, "full": 0, "late": 0} for p in Priority}

    def run(self, seconds: float, per_s: dict[Priority, float]) -> None:
        start = self.clock.now
        due = {priority: start for priority, rate in per_s.items() if rate}
        while self.clock.now < start + seconds:
            busy = self.gate.running
            for _ in range(busy):  # what was let in is computed before the loop turns
                self.clock.now += self.service_s
                self.gate.finish(self.service_s)
            if not busy and not self.gate.waiting:
                self.clock.now = max(self.clock.now, min(due.values()))
            for priority in due:
                while due[priority] <= self.clock.now:
                    self._arrive(priority)
                    due[priority] += 1 / per_s[priority]
            self.gate.turn()

    def _arrive(self, priority: Priority) -> None:
        came, outcomes = self.clock.now, self.outcomes[priority]
        if self.gate.full_for(priority):
            outcomes["full"] += 1
        elif self.gate.goes_at_once():
            outcomes["good"] += 1
        else:

            def tell(go: bool) -> None:
                if go:
                    self.waits.append(self.clock.now - came)
                outcomes["good" if go else "late"] += 1

            self.gate.wait(priority, tell)


@pytest.mark.parametrize("service_ms", [0.5, 2.0, 5.0, 20.0, 40.0])
@pytest.mark.parametrize("times", [2, 5, 10])
def test_under_overload_capacity_is_used_and_nobody_waits_long(service_ms: float, times: int) -> None:
    capacity = 1e3 / service_ms
    simulated = Simulated(service_ms / 1e3)
    simulated.run(20.0, {Priority.NORMAL: times * capacity})
    good = simulated.outcomes[Priority.NORMAL]["good"]
    assert good >= 0.9 * 20.0 * capacity
    assert max(simulated.waits) <= PATIENCE * TARGET_S + service_ms / 1e3
    assert sorted(simulated.waits)[len(simulated.waits) // 2] <= TARGET_S + service_ms / 1e3
    assert (
        simulated.outcomes[Priority.NORMAL]["late"] <= (0.001 if service_ms <= 5.0 else 0.05) * good
    )  # until the time of a release is known

    simulated.outcomes[Priority.NORMAL].update(good=0, full=0, late=0)
    simulated.run(1.0, {Priority.NORMAL: 0.8 * capacity})  # what waited is through
    simulated.outcomes[Priority.NORMAL].update(good=0, full=0, late=0)
    simulated.run(10.0, {Priority.NORMAL: 0.8 * capacity})
    assert simulated.outcomes[Priority.NORMAL]["full"] == 0
    assert simulated.outcomes[Priority.NORMAL]["late"] == 0


@pytest.mark.parametrize("service_ms", [1.0, 4.0, 12.0])
def test_a_flood_of_low_priority_costs_others_nothing(service_ms: float) -> None:
    capacity = 1e3 / service_ms
    simulated = Simulated(service_ms / 1e3)
    simulated.run(30.0, {Priority.NORMAL: 0.5 * capacity, Priority.LOW: 12 * capacity})
    normal, low = simulated.outcomes[Priority.NORMAL], simulated.outcomes[Priority.LOW]
    assert normal["full"] + normal["late"] == 0
    assert normal["good"] + low["good"] >= 0.9 * 30.0 * capacity, "what is left goes to the flood"
