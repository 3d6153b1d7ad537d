"""Lists as they were shown, as training rows: at their address, with what became of them, and no sooner than that is settled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import msgspec
import numpy as np
import pytest
from structlog.testing import capture_logs

from headwater.features.asof import answers
from headwater.features.attributes import surface_code
from headwater.features.fold import Fold
from headwater.features.plan import compile_plan
from headwater.features.replay import fold_to, stops
from headwater.learning import collecting
from headwater.learning.collecting import RowCollector, build_rows, settled
from headwater.learning.rankers import fit_ranker
from headwater.learning.shown import ShownLists, read_shown
from headwater.learning.trainingset import TrainingSet, newest
from headwater.log.commands import AppendServed, PutItems, ServedEntry
from headwater.log.memory import MemoryLog
from headwater.schema.config import Config, Label, Ranker, Training
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.schema.requests import ServedList
from headwater.serving.view import FoldView
from headwater.testing.events import START_MS, Step, Written
from tests.offline.exposed import ITEMS, grow, served_entry, site

MINUTE = 60_000
TRAINING = Training(watermark="5m", labels=(Label(name="click", window="20m"), Label(name="purchase", window="1h")))
CONFIG = Config(ranker=Ranker(learn_from="lists", trees=5), training=TRAINING)
PLAN = compile_plan(CONFIG)
CLICK, PURCHASE = ([t.name for t in CONFIG.events].index(name) for name in ("click", "purchase"))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


@pytest.fixture(scope="module")
def busy() -> Written:
    with capture_logs():
        return site(3, 300)


def built(log: Written, config: Config = CONFIG, *, until: int = 0) -> TrainingSet:
    return build_rows(log.log, PLAN, config, until=until or log.log.last_offset, start_ms=0, seed=1).rows


class Shop:
    """A log that shows lists, by hand."""

    def __init__(self) -> None:
        self.log = Written(CONFIG)
        self.now_ms = START_MS
        self.log.add([Step(START_MS, PutItems([Item(id=f"i{n}") for n in range(ITEMS)]))])

    def serve(self, request: str, *items: str, user: str = "u", tier: int = 0, anchor: str = "") -> Shop:
        self.now_ms += MINUTE
        entry = served_entry(self.log, user, request, items, self.now_ms, anchor)
        if tier:
            served = msgspec.msgpack.decode(entry.payload, type=ServedList)
            entry = ServedEntry(
                entry.user, entry.surrogate, msgspec.msgpack.encode(msgspec.structs.replace(served, tier=tier))
            )
        self.log.add([Step(self.now_ms, AppendServed([entry]))])
        return self

    def do(self, kind: str, *items: str, request: str | None = None, user: str = "u", later_ms: int = 1_000) -> Shop:
        self.now_ms += later_ms
        self.log.add(
            [Step(self.now_ms, [Event(user=user, item=item, type=kind, time=self.now_ms, request_id=request)]) for item in items]
        )  # fmt: skip
        return self

    def shown(self) -> ShownLists:
        return read_shown(self.log.log, CONFIG, since=0, until=self.log.log.last_offset)

    def rows(self, lists: ShownLists, which: int) -> list[tuple[str, int, int, bool]]:
        """Item, place, outcomes and whether it was seen, row by row."""
        here = lists.rows(which)
        return [
            (self.log.names([int(item)])[0], int(place), int(done), bool(seen))
            for item, place, done, seen in zip(
                lists.item[here], lists.position[here], lists.outcomes[here], lists.seen[here], strict=True
            )
        ]


def test_what_was_done_is_said_of_the_list_that_it_came_of() -> None:
    shop = Shop().do("click", "i9").serve("one", "i1", "i2", "i3").serve("two", "i1", "i4")
    shop.do("click", "i1", "i3", request="one").do("purchase", "i3", request="one", later_ms=25 * MINUTE)
    shop.do("click", "i4", request="two", later_ms=2 * MINUTE)  # too late for a click
    shop.do("click", "i9", later_ms=90 * MINUTE)
    lists = shop.shown()
    assert lists.closed.tolist() == [True, True]
    assert lists.taken.tolist() == [True, False]
    assert shop.rows(lists, 0) == [
        ("i1", 0, 1 << CLICK, True), ("i2", 1, 0, True), ("i3", 2, 1 << CLICK | 1 << PURCHASE, True),
    ]  # fmt: skip


def test_what_nobody_saw_is_not_learnt_from() -> None:
    """Where a list has impressions, an item without one was not looked at; where nobody reports them, all of it counts."""
    shop = Shop().serve("reported", "i1", "i2", "i3", "i4").do("impression", "i1", "i2", request="reported")
    shop.do("click", "i2", "i4", request="reported").serve("silent", "i1", "i2").do("click", "i2", request="silent")
    shop.do("view", "i1", later_ms=90 * MINUTE)
    lists = shop.shown()
    assert [seen for _, _, _, seen in shop.rows(lists, 0)] == [True, True, False, True]
    assert [seen for _, _, _, seen in shop.rows(lists, 1)] == [True, True]
    made = built(shop.log)
    assert made.groups.tolist() == [3, 2]
    assert made.labels.tolist() == [0, 1, 1, 0, 1]
    assert made.position.tolist() == [0, 1, 3, 0, 1]


def test_lists_of_another_system_are_known_by_their_impressions() -> None:
    shop = Shop()
    shop.do("impression", "i1", "i2", request="theirs").do("impression", "i3", "i1", request="theirs")
    shop.do("impression", "i5").do("click", "i3", request="theirs").do("view", "i1", later_ms=90 * MINUTE)
    lists = shop.shown()
    assert len(lists) == 1
    assert [(item, place) for item, place, _, _ in shop.rows(lists, 0)] == [("i1", 0), ("i2", 1), ("i3", 2)]
    assert lists.offset[0] == lists.record[0] - 1
    assert built(shop.log).labels.tolist() == [0, 0, 1]


def test_what_is_no_list_of_its_moment_is_left_out() -> None:
    shop = Shop()
    for name, tier, anchor in (
        ("ranked", 0, ""),
        ("retrieved", 2, ""),
        ("last", 3, ""),
        ("popular", 4, ""),
        ("similar", 0, "i7"),
    ):
        shop.serve(name, "i1", "i2", tier=tier, anchor=anchor).do("impression", "i1", "i2", request=name)
        shop.do("click", "i2", request=name)
    lists = shop.do("view", "i1", later_ms=90 * MINUTE).shown()
    assert len(lists) == 2
    assert lists.skipped == {"of tier 3 or 4": 4, "about an item": 2}


def test_a_list_is_learnt_from_when_nothing_can_change_its_labels() -> None:
    shop = Shop().serve("one", "i1", "i2").do("click", "i2", request="one")
    young = shop.do("view", "i1", later_ms=65 * MINUTE - 2_000).log.log.last_offset
    assert not shop.shown().closed.any()
    shop.do("view", "i1", later_ms=2_000)
    assert shop.shown().closed.all()
    assert len(built(shop.log, until=young).groups) == 0
    assert len(built(shop.log).groups) == 1


def test_rows_are_what_a_replay_to_their_address_says(busy: Written) -> None:
    made = built(busy)
    assert made.learnt_from == "lists"
    assert len(made.groups) > 50
    assert made.asked - made.missed == len(made.groups)
    asked = made.addresses._replace(surface=np.full(len(made.labels), surface_code("home")))
    replayed = np.concatenate([rows for _, _, rows in answers(busy.log, PLAN, asked)])
    assert made.features.tobytes() == replayed.tobytes()
    assert (made.labels == (made.outcomes > 0)).all()
    ends = np.cumsum(made.groups)
    assert all(made.labels[end - size : end].any() for end, size in zip(ends, made.groups, strict=True))


def lagging(seed: int, requests: int) -> Written:
    """A log whose lists are recorded up to nine seconds after they were made, while other people go on."""
    rng = np.random.default_rng(seed)
    log, now_ms = Written(CONFIG), START_MS
    log.add([Step(now_ms, PutItems([Item(id=f"i{n}") for n in range(ITEMS)]))])
    coming: list[tuple[int, int, Step]] = []
    for r in range(requests):
        now_ms += int(rng.exponential(6_000)) + 40 * MINUTE * int(rng.random() < 0.03)
        for at_ms, _, step in sorted(one for one in coming if one[0] <= now_ms):
            log.add([replace(step, at_ms=at_ms)])
        coming = [one for one in coming if one[0] > now_ms]
        user, items = f"u{rng.integers(5)}", [f"i{n}" for n in rng.choice(ITEMS, 3, replace=False)]
        entry = served_entry(log, user, f"r{r}", items, now_ms)
        coming.append((now_ms + int(rng.integers(9_000)), 2 * r, Step(0, AppendServed([entry]))))
        if rng.random() < 0.6:
            done_ms = now_ms + int(rng.choice([9_500, 5 * MINUTE, 19 * MINUTE]))
            act = Event(user=user, item=items[1], type="click", time=done_ms, request_id=f"r{r}")
            coming.append((done_ms, 2 * r + 1, Step(0, [act])))
    for at_ms, _, step in sorted(coming):
        log.add([replace(step, at_ms=at_ms)])
    for later in (90, 91):
        log.add(
            [Step(now_ms + later * MINUTE, [Event(user="u", item="i1", type="view", time=now_ms + later * MINUTE)])]
        )
    return log


@pytest.mark.parametrize(("seed", "learn_from"), [(1, "lists"), (2, "lists"), (3, "lists"), (4, "auto")])
def test_every_list_is_learnt_from_once_wherever_rounds_end(
    seed: int, learn_from: Literal["lists", "auto"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the learner goes: a first training, and rounds that read up to where lists are settled in a log that grows meanwhile."""
    monkeypatch.setattr(collecting, "ENOUGH_LISTS", 60)
    config = msgspec.structs.replace(CONFIG, ranker=Ranker(learn_from=learn_from, trees=5))
    whole, rng = lagging(seed, 250), np.random.default_rng(seed)
    expected = read_shown(whole.log, config, since=0, until=whole.log.last_offset)
    ready = np.flatnonzero(expected.closed & expected.taken)
    assert len(ready) > 100
    assert (expected.record > expected.offset + 1).mean() > 0.5, "lists are recorded late"

    part, collector, rows = MemoryLog(), None, None
    view = FoldView(PLAN, Fold(PLAN))
    ends = np.sort(rng.choice(np.arange(40, whole.log.last_offset), 12, replace=False)).tolist()
    for end in [*ends, whole.log.last_offset]:
        grow(part, whole, end)
        until = settled(part, part.last_received_ms)[0]
        if collector is None:
            rows, waiting = build_rows(part, PLAN, config, until=until, start_ms=0, seed=1, view=view, follow=True)
            fold_to(part, view.fold, until)
            collector = RowCollector(
                part, PLAN, config, None, first=rows, share=0.0, list_share=1.0, drawing=rng, waiting=waiting
            )
            continue
        collector.expect(view.fold.offset)
        for block, i in stops(part, view.fold, collector.wanted, until=until):
            collector.collect(block, i, view, None)
        rows = collector.renew(view, until)
    assert rows is not None
    assert rows.learnt_from == "lists"
    begins = np.cumsum(rows.groups) - rows.groups
    found = sorted(
        (int(rows.addresses.offset[at]), rows.addresses.item[at : at + n].tolist())
        for at, n in zip(begins.tolist(), rows.groups.tolist(), strict=True)
    )
    assert found == sorted(
        (int(expected.offset[which]), expected.item[expected.rows(which)].tolist()) for which in ready.tolist()
    )
    asked = rows.addresses._replace(surface=np.full(len(rows.labels), surface_code("home")))
    replayed = np.concatenate([each for _, _, each in answers(whole.log, PLAN, asked)])
    assert np.sort(replayed.sum(axis=1)).tobytes() == np.sort(rows.features.sum(axis=1)).tobytes()


