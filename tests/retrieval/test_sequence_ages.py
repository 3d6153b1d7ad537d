"""The sequence source whose items are worth more or less as they grow older."""

from __future__ import annotations

import io
from functools import cache

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from headwater.learning.sequence.fit import fit_sequence
from headwater.learning.sequences import read_sequences
from headwater.log.commands import PutItems
from headwater.retrieval.fitted import SourceError
from headwater.retrieval.index import ItemIndex
from headwater.retrieval.sequence import SequenceSource
from headwater.retrieval.sequence_inputs import AGE_SLOTS, AGES_FILE, META_FILE, age_moment, age_slots, born_seconds
from headwater.retrieval.sources import Asked
from headwater.testing.events import START_MS, Step
from tests.retrieval.test_sequence import CONFIG, JAZZ, METAL, MODEL, item_of, walks
from tests.retrieval.worlds import HOUR_MS, MINUTE_MS, World, clicks, world

DAY_MS = 24 * HOUR_MS


@cache
def ages() -> npt.NDArray[np.float32]:
    return np.random.default_rng(5).normal(0.0, 1.0, (AGE_SLOTS, 16)).astype(np.float32)


def array_bytes(array: npt.NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


@cache
def ageless() -> dict[str, bytes]:
    """A model that was hardly trained."""
    small = world(*walks(), config=CONFIG)
    sequences = read_sequences(small.log.log, small.plan, CONFIG, until=small.log.log.last_offset)
    count, index = small.view.table.count, small.view.index
    return fit_sequence(
        sequences, index.content[:count], index.price[:count], msgspec.structs.replace(MODEL, epochs=2),
        event_types=small.plan.event_types, seed=1, threads=1,
    )[0]  # fmt: skip


@cache
def files() -> dict[str, bytes]:
    """The same with ages that matter much."""
    meta = msgspec.json.decode(ageless()[META_FILE])
    meta["shape"]["item_age"] = True
    return {**ageless(), META_FILE: msgspec.json.encode(meta), AGES_FILE: array_bytes(ages())}


def made() -> World:
    """Jazz is as old as the log, metal was published at all kinds of times, and of some things nothing is known but a click."""
    small = world(*walks(), config=CONFIG)
    ages_ms = [
        MINUTE_MS,
        20 * MINUTE_MS,
        50 * MINUTE_MS,
        3 * HOUR_MS,
        30 * HOUR_MS,
        9 * DAY_MS,
        80 * DAY_MS,
        900 * DAY_MS,
    ]
    put = [item_of(name, published=START_MS - age) for name, age in zip(METAL, ages_ms, strict=True)]
    small.add(Step(small.now_ms, PutItems(put)))
    return small.add(clicks(("me", "jazz 1"), ("me", "metal 1"), at_ms=small.now_ms + 1_000))


def opened(small: World, index: ItemIndex | None = None) -> SequenceSource:
    source = SequenceSource(files(), CONFIG, small.plan)
    source.prepare(small.view.index if index is None else index)
    return source


def asked(small: World, later_ms: int) -> Asked:
    return small.asked("me", later_ms=later_ms)


def slow(source: SequenceSource, small: World, question: Asked) -> npt.NDArray[np.float64]:
    """Scores of all items: each vector made for the moment of the question."""
    index, count = small.view.index, small.view.table.count
    user = source.query(question, index)
    assert user is not None
    moment_s = int(age_moment(np.array([question.now_ms // 1_000]))[0])
    vectors = source.vectors(index).astype(np.float64)
    aged = vectors + ages()[age_slots(born_seconds(index.columns.born[:count]), moment_s)]
    aged[~vectors.any(axis=1)] = -np.inf
    with np.errstate(invalid="ignore"):
        products = np.where(vectors.any(axis=1), aged @ user.astype(np.float64), -np.inf)
    return np.logaddexp(0.0, products)


LATER_MS = (0, 30_000, 9 * MINUTE_MS, 2 * HOUR_MS, DAY_MS, 3 * DAY_MS, HOUR_MS, 0, 40 * DAY_MS)
"""How long after the last event questions come: they go back now and then."""


def test_an_offer_is_as_old_as_the_moment_of_the_question() -> None:
    small = made()
    source = opened(small)
    orders = set()
    for later_ms in LATER_MS:
        question = asked(small, later_ms)
        wanted = slow(source, small, question)
        offer = source.fetch(question, small.view.index).ranked
        assert len(offer) == len(JAZZ) + len(METAL)
        np.testing.assert_allclose(offer.scores, wanted[offer.items], rtol=1e-4, atol=1e-5)
        assert (np.diff(wanted[offer.items]) < 1e-5).all(), "best first"
        everything = np.zeros(small.view.table.count + 3, np.float32)
        source.score(question, small.view.index, np.arange(len(everything)), everything)
        np.testing.assert_allclose(everything[offer.items], offer.scores, atol=1e-5)
        fresh = opened(small, ItemIndex(small.plan, small.view.table))
        again = fresh.fetch(question, small.view.index).ranked
        np.testing.assert_array_equal(again.items, offer.items)
        np.testing.assert_array_equal(again.scores, offer.scores)
        searched = source.vectors(small.view.index, question.now_ms)
        np.testing.assert_array_equal(
            searched[offer.items], fresh.vectors(small.view.index, question.now_ms)[offer.items]
        )
        assert not searched[0].any()
        orders.add(tuple(offer.items.tolist()))
    assert len(orders) > 4, "time changes the order"


def test_items_that_come_or_are_published_at_another_time_are_followed() -> None:
    small = made()
    source = opened(small)
    for step in (
        Step(small.now_ms + 1_000, PutItems([item_of("jazz new")])),
        Step(small.now_ms + 2_000, PutItems([item_of("metal 0", published=START_MS - 400 * DAY_MS)])),
        Step(small.now_ms + 3_000, PutItems([item_of("metal 7", published=small.now_ms - 1)])),
    ):
        small.add(step)
        question = asked(small, 0)
        offer = source.fetch(question, small.view.index).ranked
        np.testing.assert_allclose(offer.scores, slow(source, small, question)[offer.items], rtol=1e-4, atol=1e-5)
        fresh = opened(small).fetch(question, small.view.index).ranked
        np.testing.assert_array_equal(fresh.scores, offer.scores)


def test_sequences_and_target_attention_see_items_without_age() -> None:
    small = made()
    source, plain = opened(small), SequenceSource(ageless(), CONFIG, small.plan)
    question, items = asked(small, 3 * DAY_MS), np.arange(1, 12)
    aged, bare = (each.attend(question, small.view.index, items) for each in (source, plain))
    np.testing.assert_array_equal(aged.candidates, bare.candidates)
    np.testing.assert_array_equal(aged.recent, bare.recent)
    np.testing.assert_array_equal(source.vectors(small.view.index), plain.vectors(small.view.index))
    np.testing.assert_array_equal(plain.vectors(small.view.index, question.now_ms), plain.vectors(small.view.index))
    mine, theirs = source.query(question, small.view.index), plain.query(question, small.view.index)
    assert mine is not None
    np.testing.assert_array_equal(mine, theirs)


def test_ages_that_do_not_fit_are_refused() -> None:
    small = made()
    without = {name: data for name, data in files().items() if name != AGES_FILE}
    with pytest.raises(SourceError, match=f"holds no {AGES_FILE}"):
        SequenceSource(without, CONFIG, small.plan)
    with pytest.raises(SourceError, match="cannot be read"):
        SequenceSource({**files(), AGES_FILE: files()[AGES_FILE][:100]}, CONFIG, small.plan)
    with pytest.raises(SourceError, match=f"this version has {AGE_SLOTS} buckets of age"):
        SequenceSource({**files(), AGES_FILE: array_bytes(ages()[:-1])}, CONFIG, small.plan)
