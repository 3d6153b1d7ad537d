"""What rules would have done to lists that were served: how many each of them alone touches, shortens and empties."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from headwater.features.assemble import forget_idle, stranger
from headwater.features.layout import FLAG_HIDDEN, FLAG_KNOWN, I_FLAGS
from headwater.features.plan import Plan
from headwater.log.protocol import Vocabulary
from headwater.policy.rules import CompiledRule
from headwater.serving.request import Query
from headwater.serving.rules import Rules
from headwater.serving.served import Served
from headwater.serving.view import View

Int64 = npt.NDArray[np.int64]


class Effect(Struct, frozen=True):
    """Of ``lists`` served ones a rule ``acts`` on so many. ``touched``: it would have removed, kept out, lifted, lowered or brought
    in something. ``shortened``: fewer items of the catalogue pass it than the list held; ``emptied``: none does.
    """

    rule: str
    action: str
    lists: int
    acts: int = 0
    touched: int = 0
    shortened: int = 0
    emptied: int = 0


def effects(
    compiled: tuple[CompiledRule, ...], served: Iterable[Served], plan: Plan, vocabulary: Vocabulary, view: View
) -> list[Effect]:  # fmt: skip
    """The effect of each rule by itself on ``served``, with users and items as they are in ``view``, at the time of each list."""
    alone = [Rules((rule,), plan, vocabulary) for rule in compiled]
    counts = np.zeros((len(compiled), 4), np.int64)
    user = stranger(plan)
    flags = view.table.rows.u4[: view.table.count, I_FLAGS]
    catalogue = np.flatnonzero((flags & FLAG_KNOWN != 0) & (flags & FLAG_HIDDEN == 0))
    total = 0
    for each in served:
        total += 1
        listed = np.array(each.answer.items, np.int64)
        listed = listed[listed < view.table.count]
        address, context = each.answer.address, each.answer.context
        view.read_user(each.user, user)
        forget_idle(user, address.now_ms, plan)
        query = Query(each.answer.request_id, user=each.user, surface=each.answer.surface, k=max(len(listed), 1))
        segments, offset_ms = (context[0], context[1]), context[3] if len(context) > 3 else 0
        for row, (rule, rules) in enumerate(zip(compiled, alone, strict=True)):
            rules.begin(query, user, view, segments, offset_ms, address.now_ms)
            if rule.name in rules.counts:
                counts[row] += _effect(rule, rules, listed, catalogue)
    return [
        Effect(rule.name, rule.rule.action, total, *row) for rule, row in zip(compiled, counts.tolist(), strict=True)
    ]


def _effect(rule: CompiledRule, rules: Rules, listed: Int64, catalogue: Int64) -> tuple[int, int, int, int]:
    """(acts, touched, shortened, emptied), each 0 or 1."""
    if rule.rule.filter is not None:
        touched = not rules.filter(listed, np.ones(len(listed), np.bool_)).all()
        left = int(rules.filter(catalogue, np.ones(len(catalogue), np.bool_)).sum())
        return 1, int(touched), int(left < len(listed)), int(left == 0 and len(listed) > 0)
    plain = np.arange(len(listed))
    order = rules.order(listed, -plain.astype(np.float32), plain, len(listed))
    touched = not np.array_equal(order, plain)
    if rule.rule.cap is None or not touched:
        return 1, int(touched), 0, 0
    # what the cap keeps out is made up for by whatever else the catalogue has
    everything = np.concatenate([listed, catalogue[~np.isin(catalogue, listed)]])
    ranks = np.arange(len(everything))
    left = len(rules.order(everything, -ranks.astype(np.float32), ranks, len(listed)))
    return 1, 1, int(left < len(listed)), 0
