"""The parts of a row add up to it; what a feature has to itself is what the plan loses with it."""

from __future__ import annotations

import numpy as np
import pytest

from headwater.features.definitions import Formula, TermOp
from headwater.features.layout import U_RECENT_LENGTH, U_SEEN_LENGTH
from headwater.features.plan import Plan, compile_plan
from headwater.features.rows import User, pack_user
from headwater.features.sizes import share_of, sizes, widths
from headwater.features.wording import FORMULAS, KINDS, TERMS, column_in_words, entity_of, kind_of
from headwater.schema.config import Config
from headwater.testing.events import configurations
from tests.features.columns import EVERYTHING

CONFIG = Config()
EVERY = compile_plan(CONFIG, EVERYTHING)


@pytest.mark.parametrize("plan", [compile_plan(config) for config in configurations().values()] + [EVERY])
def test_parts_add_up(plan: Plan) -> None:
    found = sizes(plan)
    assert (found.user, found.item) == widths(plan.layout)
    assert sum(found.user_parts.values()) == found.user
    assert sum(found.item_parts.values()) == found.item


def test_no_packed_row_is_larger_than_is_said() -> None:
    layout = EVERY.layout
    row = User(
        np.full(layout.user_i8, -1, np.int64),
        np.full(layout.user_f4, -1, np.float32),
        np.full(layout.user_u4, (1 << 32) - 1, np.uint32),
    )
    row.u4[U_RECENT_LENGTH], row.u4[U_SEEN_LENGTH] = layout.recent_size, layout.seen_size
    assert 0.5 * widths(layout)[0] < len(pack_user(row, layout)) <= sizes(EVERY).user_packed_most


def test_a_feature_of_its_own_takes_its_own_bytes() -> None:
    shares = {name: share_of(EVERY, CONFIG, name) for name in EVERY.columns}
    assert shares["user_total_last_day"].own_user == 4 * 24
    assert shares["user_categories"].own_user == 256
    assert shares["item_categories"].item == 256  # and everybody_categories reads the same
    assert shares["hour"].user == shares["hour"].own_user == 0
    assert shares["category_share"].own_user == 0  # three columns read one affinity
    for share in shares.values():
        assert 0 <= share.own_user <= share.user + 8  # with the valid time of its table
        assert 0 <= share.own_item <= share.item + 8


def test_words_for_everything() -> None:
    assert set(TERMS) == set(TermOp)
    assert set(FORMULAS) == set(Formula)
    assert sorted(op for ops in KINDS.values() for op in ops) == sorted(TermOp)
    for column in (*EVERYTHING, *compile_plan(CONFIG).declared):
        assert column_in_words(column)
        assert entity_of(column)
        assert kind_of(column) in KINDS
