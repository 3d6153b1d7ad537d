"""The sequence source: what this user does next, by a transformer over the recent events and a vector for each item.

The user's vector is made for each request, item vectors when the bundle is opened and when an item's content or price
changes; both come from the one bundle, so they always fit. An item without an id that training knew has its content.
With ``item_age`` what the age of an item adds to its vector is looked up for each request; the sequence, target attention
and neighbours see vectors without it.
"""

from __future__ import annotations

import io
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime

from headwater.features.layout import U_RECENT_LENGTH
from headwater.features.plan import Plan
from headwater.retrieval.fitted import Attended, Files, Recent, SourceError
from headwater.retrieval.index import NOTHING, ItemIndex, Ranked
from headwater.retrieval.onnx_session import OnnxError, open_session
from headwater.retrieval.sequence_inputs import (
    AGE_SLOTS,
    AGES_FILE,
    ENCODER_FILE,
    FILES,
    FORMAT,
    IDS_FILE,
    META_FILE,
    TOWER_FILE,
    VOCABULARY_FILE,
    Meta,
    age_moment,
    age_slots,
    age_spans,
    born_seconds,
    gap_slots,
    idle_slots,
    price_input,
    read_meta,
)
from headwater.retrieval.sequence_kernels import SUMS, gathered, positive, positive_products, usable_events
from headwater.retrieval.sources import Asked, Offer
from headwater.retrieval.vectors.choice import EXACT, empty_index, read_choice
from headwater.schema.config import Config

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
_T = TypeVar("_T", bound=np.generic)

_NONE = np.zeros(0, np.int64)
_NOTHING_ADDED = np.zeros(0, np.float32)
_AT_ONCE = 4_096  # items that the tower takes at a time
_NO_RECENT, _ALL_NEW = "no recent items", "the model knows none of the recent items"


class _Recent(NamedTuple):
    """The recent events that the model can use, the newest last, and the user's vector (``None``: there are none)."""

    items: Int64
    types: Int64
    age_s: Int64
    vectors: Float32
    user: Float32 | None
    why: str


