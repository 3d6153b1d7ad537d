"""The contract of a fitted source: inherit :class:`FittedSourceContract`, say how it is trained, run pytest.

The world of the tests has groups of items and people who stay within one group, so a source that learns anything
finds the rest of somebody's group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pytest

from headwater.features.assemble import stranger
from headwater.features.fold import Fold
from headwater.features.plan import Plan, compile_plan
from headwater.features.rows import User
from headwater.learning.fitting import FitJob, fit_source
from headwater.learning.sequences import Sequences, read_sequences
from headwater.log.commands import PutItems
from headwater.registry.bundle import DataRange, ManifestFields, load_bundle, write_bundle
from headwater.retrieval.fitted import FittedSource, SourceError, open_sources
from headwater.retrieval.sources import Asked
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.serving.view import FoldView
from headwater.testing.events import START_MS, Step, Written

GROUPS, GROUP_ITEMS, PEOPLE, EVENTS = 3, 8, 60, 6


@dataclass(frozen=True, slots=True)
class TasteWorld:
    """Item ``a3`` belongs to group 0, ``b0`` to group 1 …; person ``p7`` to group ``7 % GROUPS``."""

    log: Written
    config: Config
    plan: Plan
    view: FoldView

    def asked(self, user: str) -> Asked:
        """The question of a user; a stranger's for a name that is not known."""
        row = stranger(self.plan)
        self.view.read_user(self.log.user(user), row)
        return Asked(row, (0, 0), self.log.now_ms)

    def group(self, number: int) -> set[int]:
        return {item for k in range(GROUP_ITEMS) if (item := self.log.item(f"{'abc'[number]}{k}"))}

    def sequences(self) -> Sequences:
        return read_sequences(self.log.log, self.plan, self.config, until=self.log.log.last_offset)


def taste_world(config: Config, *, seed: int = 5) -> TasteWorld:
    """The world of the contract, of one seed."""
    rng = np.random.default_rng(seed)
    log = Written(config)
    words = ("river stone", "concert piano", "goal striker")
    items = [
        Item(id=f"{'abc'[g]}{k}", title=words[g], categories=[f"group {g}"])
        for g in range(GROUPS)
        for k in range(GROUP_ITEMS)
    ]
    steps = [Step(START_MS, PutItems(items))]
    for place in range(EVENTS):
        for person in range(PEOPLE):
            item = f"{'abc'[person % GROUPS]}{rng.integers(GROUP_ITEMS)}"
            at_ms = START_MS + (place * PEOPLE + person) * 1_000
            steps.append(Step(at_ms, [Event(user=f"p{person}", item=item, type="click")]))
    log.add(steps)
    plan = compile_plan(config)
    fold = Fold(plan)
    for block in log.blocks():
        fold.apply(block)
    view = FoldView(plan, fold)
    return TasteWorld(log, config, plan, view)


