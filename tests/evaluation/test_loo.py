"""Leave-one-out on logs small enough to answer by hand, and full ranks against slow code."""

from __future__ import annotations

from math import log2

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.evaluation.loo import LooReport, evaluate_loo, last_out
from headwater.evaluation.scoring import POPULARITY, RECENT_POPULARITY, Training, first_ten, fold_without, full_ranks
from headwater.features.plan import compile_plan
from headwater.learning.sequences import read_sequences
from headwater.schema.config import Config, FittedConfig, Sources
from headwater.schema.errors import HeadwaterError
from headwater.schema.events import Event
from headwater.testing.events import START_MS, Step, Written
from headwater.testing.source_contract import taste_world

CONFIG = Config(sources=Sources(item_knn=FittedConfig(enabled=True), ease=FittedConfig(enabled=True)))
PLAN = compile_plan(CONFIG)
NOTHING_FITTED = Training(sources=(), seed=1)


def history(*lines: str, kind: str = "click") -> Written:
    """Lines like "ann: a b c": one event a minute, users one after the other."""
    log, at_ms = Written(CONFIG), START_MS
    for line in lines:
        user, _, items = line.partition(": ")
        for item in items.split():
            at_ms += 60_000
            name, _, other = item.partition("/")
            log.add([Step(at_ms, [Event(user=user, item=name, type=other or kind)])])
    return log


def evaluate(log: Written, training: Training = NOTHING_FITTED, *, validation: bool = False) -> LooReport:
    return evaluate_loo(log.log, PLAN, CONFIG, training, part="validation" if validation else "test")


def test_the_last_two_positive_events_are_held_out_and_all_behind_them() -> None:
    log = history("ann: a b c d", "bob: a b", "cat: a b/view c d/view e f/view")
    sequences = read_sequences(log.log, PLAN, CONFIG, until=log.log.last_offset)
    out = last_out(sequences)
    assert log.names(sequences.items[out.test].tolist()) == ["d", "e"]
    assert log.names(sequences.items[out.validation].tolist()) == ["c", "c"]
    learnt = {
        user: log.names(out.training.items[out.training.starts[k] : out.training.starts[k + 1]].tolist())
        for k, user in enumerate(out.training.users.tolist())
    }
    assert learnt == {log.user("ann"): ["a", "b"], log.user("bob"): ["a", "b"], log.user("cat"): ["a", "b"]}


def test_ranks_are_those_worked_out_by_hand() -> None:
    """
    training counts: a 3 (ann, bob, cat), b 2 (ann, cat), c 1 (cat), x 1 (bob)
    ann  a b | y, then x. History a b y; left c x z: c 1, x 1 (tie: c counts as ahead), z 0 → x is 2nd
    bob  a x | b, then c. History a x b; left c y z: c 1 → 1st
    cat  a b c | x, then z. History a b c x; left y 0, z 0 (tie) → 2nd
    """
    log = history("ann: a b y x", "bob: a x b c", "cat: a b c x z")
    report = evaluate(log)
    popular = report.models[POPULARITY]
    assert (report.n, report.items, report.training_events, report.seen_targets) == (3, 6, 7, 0)
    assert popular.mrr == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)
    assert popular.ndcg_at_10 == pytest.approx((1 + 2 / log2(3)) / 3)
    assert popular.hr_at_10 == 1.0
    assert popular.coverage == pytest.approx(4 / 6), "first tens hold what is left: c x z, c y z, y z"
    assert set(report.models) == {POPULARITY, RECENT_POPULARITY}
    assert "ahead" in report.tie_rule
    assert report.data["last_offset"] == log.log.last_offset
    msgspec.json.encode(report)


def test_the_validation_is_asked_without_the_test() -> None:
    """ann is asked for y now: history a b; left c 1, x 1, y 0, z 0 → 4th."""
    log = history("ann: a b y x", "bob: a x b c", "cat: a b c x z")
    report = evaluate(log, validation=True)
    # bob for b: history a x; left b 2 → 1st. cat for x: history a b c; left x 1 → 1st
    assert report.models[POPULARITY].mrr == pytest.approx((1 / 4 + 1 + 1) / 3)
    assert report.part == "validation"


def test_a_target_that_was_had_before_is_a_miss() -> None:
    report = evaluate(history("ann: a b c a"))
    assert report.seen_targets == 1
    assert all(model.mrr == 0.0 for model in report.models.values())


