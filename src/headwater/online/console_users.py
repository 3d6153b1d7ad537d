"""What the console is told of users by a worker: who somebody is, and their row of state, feature by feature."""

from __future__ import annotations

from typing import Literal, cast

import numpy as np

from headwater.features.ages import Ages
from headwater.features.assemble import Context, assemble, new_scratch, stranger
from headwater.features.layout import (
    ITEM_BITS,
    MAX_ITEMS,
    U_CLOCK,
    U_FIRST,
    U_RECENT_LENGTH,
    U_SEEN_LENGTH,
    U_SEGMENT,
    U_ZONE,
)
from headwater.features.plan import Plan
from headwater.features.rows import User
from headwater.features.rowset import Rows
from headwater.features.wording import entity_of
from headwater.log.identity import LmdbIdentity, UserKey
from headwater.log.protocol import Vocabulary
from headwater.log.record import Namespace
from headwater.online.service import Service
from headwater.schema.looks import Reading, RecentEvent, Share, UserState

MOST_TASTES = 8


class Reader:
    """Assembles single rows for people to look at, with memory of its own: the pipeline's is busy with requests."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._ages = Ages(plan)
        self._entities = [entity_of(column) for column in plan.declared]

    def read(self, user: User, items: Rows, item: int, now_ms: int, of: Literal["user", "item"]) -> list[Reading]:
        """The columns that ``user`` (or ``item``) alone decides, at ``now_ms``."""
        others = {"user": "item", "item": "user"}[of]
        out = np.zeros((1, len(self.plan.columns)), np.float32)
        scratch = new_scratch(len(items.i8), 1, self.plan)
        row = assemble(self.plan, user, items, np.array([item]), Context((0, 0)), now_ms, scratch, out)[0].tolist()
        readings = []
        for at, column in enumerate(self.plan.declared):
            parties = self._entities[at].split(" × ")
            if of not in parties or others in parties or "request" in parties:
                continue
            changed = self._ages.of(column, user, items, item)
            readings.append(
                Reading(
                    name=column.name, value=row[at], default=column.default, unit=column.unit, description=column.description,
                    age_ms=max(0, now_ms - changed.ms) if changed.by else None, age_of=changed.by,
                )
            )  # fmt: skip
        return readings


class ConsoleUsers:
    """The users that a worker's ``service`` knows."""

    def __init__(self, service: Service) -> None:
        self._service, self._plan = service, service.plan
        self._reader = Reader(service.plan)

    @property
    def _identity(self) -> LmdbIdentity:
        return self._service.stores.identity

    @property
    def _vocabulary(self) -> Vocabulary:
        return self._service.stores.log.vocabulary()

    def find(self, external: str) -> UserKey | None:
        """The user of an id as clients send it; None: there is none, or they were erased."""
        return self._identity.lookup(external)

    def with_surrogate(self, surrogate: int) -> UserKey | None:
        """The user that history calls ``surrogate``; None: there is none, or they were erased."""
        return self._identity.with_surrogate(surrogate)

    def unseal(self, user: int, sealed: bytes) -> bytes | None:
        """A profile of the log in clear (MessagePack); None: the key is gone."""
        return self._identity.decrypt(user, sealed)

    def state(self, user: int, now_ms: int) -> UserState:
        """The row of a dense user.

        Raises:
            UnavailableError: the state cannot be reached.
            HeadwaterError: the row does not match its checksum.
        """
        row = stranger(self._plan)
        offset = self._service.recommender.view.read_user(user, row)
        layout, text, u4 = self._plan.layout, self._vocabulary.text, row.u4
        rows = self._service.recommender.view.table.rows
        length = int(u4[U_RECENT_LENGTH])
        keys = u4[layout.recent_keys : layout.recent_keys + length].tolist()
        times = u4[layout.recent_times : layout.recent_times + length].tolist()
        types = ("", *self._plan.event_types)
        recent = [
            RecentEvent(
                item=text(Namespace.ITEM, key & MAX_ITEMS) or "",
                type=types[key >> ITEM_BITS] if key >> ITEM_BITS < len(types) else "",
                time_ms=1000 * seconds,
            )
            for key, seconds in zip(keys, times, strict=True)
        ]
        segments = [text(Namespace.SEGMENT, int(segment)) for segment in u4[U_SEGMENT : U_SEGMENT + 2] if segment]
        zone = text(Namespace.SEGMENT, int(u4[U_ZONE])) or ""
        return UserState(
            offset=offset,
            first_ms=int(row.i8[U_FIRST]),
            last_ms=int(row.i8[U_CLOCK]),
            readings=self._reader.read(row, rows, 0, now_ms, "user"),
            recent=recent[::-1],
            tastes=self._tastes(row),
            segments=[segment for segment in segments if segment],
            timezone=zone.removeprefix("timezone="),
            seen=min(int(u4[U_SEEN_LENGTH]), layout.seen_size),
        )

    def _tastes(self, row: User) -> list[Share]:
        """Shares of the first affinity, that to categories: they all fade alike, so that no clock is needed."""
        program = self._plan.affinities
        at, keys_at, size = int(program.f4[0]), int(program.u4[0]), int(program.size[0])
        weights, keys = row.f4[at : at + size], row.u4[keys_at : keys_at + size]
        there = np.flatnonzero((keys != 0) & (weights > 0.0))
        total = float(weights[there].sum())
        order = there[np.argsort(-weights[there], kind="stable")][:MOST_TASTES]
        text = self._vocabulary.text
        return [
            Share(text(Namespace.CATEGORY, int(keys[k])) or "", float(weights[k]) / total)
            for k in cast(list[int], order.tolist())
        ]