class FittedSourceContract:
    """Every implementation of :class:`~headwater.retrieval.fitted.FittedSource` passes these tests."""

    name: ClassVar[str]
    config: ClassVar[Config] = Config()

    @classmethod
    def fit(cls, world: TasteWorld) -> dict[str, bytes]:
        """The files of the source, trained on the world."""
        job = FitJob(
            now_ms=world.log.now_ms, event_types=world.plan.event_types, content=world.view.index.content,
            price=world.view.index.price, born_ms=world.view.index.columns.born,
        )  # fmt: skip
        return fit_source(cls.name, world.sequences(), world.config, job)

    @pytest.fixture(scope="class")
    @classmethod
    def world(cls) -> TasteWorld:
        return taste_world(cls.config)

    @pytest.fixture(scope="class")
    @classmethod
    def files(cls, world: TasteWorld) -> dict[str, bytes]:
        return cls.fit(world)

    def opened(self, world: TasteWorld, files: Mapping[str, bytes]) -> FittedSource:
        (source,) = open_sources((self.name,), files, world.config, world.plan)
        source.prepare(world.view.index)
        return source

    def score(
        self, source: FittedSource, world: TasteWorld, asked: Asked, items: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        out = np.full(len(items), np.nan, np.float32)
        source.score(asked, world.view.index, items, out)
        assert np.isfinite(out).all()
        return out

    def test_it_has_a_name_a_reason_and_a_weight(self, world: TasteWorld, files: dict[str, bytes]) -> None:
        source = self.opened(world, files)
        assert source.name == self.name
        assert source.reason
        assert source.weight > 0.0

    def test_it_offers_distinct_items_that_are_there_best_first(
        self, world: TasteWorld, files: dict[str, bytes]
    ) -> None:
        source = self.opened(world, files)
        for person in range(PEOPLE):
            offer = source.fetch(world.asked(f"p{person}"), world.view.index)
            ranked = offer.ranked
            assert len(ranked) > 0
            assert not offer.why_empty
            assert len(np.unique(ranked.items)) == len(ranked) == len(ranked.scores)
            assert ((ranked.items > 0) & (ranked.items < world.view.table.count)).all()
            assert np.isfinite(ranked.scores).all()
            assert (np.diff(ranked.scores) <= 0).all()
            tied = np.diff(ranked.scores) == 0
            assert (np.diff(ranked.items)[tied] > 0).all(), "ties by the lower item number"

    def test_it_finds_the_rest_of_somebodys_group(self, world: TasteWorld, files: dict[str, bytes]) -> None:
        source = self.opened(world, files)
        for person in range(GROUPS):
            ranked = source.fetch(world.asked(f"p{person}"), world.view.index).ranked
            found = ranked.items[:4].tolist()
            assert len(set(found) & world.group(person)) >= 3

    def test_scores_agree_with_offers(self, world: TasteWorld, files: dict[str, bytes]) -> None:
        source, alone = self.opened(world, files), self.opened(world, files)
        everything = np.arange(world.view.table.count + 5, dtype=np.int64)
        for person in range(8):
            asked = world.asked(f"p{person}")
            ranked = source.fetch(asked, world.view.index).ranked
            after = self.score(source, world, asked, everything)
            np.testing.assert_array_equal(after[ranked.items], ranked.scores)
            np.testing.assert_array_equal(self.score(alone, world, asked, everything), after)
            others = np.setdiff1d(everything, ranked.items)
            # what is not offered is worth less, or nothing
            assert after[others].max(initial=0.0) <= max(float(ranked.scores[-1]), 0.0)

    def test_it_forgets_the_question_before(self, world: TasteWorld, files: dict[str, bytes]) -> None:
        """The pipeline fills one user row again and again."""
        source, everything = self.opened(world, files), np.arange(world.view.table.count, dtype=np.int64)
        row = stranger(world.plan)
        asked = Asked(row, (0, 0), world.log.now_ms)
        for person in (0, 1, 0, 2):
            world.view.read_user(world.log.user(f"p{person}"), row)
            fresh = self.score(self.opened(world, files), world, world.asked(f"p{person}"), everything)
            np.testing.assert_array_equal(self.score(source, world, asked, everything), fresh)
            source.fetch(asked, world.view.index)
        nobody = User(np.zeros_like(row.i8), np.zeros_like(row.f4), np.zeros_like(row.u4))
        assert not self.score(source, world, Asked(nobody, (0, 0), world.log.now_ms), everything).any()

    def test_of_unknown_items_it_thinks_nothing(self, world: TasteWorld, files: dict[str, bytes]) -> None:
        source = self.opened(world, files)
        unknown = np.array([0, world.view.table.count, 10_000, (1 << 24) - 1], np.int64)
        asked = world.asked("p0")
        assert not self.score(source, world, asked, unknown).any()
        source.fetch(asked, world.view.index)
        assert not self.score(source, world, asked, unknown).any()
        assert not len(self.score(source, world, asked, np.zeros(0, np.int64)))

    def test_to_a_stranger_it_says_why_it_has_nothing(self, world: TasteWorld, files: dict[str, bytes]) -> None:
        source = self.opened(world, files)
        offer = source.fetch(world.asked("nobody"), world.view.index)
        assert len(offer.ranked) == 0
        assert offer.why_empty

    def test_it_comes_back_from_a_bundle(self, tmp_path: Path, world: TasteWorld, files: dict[str, bytes]) -> None:
        fields = ManifestFields(
            created_ms=START_MS, plan_hash=world.plan.hash, columns=world.plan.columns, ranker="none",
            sources=(self.name,), event_types=world.plan.event_types,
            data=DataRange(first_offset=1, last_offset=1, first_ms=START_MS, last_ms=START_MS),
        )  # fmt: skip
        loaded = load_bundle(write_bundle(tmp_path, fields, files), plan_hash=world.plan.hash)
        source, again = self.opened(world, files), self.opened(world, loaded.files)
        asked = world.asked("p4")
        one, other = source.fetch(asked, world.view.index).ranked, again.fetch(asked, world.view.index).ranked
        np.testing.assert_array_equal(one.items, other.items)
        np.testing.assert_array_equal(one.scores, other.scores)

    def test_a_file_that_is_missing_or_damaged_is_an_error(self, world: TasteWorld, files: dict[str, bytes]) -> None:
        for name, data in files.items():
            without = {other: part for other, part in files.items() if other != name}
            with pytest.raises(SourceError):
                open_sources((self.name,), without, world.config, world.plan)
            if name.endswith((".npy", ".json", ".onnx")):
                for damage in (b"", data[: len(data) // 2], b"\x00" * 200):
                    with pytest.raises(SourceError):
                        open_sources((self.name,), {**files, name: damage}, world.config, world.plan)

    def test_items_that_this_table_lacks_are_not_offered(self, world: TasteWorld, files: dict[str, bytes]) -> None:
        """A server may be behind the log that was trained on."""
        fold = Fold(world.plan)
        fold.items.reserve(6)
        behind = FoldView(world.plan, fold)
        (source,) = open_sources((self.name,), files, world.config, world.plan)
        source.prepare(behind.index)
        asked = world.asked("p0")
        offer = source.fetch(asked, behind.index)
        assert bool(len(offer.ranked)) != bool(offer.why_empty)
        assert (offer.ranked.items < 6).all()
        out = np.full(3, np.nan, np.float32)
        source.score(asked, behind.index, np.array([3, 6, 20], np.int64), out)
        assert np.isfinite(out).all()
        assert not out[1:].any()

    def test_it_closes_once_and_for_all(self, world: TasteWorld, files: dict[str, bytes]) -> None:
        source = self.opened(world, files)
        source.close()
        source.close()
        with pytest.raises(HeadwaterError):
            source.fetch(world.asked("p0"), world.view.index)

    def test_training_again_gives_the_same_bytes(self, world: TasteWorld, files: dict[str, bytes]) -> None:
        assert self.fit(world) == files
