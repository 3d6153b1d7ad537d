"""What the console is told of features by a worker: the plan in words, and how the values of the moment are spread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from headwater.features.assemble import Context, assemble, new_scratch, stranger
from headwater.features.layout import FLAG_HIDDEN, FLAG_KNOWN, I_FLAGS, U_CLOCK, U_SEGMENT
from headwater.features.plan import Plan
from headwater.features.rows import User
from headwater.features.rowset import Rows
from headwater.features.sizes import bytes_of
from headwater.features.wording import column_in_words, entity_of, kind_of
from headwater.online.console_items import BREATH_S, SLICE_S
from headwater.online.service import Service
from headwater.schema.looks import Distribution, FeatureColumn, FeatureSample

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

MOST_USERS = 256
ITEMS_EACH = 16  # items that the row of each user is assembled with
BINS = 40
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
SEED = 1


def described(plan: Plan) -> list[FeatureColumn]:
    """The columns of ``plan`` in words."""
    found = []
    for column, version in zip(plan.declared, plan.versions, strict=True):
        reads = set(column.reads)
        size = {of: sum(bytes_of(cell) for cell in reads if cell.entity == of) for of in ("user", "item")}
        found.append(
            FeatureColumn(
                name=column.name, entity=entity_of(column), kind=kind_of(column), formula=column_in_words(column),
                unit=column.unit, dtype=column.dtype, default=column.default, owner=column.owner,
                description=column.description, version=version, user_bytes=size["user"], item_bytes=size["item"],
            )
        )  # fmt: skip
    return found


def distribution(values: Float32, default: float) -> Distribution:
    """How ``values`` float32[n] (n > 0) are spread. A value at the default is taken for a missing one, as it stands in for it."""
    exact = values.astype(np.float64)
    quantiles = np.quantile(exact, QUANTILES)
    low, high = float(quantiles[0]), float(quantiles[-1])
    if high <= low:
        low, high = min(low, float(exact.min())), max(high, float(exact.max()))
    if high <= low:
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(np.clip(exact, low, high), BINS, (low, high))
    return Distribution(
        count=len(values),
        missing=float(np.mean(values == np.float32(default))),
        mean=float(exact.mean()),
        quantiles={f"{share:g}": value for share, value in zip(QUANTILES, quantiles.tolist(), strict=True)},
        edges=edges.tolist(),
        counts=counts.tolist(),
    )


class ConsoleFeatures:
    """The features of a worker's ``service``."""

    def __init__(self, service: Service) -> None:
        self._service, self._plan = service, service.plan
        self.columns = described(service.plan)
        self.plan = service.plan.hash

    async def sample(self, users: Sequence[int], now_ms: int) -> FeatureSample:
        """Distributions over rows of ``users`` (dense, the first :data:`MOST_USERS`), each with a few items drawn at random.

        Raises:
            UnavailableError: the state cannot be reached.
        """
        rows = await self._users(users[:MOST_USERS])
        table = self._service.recommender.view.table
        items, count = table.rows, min(table.count, len(table.rows.i8))
        made, drawn = await asyncio.to_thread(self._assembled, rows, items, count, now_ms)
        columns = {}
        if len(made):
            columns = await asyncio.to_thread(self._spread, made)
        return FeatureSample(made_ms=now_ms, rows=len(made), users=len(rows), items=drawn, columns=columns)

    async def _users(self, users: Sequence[int]) -> list[User]:
        """The rows of those that have one, read between requests; a stranger's when nobody has."""
        found: list[User] = []
        until = time.monotonic() + SLICE_S
        for user in users:
            row = stranger(self._plan)
            self._service.recommender.view.read_user(user, row)
            if row.i8[U_CLOCK]:
                found.append(row)
            if time.monotonic() >= until:
                await asyncio.sleep(BREATH_S)
                until = time.monotonic() + SLICE_S
        return found or [stranger(self._plan)]

    def _assembled(self, users: list[User], items: Rows, count: int, now_ms: int) -> tuple[Float32, int]:
        """Rows ``float32[n, columns]`` of users with items that may be shown, and of how many items."""
        flags = items.u4[:count, I_FLAGS]
        known = np.flatnonzero(((flags & FLAG_KNOWN) != 0) & ((flags & FLAG_HIDDEN) == 0))
        rng = np.random.default_rng(SEED)
        each = min(len(known), MOST_USERS * ITEMS_EACH // len(users))
        out = np.zeros((len(users) * each, len(self._plan.columns)), np.float32)
        scratch = new_scratch(len(items.i8), max(each, 1), self._plan)
        drawn: set[int] = set()
        for at, user in enumerate(users):
            chosen: Int64 = rng.choice(known, each, replace=False) if each else known
            drawn.update(chosen.tolist())
            segments = int(user.u4[U_SEGMENT]), int(user.u4[U_SEGMENT + 1])
            part = out[at * each : (at + 1) * each]
            assemble(self._plan, user, items, chosen, Context(segments), now_ms, scratch, part)
        return out, len(drawn)

    def _spread(self, rows: Float32) -> dict[str, Distribution]:
        found = {}
        for at, column in enumerate(self._plan.declared):
            found[column.name] = distribution(np.ascontiguousarray(rows[:, at]), column.default)
            time.sleep(0)  # between two columns whoever waits for the interpreter gets it
        return found
