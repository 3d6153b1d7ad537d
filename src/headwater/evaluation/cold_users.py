"""Cold users: people whose first event lies behind the split, asked after their first 0, 1, 3 and 5 events.

Everything goes through the production pipeline and the production fold, as in the temporal protocol; nothing is trained
again for anybody. The ``k``-th question of somebody new is the positive event that comes when their row holds ``k``
events; what somebody does once is asked once, and nobody's later events are asked.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from headwater.evaluation.meter import Meter
from headwater.evaluation.metrics import ModelMetrics, judge, ranks_in
from headwater.evaluation.temporal import pipelines
from headwater.evaluation.unprompted import unprompted
from headwater.features.fold import Fold, Unseal
from headwater.features.plan import Plan
from headwater.features.replay import fold_to, stops
from headwater.features.zones import Zones
from headwater.learning.trainingset import positive_types, positives
from headwater.log.protocol import EventLog
from headwater.log.record import Kind, RecordBlock, of_people
from headwater.retrieval.fitted import FittedSource
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.serving.model import Model
from headwater.serving.region import StoredRegion
from headwater.serving.request import Query
from headwater.serving.view import FoldView

FIRST = (0, 1, 3, 5)
LIST_LENGTH = 100  # MRR counts ranks up to here
NO_DEADLINE_MS = 1e9


class ColdUsersReport(Struct, frozen=True, kw_only=True):
    """What ``headwater evaluate --protocol cold-users --json`` prints.

    ``models`` is over all questions, ``by_events`` over those after so many events; ``questions`` counts the latter.
    """

    protocol: str
    data: dict[str, int | str]
    n: int
    new_users: int
    questions: dict[str, int]
    sample: float
    seed: int
    models: dict[str, ModelMetrics]
    by_events: dict[str, dict[str, ModelMetrics]]
    seconds: float


def evaluate_cold_users(
    log: EventLog, plan: Plan, config: Config, model: Model, *, split_offset: int, sample: float, seed: int,
    train_s: Mapping[str, float], alone: tuple[FittedSource, ...] = (), peak_mb: float = 0.0, first: tuple[int, ...] = FIRST,
    until: int | None = None, unseal: Unseal | None = None,
) -> ColdUsersReport:  # fmt: skip
    """Compare the systems of the temporal protocol on the first events of users who are new after ``split_offset``.

    ``sample`` is the share of the new users who are asked.

    Raises:
        HeadwaterError: nobody is new, or none of their events can be asked.
    """
    model = unprompted(model, plan, config)
    with Meter() as meter:
        until = log.last_offset if until is None else until
        known = _known_users(log, split_offset)
        fold = Fold(plan, unseal=unseal)
        view = FoldView(plan, fold)
        fold_to(log, fold, split_offset)
        compared = pipelines(config, plan, StoredRegion(log.vocabulary()), Zones(log.vocabulary()), alone)
        for source in alone:
            source.prepare(view.index)
        positive = positive_types(log, config)
        chosen = np.random.default_rng(seed).random(1 << 16)

        def wanted(block: RecordBlock) -> npt.NDArray[np.bool_]:
            user = block.records["user"].astype(np.int64)
            new = ~known[np.minimum(user, len(known) - 1)]  # the last place of the table is nobody's
            # by user, so that somebody is asked after every number of events or not at all
            asked_of: npt.NDArray[np.bool_] = (
                positives(block, positive) & new & (chosen[(user * 40_503) & 0xFFFF] < sample)
            )
            return asked_of

        lists: dict[str, list[npt.NDArray[np.int64]]] = {name: [] for name in compared}
        asked: list[tuple[int, int, int]] = []  # user, item, events before
        done: set[tuple[int, int]] = set()
        for block, i in stops(log, fold, wanted, until=until):
            record = block.records[i]
            user, item, now_ms = int(record["user"]), int(record["item"]), int(record["received_ms"])
            events = fold.users.length(user)
            if events not in first or (user, events) in done:
                continue
            done.add((user, events))
            view.refresh()
            segments = (int(record["segments"][0]), int(record["segments"][1]))
            query = Query("", user=user, k=LIST_LENGTH, segments=segments, deadline_ms=NO_DEADLINE_MS)
            for name, (pipeline, ranks) in compared.items():
                items = pipeline.recommend(query, view, model if ranks else None, now_ms).items
                row = np.zeros(LIST_LENGTH, np.int64)
                row[: len(items)] = items
                lists[name].append(row)
            asked.append((user, item, events))
        if not asked:
            raise HeadwaterError(
                f"no question to ask: nobody's first event lies behind offset {split_offset} and is one to ask about; "
                "choose an earlier split, or a larger sample"
            )
    users, relevant, before = np.array(asked, np.int64).T
    stacked = {name: np.stack(rows) for name, rows in lists.items()}

    def judged(chosen_rows: npt.NDArray[np.bool_]) -> dict[str, ModelMetrics]:
        return {
            name: judge(
                ranks_in(rows[chosen_rows], relevant[chosen_rows]), users[chosen_rows], rows[chosen_rows],
                eligible=fold.items.count - 1, train_s=train_s.get(name, 0.0), peak_mb=peak_mb or meter.peak_mb,
            )
            for name, rows in stacked.items()
        }  # fmt: skip

    present = [k for k in first if (before == k).any()]
    return ColdUsersReport(
        protocol="cold-users",
        data={"log": log.log_id, "split_offset": split_offset, "last_offset": until, "last_ms": fold.received_ms},
        n=len(asked), new_users=len({user for user, _, _ in asked}), questions={str(k): int((before == k).sum()) for k in present},
        sample=sample, seed=seed, models=judged(np.ones(len(asked), np.bool_)),
        by_events={str(k): judged(before == k) for k in present}, seconds=meter.seconds,
    )  # fmt: skip


def _known_users(log: EventLog, split_offset: int) -> npt.NDArray[np.bool_]:
    """Who has an event up to ``split_offset``, by dense user."""
    seen: list[npt.NDArray[np.int64]] = []
    after = log.first_offset - 1
    while after < split_offset and (block := log.read(after)) is not None:
        records = block.records
        mine = of_people(records, Kind.EVENT) & (records["offset"] <= split_offset) & (records["user"] > 0)
        seen.append(np.unique(records["user"][mine]).astype(np.int64))
        after = block.last_offset
    users = np.concatenate(seen) if seen else np.zeros(0, np.int64)
    known = np.zeros(int(users.max(initial=0)) + 2, np.bool_)
    known[users] = True
    return known
