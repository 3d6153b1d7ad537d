"""From the log: the lists that were drawn by lot, and what their users did with each place."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from headwater.evaluation.addresses import READ
from headwater.evaluation.uptake import Uptake
from headwater.log.protocol import EventLog
from headwater.log.record import Kind, Namespace, of_people
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.schema.requests import Explored
from headwater.serving.served import Served, served_at

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LoggedLists:
    """n lists that were drawn by lot, in log order. ``rewards`` float64[n, k]: 1 where the user took the item of that place up within the window, 0
    behind a list's end. ``skipped`` counts lists that say nothing, by reason; ``last_offset`` is how far the log was read.
    """

    served: list[Served]
    rewards: Float64
    skipped: dict[str, int]
    last_offset: int

    @property
    def places(self) -> int:
        """k, the length of the longest list."""
        return int(self.rewards.shape[1])


def drawn(served: Served) -> Explored:
    """How a list of :class:`LoggedLists` was drawn."""
    explored = served.answer.explored
    assert explored is not None  # noqa: S101  (no other list is kept)
    return explored


def read_lists(
    event_log: EventLog,
    config: Config,
    *,
    surface: str,
    reward: str | None,
    window_ms: int,
    since: int = 1,
    limit: int | None = None,
) -> LoggedLists:
    """The newest ``limit`` (None: all) lists of ``surface`` that were drawn by lot, from offset ``since`` on.

    ``reward`` is an event type, None: any positive one. A list counts once its window is over on the log's clock.

    Raises:
        HeadwaterError: there is no such event type, or no such list; says what to do.
        CorruptLogError: a served list cannot be read.
    """
    known = event_log.vocabulary()
    uptake = Uptake([known.index(Namespace.EVENT_TYPE, name) for name in _rewarded(config, reward)])
    until_ms, kept, erased = event_log.last_received_ms - window_ms, deque[Served](maxlen=limit), set[int]()
    skipped = {"not drawn by lot": 0, "recorded twice": 0, "of a stranger": 0, "window not over": 0, "user erased": 0}
    seen: set[str] = set()
    offset = max(since, event_log.first_offset, 1) - 1
    while (block := event_log.read(offset, READ)) is not None:
        uptake.add(block)
        kinds = block.records["kind"]
        erased.update(block.records["user"][kinds == Kind.ERASURE].tolist())
        for i in np.flatnonzero(of_people(block.records, Kind.SERVED)).tolist():
            served = served_at(block, i)
            answer = served.answer
            if answer.surface != surface:
                continue
            reason = None
            if answer.explored is None or not answer.items:
                reason = "not drawn by lot"
            elif answer.request_id in seen:
                reason = "recorded twice"
            elif served.user == 0:
                reason = "of a stranger"
            elif answer.address.now_ms > until_ms:
                reason = "window not over"
            if reason is not None:
                skipped[reason] += 1
                continue
            seen.add(answer.request_id)
            kept.append(Served(served.user, msgspec.structs.replace(answer, features=b"", modelled=b"")))
        offset = block.last_offset
    lists = [served for served in kept if served.user not in erased]
    skipped["user erased"] = len(kept) - len(lists)
    if not lists:
        raise HeadwaterError(_nothing(surface, skipped))
    rewards = np.zeros((len(lists), max(len(served.answer.items) for served in lists)))
    for n, served in enumerate(lists):
        at = served.answer.address.now_ms
        for place, item in enumerate(served.answer.items):
            rewards[n, place] = uptake.within(served.user, item, at, window_ms)
    return LoggedLists(lists, rewards, {why: n for why, n in skipped.items() if n}, offset)


def _rewarded(config: Config, reward: str | None) -> list[str]:
    types = [kind.name for kind in config.events]
    if reward is None:
        return [kind.name for kind in config.events if kind.positive]
    if reward not in types:
        raise HeadwaterError(
            f'there is no event type "{reward}" (there are {", ".join(types)}): --reward names one of [[events]]'
        )
    return [reward]


def _nothing(surface: str, skipped: dict[str, int]) -> str:
    passed = ", ".join(f"{count:,} {why}" for why, count in skipped.items() if count)
    return (
        f'no list of surface "{surface}" says anything of another policy: {f"passed over were {passed}" if passed else "none was served"}. Lists '
        "say something once they are drawn by lot: give the surface exploration = {share = 0.05, temperature = 0.2} (with "
        "serving.log_served), let it serve, and ask again"
    )
