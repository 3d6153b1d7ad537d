"""The sequence source, trained on two circles of items that never meet: jazz and metal."""

from __future__ import annotations

from functools import cache

import msgspec
import numpy as np
import onnx
import pytest
import torch

from headwater.features.assemble import anchor_user, stranger
from headwater.features.layout import U_RECENT_LENGTH
from headwater.learning.sequence.fit import fit_sequence
from headwater.learning.sequence.model import TwoTower
from headwater.learning.sequence.packing import batch_of, tokens_of
from headwater.learning.sequence.warm import read_earlier, take_over
from headwater.learning.sequences import read_sequences
from headwater.log.commands import PutItems
from headwater.retrieval.fitted import SourceError, open_sources
from headwater.retrieval.index import ItemIndex
from headwater.retrieval.sequence import SequenceSource
from headwater.retrieval.sequence_inputs import (
    ENCODER_FILE,
    FILES,
    META_FILE,
    TOWER_FILE,
    gap_slots,
    idle_slots,
    price_input,
    read_meta,
)
from headwater.retrieval.sources import Asked
from headwater.schema.config import Config, Features, FittedConfig, Ranker, Sources
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.schema.models import Models, SequenceModel
from headwater.serving.pipeline import Pipeline
from headwater.serving.request import Query
from headwater.testing.events import START_MS, Step
from tests.retrieval.worlds import HOUR_MS, MINUTE_MS, World, clicks, world

MODEL = SequenceModel(
    size=16, heads=2, length=6, epochs=16, batch_tokens=128, learning_rate=0.01, dropout=0.0, id_dropout=0.3
)
CONFIG = Config(
    features=Features(recent=8, content_size=32),
    models=Models(sequence=MODEL),
    sources=Sources(sequence=FittedConfig(enabled=True, width=50)),
    ranker=Ranker(kind="none"),
)
AROUND = 8
JAZZ, METAL = [f"jazz {k}" for k in range(AROUND)], [f"metal {k}" for k in range(AROUND)]


def item_of(name: str, **more: object) -> Item:
    kind = name.split()[0]
    return msgspec.convert(
        {"id": name, "categories": [kind], "tags": {"jazz": ["trumpet"], "metal": ["thrash"]}.get(kind, []), **more},
        Item,
    )


