"""The slow, obvious event log: a list of rows, written one by one. The fast writer is compared with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from headwater.log.batch import encode_detail, event_key
from headwater.log.commands import (
    Appended,
    AppendEvents,
    AppendExposures,
    AppendServed,
    AppendShadows,
    Command,
    DeleteItems,
    Login,
    PutItems,
)
from headwater.log.protocol import ImportRange
from headwater.log.record import FLAG_RETRACT, Kind, Namespace
from headwater.schema.events import Event
from headwater.schema.items import Item


@dataclass(frozen=True, slots=True)
class Row:
    """One expected record; ``user`` is the external id ("" none), ``payload`` None where it is not compared."""

    kind: Kind
    received_ms: int
    time_ms: int
    user: str = ""
    item: int = 0
    type: int = 0
    surface: int = 0
    segments: tuple[int, int] = (0, 0)
    event_key: int = 0
    flags: int = 0
    payload: bytes | None = b""


@dataclass(slots=True)
class SlowLog:
    """What the log must hold after each command; ``window`` is the size of the dedup window."""

    window: int
    segment_keys: tuple[str, ...] = ()
    rows: list[Row] = field(default_factory=list)
    terms: dict[Namespace, list[str]] = field(default_factory=lambda: {n: [] for n in Namespace})
    keys: list[int] = field(default_factory=list)
    imports: list[ImportRange] = field(default_factory=list)

    @property
    def last_received_ms(self) -> int:
        return self.rows[-1].received_ms if self.rows else 0

    def append_events(
        self, events: Sequence[Event], now_ms: int, source: ImportRange | None = None, *, from_time: bool = False
    ) -> Appended:
        """Expect ``events``, one by one, terms first."""
        if source is not None and source in self.imports:
            return Appended(0, 0, len(self.rows), already=True)
        fresh: list[Event] = []
        for event in events:
            key = event_key(event.event_id) if event.event_id is not None else 0
            batch_keys = [event_key(e.event_id) for e in fresh if e.event_id is not None]
            if key == 0 or key not in self.keys[-self.window :] + batch_keys:
                fresh.append(event)
        before = self.last_received_ms
        received: list[int] = []
        for event in fresh:
            at = (-1 if event.time is None else event.time) if from_time else now_ms
            received.append(max([before, at, *received[-1:]]))
        first = received[0] if received else max(before, now_ms)
        wanted: dict[Namespace, list[str]] = {
            Namespace.ITEM: [e.item for e in fresh],
            Namespace.EVENT_TYPE: [e.type for e in fresh],
            Namespace.SURFACE: [e.surface for e in fresh if e.surface is not None],
            Namespace.SEGMENT: [s for e in fresh for s in self._segments(e) if s],
        }
        for namespace, texts in wanted.items():
            # a batch lists its texts by first appearance among all of its events, repeats included
            order = list(dict.fromkeys(t for e in events for t in self._texts(namespace, e)))
            for text in sorted(set(texts), key=order.index):
                self._term(namespace, text, first)
        for event, at in zip(fresh, received, strict=True):
            first_segment, second_segment = (self._index(Namespace.SEGMENT, s) for s in self._segments(event))
            self.rows.append(
                Row(
                    kind=Kind.EVENT,
                    received_ms=at,
                    time_ms=at if event.time is None else event.time,
                    user=event.user,
                    item=self._index(Namespace.ITEM, event.item),
                    type=self._index(Namespace.EVENT_TYPE, event.type),
                    surface=self._index(Namespace.SURFACE, event.surface or ""),
                    segments=(first_segment, second_segment),
                    event_key=event_key(event.event_id) if event.event_id is not None else 0,
                    flags=FLAG_RETRACT if event.retract else 0,
                    payload=encode_detail(event),
                )
            )
            if event.event_id is not None:
                self.keys.append(event_key(event.event_id))
        if source is not None:
            self.imports.append(source)
            at = self.last_received_ms
            self.rows.append(Row(Kind.IMPORT, at, at, payload=None))
        return Appended(len(fresh), len(events) - len(fresh), len(self.rows))

    def put_items(self, items: Sequence[Item], now_ms: int) -> Appended:
        """Expect upserts."""
        at = max(self.last_received_ms, now_ms)
        for item in items:
            self._term(Namespace.ITEM, item.id, at)
            for category in item.categories:
                self._term(Namespace.CATEGORY, category, at)
            for region in item.regions:
                self._term(Namespace.REGION, region, at)
        self.rows += [Row(Kind.ITEM, at, at, item=self._index(Namespace.ITEM, i.id), payload=None) for i in items]
        return Appended(len(items), 0, len(self.rows))

    def other(self, command: Command, now_ms: int) -> Appended:
        """Expect a command that assigns no terms."""
        at = max(self.last_received_ms, now_ms)
        match command:
            case DeleteItems(ids):
                known = [self._index(Namespace.ITEM, i) for i in ids if i in self.terms[Namespace.ITEM]]
                new = [Row(Kind.ITEM_DELETED, at, at, item=index) for index in known]
            case Login(_, user):
                new = [Row(Kind.LOGIN, at, at, user=user, payload=None)]
            case AppendServed(entries):
                new = [Row(Kind.SERVED, at, at, payload=entry.payload) for entry in entries]
            case AppendShadows(entries):
                new = [Row(Kind.SHADOW, at, at, payload=entry.payload) for entry in entries]
            case AppendExposures(entries):
                new = [Row(Kind.EXPOSURE, at, at, user=entry.external, payload=entry.payload) for entry in entries]
            case AppendEvents() | PutItems():
                raise ValueError("Use the method of that name")
            case _:
                new = []
        self.rows += new
        return Appended(len(new), 0, len(self.rows))

    def _segments(self, event: Event) -> tuple[str, str]:
        found = ["", ""]
        for column, key in enumerate(self.segment_keys):
            if event.attributes is not None and key in event.attributes:
                found[column] = f"{key}={event.attributes[key]}"
        return found[0], found[1]

    def _texts(self, namespace: Namespace, event: Event) -> list[str]:
        match namespace:
            case Namespace.ITEM:
                return [event.item]
            case Namespace.EVENT_TYPE:
                return [event.type]
            case Namespace.SURFACE:
                return [event.surface or ""]
            case _:
                return list(self._segments(event))

    def _term(self, namespace: Namespace, text: str, at: int) -> None:
        if text not in self.terms[namespace]:
            self.terms[namespace].append(text)
            index = len(self.terms[namespace])
            self.rows.append(Row(Kind.TERM, at, at, item=index, type=namespace, payload=text.encode()))

    def _index(self, namespace: Namespace, text: str) -> int:
        return self.terms[namespace].index(text) + 1 if text else 0
