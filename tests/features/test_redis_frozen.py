"""A whole state in Redis is read as of one moment, whatever the fold does meanwhile; and nothing is left of that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import pytest

from headwater.features import redis_frozen, redis_keys, state_redis
from headwater.features.fold import Fold
from headwater.features.redis_frozen import HeldState, standings
from headwater.features.redis_wire import Command
from headwater.features.rows import CorruptStateError
from headwater.features.state_redis import RedisState, Wire, drop_redis_state
from headwater.features.store import Row, StateMovedError
from headwater.testing.events import Written, script, written
from headwater.testing.state_folds import CONFIGS, TIGHT, fold_all, reference
from tests.features.redis_server import RedisCluster, shared_server
from tests.features.test_state_redis import client, flush


@pytest.fixture
def empty() -> Iterator[str]:
    """The URL of an empty server."""
    flush(shared_server().url)
    yield shared_server().url
    flush(shared_server().url)


@pytest.fixture
def log() -> Written:
    return written(script(21, 160, users=400), CONFIGS["tight"])


def opened(url: str) -> RedisState:
    return RedisState(Wire(url), TIGHT, writable=True, partitions=3)


class BusyWire(Wire):
    """``other`` happens before each round trip, as often as it likes."""

    other: Callable[[], None] | None = None
    trips = 0

    def trip(self, commands: Sequence[Command], *, together: bool = False, patient: bool = False) -> list[Any]:
        self.trips += 1
        if self.other is not None:
            self.other()
        return super().trip(commands, together=together, patient=patient)


class Steps:
    """A fold that goes on by some records with every call, to the end of the log."""

    def __init__(self, state: RedisState, log: Written, records: int) -> None:
        self.fold, self.log, self.records = Fold(TIGHT, state), log, records

    def __call__(self) -> None:
        if (block := self.log.log.read(self.fold.offset, self.records)) is not None:
            self.fold.apply(block)
            self.fold.commit(epoch=False)


def read(wire: Wire) -> tuple[int, list[Row], dict[str, int]]:
    with HeldState(wire, TIGHT.hash, pause=lambda _: None).frozen() as frozen:
        return frozen.meta.offset, list(frozen.rows), frozen.counts


def copies(keys: Sequence[bytes]) -> list[bytes]:
    return sorted(key for key in keys if b"@" in key)


@pytest.mark.parametrize("calm", range(3, 10))
def test_all_rows_are_of_one_moment_while_the_fold_goes_on(
    empty: str, log: Written, calm: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the n-th round trip of the reader on the fold steps in before each; buckets change and begin, and end empty."""
    for module in (redis_keys, state_redis):
        monkeypatch.setattr(module, "WIDTH", 8)
    with closing(opened(empty)) as state, closing(BusyWire(empty)) as wire, client() as raw:
        steps = Steps(state, log, 60)
        steps()
        steps.records = 12
        last = wire.trips + calm
        wire.other = lambda: steps() if wire.trips > last else None
        offset, rows, counts = read(wire)
        assert rows == reference(log, TIGHT, until=offset)
        assert counts == {name: sum(table == name for table, _, _ in rows) for name in counts}
        assert steps.fold.offset > offset + 30
        assert copies(raw.keys()) == []
        assert not raw.hexists(f"{{hw:{TIGHT.hash}:m}}:head", "held")
        assert list(state.dump()) == reference(log, TIGHT, until=steps.fold.offset)


def test_a_moment_is_looked_for_until_the_fold_leaves_one(empty: str, log: Written) -> None:
    with closing(opened(empty)) as state, closing(BusyWire(empty)) as wire:
        steps = Steps(state, log, 8)
        steps()
        wire.other = lambda: steps() if wire.trips < 30 else None
        offset, rows, _ = read(wire)
        assert wire.trips > 30
        assert rows == reference(log, TIGHT, until=offset)
        with client() as raw:
            assert copies(raw.keys()) == [], "what tries in vain had left is gone, too"


