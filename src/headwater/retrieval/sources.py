"""The candidate sources: each offers items with scores, or says why it has none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from headwater.features.layout import U_RECENT_LENGTH, Layout
from headwater.features.plan import Plan
from headwater.features.recent import DEPTH, co_visit_candidates, content_query, recent_items
from headwater.features.rows import User
from headwater.features.rowset import Rows
from headwater.jit import kernel
from headwater.retrieval.index import LIST_DEPTH, NOTHING, ItemIndex, Ranked, in_order
from headwater.retrieval.vectors.exact import ExactIndex
from headwater.retrieval.young import YoungItems
from headwater.schema.config import Config
from headwater.schema.durations import parse_duration

Int64 = npt.NDArray[np.int64]

MAX_PARTNERS = 4096


@dataclass(frozen=True, slots=True)
class Asked:
    """What a source may look at: the user row, the request's segments, the moment, where the item columns stand, and the seed of
    what it draws by lot.
    """

    user: User
    segments: tuple[int, int]
    now_ms: int
    item_offset: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Offer:
    """What a source found; ``why_empty`` is set when it is nothing."""

    ranked: Ranked
    why_empty: str = ""


class Source(Protocol):
    """A way to find candidates. ``weight`` is its say in the merged order, ``reason`` what a person reads."""

    name: str
    weight: float
    reason: str

    def fetch(self, asked: Asked, index: ItemIndex) -> Offer: ...


class Popular:
    """Decayed weight of positive events: in the request's segments first, then everywhere."""

    name = "popular"
    weight = 0.35
    reason = "popular now"

    def __init__(self, config: Config, plan: Plan) -> None:
        self.width = config.sources.popular.width
        lives = [parse_duration(text) for text in config.features.item_half_lives]
        self.half_life = int(np.argsort(lives)[len(lives) // 2])
        self.keys = len(plan.segment_keys)
        self.segments = plan.layout.segment_size

    def fetch(self, asked: Asked, index: ItemIndex) -> Offer:
        if not len(index.popular(self.half_life, self.width, asked.now_ms)):
            return Offer(NOTHING, "no positive events yet")
        # segments without popularity of their own share one list, so that what callers send cannot fill the memory
        first, second = (segment if segment < self.segments else 0 for segment in asked.segments)
        return Offer(
            index.lists.get(
                ("blend", self.width, first, second),
                asked.now_ms,
                lambda now_ms: self._blend((first, second), now_ms, index),
            )
        )

    def _blend(self, segments: tuple[int, int], now_ms: int, index: ItemIndex) -> Ranked:
        ranked = index.popular(self.half_life, self.width, now_ms)
        for key in range(self.keys):
            local = index.popular_in_segment(key, segments[key], self.width, now_ms)
            if len(local):
                ranked = _interleave(local, ranked)
        return ranked


class Trending:
    """Decayed weight of positive events at the shortest half-life."""

    name = "trending"
    weight = 0.5
    reason = "trending now"

    def __init__(self, config: Config) -> None:
        self.width = config.sources.trending.width
        self.half_life = int(np.argmin([parse_duration(text) for text in config.features.item_half_lives]))

    def fetch(self, asked: Asked, index: ItemIndex) -> Offer:
        ranked = index.popular(self.half_life, self.width, asked.now_ms)
        return Offer(ranked, "" if len(ranked) else "no positive events yet")


class CoVisit:
    """Items that others visited together with this user's recent ones."""

    name = "covisit"
    weight = 1.0
    reason = "often together with {item}"

    def __init__(self, config: Config, plan: Plan) -> None:
        self.width = config.sources.covisit.width
        self.plan = plan
        self._scores = np.zeros(1024, np.float32)
        self._found, self._theirs = np.zeros(MAX_PARTNERS, np.int64), np.zeros(MAX_PARTNERS, np.float32)

    def fetch(self, asked: Asked, index: ItemIndex) -> Offer:
        if asked.user.u4[U_RECENT_LENGTH] == 0:
            return Offer(NOTHING, "no recent items")
        if len(self._scores) < len(index.table.dirty):
            self._scores = np.zeros(len(index.table.dirty), np.float32)
        count = co_visit_candidates(
            asked.user, index.table.rows, self.plan.layout, self.plan.lives, asked.now_ms, self._scores, self._found, self._theirs
        )  # fmt: skip
        if not count:
            return Offer(NOTHING, "the recent items have no co-visits")
        return Offer(in_order(self._found[:count], self._theirs[:count], self.width * 2))


class Taste:
    """What a user's recent items are about. Not thread-safe: it keeps the memory of one worker."""

    def __init__(self, plan: Plan) -> None:
        self._layout = plan.layout
        self._query = np.zeros((2, plan.layout.content_size), np.float32)
        self._recent, self._weights = np.zeros(DEPTH, np.int64), np.zeros(DEPTH, np.float64)

    def of(self, user: User, index: ItemIndex) -> npt.NDArray[np.float32] | None:
        """The weighted mean of their content, float32[d] of unit length (all 0: they have none), good until the next call; None: there
        are no recent items.
        """
        if not _content_query(user, index.table.rows, self._layout, self._recent, self._weights, self._query):
            return None
        taste: npt.NDArray[np.float32] = self._query[1]
        return taste


class Content:
    """Items whose content is near the user's recent ones; exact search."""

    name = "content"
    weight = 0.45
    reason = "similar to {item}"

    def __init__(self, config: Config, plan: Plan) -> None:
        self.width = config.sources.content.width
        self.plan = plan
        self._taste = Taste(plan)
        self._search = ExactIndex(plan.layout.content_size)
        self._index: ItemIndex | None = None
        self._version = 0

    def fetch(self, asked: Asked, index: ItemIndex) -> Offer:
        if index.content_items == 0:
            return Offer(NOTHING, "no item has content")
        taste = self._taste.of(asked.user, index)
        if taste is None:
            return Offer(NOTHING, "no recent items")
        if not taste.any():
            return Offer(NOTHING, "the recent items have no content")
        self._follow(index)
        ranked = self._search.search(taste, self.width * 2)
        alike = int(np.count_nonzero(ranked.scores > 0.0))
        return Offer(Ranked(ranked.items[:alike], ranked.scores[:alike]))

    def _follow(self, index: ItemIndex) -> None:
        """Take over the content that has changed since the last time."""
        if index is not self._index:
            self._index, self._version = index, 0
            self._search = ExactIndex(self.plan.layout.content_size, len(index.stamps))
        if index.version == self._version:
            return
        changed = np.flatnonzero(index.stamps > self._version)
        has = index.has_content[changed]
        self._search.set(changed[has], index.content[changed[has]])
        self._search.remove(changed[~has])
        self._version = index.version


class Fresh:
    """Items that are new, so that they can show what they are worth: the newest first, or those first whose drawn rate is highest.

    ``order = "thompson"`` draws a rate for each request and item, from what is known of the item: one that may be good, and one of
    which little is known, stands in front now and then, and one that was shown often and hardly touched does no more.
    """

    name = "fresh"
    weight = 0.15
    reason = "new"

    def __init__(self, config: Config, plan: Plan) -> None:
        self.width = config.sources.fresh.width
        self.max_age_ms = parse_duration(config.sources.fresh.max_age)
        self._young: YoungItems | None = None
        if config.sources.fresh.order == "thompson" and plan.outcomes is not None:
            self._young = YoungItems(plan.outcomes, self.max_age_ms, config.features.rate_prior)

    def fetch(self, asked: Asked, index: ItemIndex) -> Offer:
        if self._young is None:
            ranked = index.fresh(self.max_age_ms, self.width, asked.now_ms)
        else:
            young = self._young.at(index, asked.item_offset, asked.now_ms)
            drawn = young.draw(asked.seed).astype(np.float32)
            ranked = in_order(young.items, drawn, self.width * LIST_DEPTH)
        return Offer(ranked, "" if len(ranked) else "no new items")


class Catalogue:
    """Names what fills a list that the sources leave too short: any item, most popular first. It offers nothing itself."""

    name = "catalogue"
    weight = 0.0
    reason = "from the catalogue"

    def fetch(self, asked: Asked, index: ItemIndex) -> Offer:  # noqa: ARG002
        return Offer(NOTHING, "it only fills up")


def configured_sources(config: Config, plan: Plan) -> tuple[Source, ...]:
    """The enabled sources."""
    made: tuple[Source, ...] = (
        CoVisit(config, plan), Trending(config), Popular(config, plan), Content(config, plan), Fresh(config, plan),
    )  # fmt: skip
    return tuple(source for source in made if getattr(config.sources, source.name).enabled)


def _interleave(first: Ranked, second: Ranked) -> Ranked:
    """Alternate two lists, dropping repeats; scores fall by position."""
    both = len(first) + len(second)
    items = np.empty(both, np.int64)
    # a quarter full at most, so that hardly two items meet
    items = items[: _weave(first.items, second.items, np.zeros(4 << both.bit_length(), np.int64), items)]
    return Ranked(items, (1.0 / np.arange(1, len(items) + 1)).astype(np.float32))


@kernel
def _weave(first: Int64, second: Int64, slots: Int64, out: Int64) -> int:
    """Items (none is 0) of both lists in turn into ``out``, each once; returns how many. ``slots``: zeros, a power of two that is larger than both."""
    found, mask = 0, len(slots) - 1
    for n in range(2 * max(len(first), len(second))):
        source = first if n % 2 == 0 else second
        if n // 2 >= len(source):
            continue
        item = source[n // 2]
        at = (item * 0x9E3779B1 >> 7) & mask
        while slots[at] != 0 and slots[at] != item:
            at = (at + 1) & mask
        if slots[at] == 0:
            slots[at] = item
            out[found] = item
            found += 1
    return found


@kernel
def _content_query(
    user: User, items: Rows, layout: Layout, recent: Int64, weights: npt.NDArray[np.float64],
    query: npt.NDArray[np.float32],
) -> int:  # fmt: skip
    length = recent_items(user.u4, layout, recent, weights)
    if length > 0:
        content_query(items, layout, recent, weights, length, query)
    return length