def test_one_round_is_one_training(busy: Written) -> None:
    whole = built(busy)
    view = FoldView(PLAN, Fold(PLAN))
    nothing = replace(newest([whole], 0), asked=0, missed=0)
    collector = RowCollector(
        busy.log, PLAN, CONFIG, None, first=nothing, share=0.0, list_share=1.0, drawing=np.random.default_rng(1)
    )
    collector.expect(0)
    for block, i in stops(busy.log, view.fold, collector.wanted, until=busy.log.last_offset):
        collector.collect(block, i, view, None)
    rows = collector.renew(view, busy.log.last_offset)
    assert rows.features.tobytes() == whole.features.tobytes()
    assert (rows.asked, rows.missed) == (whole.asked, whole.missed)
    assert rows.asked - rows.missed == len(rows.groups)


def test_a_list_whose_moment_has_passed_is_told() -> None:
    shop = Shop().do("click", "i9")
    late = served_entry(shop.log, "u", "late", ["i1", "i2"], shop.now_ms)
    view = FoldView(PLAN, Fold(PLAN))
    shop.do("view", "i3")
    collector = RowCollector(
        shop.log.log, PLAN, CONFIG, None, first=replace(newest([built(shop.log)], 0), asked=0, missed=0), share=0.0,
        list_share=1.0, drawing=np.random.default_rng(1),
    )  # fmt: skip
    collector.expect(0)
    fold_to(shop.log.log, view.fold, shop.log.log.last_offset)
    collector.renew(view, view.fold.offset)
    shop.log.add([Step(shop.now_ms + MINUTE, AppendServed([late]))])
    with capture_logs() as said:
        collector.expect(view.fold.offset)
    assert [(entry["event"], entry["lists"]) for entry in said] == [("lists_came_late", 1)]


