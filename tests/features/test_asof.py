"""As-of rows: equal to assembling by hand at every stop, however the work is divided."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.features.asof import Questions, answers
from headwater.features.assemble import Context, assemble, forget_idle, new_scratch
from headwater.features.layout import U_SEGMENT, U_ZONE
from headwater.features.zones import Zones
from headwater.schema.errors import HeadwaterError
from headwater.testing.events import START_MS, Step, Written, script, scripts, written
from tests.features.states import CONFIGS, PLANS, STABLE, folded


def ask(log: Written, seed: int, count: int) -> Questions:
    """Questions about any offset, known and unknown users and items, several at one offset."""
    rng = np.random.default_rng(seed)
    offsets = np.sort(rng.integers(0, log.log.last_offset + 1, count // 2 + 1))
    offset = np.sort(rng.choice(offsets, count))
    return Questions(
        offset=offset.astype(np.int64),
        user=rng.integers(0, 9, count),
        item=rng.integers(1, 12, count),
        now_ms=START_MS + rng.integers(0, 10**9, count),
        segments=rng.integers(0, 4, (count, 2)).astype(np.uint16),
        surface=rng.integers(0, 3, count) if seed % 2 else None,
    )


def by_hand(log: Written, name: str, questions: Questions) -> npt.NDArray[np.float32]:
    """A fold from the beginning for every single question."""
    plan = PLANS[name]
    out = np.zeros((len(questions.offset), len(plan.columns)), np.float32)
    for i in range(len(out)):
        fold = folded(plan, log, until=int(questions.offset[i]))
        user = int(questions.user[i])
        row = fold.users.user(user)
        forget_idle(row, int(questions.now_ms[i]), plan)
        segments = [int(s) or int(row.u4[U_SEGMENT + k]) for k, s in enumerate(questions.segments[i])]
        fold.items.reserve(int(questions.item[i]) + 1)
        scratch = new_scratch(len(fold.items.dirty), 1, plan)
        now_ms = int(questions.now_ms[i])
        zone = Zones(log.log.vocabulary()).offset_ms(int(row.u4[U_ZONE]), now_ms)
        surface = 0 if questions.surface is None else int(questions.surface[i])
        context = Context((segments[0], segments[1]), zone, surface)
        assemble(plan, row, fold.items.rows, questions.item[i : i + 1], context, now_ms, scratch, out[i : i + 1])
    return out


def whole(log: Written, name: str, questions: Questions, threads: int, slices: int) -> npt.NDArray[np.float32]:
    pieces, at = [], 0
    for start, stop, rows in answers(log.log, PLANS[name], questions, threads=threads, slices=slices):
        assert start == at
        assert rows.shape == (stop - start, len(PLANS[name].columns))
        assert rows.dtype == np.float32
        pieces.append(rows.copy())
        at = stop
    assert at == len(questions.offset)
    return np.concatenate(pieces)


@STABLE
@given(scripts(), st.sampled_from(sorted(CONFIGS)), st.integers(0, 2**16))
def test_rows_are_those_of_a_fold_that_stops_there(steps: list[Step], name: str, seed: int) -> None:
    log = written(steps, CONFIGS[name])
    questions = ask(log, seed, 12)
    expected = by_hand(log, name, questions).tobytes()
    assert whole(log, name, questions, 1, 1).tobytes() == expected
    assert whole(log, name, questions, 2, 3).tobytes() == expected


@pytest.mark.parametrize(("threads", "slices"), [(1, 2), (2, 2), (2, 7), (1, 50), (4, 1000)])
def test_slices_and_threads_change_nothing(threads: int, slices: int) -> None:
    log = written(script(5, 400), CONFIGS["default"])
    questions = ask(log, 11, 3_000)
    straight = whole(log, "default", questions, 1, 1)
    assert whole(log, "default", questions, threads, slices).tobytes() == straight.tobytes()
    assert len(np.unique(straight, axis=0)) > 1_000


def test_no_question_has_no_answer() -> None:
    log = written(script(6, 20), CONFIGS["default"])
    assert list(answers(log.log, PLANS["default"], ask(log, 1, 0))) == []
    empty = written([], CONFIGS["default"])
    assert whole(empty, "default", ask(empty, 1, 3), 2, 2).shape == (3, len(PLANS["default"].columns))


def test_a_question_that_cannot_be_answered_is_named() -> None:
    log = written(script(6, 20), CONFIGS["default"])
    questions = ask(log, 1, 4)
    with pytest.raises(HeadwaterError, match="the log ends at"):
        list(answers(log.log, PLANS["default"], questions._replace(offset=questions.offset + 10_000)))
    with pytest.raises(HeadwaterError, match="sort them first"):
        list(answers(log.log, PLANS["default"], questions._replace(offset=np.array([3, 2, 1, 0]))))
    with pytest.raises(HeadwaterError, match="at least one"):
        list(answers(log.log, PLANS["default"], questions, slices=0))