def walks() -> list[Step]:
    """Everybody walks on in one of the two circles, a click or a view every few minutes."""
    random = np.random.default_rng(1)
    steps = [Step(START_MS, PutItems([item_of(name) for name in (*JAZZ, *METAL)]))]
    for k in range(11):
        events = []
        for user in range(60):
            if 3 <= user % 11 <= k:
                continue  # not all of the same length
            name = (JAZZ, METAL)[user % 2][(user // 2 + k) % AROUND]
            events.append(Event(user=f"u{user}", item=name, type="view" if random.random() < 0.2 else "click"))
        steps.append(Step(START_MS + k * 7 * MINUTE_MS, events))
    return steps


@cache
def trained() -> dict[str, bytes]:
    """Trained once, from the log of :func:`walks`."""
    small = made()
    sequences = read_sequences(small.log.log, small.plan, CONFIG, until=small.log.log.last_offset)
    count = small.view.table.count
    return fit_sequence(
        sequences, small.view.index.content[:count], small.view.index.price[:count], MODEL,
        event_types=tuple(kind.name for kind in CONFIG.events), seed=1, threads=1,
    )[0]  # fmt: skip


def made() -> World:
    return world(*walks(), config=CONFIG)


def opened(small: World) -> SequenceSource:
    source = open_sources(("sequence",), trained(), CONFIG, small.plan)[0]
    assert isinstance(source, SequenceSource)
    source.prepare(small.view.index)
    return source


def found(source: SequenceSource, small: World, asked: Asked) -> list[str]:
    offer = source.fetch(asked, small.view.index)
    assert bool(len(offer.ranked)) != bool(offer.why_empty)
    assert (np.diff(offer.ranked.scores) <= 0).all()
    assert (offer.ranked.scores > 0).all()
    return small.names(offer.ranked)


def test_what_comes_next_in_the_circle_is_offered_first() -> None:
    small = made()
    source = opened(small)
    now = small.now_ms
    small.add(clicks(("me", "jazz 2"), at_ms=now + 1_000), clicks(("me", "jazz 3"), at_ms=now + 7 * MINUTE_MS))
    small.add(clicks(("you", "metal 6"), at_ms=now + 8 * MINUTE_MS))
    assert found(source, small, small.asked("me"))[0] == "jazz 4"
    assert found(source, small, small.asked("you", later_ms=7 * MINUTE_MS))[0] == "metal 7"


def test_serving_computes_what_training_computed() -> None:
    """Torch on the sequences of the log, and the source on the row that was folded from the same events."""
    small = made()
    source = opened(small)
    files = trained()
    meta = read_meta(files[META_FILE])
    earlier = read_earlier(files, meta.shape, meta.event_types)
    assert earlier is not None
    model = TwoTower(meta.shape, meta.items, 0.0).eval()
    take_over(model, earlier)
    index = small.view.index
    sequences = read_sequences(small.log.log, small.plan, CONFIG, until=small.log.log.last_offset)
    row_of = np.full(small.view.table.count, -1, np.int64)
    row_of[earlier.items] = np.arange(len(earlier.items))
    tokens = tokens_of(sequences, row_of, 1)
    with torch.inference_mode():
        vectors = model.items(
            torch.from_numpy(index.content[earlier.items]), torch.from_numpy(price_input(index.price[earlier.items]))
        )
        for k, user in enumerate(sequences.users.tolist()):
            stop = tokens.starts[k + 1]
            start = max(tokens.starts[k], stop - MODEL.length)
            batch = batch_of(tokens, np.array([start]), np.array([stop - start]))
            later_s = 100 * k
            idle = np.broadcast_to(idle_slots(np.array([later_s])), batch.idle.shape).copy()
            wanted = model.encoder(
                vectors[torch.from_numpy(batch.rows)],
                *(torch.from_numpy(part) for part in (batch.types, batch.gaps, idle)),
            )[0, -1]
            row = stranger(small.plan)
            small.view.read_user(user, row)
            asked = Asked(row, (0, 0), 1_000 * (int(tokens.times_s[stop - 1]) + later_s))
            scores = np.zeros(len(earlier.items), np.float32)
            source.score(asked, index, earlier.items, scores)
            assert np.abs(scores - np.logaddexp(0.0, (vectors @ wanted).numpy())).max() < 1e-4
            attended = source.attend(asked, index, earlier.items[:3])
            assert np.abs(attended.recent - vectors[batch.rows[0]].numpy()).max() < 1e-4
            assert attended.types.tolist() == batch.types[0].tolist()
            assert attended.age_s[-1] == later_s


def test_a_new_item_is_offered_for_its_content_and_understood_in_a_sequence() -> None:
    small = made()
    source = opened(small)
    small.add(clicks(("me", "jazz 1"), ("you", "metal 1"), at_ms=small.now_ms + 1_000))
    small.add(Step(small.now_ms, PutItems([item_of("jazz new"), item_of("metal new"), Item(id="blank")])))
    mine, yours = found(source, small, small.asked("me")), found(source, small, small.asked("you"))
    assert mine.index("jazz new") < AROUND + 1 < mine.index("metal new")
    assert yours.index("metal new") < AROUND + 1 < yours.index("jazz new")
    assert "blank" not in mine, "neither trained on nor described"
    small.add(clicks(("new to me", "jazz new"), ("lost", "blank"), at_ms=small.now_ms + 1_000))
    assert found(source, small, small.asked("new to me"))[0].startswith("jazz")
    assert source.fetch(small.asked("lost"), small.view.index).why_empty == "the model knows none of the recent items"


def test_vectors_follow_the_catalogue() -> None:
    small = made()
    source = opened(small)
    small.add(clicks(("me", "jazz 1"), at_ms=small.now_ms + 1_000))
    small.add(Step(small.now_ms, PutItems([item_of("turncoat x", categories=["metal"], tags=["thrash"])])))
    before = found(source, small, small.asked("me")).index("turncoat x")
    small.add(Step(small.now_ms, PutItems([item_of("turncoat x", categories=["jazz"], tags=["trumpet"])])))
    assert found(source, small, small.asked("me")).index("turncoat x") < before
    again = opened(small)
    assert found(again, small, small.asked("me")) == found(source, small, small.asked("me"))
    small.add(Step(small.now_ms, PutItems([Item(id="turncoat x")])))
    assert "turncoat x" not in found(source, small, small.asked("me"))


def test_another_index_is_taken_over_whole() -> None:
    small, source = made(), opened(made())
    small.add(clicks(("me", "jazz 1"), at_ms=small.now_ms + 1_000))
    assert found(source, small, small.asked("me")) == found(opened(small), small, small.asked("me"))
    other = ItemIndex(small.plan, small.view.table)
    assert len(source.fetch(small.asked("me"), other).ranked) == 2 * AROUND


def test_an_anchor_is_an_item_that_the_user_just_turned_to() -> None:
    small = made()
    source = opened(small)
    small.add(clicks(("me", "jazz 1"), at_ms=small.now_ms + 1_000))
    asked = small.asked("me")
    anchor_user(asked.user, small.log.item("metal 3"), small.plan.layout)
    assert set(found(source, small, asked)[:AROUND]) == set(METAL)
    assert source.attend(asked, small.view.index, np.array([1])).age_s.tolist() == [0.0]


def test_a_stranger_gets_a_reason_and_no_opinion() -> None:
    small = made()
    source = opened(small)
    assert source.fetch(small.asked(), small.view.index).why_empty == "no recent items"
    out = np.full(2, 7.0, np.float32)
    source.score(small.asked(), small.view.index, np.array([1, 2]), out)
    assert out.tolist() == [0.0, 0.0]
    attended = source.attend(small.asked(), small.view.index, np.array([1, 10**6]))
    assert (attended.recent.shape, attended.candidates.shape) == ((0, MODEL.size), (2, MODEL.size))
    assert attended.candidates[0].any()
    assert not attended.candidates[1].any()


def test_scores_are_those_of_the_offer_and_nothing_for_the_unknown() -> None:
    small = made()
    source = opened(small)
    small.add(clicks(("me", "jazz 1"), at_ms=small.now_ms + 1_000), Step(small.now_ms, PutItems([Item(id="blank")])))
    asked = small.asked("me")
    offer = source.fetch(asked, small.view.index)
    out = np.zeros(len(offer.ranked) + 2, np.float32)
    source.score(asked, small.view.index, np.append(offer.ranked.items, [small.log.item("blank"), 10**6]), out)
    np.testing.assert_allclose(out[:-2], offer.ranked.scores, atol=1e-5)
    assert out[-2:].tolist() == [0.0, 0.0]


def test_the_pipeline_shows_no_hidden_and_no_seen_item() -> None:
    small = made()
    source = opened(small)
    small.add(clicks(("me", "jazz 2"), at_ms=small.now_ms + 1_000))
    small.add(Step(small.now_ms, PutItems([item_of("jazz 3", available=False)])))
    assert "jazz 3" in found(source, small, small.asked("me"))
    query = Query(request_id="r", user=small.log.user("me"), k=5, deadline_ms=1e9)
    answer = Pipeline(CONFIG, small.plan, sources=(source,)).recommend(query, small.view, None, small.now_ms)
    shown = small.log.names(answer.items.tolist())
    assert answer.sources == ["sequence"] * 5
    assert not {"jazz 2", "jazz 3"} & set(shown)
    assert sum(name.startswith("jazz") for name in shown) >= 4


def test_only_the_last_events_count() -> None:
    """Rows hold 8 events, the model looks at 6."""
    small = made()
    source = opened(small)
    start = small.now_ms + HOUR_MS
    small.add(*(clicks(("me", METAL[k]), ("you", JAZZ[k]), at_ms=start + k * MINUTE_MS) for k in range(2)))
    small.add(*(clicks(("me", JAZZ[k]), ("you", JAZZ[k]), at_ms=start + k * MINUTE_MS) for k in range(2, 8)))
    assert small.user("me").u4[U_RECENT_LENGTH] == 8
    mine, yours = (source.fetch(small.asked(name), small.view.index).ranked for name in ("me", "you"))
    assert mine.items.tolist() == yours.items.tolist()
    assert mine.scores.tolist() == yours.scores.tolist()


def test_a_damaged_or_unfitting_model_is_refused() -> None:
    small, files = made(), trained()
    for name in FILES:
        with pytest.raises(SourceError, match=f"holds no {name}"):
            SequenceSource({k: v for k, v in files.items() if k != name}, CONFIG, small.plan)
        with pytest.raises(SourceError):
            SequenceSource({**files, name: files[name][: len(files[name]) // 2]}, CONFIG, small.plan)
    meta = msgspec.json.decode(files[META_FILE])
    for change, message in (
        ({"format": 99}, "format 99"),
        ({"event_types": ["click"]}, "event types"),
        ({"items": 3}, "says 3 items"),
        ({"shape": {**meta["shape"], "content": 7}}, "content of 7 numbers"),
    ):
        with pytest.raises(SourceError, match=message):
            SequenceSource({**files, META_FILE: msgspec.json.encode({**meta, **change})}, CONFIG, small.plan)
    with pytest.raises(SourceError, match="knows sequence"):
        open_sources(("oracle",), files, CONFIG, small.plan)


def test_weights_outside_the_file_are_refused() -> None:
    small, files = made(), trained()
    for name in (ENCODER_FILE, TOWER_FILE):
        model = onnx.load_from_string(files[name])
        onnx.external_data_helper.convert_model_to_external_data(model, location="elsewhere.bin", size_threshold=0)
        for tensor in model.graph.initializer:
            if tensor.HasField("raw_data"):
                onnx.external_data_helper.set_external_data(tensor, "elsewhere.bin")
                tensor.ClearField("raw_data")
        with pytest.raises(SourceError, match="outside the file"):
            SequenceSource({**files, name: model.SerializeToString()}, CONFIG, small.plan)


def test_a_closed_source_says_so() -> None:
    small = made()
    source = opened(small)
    source.close()
    source.close()
    small.add(clicks(("me", "jazz 1"), at_ms=small.now_ms + 1_000))
    with pytest.raises(SourceError, match="closed"):
        source.fetch(small.asked("me"), small.view.index)


def test_buckets_of_time_and_price() -> None:
    assert gap_slots(np.array([[5, 5, 7, 10_000_000]])).tolist() == [[0, 1, 2, 18]]
    assert gap_slots(np.array([3])).tolist() == [0]
    assert idle_slots(np.array([-5, 0, 1_799, 1_800, 10**9])).tolist() == [0, 0, 0, 1, 7]
    assert price_input(np.array([0.0, -1.0, np.e - 1.0], np.float32))[:, 0].tolist() == pytest.approx([0.0, 0.0, 1.0])