def test_recent_popularity_knows_nothing_of_the_tests() -> None:
    """Only tests and validations are on z: it has no weight in the item rows either."""
    log = history("ann: a b y z", "bob: a b y z", "cat: a c y z")
    report = evaluate(log)
    # left for ann: c, z. c 1 by cat, z 0 → 2nd; for cat: b 2, z 0 → 2nd
    assert report.models[RECENT_POPULARITY].mrr == pytest.approx(0.5)


def test_fitted_sources_find_the_taste_of_their_users() -> None:
    world = taste_world(CONFIG)
    training = Training(sources=("item_knn", "ease"), seed=3)
    report = evaluate_loo(world.log.log, PLAN, CONFIG, training)
    for name in ("item_knn", "ease"):
        assert report.models[name].mrr > 1.5 * report.models[POPULARITY].mrr
        assert report.models[name].train_s > 0.0
        assert report.models[name].peak_mb > 0.0
    again = evaluate_loo(world.log.log, PLAN, CONFIG, training)
    for name, model in report.models.items():
        assert (model.mrr, model.ci95) == (again.models[name].mrr, again.models[name].ci95)


def test_without_anybody_to_ask_it_says_so() -> None:
    with pytest.raises(HeadwaterError, match="nobody has three positive events"):
        evaluate(history("ann: a b", "bob: a"))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 1 << 30), st.integers(1, 30), st.integers(1, 5))
def test_full_ranks_are_those_of_counting(seed: int, count: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels + 1, size=count).astype(np.float32)
    relevant, barred = rng.random(count) < 0.3, rng.random(count) < 0.3
    relevant[rng.integers(count)] = True
    order = sorted(
        (i for i in range(count) if not barred[i]), key=lambda i: (-scores[i], bool(relevant[i]))
    )  # ties: others first
    expected = [0] * int((relevant & barred).sum()) + [r for r, i in enumerate(order, 1) if relevant[i]]
    assert full_ranks(scores, relevant, barred).tolist() == expected
    items = 10 * (1 + np.arange(count))
    best = sorted((i for i in range(count) if not barred[i]), key=lambda i: (-scores[i], i))[:10]
    assert [item for item in first_ten(scores, barred, items).tolist() if item] == [int(items[i]) for i in best]


def test_a_score_that_is_not_finite_is_an_error() -> None:
    nothing = np.zeros(2, np.bool_)
    with pytest.raises(HeadwaterError, match="not finite"):
        full_ranks(np.array([1.0, np.nan], np.float32), nothing, nothing)


def test_hidden_events_are_as_if_they_had_not_been() -> None:
    """The fold without the events on z has the rows of a log that never held them."""
    log, without = history("ann: a b z c", "bob: b z", "cat: c a z b"), Written(CONFIG)
    z = log.item("z")
    for line in ("ann: a b - c", "bob: b -", "cat: c a - b"):
        user, _, items = line.partition(": ")
        for item in items.split():
            at_ms = max(without.now_ms, START_MS) + 60_000
            without.now_ms = at_ms
            if item != "-":
                without.add([Step(at_ms, [Event(user=user, item=item, type="click")])])
    fold = fold_without(log.log, PLAN, lambda records: records["item"] == z, until=log.log.last_offset)
    other = fold_without(
        without.log, PLAN, lambda records: np.zeros(len(records), np.bool_), until=without.log.last_offset
    )
    renamed = {log.item(name): without.item(name) for name in "abc"}
    assert fold.offset == log.log.last_offset
    for name in ("ann", "bob", "cat"):
        row, twin = fold.users.user(log.user(name)), other.users.user(without.user(name))
        layout = PLAN.layout
        recent = slice(layout.recent_keys, layout.recent_keys + layout.recent_size)
        types = row.u4[recent] >> 24 << 24
        expected = [types[i] | renamed.get(int(key) & 0xFFFFFF, 0) for i, key in enumerate(row.u4[recent])]
        assert [int(key) for key in expected] == twin.u4[recent].tolist()
        np.testing.assert_array_equal(row.i8, twin.i8)
        np.testing.assert_array_equal(row.f4, twin.f4)
    for mine, theirs in renamed.items():
        np.testing.assert_array_equal(fold.items.rows.i8[mine], other.items.rows.i8[theirs])
    assert not fold.items.rows.i8[z].any()
    assert not fold.items.rows.f4[z].any()