class SequenceSource:
    """The two towers of a bundle. Files are those of ``sequence_inputs.FILES``, and ``AGES_FILE`` for a model with ``item_age``.

    A score is ``log(1 + exp(user · item))``: in the order of the training's logits, and positive.

    Raises:
        SourceError: a file is missing or damaged, or the model was trained for other event types or another content size.
    """

    name = "sequence"
    weight = 1.0
    reason = "follows from what you did last"

    def __init__(self, files: Files, config: Config, plan: Plan) -> None:
        self.width, self.plan = config.sources.sequence.width, plan
        self.meta = _meta(files, config, plan)
        self.size, self.length = self.meta.shape.size, self.meta.shape.length
        vocabulary, self._ids = _arrays(files, self.meta)
        self._ages = _ages(files, self.meta)
        self._row_of = np.full(int(vocabulary.max(initial=0)) + 1, -1, np.int64)
        self._row_of[vocabulary] = np.arange(len(vocabulary))
        self._encoder: onnxruntime.InferenceSession | None = _session(files, ENCODER_FILE)
        self._tower: onnxruntime.InferenceSession | None = _session(files, TOWER_FILE)
        self._anchor_type = next((slot for slot, kind in enumerate(config.events, 1) if kind.positive), 1)
        self._choice = read_choice(files, self.name)
        self._search = empty_index(self._choice, self.size, 1)
        self._index: ItemIndex | None = None
        self._count, self._version = 0, 0
        self._vectors, self._known = np.zeros((0, self.size), np.float32), np.zeros(0, np.bool_)
        # the ages in the search are those of `_moment_s`; each holds from `_from_s` until before `_until_s`
        self._moment_s = 0
        self._from_s, self._until_s = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._asked: Asked | None = None
        self._nothing = _Recent(_NONE, _NONE, _NONE, np.zeros((0, self.size), np.float32), None, _NO_RECENT)
        self._recent = self._nothing
        self._sums = np.zeros(SUMS, np.float32)

    def prepare(self, index: ItemIndex) -> None:
        """Make the vectors of all items."""
        self._index, self._count, self._version = None, 0, 0
        self._moment_s = _moment_s(int(index.columns.clock[: index.table.count].max(initial=0)))
        self._follow(index)

    def fetch(self, asked: Asked, index: ItemIndex) -> Offer:
        """The items nearest to the user's vector; those that the user may not see are left to the pipeline."""
        recent = self._of(asked, index)
        if recent.user is None:
            return Offer(NOTHING, recent.why)
        self._grow_older(index, asked.now_ms)
        # what the user met lately is often near, and seldom shown again
        count = 2 * self.width + len(recent.items)
        ranked = self._search.search(recent.user, count)
        scores = np.empty(len(ranked), np.float32)
        positive(ranked.scores, scores)
        return Offer(Ranked(ranked.items, scores), "" if len(ranked) else "no item has a vector")

    def score(self, asked: Asked, index: ItemIndex, items: Int64, out: Float32) -> None:
        """The score of each of ``items`` int64[n] into ``out``; 0 for an item, or for a user, that the model knows nothing of."""
        recent = self._of(asked, index)
        if recent.user is None:
            out[: len(items)] = 0.0
            return
        added = _NOTHING_ADDED
        if self._ages is not None:
            born_ms = index.columns.born[np.where(items < self._count, items, 0)]  # others score 0 anyway
            slots = age_slots(born_seconds(born_ms), _moment_s(asked.now_ms))
            added = (self._ages @ recent.user)[slots]
        positive_products(self._vectors, self._known, self._count, items, recent.user, added, self._sums, out)

    def attend(self, asked: Asked, index: ItemIndex, items: Int64) -> Attended:
        """Vectors of the recent events and of ``items`` int64[n] (zeros for one that the model knows nothing of)."""
        recent = self._of(asked, index)
        candidates = np.empty((len(items), self.size), np.float32)
        gathered(self._vectors, self._known, self._count, items, candidates)
        return Attended(recent.vectors, recent.types, recent.age_s.astype(np.float32), candidates)

    def recent(self, asked: Asked, index: ItemIndex) -> Recent:
        """The recent events that the encoder and target attention look at."""
        recent = self._of(asked, index)
        return Recent(recent.items, recent.types, recent.age_s.astype(np.float32))

    def vectors(self, index: ItemIndex, now_ms: int | None = None) -> Float32:
        """The vectors of all items ``float32[items, d]``; zeros for one that the model knows nothing of."""
        self._follow(index)
        if self._ages is None or now_ms is None:
            return self._vectors[: self._count]
        made, known = np.zeros((self._count, self.size), np.float32), np.flatnonzero(self._known[: self._count])
        made[known] = self._searched(index, known, _moment_s(now_ms))
        return made

    def query(self, asked: Asked, index: ItemIndex) -> Float32 | None:
        """The user's vector, from the recent events."""
        return self._of(asked, index).user

    def close(self) -> None:
        """Let go of the model and the vectors."""
        self._encoder = self._tower = self._index = self._asked = None
        self._search = empty_index(EXACT, self.size, 1)
        self._vectors, self._known = np.zeros((0, self.size), np.float32), np.zeros(0, np.bool_)
        self._count = 0

    # -- items -----------------------------------------------------------------------------------------

    def _follow(self, index: ItemIndex) -> None:
        """Make the vectors of the items that are new or have changed since the last time."""
        version, count = index.version, index.table.count
        if index is self._index and version == self._version and count == self._count:
            return
        since, before = self._version, self._count
        if index is not self._index:
            since = before = 0
            self._search = empty_index(self._choice, self.size, max(count, 1))
        if len(self._known) < count:
            room = max(count, 2 * len(self._known))
            self._vectors, self._known = _grown(self._vectors, room), _grown(self._known, room)
            if self._ages is not None:
                self._from_s, self._until_s = _grown(self._from_s, room), _grown(self._until_s, room)
        changed = index.stamps[:count] > since
        changed[before:] = True
        changed[0] = False  # stands for all items together
        items = np.flatnonzero(changed)
        for start in range(0, len(items), _AT_ONCE):
            self._make(index, items[start : start + _AT_ONCE])
        self._index, self._version, self._count = index, version, count

    def _make(self, index: ItemIndex, items: Int64) -> None:
        if self._tower is None:
            raise SourceError("The sequence source is closed. Open the bundle again.")
        inside = items < len(self._row_of)
        rows = np.where(inside, self._row_of[np.where(inside, items, 0)], -1)
        known = (rows >= 0) | index.has_content[items]
        made = self._tower.run(
            None, {"ids": self._ids[rows], "content": index.content[items], "price": price_input(index.price[items])}
        )[0]  # the unknown item is the last of the ids, which is where -1 points
        self._vectors[items] = np.where(known[:, None], made, np.float32(0.0))
        self._search.remove(items[self._known[items] & ~known])
        self._known[items] = known
        self._place(index, items[known])

    def _place(self, index: ItemIndex, items: Int64) -> None:
        """Put ``items`` into the search, as old as they are."""
        self._search.set(items, self._searched(index, items, self._moment_s))
        if self._ages is not None:
            born_s = born_seconds(index.columns.born[items])
            self._from_s[items], self._until_s[items] = age_spans(born_s, age_slots(born_s, self._moment_s))

    def _searched(self, index: ItemIndex, items: Int64, moment_s: int) -> Float32:
        """The vectors ``float32[n, d]`` of ``items`` that are known, as old as they are at ``moment_s``."""
        vectors = self._vectors[items]
        if self._ages is not None:
            vectors += self._ages[age_slots(born_seconds(index.columns.born[items]), moment_s)]
        return vectors

    def _grow_older(self, index: ItemIndex, now_ms: int) -> None:
        """Place those items anew that have come into another bucket of age since the last minute that was asked about."""
        if self._ages is None or (moment_s := _moment_s(now_ms)) == self._moment_s:
            return
        self._moment_s, here = moment_s, slice(0, self._count)
        due = self._known[here] & ((self._until_s[here] <= moment_s) | (self._from_s[here] > moment_s))
        self._place(index, np.flatnonzero(due))

    # -- users -----------------------------------------------------------------------------------------

    def _of(self, asked: Asked, index: ItemIndex) -> _Recent:
        """The recent events and the vector of the user of ``asked``, made once for each question."""
        self._follow(index)
        if asked is not self._asked:
            self._recent = self._read(asked)
            self._asked = asked
        return self._recent

    def _read(self, asked: Asked) -> _Recent:
        layout, u4 = self.plan.layout, asked.user.u4
        held = int(u4[U_RECENT_LENGTH])
        if held == 0:
            return self._nothing
        items, types, times_s, ages_s = np.empty((4, min(held, self.length)), np.int64)
        now_s = asked.now_ms // 1000
        count = usable_events(
            u4[layout.recent_keys : layout.recent_keys + held], u4[layout.recent_times : layout.recent_times + held],
            self._known, self._count, self._anchor_type, now_s, items, types, times_s, ages_s,
        )  # fmt: skip
        if not count:
            return self._nothing._replace(why=_ALL_NEW)
        items, types, times_s, ages_s = items[:count], types[:count], times_s[:count], ages_s[:count]
        vectors = self._vectors[items]
        return _Recent(items, types, ages_s, vectors, self._encode(vectors, types, times_s, now_s), "")

    def _encode(self, vectors: Float32, types: Int64, times_s: Int64, now_s: int) -> Float32:
        """The user's vector ``float32[d]``; the columns are those of ``learning.sequence.packing.batch_of``."""
        if self._encoder is None:
            raise SourceError("The sequence source is closed. Open the bundle again.")
        user: Float32 = self._encoder.run(
            None,
            {
                "vectors": vectors[None],
                "types": types[None],
                "gaps": gap_slots(times_s)[None],
                "idle": idle_slots(np.array([now_s - times_s[-1]])),
            },
        )[0][0]
        return user


