"""What the console is told of the catalogue by a worker: items found, sorted and looked at; changes to single items.

Item columns and rows are those that the worker serves with; titles are looked up in the state a slice at a time between requests, and
kept for searching. What a page shows of an item is always read anew.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from headwater.features.assemble import Context, anchor_user, assemble, new_scratch, stranger
from headwater.features.layout import (
    FLAG_HIDDEN,
    FLAG_KNOWN,
    I_CATEGORIES,
    I_CLOCK,
    I_EXPIRES,
    I_FIRST,
    I_FLAGS,
    I_PUBLISHED,
)
from headwater.features.rowset import Rows
from headwater.features.wording import entity_of
from headwater.log.batch import ItemRecord
from headwater.log.protocol import Vocabulary
from headwater.log.record import Namespace
from headwater.online.console_users import Reader
from headwater.online.service import Service
from headwater.retrieval.fitted import SearchedSource
from headwater.retrieval.index import Ranked, best, in_order
from headwater.retrieval.sources import Asked, CoVisit
from headwater.schema.items import MAX_CATEGORIES
from headwater.schema.looks import ItemLine, ItemPage, ItemQuery, ItemState, Neighbour, Neighbours, Status
from headwater.schema.seen import Card

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

SLICE_S = 0.001  # the loop is kept for so long, then given back for so long as the next line says
BREATH_S = 0.004
TITLES_FOR_S = 600.0  # titles change seldom; one that a page shows is read anew anyway
REFLECT_S = 2.0
PATIENCE_S = 0.4  # a page waits so long for titles that nobody has read yet
FIGURES = 3  # columns of a page beside the one that it is sorted by
STATUS: tuple[Status, ...] = ("shown", "hidden", "unpublished", "expired")
_AT_ONCE = 4096


class Titles:
    """Id and title of every item in lower case, for searching; read between requests."""

    def __init__(self, record: Callable[[int], ItemRecord | None], timer: Callable[[], float] = time.monotonic) -> None:
        self._record, self._timer = record, timer
        self._texts: list[str] = [""]
        self._again = 1  # up to here they were read anew, of those that were read before
        self._whole_at = timer()
        self._reading: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._texts) - 1

    async def follow(self, ids: list[str], count: int) -> None:
        """Read the titles of the items ``1 … count - 1``; what takes longer than a moment goes on behind the page."""
        stale = self._timer() - self._whole_at > TITLES_FOR_S
        if self._reading is None and (len(self._texts) < count or stale):
            self._reading = asyncio.create_task(self._read(ids, count, stale))
            self._reading.add_done_callback(self._done)
        if self._reading is not None and len(self._texts) < count:
            await asyncio.wait({self._reading}, timeout=PATIENCE_S)

    def found(self, text: str, count: int) -> Bools:
        """Which items ``0 … count - 1`` have ``text`` in id or title: bool[count]. Those that were not read yet have not."""
        wanted = text.lower()
        hits = np.zeros(count, np.bool_)
        known = self._texts[:count]
        hits[: len(known)] = np.fromiter((wanted in each for each in known), np.bool_, len(known))
        hits[0] = False
        return hits

    def changed(self, item: int, title: str, name: str) -> None:
        """An item was just changed here."""
        if item < len(self._texts):
            self._texts[item] = f"{name}\n{title}".lower()

    async def _read(self, ids: list[str], count: int, stale: bool) -> None:
        until = self._timer() + SLICE_S
        for item in range(1 if stale else len(self._texts), count):
            record = self._record(item)
            text = f"{ids[item]}\n{'' if record is None else record.item.title}".lower()
            if item < len(self._texts):
                self._texts[item] = text
            else:
                self._texts.append(text)
            if self._timer() >= until:
                await asyncio.sleep(BREATH_S)
                until = self._timer() + SLICE_S
        if stale:
            self._whole_at = self._timer()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._reading = None
        if not task.cancelled():
            task.exception()  # a store that is away: the next page tries again, and says what it finds


class ConsoleItems:
    """The catalogue of a worker's ``service``."""

    def __init__(self, service: Service) -> None:
        self._service, self._plan = service, service.plan
        self._reader = Reader(service.plan)
        self._titles = Titles(lambda item: service.stores.state.item_record(item))
        self._co_visit = CoVisit(service.config, service.plan)
        self.sorts = [
            column.name for column in self._plan.declared if entity_of(column) in ("item", "item × everybody")
        ]  # fmt: skip

    # -- looking ---------------------------------------------------------------------------------------

    def number(self, item: str) -> int:
        """The dense number of an item; 0: nobody ever named it."""
        return self._vocabulary.index(Namespace.ITEM, item)

    def name(self, number: int) -> str:
        """The id of a dense item; "": there is none."""
        return self._vocabulary.text(Namespace.ITEM, number) or ""

    def cards(self, items: Iterable[str]) -> dict[str, Card]:
        """How people see some items. Raises :class:`UnavailableError`: the state cannot be reached."""
        found = {}
        for item in dict.fromkeys(items):
            record = self._service.stores.state.item_record(self.number(item))
            title, categories = ("", []) if record is None else (record.item.title, record.item.categories)
            found[item] = Card(item, title or item, categories)
        return found

    def categories(self) -> list[str]:
        """All categories that items ever had."""
        return sorted(self._vocabulary.texts(Namespace.CATEGORY)[1:])

    async def page(self, query: ItemQuery, now_ms: int) -> ItemPage:
        """The items of ``query``. Raises :class:`UnavailableError`: the state cannot be reached."""
        rows, count = self._rows()
        ids = self._vocabulary.texts(Namespace.ITEM)
        if query.text:
            await self._titles.follow(ids, min(count, len(ids)))
        chosen = [name for name in (query.sort, *self._figures()) if name in self.sorts]
        columns = list(dict.fromkeys(chosen))
        number = self._vocabulary.index(Namespace.CATEGORY, query.category) if query.category else 0
        order = await asyncio.to_thread(self._ordered, query, rows, count, number, now_ms)
        shown = order[query.start : query.start + query.count]
        figures = self._values(rows, shown, columns, now_ms)
        status, born = _status(rows, shown, now_ms).tolist(), _born_ms(rows, shown).tolist()
        lines = []
        for at, item in enumerate(shown.tolist()):
            record = self._service.stores.state.item_record(item)
            lines.append(
                ItemLine(
                    item=ids[item] if item < len(ids) else "",
                    title="" if record is None else record.item.title,
                    categories=[] if record is None else record.item.categories,
                    status=_status_word(status[at], record),
                    price=None if record is None else record.item.price,
                    born_ms=born[at],
                    figures=figures[at].tolist(),
                )
            )
        return ItemPage(lines=lines, total=len(order), items=count - 1, read=len(self._titles), columns=columns)

    def item(self, item: str, now_ms: int) -> ItemState | None:
        """All about one item; None: nobody ever named it. Raises :class:`UnavailableError`: the state cannot be reached."""
        number = self.number(item)
        if number == 0:
            return None
        rows, count = self._rows()
        row = np.array([number if number < count else 0])  # one that is newer than the item columns has no row yet
        record = self._service.stores.state.item_record(number)
        view, rules = self._service.recommender.view, self._service.recommender.pipeline.rules
        promise = None
        if rules is not None and rules.budget is not None and row[0]:
            promise = rules.budget.promise_to(number, view, now_ms)
        return ItemState(
            item=item,
            number=number,
            record=None if record is None else record.item,
            status=_status_word(int(_status(rows, row, now_ms)[0]), record),
            born_ms=int(_born_ms(rows, row)[0]) if row[0] else 0,
            last_ms=int(rows.i8[row[0], I_CLOCK]) if row[0] else 0,
            offset=view.item_offset,
            readings=self._reader.read(stranger(self._plan), rows, number, now_ms, "item") if row[0] else [],
            promise=promise,
        )

    async def neighbours(self, number: int, now_ms: int, most: int) -> list[Neighbours]:
        """What is near an item, by each measure that there is. Whole catalogues are multiplied in a thread: requests go on meanwhile."""
        index = self._service.recommender.view.index
        if number >= index.table.count:
            return []
        user = stranger(self._plan)
        anchor_user(user, number, self._plan.layout)
        asked = Asked(user, (0, 0), now_ms)
        offer = self._co_visit.fetch(asked, index)
        found = [self._named("covisit", "visited together, decayed", number, offer.ranked, most, offer.why_empty)]
        alike = await asyncio.to_thread(
            _alike, index.content[: index.table.count], index.content[number].copy(), most + 1
        )
        why = "" if index.has_content[number] else "it has no content"
        found.append(self._named("content", "cosine of content vectors", number, alike, most, why))
        model = self._service.recommender.model
        for fitted in () if model is None else model.sources:
            if isinstance(fitted, SearchedSource):
                vectors = fitted.vectors(index)
                own = vectors[number] if number < len(vectors) else np.zeros(fitted.size, np.float32)
                ranked = await asyncio.to_thread(_alike, vectors, own, most + 1)
                why = "" if own.any() else "the model knows nothing of it"
                measure = f"inner product of item vectors, bundle {'' if model is None else model.version}"
                found.append(self._named(fitted.name, measure, number, ranked, most, why))
        return found

    # -- changing --------------------------------------------------------------------------------------

    async def set_available(self, item: str, available: bool) -> None:
        """Show or hide an item: what the catalogue says of it, sent again with ``available`` as wished.

        Raises:
            UnavailableError, RefusedError: of the writer; KeyError: the catalogue says nothing of it.
        """
        record = self._service.stores.state.item_record(self.number(item))
        if record is None:
            raise KeyError(item)
        changed = msgspec.structs.replace(record.item, available=available)
        await self._reflected((await self._service.writer.put_items([changed])).offset)

    async def delete(self, item: str) -> None:
        """Take an item out of the catalogue. Raises :class:`UnavailableError`, :class:`RefusedError` of the writer."""
        await self._reflected((await self._service.writer.delete_items([item])).offset)

    async def _reflected(self, offset: int) -> None:
        """Wait until the item columns reflect ``offset``, a moment at most: the page is drawn anew behind a change."""
        until = time.monotonic() + REFLECT_S
        while self._service.recommender.view.item_offset < offset and time.monotonic() < until:
            await asyncio.sleep(BREATH_S)

    # -- parts -----------------------------------------------------------------------------------------

    @property
    def _vocabulary(self) -> Vocabulary:
        return self._service.stores.log.vocabulary()

    def _rows(self) -> tuple[Rows, int]:
        """The item rows of now, and how many there are; the table may grow meanwhile, into other arrays."""
        table = self._service.recommender.view.table
        return table.rows, min(table.count, len(table.rows.i8))

    def _figures(self) -> list[str]:
        """Item features that say most at a glance, where the plan has them: events by type at the middle half-life, and the first rate."""
        life = self._plan.half_lives[len(self._plan.half_lives) // 2]
        counted = [f"item_{kind}_{life}" for kind in self._plan.event_types]
        rates = [name for name in self.sorts if name.endswith("_rate")]
        return [name for name in (*counted[:1], *counted[2:3], *rates[:1]) if name in self.sorts][:FIGURES]

    def _ordered(self, query: ItemQuery, rows: Rows, count: int, category: int, now_ms: int) -> Int64:
        """The dense items of ``query`` in their order."""
        fits = (rows.u4[:count, I_FLAGS] & FLAG_KNOWN) != 0
        fits[0] = False
        if query.text:
            fits &= self._titles.found(query.text, count)
        if query.category:
            fits &= (rows.u4[:count, I_CATEGORIES : I_CATEGORIES + MAX_CATEGORIES] == category).any(axis=1)
            fits &= category != 0
        items = np.flatnonzero(fits)
        if query.status:
            items = items[_status(rows, items, now_ms) == STATUS.index(query.status)]
        if query.sort == "id":
            names = self._vocabulary.texts(Namespace.ITEM)
            order: list[int] = sorted(items.tolist(), key=lambda item: names[item])
            return np.array(order if query.ascending else order[::-1], np.int64)
        if query.sort in self.sorts:
            keys = self._values(rows, items, [query.sort], now_ms)[:, 0].astype(np.float64)
        else:
            keys = _born_ms(rows, items).astype(np.float64)
        return items[np.argsort(keys if query.ascending else -keys, kind="stable")]

    def _values(self, rows: Rows, items: Int64, columns: list[str], now_ms: int) -> Float32:
        """Item features of ``items`` int64[n]: ``float32[n, columns]``, a part at a time."""
        at = [self._plan.columns.index(name) for name in columns]
        nobody = stranger(self._plan)
        scratch = new_scratch(len(rows.i8), _AT_ONCE, self._plan)
        memory = np.zeros((_AT_ONCE, len(self._plan.columns)), np.float32)
        values = np.zeros((len(items), len(columns)), np.float32)
        for start in range(0, len(items) if columns else 0, _AT_ONCE):
            part = items[start : start + _AT_ONCE]
            made = assemble(self._plan, nobody, rows, part, Context((0, 0)), now_ms, scratch, memory)
            values[start : start + len(part)] = made[:, at]
        return values

    def _named(self, name: str, measure: str, number: int, ranked: Ranked, most: int, why: str) -> Neighbours:
        others = ranked.items != number
        ranked = in_order(ranked.items[others], np.ascontiguousarray(ranked.scores[others], np.float32), most)
        numbers: list[Any] = ranked.items.tolist()
        items = []
        for other, score in zip(numbers, ranked.scores.tolist(), strict=True):
            record = self._service.stores.state.item_record(other)
            title, categories = ("", []) if record is None else (record.item.title, record.item.categories)
            items.append(
                Neighbour(item=self.name(other), title=title, category=next(iter(categories), ""), score=score)
            )
        return Neighbours(name=name, measure=measure, items=items, why_none=why or ("" if items else "nothing near it"))


def _alike(vectors: Float32, own: Float32, most: int) -> Ranked:
    """The items whose ``vectors`` have the largest positive inner products with ``own``."""
    return best((vectors @ own).astype(np.float32), most)


def _born_ms(rows: Rows, items: Int64) -> Int64:
    """When items were published, or else first seen: int64[n], 0 where neither is known."""
    published: Int64 = rows.i8[items, I_PUBLISHED]
    return np.where(published != 0, published, rows.i8[items, I_FIRST])


def _status(rows: Rows, items: Int64, now_ms: int) -> Int64:
    """Positions in ``STATUS`` of what stands in the way of items, for everybody: int64[n]."""
    published, expires = rows.i8[items, I_PUBLISHED], rows.i8[items, I_EXPIRES]
    found = np.zeros(len(items), np.int64)
    found[(expires > 0) & (expires <= now_ms)] = 3
    found[published > now_ms] = 2
    found[(rows.u4[items, I_FLAGS] & FLAG_HIDDEN) != 0] = 1
    return found


def _status_word(code: int, record: ItemRecord | None) -> Status:
    if record is None:
        return "unknown"
    return "deleted" if STATUS[code] == "hidden" and record.item.available else STATUS[code]