def test_it_ends_when_there_never_is_one(empty: str, log: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_frozen, "TRIES", 5)
    with closing(opened(empty)) as state, closing(BusyWire(empty)) as wire:
        wire.other = steps = Steps(state, log, 4)
        steps()
        with pytest.raises(StateMovedError, match="moved on whenever"):
            read(wire)


def test_one_reader_at_a_time_and_one_that_died_makes_room(empty: str, log: Written) -> None:
    with closing(opened(empty)) as state, closing(Wire(empty)) as wire, client() as raw:
        steps = Steps(state, log, 60)
        steps()
        begun = steps.fold.offset
        one = HeldState(wire, TIGHT.hash).frozen()
        frozen = one.__enter__()
        with pytest.raises(StateMovedError, match="somebody else"):
            read(wire)
        steps()
        left = copies(raw.keys())
        assert left, "what changed is kept"
        for p in ("m", 0, 1, 2):  # a minute goes by
            raw.hset(f"{{hw:{TIGHT.hash}:{p}}}:head", "until", 1)
        steps()
        assert copies(raw.keys()) == left, "the fold copies nothing for one that died"
        with pytest.raises(StateMovedError, match="nobody took rows"):
            list(frozen.rows)
        assert read(wire)[:2] == (steps.fold.offset, reference(log, TIGHT, until=steps.fold.offset))
        assert copies(raw.keys()) == []
        assert begun < steps.fold.offset
        one.__exit__(None, None, None)


def test_one_who_reads_for_long_holds_the_moment(empty: str, log: Written) -> None:
    now = 0.0
    with closing(opened(empty)) as state, closing(Wire(empty)) as wire, client() as raw:
        steps = Steps(state, log, 60)
        steps()
        begun = steps.fold.offset
        with HeldState(wire, TIGHT.hash, seconds=lambda: now).frozen() as frozen:
            rows = []
            heads = [f"{{hw:{TIGHT.hash}:{p}}}:head" for p in ("m", 0, 1, 2)]
            soon = int(raw.time()[0]) + 20
            for head in heads:
                raw.hset(head, "until", soon)
            for row in frozen.rows:
                rows.append(row)
                now += redis_frozen.HELD_S / 40
            assert all(int(raw.hget(head, "until") or 0) > soon for head in heads)
            steps()
        assert rows == reference(log, TIGHT, until=begun)


def test_a_state_that_is_dropped_is_not_read_to_the_end(empty: str, log: Written) -> None:
    with closing(opened(empty)) as state, closing(Wire(empty)) as wire, closing(Wire(empty)) as other:
        fold_all(log, state)
        with HeldState(wire, TIGHT.hash).frozen() as frozen:
            drop_redis_state(other, TIGHT.hash)
            with pytest.raises(StateMovedError, match="dropped"):
                list(frozen.rows)
        with pytest.raises(CorruptStateError, match="not there"):
            read(wire)


def test_on_a_cluster(log: Written) -> None:
    with (
        closing(RedisCluster()) as cluster,
        closing(BusyWire(cluster.url)) as wire,
        closing(RedisState(Wire(cluster.url), TIGHT, writable=True, partitions=8, log_id="mine")) as state,
    ):
        steps = Steps(state, log, 60)
        steps()
        steps.records = 10
        wire.other = lambda: steps() if wire.trips > 6 else None
        offset, rows, _ = read(wire)
        assert rows == reference(log, TIGHT, until=offset)
        assert steps.fold.offset > offset
        assert copies([key for node in cluster.nodes() for key in node.keys("*")]) == []
        found = standings(wire)
        assert {place: standing[:2] for place, standing in found.items()} == {TIGHT.hash: (steps.fold.offset, "mine")}


def test_states_are_found_without_their_plans(empty: str, log: Written) -> None:
    with closing(Wire(empty)) as wire:
        assert standings(wire) == {}
        with closing(opened(empty)) as state:
            assert [standing.offset for standing in standings(wire).values()] == [0]
            fold = fold_all(log, state)
            assert standings(wire)[TIGHT.hash] == (fold.offset, "", 3)
            state.condemn()
            assert standings(wire)[TIGHT.hash].offset == 0