def test_auto_asks_questions_until_there_are_enough_lists(busy: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    auto = msgspec.structs.replace(CONFIG, ranker=Ranker(learn_from="auto", trees=5))
    usable = len(built(busy).groups)
    monkeypatch.setattr(collecting, "ENOUGH_LISTS", usable)
    assert built(busy, auto).learnt_from == "lists"
    monkeypatch.setattr(collecting, "ENOUGH_LISTS", usable + 1)
    assert built(busy, auto).learnt_from == "questions"

    monkeypatch.setattr(collecting, "ENOUGH_LISTS", usable // 2)
    middle, end = busy.log.last_offset // 3, busy.log.last_offset
    view = FoldView(PLAN, Fold(PLAN))
    first = build_rows(busy.log, PLAN, auto, until=middle, start_ms=0, seed=1, view=view).rows
    assert first.learnt_from == "questions"
    collector = RowCollector(
        busy.log, PLAN, auto, None, first=first, share=1.0, list_share=1.0, drawing=np.random.default_rng(1)
    )
    collector.expect(view.fold.offset)
    for block, i in stops(busy.log, view.fold, collector.wanted, until=end):
        collector.collect(block, i, view, None)
    taken_over = collector.renew(view, end)
    assert taken_over.learnt_from == "lists"
    assert taken_over.addresses.offset.min() >= first.addresses.offset.max()
    collector.expect(end)
    assert len(collector.renew(view, end).groups) == len(taken_over.groups), "they stay"


def test_impressions_are_withheld_from_questions_alone(busy: Written) -> None:
    made = built(busy)
    shown = PLAN.columns.index("item_impression_30m")
    told = made.features.copy()
    told[:, shown] = made.labels  # the only column that says anything
    told[:, np.arange(told.shape[1]) != shown] = 0.0
    parts = {}
    for name in ("lists", "questions"):
        rows = replace(made, features=told, learnt_from=name)
        parts[name] = fit_ranker(CONFIG, PLAN, PLAN.columns, rows, warm=None, seed=1, threads=1, progress=None).gain
    assert list(parts["lists"]) == ["item_impression_30m"]
    assert parts["questions"] == {}


def test_trees_grow_as_the_configuration_says(busy: Written) -> None:
    grow = msgspec.structs.replace(CONFIG.ranker, trees=3, leaves=5, learning_rate=0.25, column_share=0.5)
    config = msgspec.structs.replace(CONFIG, ranker=grow)
    files = fit_ranker(config, PLAN, PLAN.columns, built(busy), warm=None, seed=1, threads=1, progress=None).files
    text = files["ranker.lgb.txt"].decode()
    for said in ("num_iterations: 3", "num_leaves: 5", "learning_rate: 0.25", "feature_fraction: 0.5"):
        assert f"[{said}]" in text
