"""One worker's service: state it reads, the writer it hands things to, and the answers it gives."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog

from headwater.features.paths import feed_socket, read_flip
from headwater.features.plan import Plan
from headwater.features.store import StateReplacedError
from headwater.log.commands import ServedEntry
from headwater.online.admission import another_turn, place_given_up, waited_ms
from headwater.online.caches import CacheKeeper, Caches, result_lists
from headwater.online.controls import ControlsWatch
from headwater.online.counting import AnswerCounts
from headwater.online.experiments import ExperimentsWatch
from headwater.online.explain import Explaining
from headwater.online.feed import FoldFeed
from headwater.online.freshness import Freshness
from headwater.online.intake import Intake
from headwater.online.models import ModelWatch
from headwater.online.recommender import Asked, Recommender
from headwater.online.remotes import RemoteParts
from headwater.online.roles import Role
from headwater.online.rules import RulesWatch, rules_in_force
from headwater.online.served import ExposureLog, ServedLog, ShadowLog
from headwater.online.shadow import Shadowing
from headwater.online.stores import Stores
from headwater.online.traces import note_answer
from headwater.online.warm import warm_up
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError, UnavailableError
from headwater.schema.feed import Changes, Position
from headwater.schema.request_ids import new_request_id
from headwater.schema.requests import RecommendRequest
from headwater.serving.explain import Question
from headwater.serving.lists import LastLists
from headwater.serving.pace import MeasuredPace
from headwater.serving.pipeline import Conditions
from headwater.serving.request import served_list
from headwater.serving.scorer import ThreadScorer

log = structlog.get_logger()

READY_LAG = 10_000  # records that state may be behind the log
FLUSH_S = 5.0
STATE_AGAIN_S = 0.25  # a store that could not be reached is asked again after so long

_encode_json = msgspec.json.Encoder().encode
_encode_served = msgspec.msgpack.Encoder().encode


class Service(Intake):
    """Everything behind the routes. Create it inside a running loop, ``start`` it, ``close`` it.

    ``clock`` returns Unix milliseconds, the time of requests. ``seed`` draws which served lists keep
    their feature rows. ``pinned``: the copy of ``config`` whose rules are to be followed.
    """

    def __init__(
        self, config: Config, plan: Plan, data: Path, stores: Stores, *, clock: Callable[[], int], seed: int,
        role: Role = Role.ALL, pinned: Path | None = None,
    ) -> None:  # fmt: skip
        config = rules_in_force(config, pinned)
        super().__init__(config, plan, data, stores.log)
        self.role = role
        self.stores = stores
        self.clock = clock
        metrics = self.metrics
        self._scorer, self._pace = ThreadScorer(), MeasuredPace()
        results, last = result_lists(config.cache), LastLists()
        conditions = Conditions(self._scorer, self._pace, last, results, config.ladder.walk)
        self.recommender = Recommender(config, plan, stores.log.vocabulary(), stores.identity, stores.view, conditions)
        caches = Caches(
            results, last, stores.view.index.lists, self.recommender.pipeline.popular.lists, stores.view.rows
        )
        self.caches = CacheKeeper(caches, metrics, clock)
        self.feed = FoldFeed(
            feed_socket(data, plan.hash), on_epoch=self._refresh, on_connect=self._check_state,
            on_changes=self._folded, on_lost=self.caches.lose,
        )  # fmt: skip
        self._remotes = RemoteParts(metrics, stores.state, self.writer, self._scorer)
        self.counts = AnswerCounts(metrics, self._scorer)
        types = [kind.name for kind in config.events]
        self._freshness = Freshness(metrics, stores.log, stores.view, types, clock=clock)
        self.served, self.exposures = ServedLog(self.writer, metrics), ExposureLog(self.writer, metrics)
        self.shadow_lists = ShadowLog(self.writer, metrics)
        self._explaining = Explaining(config, data, self._recorded)
        self.models = ModelWatch(data / "models", config, plan, self.recommender, self.metrics)
        self.rules = RulesWatch(
            pinned, config, plan, stores.log.vocabulary, self.recommender, metrics, self._explaining
        )
        self.experiments = ExperimentsWatch(data, plan, stores.log.vocabulary, self.recommender, metrics)
        self.controls = ControlsWatch(data, self.recommender)
        keep = self.shadow_lists.add if config.serving.log_served else None
        self.shadows = Shadowing(self.recommender, metrics, keep=keep)
        self._sample = random.Random(seed)  # noqa: S311  (sampling, not secrecy)
        self._epoch_at = time.monotonic()
        self._again: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Load model and kernels, then follow fold and registry. Requests may come once this returns."""
        self.models.swap(self.models.load())
        self.experiments.swap(self.experiments.load())
        warm_up(self.config, self.plan)
        self.recommender.warm_up(self.clock())
        super().start()
        self.follow(
            self.served.run(), self.exposures.run(), self.shadow_lists.run(), self.models.run(), self.rules.run(), self.experiments.run(),
            self.controls.run(), self.shadows.run(), self.caches.run(), self.feed.follow(),
        )  # fmt: skip

    async def hand_over(self) -> None:
        """Bring the lists and the exposures into the log."""
        if self._again is not None:
            self._again.cancel()
        await asyncio.gather(
            self.served.flush(FLUSH_S), self.exposures.flush(FLUSH_S), self.shadow_lists.flush(FLUSH_S)
        )

    def release(self) -> None:
        """Close the stores and the ranker's thread."""
        self.stores.close()
        self._scorer.close()

    # -- answers ---------------------------------------------------------------------------------------

    async def recommend(self, body: bytes) -> bytes:
        """``POST /v1/recommend``. Raises :class:`RefusalError` 400."""
        return await self._recommend(self.recommender.decode(body), time.perf_counter() - waited_ms() / 1e3)

    async def recommend_many(self, body: bytes, take: Callable[[int], None]) -> bytes:
        """``POST /v1/recommend/batch``: one answer for each request, in their order; each has its own deadline.

        ``take`` is told how many more than one they are, and raises when those are too many for the caller's rate.
        Raises :class:`RefusalError` 400: one request is wrong, then none is answered.
        """
        requests = self.recommender.decode_many(body)
        take(len(requests) - 1)
        answers: list[bytes] = []
        for request in requests:
            if answers:
                await another_turn()
            answers.append(await self._recommend(request, time.perf_counter()))
        return b"[" + b",".join(answers) + b"]"

    async def recommend_trial(self, request: RecommendRequest) -> bytes:
        """As :meth:`recommend`, for who tries things out: recorded as a trial, an exposure to no experiment, and offered to no shadow."""
        return await self._recommend(request, time.perf_counter(), trial=True)

    async def _recommend(self, request: RecommendRequest, began: float, *, trial: bool = False) -> bytes:
        notes: list[str] = []
        if request.token is not None:
            await self._await_token(int(request.token), request.deadline_ms, notes)
        deadline_ms = self.config.ladder.deadline_ms
        spent_ms = 1e3 * (time.perf_counter() - began)
        if request.deadline_ms is not None:
            deadline_ms = request.deadline_ms - spent_ms
        elif request.token is None:  # who asks for the newest may wait for it, and gets a full list all the same
            deadline_ms -= spent_ms
        deadline_ms = max(1.0, deadline_ms)
        now_ms = self.clock()
        asked = self.recommender.asked(request, new_request_id(now_ms), deadline_ms, now_ms)
        return self._answer(asked, notes, now_ms, trial=trial)

    def similar(self, item: str, k: int | None, user: str | None) -> bytes:
        """``GET /v1/similar/{item_id}``. Raises :class:`RefusalError` 400, 404."""
        now_ms = self.clock()
        return self._answer(self.recommender.similar(item, k, user, new_request_id(now_ms), now_ms), [], now_ms)

    async def explain(self, request_id: str, question: Question, after: int | None) -> bytes:
        """``GET /v1/explain/{request_id}``. Raises :class:`RefusalError` 400, 404, 503."""
        with place_given_up():
            return await self._explaining.explain(request_id, question, after)

    async def _await_token(self, offset: int, deadline_ms: float | None, notes: list[str]) -> None:
        """Wait until users reflect ``offset``, at most as long as ladder and deadline allow; note a miss."""
        limit_ms = self.config.ladder.token_wait_ms
        if deadline_ms is not None:
            limit_ms = min(limit_ms, deadline_ms)
        began = time.perf_counter()
        with place_given_up():
            reached = await self.feed.reached(offset, limit_ms / 1e3)
        self.metrics.token_wait.observe(time.perf_counter() - began)
        if not reached:
            self.metrics.token_missed.inc()
            stands = self.feed.position.user_offset
            notes.append(f"token not reached: waited {limit_ms:g} ms, state stands at {stands}")

    def _answer(self, asked: Asked, notes: list[str], now_ms: int, *, trial: bool = False) -> bytes:
        answer = self.recommender.answer(asked, now_ms)
        response = self.recommender.response(asked, answer, notes)
        self.counts.count(asked, answer)
        if self.traces is not None:
            note_answer(asked.query, answer)
        if asked.choices and not trial:
            for exposure in self.experiments.exposures(asked, now_ms):
                self.exposures.add(exposure)
        if self.recommender.arms.shadows and not trial:
            self.shadows.offer(asked, answer, now_ms)
        if self.config.serving.log_served:
            sampled = self._sample.random() < self.config.serving.feature_sample
            began = time.perf_counter()
            variants = {choice.experiment: choice.variant for choice in asked.choices}
            payload = _encode_served(served_list(asked.query, answer, sampled=sampled, experiments=variants))
            self.served.add(ServedEntry(asked.user.user, asked.user.surrogate, payload, trial))
            self.counts.log(time.perf_counter() - began)
        return _encode_json(response)

    # -- state -----------------------------------------------------------------------------------------

    def _recorded(self) -> tuple[int, int]:
        """From when to when requests can have been recorded, Unix milliseconds: since the log's first record, until now."""
        event_log = self.stores.log
        block = event_log.read(event_log.first_offset - 1, 1)
        now_ms = self.clock()
        return now_ms if block is None else int(block.records["received_ms"][0]), now_ms

    def fold_lag(self) -> int:
        """Records that the log is ahead of what this worker was told of state."""
        return max(0, self.stores.log.last_offset - self.feed.position.user_offset)

    async def why_not_ready(self, *, waiting: bool = True) -> Sequence[str]:
        """Reasons not to send requests here, as of the intake, and where state is behind."""
        reasons = []
        if not self.feed.connected:
            reasons.append("fold: not connected")
        elif (lag := self.fold_lag()) > READY_LAG:
            reasons.append(f"fold: {lag} records behind the log")
        return [*reasons, *await super().why_not_ready(waiting=waiting)]

    def health(self) -> dict[str, Any]:
        """The plan and the rules in service; if another plan was refused, which and why."""
        said: dict[str, Any] = {"plan": self.plan.hash, "rules": self.rules.version}
        if (flip := read_flip(self.data)) is not None and flip.stage == "refused":
            said["refused"] = {"plan": flip.plan, "reason": flip.reason}
        return said

    def tell(self) -> None:
        """Bring up to date what is not counted as it happens."""
        self.caches.tell()
        self._freshness.tell(self.fold_lag())
        self.metrics.quality.set(self._pace.quality)
        model = self.recommender.model
        if model is not None:
            self.metrics.model_age.set(max(0, self.clock() - model.created_ms) / 1e3)
        self._remotes.count(model)
        self._remotes.show_breakers()
        self.metrics.epoch_age.set(time.monotonic() - self._epoch_at)
        self._tell_new_items()
        super().tell()

    def _tell_new_items(self) -> None:
        rules = self.recommender.pipeline.rules
        if rules is not None and rules.budget is not None:
            standing = rules.budget.standing(self.recommender.view, self.clock())
            for state in ("promised", "reached", "behind", "stopped"):
                self.metrics.new_items.labels(state).set(getattr(standing, state))

    def _folded(self, position: Position, changes: Changes) -> None:
        self.caches.follow(position, changes)
        self._freshness.heard(position)

    def _refresh(self) -> None:
        began = time.perf_counter()
        try:
            moved = self.stores.view.refresh()
        except UnavailableError as error:
            self._state_unavailable(error)
            return
        except HeadwaterError as error:  # a row that does not match its checksum: read nothing more of it
            self._fail(error)
            return
        if moved:
            self.metrics.epoch_rows.observe(time.perf_counter() - began)
            self._epoch_at = time.monotonic()

    def _check_state(self) -> None:
        try:
            self.stores.check_state()
        except UnavailableError as error:
            self._state_unavailable(error)
        except HeadwaterError as error:
            self._fail(error)

    def _state_unavailable(self, error: UnavailableError) -> None:
        """The state was dropped: the worker starts again. Else its store is away: look again until it is back."""
        if isinstance(error, StateReplacedError):
            self._fail(error)
        elif self._again is None:
            log.warning("state_unavailable", reason=str(error))
            self._again = asyncio.get_running_loop().call_later(STATE_AGAIN_S, self._look_again)

    def _look_again(self) -> None:
        self._again = None
        self._check_state()
        if not self.failed.done():
            self._refresh()
