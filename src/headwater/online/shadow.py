"""Shadows: what answers nobody is asked the same after an answer was given, in the worker's spare time.

A copy costs what a request costs, in the same loop. So copies take a twentieth of the worker's time at most, wait in a short queue, and
what does not fit, or comes while load narrows the lists that people get, is dropped and counted. What they say is measured, and goes to the log as a kind of record of its
own, so that nothing takes it for a list that somebody saw.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import msgspec
import numpy as np
import structlog

from headwater.log.commands import ServedEntry
from headwater.online.arms import Shadow
from headwater.online.metrics import Metrics
from headwater.online.recommender import Asked, Recommender
from headwater.policy.exploration import seed_of
from headwater.schema.requests import ShadowList
from headwater.serving.request import Answer, Query, served_list
from headwater.serving.stages import TIER_FULL
from headwater.serving.targeting import Asking

log = structlog.get_logger()

SPARE = 0.05  # the share of the worker's time
MOST_WAITING = 16

_encode = msgspec.msgpack.Encoder().encode


class _Copy(NamedTuple):
    shadow: Shadow
    asked: Asked
    answer: Answer
    now_ms: int


class Shadowing:
    """Asks the shadows of ``recommender`` copies of what it answered, and measures what they say."""

    def __init__(
        self, recommender: Recommender, metrics: Metrics, *, keep: Callable[[ServedEntry], None] | None = None,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:  # fmt: skip
        """``keep`` takes the lists that are to be logged; None: none are."""
        self._recommender, self._metrics, self._keep, self._timer = recommender, metrics, keep, timer
        self._copies: deque[_Copy] = deque()
        self._wake = asyncio.Event()

    def offer(self, asked: Asked, answer: Answer, now_ms: int) -> None:
        """``answer`` was given to ``asked``; never waits."""
        surface, drawn = asked.query.surface, _drawn(asked.query, 0)
        arms = self._recommender.arms
        for shadow in arms.shadows:
            if drawn >= shadow.share or not (shadow.surfaces is None or surface in shadow.surfaces):
                continue
            asking = Asking(asked.user.user, surface, asked.context)
            if not arms.targets(shadow.experiment, asking, self._recommender.view, now_ms):
                continue
            if len(self._copies) >= MOST_WAITING or self._recommender.pipeline.conditions.pace.quality < 1.0:
                self._count(shadow, "dropped")
                continue
            self._copies.append(_Copy(shadow, asked, answer, now_ms))
            self._wake.set()

    async def run(self) -> None:
        """Ask what is waiting until cancelled."""
        while True:
            await self._wake.wait()
            while self._copies:
                await asyncio.sleep(self.ask_one() / SPARE)
            self._wake.clear()

    def ask_one(self) -> float:
        """Ask the copy that has waited longest; the seconds that it took."""
        shadow, asked, answer, now_ms = self._copies.popleft()
        began = self._timer()
        arm = shadow.arm
        query = replace(asked.query, arm=arm.name, reuse=False)
        try:
            theirs = arm.pipeline.recommend(query, self._recommender.view, arm.model or self._recommender.model, now_ms)
        except Exception:
            # a defect, of ours or of a plug-in; nobody waits for this list
            log.exception("shadow_failed", experiment=shadow.experiment, variant=shadow.variant)
            self._count(shadow, "failed")
            return self._timer() - began
        took_s = self._timer() - began
        self._count(shadow, "full" if theirs.tier == TIER_FULL else "degraded")
        self._metrics.shadow_seconds.labels(shadow.experiment, shadow.variant).observe(took_s)
        if len(answer.items):
            same = float(np.isin(answer.items, theirs.items).mean())
            self._metrics.shadow_overlap.labels(shadow.experiment, shadow.variant).observe(same)
        if self._keep is not None and _drawn(query, 1) < shadow.logged:
            listed = served_list(query, theirs, sampled=False, experiments={shadow.experiment: shadow.variant})
            record = ShadowList(shadow.experiment, shadow.variant, shadow.version, listed)
            self._keep(ServedEntry(asked.user.user, asked.user.surrogate, _encode(record)))
        return took_s

    def _count(self, shadow: Shadow, outcome: str) -> None:
        self._metrics.shadow_lists.labels(shadow.experiment, shadow.variant, outcome).inc()


def _drawn(query: Query, number: int) -> float:
    """A number of the request's own in [0, 1), the ``number``-th: the same for all shadows, so that they are asked about the same requests."""
    return seed_of(query.request_id, b"shadow %d" % number) / 2.0**64
