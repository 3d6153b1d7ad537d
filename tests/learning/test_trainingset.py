"""Training rows: what serving would have seen just before the event, whatever came later and however the log is cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from structlog.testing import capture_logs

from headwater.features.plan import compile_plan
from headwater.features.zones import Zones
from headwater.learning.trainingset import TrainingSet, build_training_set, positive_types, positives
from headwater.log.memory import MemoryLog
from headwater.log.protocol import Commit, EventLog, Term
from headwater.log.record import FLAG_RETRACT, Kind, Namespace, RecordBlock
from headwater.schema.config import Config, Ranker
from headwater.schema.events import Event
from headwater.testing.assembly_oracle import assemble_slowly
from headwater.testing.events import START_MS, Step, Written, script, written
from headwater.testing.oracle import SlowFold
from tests.retrieval.worlds import clicks

CONFIG = Config(ranker=Ranker(negatives=6, candidates=30))
PLAN = compile_plan(CONFIG)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


@pytest.fixture(scope="module")
def log() -> Written:
    with capture_logs():
        return written(script(40, 160, users=30, items=60), CONFIG)


class Chopped(MemoryLog):
    """The same log, a few records at a time."""

    def __init__(self, whole: Written, size: int) -> None:
        super().__init__()
        self.size = size
        vocabulary = whole.log.vocabulary()
        terms = [Term(n, i, text) for n in Namespace for i, text in enumerate(vocabulary.texts(n)) if i]
        for block in whole.blocks():
            self.append(Commit(block, terms))

    def read(self, after: int, limit: int = 16_384) -> RecordBlock | None:
        return super().read(after, min(limit, self.size))


def build(log: EventLog, *, groups: int = 10_000, seed: int = 1, start_ms: int = 0, until: int = 0) -> TrainingSet:
    return build_training_set(
        log, PLAN, CONFIG, until=until or log.last_offset, start_ms=start_ms, groups=groups, seed=seed
    )


def same(a: TrainingSet, b: TrainingSet) -> bool:
    return (
        a.features.tobytes() == b.features.tobytes() and a.labels.tobytes() == b.labels.tobytes()
        and a.weights.tobytes() == b.weights.tobytes() and a.groups.tolist() == b.groups.tolist()
        and (a.asked, a.missed, a.data) == (b.asked, b.missed, b.data)
    )  # fmt: skip


@dataclass
class Question:
    """A positive event as the slow fold knows it: all items' rows as they stood just before it."""

    offset: int
    positive: bytes
    rows: set[bytes]
    weight: float


def questions(log: Written) -> list[Question]:
    """Every positive event of the log, each with a slow fold of the log cut right before it."""
    found, slow, zones = [], SlowFold(CONFIG), Zones(log.log.vocabulary())
    weights = {t.name: t.weight for t in CONFIG.events if t.positive}
    for block in log.blocks([1]):
        record = block.records[0]
        if int(record["kind"]) == Kind.EVENT and not record["flags"] & FLAG_RETRACT:
            name = slow.types.get(int(record["type"]), "")
            if name in weights:
                assert slow.offset == int(record["offset"]) - 1
                user = slow.users.get(int(record["user"]))
                own = user.segments if user is not None else [0, 0]
                segments = [int(s) or o for s, o in zip(record["segments"], own, strict=True)]
                items = [item for item in slow.items if item]
                target = int(record["item"])
                now_ms = int(record["received_ms"])
                offset_ms = zones.offset_ms(user.zone if user is not None else 0, now_ms)
                asked = [*items, target]
                rows = assemble_slowly(slow, user, asked, (segments[0], segments[1]), now_ms, offset_ms)
                keys = [row.tobytes() for row in rows]
                found.append(Question(int(record["offset"]), keys[-1], set(keys), weights[name]))
        slow.apply(block)
    return found


def groups_of(made: TrainingSet) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.int32], float]]:
    ends = np.cumsum(made.groups)
    for start, end in zip(ends - made.groups, ends, strict=True):
        assert len(set(made.weights[start:end].tolist())) == 1
        yield made.features[start:end], made.labels[start:end], float(made.weights[start])


def test_every_row_is_what_was_known_just_before_its_event(log: Written) -> None:
    """To the byte, against the slow fold: no row holds anything of its event or of what came after."""
    made = build(log.log)
    asked = questions(log)
    assert made.asked == len(asked)
    assert len(made.groups) == made.asked - made.missed
    assert len(made.groups) > 40
    assert made.missed > 5
    position = 0
    for features, labels, weight in groups_of(made):
        assert labels.sum() == 1
        assert 1 <= len(labels) <= CONFIG.ranker.negatives + 1
        positive = features[labels == 1][0].tobytes()
        # groups stand in log order; questions that no source could answer are left out
        while not (asked[position].positive == positive and asked[position].weight == pytest.approx(weight)):
            position += 1
        assert {row.tobytes() for row in features} <= asked[position].rows
        position += 1