def _moment_s(now_ms: int) -> int:
    return age_moment(now_ms // 1_000)


def _grown(old: npt.NDArray[_T], room: int) -> npt.NDArray[_T]:
    new = np.zeros((room, *old.shape[1:]), old.dtype)
    new[: len(old)] = old
    return new


def _meta(files: Files, config: Config, plan: Plan) -> Meta:
    for name in FILES:
        if name not in files:
            raise SourceError(f"The bundle names a sequence source but holds no {name}. Publish it again.")
    try:
        meta = read_meta(files[META_FILE])
    except msgspec.MsgspecError as error:
        raise SourceError(f"{META_FILE} cannot be read: {error}. Publish the bundle again.") from error
    if meta.format != FORMAT:
        raise SourceError(f"{META_FILE} has format {meta.format}; this version reads {FORMAT}. Train again.")
    names = tuple(kind.name for kind in config.events)
    if meta.event_types != names:
        raise SourceError(
            f"The sequence model was trained on the event types {', '.join(meta.event_types)}; configured are "
            f"{', '.join(names)}. Train again."
        )
    if meta.shape.content != plan.layout.content_size:
        raise SourceError(
            f"The sequence model was trained with content of {meta.shape.content} numbers; configured are "
            f"{plan.layout.content_size} (features.content_size). Train again."
        )
    return meta


def _arrays(files: Files, meta: Meta) -> tuple[Int64, Float32]:
    try:
        vocabulary, ids = (np.load(io.BytesIO(files[name]), allow_pickle=False) for name in (VOCABULARY_FILE, IDS_FILE))
    except (ValueError, EOFError) as error:
        raise SourceError(
            f"An array of the sequence model cannot be read: {error}. Publish the bundle again."
        ) from error
    if vocabulary.shape != (meta.items,) or ids.shape != (meta.items + 1, meta.shape.size):
        raise SourceError(
            f"The arrays of the sequence model hold {vocabulary.shape} and {ids.shape}, {META_FILE} says {meta.items} items "
            f"of {meta.shape.size}. Publish the bundle again."
        )
    return vocabulary.astype(np.int64), ids.astype(np.float32)


def _ages(files: Files, meta: Meta) -> Float32 | None:
    """What each bucket of age adds to a vector, ``float32[AGE_SLOTS, d]``; ``None`` for a model that knows no ages."""
    if not meta.shape.item_age:
        return None
    if AGES_FILE not in files:
        raise SourceError(
            f"The sequence model knows the age of items, but the bundle holds no {AGES_FILE}. Publish it again."
        )
    try:
        ages = np.load(io.BytesIO(files[AGES_FILE]), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise SourceError(f"{AGES_FILE} cannot be read: {error}. Publish the bundle again.") from error
    if ages.shape != (AGE_SLOTS, meta.shape.size):
        raise SourceError(
            f"{AGES_FILE} holds {ages.shape}; this version has {AGE_SLOTS} buckets of age, and {META_FILE} says vectors of "
            f"{meta.shape.size}. Train again."
        )
    return np.asarray(ages, np.float32)


def _session(files: Files, name: str) -> onnxruntime.InferenceSession:
    try:
        return open_session(files[name])
    except OnnxError as error:
        raise SourceError(f"{name} cannot be opened: {error}. Publish the bundle again.") from error
