"""A wire for reads: it fails fast, comes back by a trial on the side, and asks once more what a lost connection swallowed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from headwater.features.redis_wire import FIRST_PAUSE_S, LONGEST_PAUSE_S, Command, Wire
from headwater.schema.errors import UnavailableError
from tests.features.redis_server import shared_server
from tests.reliability.proxy import SlowProxy

TIMEOUT_S = 0.5
PATIENCE_S = 30.0
SET: list[Command] = [("SET", "wire", "1")]
GET: list[Command] = [("GET", "wire")]


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[SlowProxy]:
    made = SlowProxy(tmp_path / "p.sock", shared_server().socket, seed=7)
    with capture_logs():
        yield made
    made.close()


def until(condition: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < PATIENCE_S
        time.sleep(0.005)


def answered(wire: Wire) -> bool:
    try:
        return wire.trip(GET) == [b"1"]
    except UnavailableError:
        return False


def test_one_read_waits_and_a_trial_on_the_side_brings_it_back(
    proxy: SlowProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pauses are those of a clock that stands until it is moved, and a trial goes on when it is let."""
    with closing(Wire(shared_server().url)) as direct:
        direct.trip(SET)
    now_s, go_on = [0.0], threading.Event()
    trials, ended = list[object](), list[object]()

    def held(call: Callable[[], object]) -> None:
        trials.append(call)
        go_on.wait(PATIENCE_S)
        trial(call)
        ended.append(call)

    with closing(Wire(proxy.url, timeout_s=TIMEOUT_S, reads=True, seconds=lambda: now_s[0])) as wire:
        trial = wire._try
        monkeypatch.setattr(wire, "_try", held)
        assert wire.trip(GET) == [b"1"]
        proxy.delay_s = PATIENCE_S
        with pytest.raises(UnavailableError, match="Timeout"):
            wire.trip(GET)
        asked = proxy.asked
        for moved_s, tried in ((0.0, 0), (FIRST_PAUSE_S, 1), (LONGEST_PAUSE_S, 1)):
            now_s[0] += moved_s
            for _ in range(20):
                with pytest.raises(UnavailableError, match="Timeout"):
                    wire.trip(GET)
            until(lambda tried=tried: len(trials) == tried)  # type: ignore[misc]  # a default binds it
            assert proxy.asked == asked, "nothing is asked but by a trial, and no other one while that lasts"
        assert not ended, "nobody waited for it"
        go_on.set()
        until(lambda: len(ended) == 1)
        until(lambda: proxy.asked > asked)
        with pytest.raises(UnavailableError, match="Timeout"):  # the trial did not get an answer in time, either
            wire.trip(GET)
        proxy.delay_s = 0.0

        def back() -> bool:
            now_s[0] += LONGEST_PAUSE_S
            return answered(wire)

        until(back)
        assert not wire.breaker.is_open
        assert wire.budget.retries == 0, "there was no time for second tries"


def test_a_read_whose_connection_is_lost_is_asked_once_more(proxy: SlowProxy) -> None:
    with closing(Wire(proxy.url, timeout_s=PATIENCE_S, reads=True)) as wire:
        wire.trip(SET)
        for _ in range(20):
            wire.trip(GET)
        for _ in range(2):
            proxy.cuts = 1
            assert wire.trip(GET) == [b"1"]
        assert (wire.budget.retries, wire.breaker.opened) == (2, 0)
        proxy.cuts = 2
        with pytest.raises(UnavailableError):  # the budget is used up
            wire.trip(GET)
        assert (wire.budget.retries, wire.breaker.opened) == (2, 1)
        proxy.cuts = 0
        until(lambda: answered(wire))


def test_nothing_that_may_write_is_sent_twice(proxy: SlowProxy) -> None:
    with closing(Wire(proxy.url, timeout_s=PATIENCE_S)) as wire:
        for _ in range(20):
            wire.trip(SET)
        proxy.cuts = 1
        with pytest.raises(UnavailableError):
            wire.trip(SET)
        assert wire.trip(GET) == [b"1"], "and the next one is asked at once"
        assert (wire.budget.retries, wire.breaker.is_open) == (0, False)


def test_what_redis_refuses_is_no_reason_to_leave_it_alone(proxy: SlowProxy) -> None:
    with closing(Wire(proxy.url, timeout_s=PATIENCE_S, reads=True)) as wire:
        with pytest.raises(UnavailableError, match="unknown command"):
            wire.trip([("NOSUCH",)])
        assert not wire.breaker.is_open
