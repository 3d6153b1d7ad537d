"""What the console is told of lists of the log: which there were, and why they are as they are."""

from __future__ import annotations

import asyncio
import time

import msgspec
import numpy as np

from headwater.log.protocol import EventLog
from headwater.log.record import Kind, Namespace
from headwater.online.console_cards import Cards
from headwater.online.errors import RefusalError
from headwater.online.explain import BUSY
from headwater.online.service import Service
from headwater.schema.errors import HeadwaterError, WaitError
from headwater.schema.explanation import Explanation
from headwater.schema.seen import PastList
from headwater.serving.explain import Question
from headwater.serving.served import Served, served_at

LOOK_S = 0.5
SHOWN = 5  # items of a list
FEATURES, CANDIDATES = 10, 8
_BLOCK = 1_024

_decode = msgspec.json.Decoder(Explanation).decode


class ConsolePast:
    """The lists that the log of ``service`` holds."""

    def __init__(self, service: Service, cards: Cards) -> None:
        self._service, self._cards = service, cards

    async def newest(self, limit: int, surface: str, user: int) -> list[PastList]:
        """The newest lists (of ``surface``, "": of any; of the dense ``user``, -1: of anybody), newest first; as far back as a short look goes."""
        return await asyncio.to_thread(self._newest, limit, surface, user)

    async def explain(self, request_id: str, item: str, bundle: str, after: int) -> Explanation:
        """Why a list is as it is.

        Raises:
            WaitError: another request is being explained.
            HeadwaterError: it cannot be explained; the message says why.
        """
        question = Question(item=item or None, bundle=bundle or None, candidates=CANDIDATES, features=FEATURES)
        try:
            said = await self._service.explain(request_id, question, None if after < 0 else after)
        except RefusalError as error:
            raise (WaitError if str(error) == BUSY else HeadwaterError)(str(error)) from error
        return await asyncio.to_thread(_decode, said)

    def _newest(self, limit: int, surface: str, user: int) -> list[PastList]:
        found = newest_of(self._service.stores.log, limit, surface, user)
        return [self._past(served, offset, time_ms) for served, offset, time_ms in found]

    def _past(self, served: Served, offset: int, time_ms: int) -> PastList:
        answer, text = served.answer, self._service.stores.log.vocabulary().text
        first = [text(Namespace.ITEM, item) or "" for item in answer.items[:SHOWN]]
        cards = self._cards.of(first)
        return PastList(
            request_id=answer.request_id, time_ms=time_ms, surface=answer.surface, tier=answer.tier, user=served.user,
            length=len(answer.items), first=[cards[item] for item in first], bundle=answer.address.bundle,
            after=offset - 1, drawn=answer.explored is not None,
        )  # fmt: skip


def newest_of(
    event_log: EventLog, limit: int, surface: str, user: int, limit_s: float = LOOK_S
) -> list[tuple[Served, int, int]]:
    """The newest served lists with their offsets and times, newest first, each request once: those of ``surface`` ("": any) and ``user`` (-1:
    anybody), as far back as ``limit_s`` seconds reach.
    """
    found: dict[str, tuple[Served, int, int]] = {}
    end, first = event_log.last_offset, event_log.first_offset
    until = time.monotonic() + limit_s
    while end >= first and len(found) < limit:
        begin = max(end - _BLOCK, first - 1)
        parts, at = [], begin
        while at < end and (block := event_log.read(at, end - at)) is not None:
            parts.append(block)
            at = block.last_offset
        for block in parts[::-1]:
            wanted = block.records["kind"] == Kind.SERVED
            if user >= 0:
                wanted &= block.records["user"] == user
            for row in np.flatnonzero(wanted)[::-1].tolist():
                served = served_at(block, row)
                if surface in ("", served.answer.surface) and len(found) < limit:
                    record = block.records[row]
                    entry = (served, int(record["offset"]), int(record["received_ms"]))
                    found.setdefault(served.answer.request_id, entry)
        end = begin
        if time.monotonic() >= until:
            break
    return list(found.values())