def test_what_comes_later_changes_nothing(log: Written) -> None:
    until = log.log.last_offset - 60
    cut = MemoryLog()
    vocabulary = log.log.vocabulary()
    terms = [Term(n, i, text) for n in Namespace for i, text in enumerate(vocabulary.texts(n)) if i]
    for block in log.blocks(until=until):
        cut.append(Commit(block, terms))
    assert cut.last_offset == until
    assert same(build(cut), build(log.log, until=until))


@pytest.mark.parametrize("groups", [15, 10_000])
@pytest.mark.parametrize("size", [1, 7, 100])
def test_the_set_does_not_depend_on_how_the_log_is_cut(log: Written, groups: int, size: int) -> None:
    assert same(build(Chopped(log, size), groups=groups), build(log.log, groups=groups))


def test_the_seed_decides_and_nothing_else(log: Written) -> None:
    assert same(build(log.log, groups=20, seed=4), build(log.log, groups=20, seed=4))
    assert not same(build(log.log, groups=20, seed=4), build(log.log, groups=20, seed=5))


def test_about_as_many_questions_are_asked_as_were_wanted(log: Written) -> None:
    counts = [build(log.log, groups=30, seed=seed).asked for seed in range(6)]
    assert 20 < np.mean(counts) < 40
    assert len(set(counts)) > 1


def test_training_starts_when_it_is_told_but_knows_what_was_before(log: Written) -> None:
    start_ms = log.log.last_received_ms - 6_000_000
    late, everything = build(log.log, start_ms=start_ms), build(log.log)
    assert 0 < late.asked < everything.asked
    assert late.data.first_ms >= start_ms
    assert late.data.last_offset == everything.data.last_offset == log.log.last_offset
    rows = {row.tobytes() for row in everything.features[everything.labels == 1]}
    assert {row.tobytes() for row in late.features[late.labels == 1]} <= rows


def test_negatives_are_what_the_sources_offered_and_never_the_answer() -> None:
    steps = [clicks((f"u{n}", f"i{n % 9}"), at_ms=START_MS + n * 5_000) for n in range(40)]
    made = build(written(steps, CONFIG).log)
    assert made.asked == 40
    assert made.missed == 9, "an item's first click could not be foreseen: nobody had heard of it"
    for features, labels, _ in groups_of(made):
        assert labels.sum() == 1
        assert len({row.tobytes() for row in features}) > 1 or len(features) == 1


def test_retractions_and_other_types_are_no_questions() -> None:
    click = Event(user="u", item="a", type="click", time=START_MS)
    steps = [
        Step(START_MS, [click, Event(user="v", item="a", type="view"), Event(user="v", item="a", type="rumour")]),
        Step(START_MS + 10_000, [msgspec.structs.replace(click, retract=True)]),
        Step(START_MS + 20_000, [Event(user="w", item="a", type="purchase")]),
    ]
    log = written(steps, CONFIG)
    kinds = positive_types(log.log, CONFIG)
    assert [log.log.vocabulary().texts(Namespace.EVENT_TYPE)[k] for k in kinds.tolist()] == ["click", "purchase"]
    block = next(log.blocks())
    assert int(positives(block, kinds).sum()) == 2
    made = build(log.log)
    assert (made.asked, made.missed) == (2, 1)
    assert made.weights.tolist() == [4.0]


def test_a_log_without_positive_events_trains_nothing() -> None:
    for steps in ([], [Step(START_MS, [Event(user="u", item="a", type="view")])]):
        made = build(written(steps, CONFIG).log)
        assert (made.asked, len(made.features), len(made.groups)) == (0, 0, 0)
        assert made.features.shape == (0, len(PLAN.columns))


def test_progress_is_told(log: Written) -> None:
    told: list[tuple[int, int]] = []
    steps = [clicks((f"u{n % 30}", f"i{n % 9}"), at_ms=START_MS + n * 5_000) for n in range(450)]
    big = written(steps, CONFIG).log
    build_training_set(
        big, PLAN, CONFIG, until=big.last_offset, start_ms=0, groups=10_000, seed=1,
        progress=lambda done, all_: told.append((done, all_)),
    )  # fmt: skip
    assert told
    assert all(0 < done < all_ == big.last_offset for done, all_ in told)
    assert told == sorted(told)


def test_what_follows_on_an_item_that_is_no_longer_offered_belongs_to_the_question_before() -> None:
    steps = [clicks(("first", "a"), ("first", "b"), at_ms=START_MS)]
    for user, kinds in (("both", ("click", "like")), ("one", ("click",)), ("late", ("click", "purchase"))):
        apart_ms = 31 * 60_000 if user == "late" else 8_000
        steps += [
            clicks((user, "a"), at_ms=START_MS + 1_000_000 + n * apart_ms, kind=kind) for n, kind in enumerate(kinds)
        ]
    made = build(written(sorted(steps, key=lambda step: step.at_ms), CONFIG).log)
    names = [t.name for t in CONFIG.events]
    done = [
        {name for t, name in enumerate(names) if outcome >> t & 1}
        for outcome in made.outcomes[made.labels == 1].tolist()
    ]
    by_user = dict(zip(made.addresses.user[np.cumsum(made.groups) - 1].tolist(), done, strict=True))
    assert list(by_user.values()) == [{"click", "like"}, {"click"}, {"click"}]
