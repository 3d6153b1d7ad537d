"""State in LMDB keeps the contract of state stores; what a fold drops and folds anew."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from headwater.features.plan import Plan, compile_plan
from headwater.features.rows import CorruptStateError
from headwater.features.state import LmdbState, PlanChangedError, open_for_fold, open_store
from headwater.features.store import Row, State
from headwater.schema.config import Config, Features
from headwater.testing.events import Written, script, written
from headwater.testing.state_contract import StateContract
from headwater.testing.state_folds import fold_all
from tests.features.states import CONFIGS, PLANS, overwrite

TIGHT = PLANS["tight"]


class TestLmdbState(StateContract):
    def open(self, place: Path, plan: Plan, *, writable: bool, log_id: str = "") -> LmdbState:
        return LmdbState(place, plan, writable=writable, log_id=log_id)

    def open_again(self, state: State, place: Path, *, writable: bool) -> State:  # noqa: ARG002
        return copy.copy(state)  # one environment a process, but what each has seen is its own

    def damage(self, place: Path, table: str, key: int, change: int | bytes) -> None:
        name = b"meta" if table == "meta" else key.to_bytes(8 if table == "epochs" else 4, "big")
        overwrite(place, table.encode(), name, change)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


def straight(log: Written, path: Path) -> list[Row]:
    """All in one go: one commit at the end."""
    state = LmdbState(path, TIGHT, writable=True)
    fold_all(log, state)
    dump = list(state.dump())
    state.close()
    return dump


def test_a_state_of_another_plan_is_dropped_by_the_fold(path: Path) -> None:
    log = written(script(11, 60), CONFIGS["tight"])
    expected = straight(log, path)
    other = compile_plan(Config(features=Features(recent=9)))
    with pytest.raises(PlanChangedError, match=f"{TIGHT.hash}.*{other.hash}"):
        LmdbState(path, other, writable=False)
    state, why = open_for_fold(path, other)
    assert why is not None
    assert TIGHT.hash in why
    assert state.offset == 0
    state.close()
    assert straight(log, path.with_name("again")) == expected
    state, why = open_for_fold(path.with_name("again"), compile_plan(CONFIGS["tight"]))
    assert why is None
    assert state.offset == log.log.last_offset
    assert list(state.dump()) == expected
    state.close()


def test_the_configuration_opens_it(path: Path) -> None:
    log = written(script(11, 60), CONFIGS["tight"])
    expected = straight(log, path)
    state = open_store(CONFIGS["tight"], path, TIGHT, writable=False)
    assert isinstance(state, LmdbState)
    assert list(state.dump()) == expected
    state.close()


def test_a_file_that_is_no_state_is_dropped(path: Path) -> None:
    path.mkdir()
    (path / "data.mdb").write_bytes(b"no state" * 4096)
    state, why = open_for_fold(path, TIGHT)
    assert why is not None
    assert "cannot be opened" in why
    assert state.offset == 0
    state.close()


def test_an_unreadable_position_is_dropped(path: Path) -> None:
    straight(written(script(13, 30), CONFIGS["tight"]), path)
    overwrite(path, b"meta", b"meta", b"\xc1garbage")
    with pytest.raises(CorruptStateError, match="rebuild"):
        LmdbState(path, TIGHT, writable=False)
    state, why = open_for_fold(path, TIGHT)
    assert why is not None
    assert state.offset == 0
    state.close()
