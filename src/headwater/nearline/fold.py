"""The fold process: follows the log, keeps state, tells the servers how far it is.

It is the only process that writes state. It reads the log's clock and none of its own, except to
decide when item changes are offered to the servers as an epoch. What goes wrong for good (a corrupt
log, a full disk) ends the process with the reason; state and offset commit together, so the next one goes on
where this one stood.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from headwater.breaker import jittered
from headwater.features.assemble import stranger
from headwater.features.fold import Fold
from headwater.features.packing import CorruptStateError
from headwater.features.paths import drop_old_layout, feed_socket
from headwater.features.pinned import expected_plan
from headwater.features.plan import Plan
from headwater.features.profiles import Profiles
from headwater.features.recovery import mark_damaged, open_fold_state
from headwater.features.rows import pack_user, unpack_user
from headwater.features.store import State
from headwater.log.archived import ArchivedLog, open_log
from headwater.log.batch import events_to_batch
from headwater.log.client import WriterClient
from headwater.log.environment import StoreError
from headwater.log.identity import MemoryIdentity
from headwater.log.memory import MemoryLog
from headwater.log.protocol import READ_LIMIT, EventLog
from headwater.log.writer import LogWriter
from headwater.nearline.feed import FeedServer
from headwater.nearline.metrics import FoldMetrics
from headwater.schema.config import Config
from headwater.schema.errors import UnavailableError
from headwater.schema.events import Event
from headwater.schema.feed import Changes, Position
from headwater.schema.items import Item

log = structlog.get_logger()

EPOCH_S = 0.09  # at least this long between two epochs of item changes
CATCH_UP_S = 0.5  # far behind, rows are stored this often: users come again, and each time costs a write
IDLE_LOOK_S, IDLE_LOOK = 1.0, 2_000  # so often so many users are looked at, whether they may be removed
POLL_S = 0.1  # the log is looked at this often even when the writer says nothing
OPEN_PAUSE_S = 0.02
STATE_PAUSE_S = 0.1  # a server that holds the state and is away is asked again after so long


class Folder:
    """Brings ``fold`` up to the log's end, one block a call, and decides which commits carry an epoch.

    ``publish`` is called after each commit with the users that it changed, ``check`` now and then: it raises when the state is not there any more.
    ``seconds`` is a monotonic clock.
    """

    def __init__(
        self,
        event_log: EventLog,
        fold: Fold,
        *,
        publish: Callable[[Position, Changes], object],
        epoch: int,
        check: Callable[[], object] | None = None,
        epoch_s: float = EPOCH_S,
        seconds: Callable[[], float] = time.monotonic,
        metrics: FoldMetrics | None = None,
    ) -> None:
        self.fold = fold
        self.metrics = FoldMetrics() if metrics is None else metrics
        self._log = event_log
        self._publish = publish
        self._check = check
        self._epoch_s = epoch_s
        self._seconds = seconds
        self._last_epoch_s = -epoch_s
        self._last_commit_s = self._last_look_s = seconds()
        self.position = Position(fold.offset, epoch, 0)

    def offer_everything(self) -> None:
        """Put all item rows into an epoch now.

        Which rows had changed since the last epoch is known to the process alone that died, and the servers
        would wait for those for ever.
        """
        self.fold.offer_everything()
        self._commit(epoch=True)

    def advance(self) -> bool:
        """Fold the next block and commit, or commit an epoch that is due; whether more of the log may be waiting.

        Far behind the log several blocks share a commit.

        Raises:
            CorruptLogError: the log does not read as it was written.
        """
        block = self._log.read(self.fold.offset, READ_LIMIT)
        if block is not None:
            self.fold.apply(block)
        more = block is not None and len(block) == READ_LIMIT
        if more and not self._must_store():
            return True
        due = self._is_due() and self.fold.epoch_pending
        if not more and self._seconds() - self._last_look_s >= IDLE_LOOK_S:
            self._last_look_s = self._seconds()
            if self._check is not None:
                self._check()
            removed = self.fold.remove_idle(IDLE_LOOK)
            if removed:
                self.metrics.idle_removed.inc(removed)
                log.info("idle_users_removed", users=removed)
        if due or self.fold.offset > self.position.user_offset:
            self._commit(epoch=due)
        return more

    def _must_store(self) -> bool:
        waited_s = self._seconds() - self._last_commit_s
        return waited_s >= CATCH_UP_S or self.fold.users.used > 2 * self.fold.cache_users

    def epoch_in_s(self) -> float | None:
        """Seconds until the changes that are waiting may be offered; None when none are."""
        if not self.fold.epoch_pending:
            return None
        return max(0.0, self._last_epoch_s + self._epoch_s - self._seconds())

    def _is_due(self) -> bool:
        return self._seconds() - self._last_epoch_s >= self._epoch_s

    def _commit(self, *, epoch: bool) -> None:
        began_s = self._seconds()
        changes = self.fold.commit(epoch=epoch)
        self._last_commit_s = self._seconds()
        self.metrics.committed(self.fold.counts, self._last_commit_s - began_s)
        offset = self.fold.offset
        if epoch:
            self._last_epoch_s = self._seconds()
            self.position = Position(offset, self.position.epoch + 1, offset)
        else:
            self.position = self.position._replace(user_offset=offset)
        self._publish(self.position, changes)


def warm_up(config: Config, plan: Plan) -> None:
    """Run every kernel of the fold once on a small log in memory, so that they are compiled (or loaded) before use."""
    memory = MemoryLog()
    identity = MemoryIdentity()
    names = [kind.name for kind in config.events]
    with LogWriter(memory, identity, clock=lambda: 1, segment_keys=config.segments.keys) as writer:
        writer.put_items([Item(id=name, categories=["warm"]) for name in ("a", "b")])
        events = [Event(user="u", item=item, type=name) for item in ("a", "b") for name in names]
        writer.append_events(events_to_batch(events, config.segments.keys))
        writer.login("v", "u")
        fold = Fold(plan, unseal=identity.decrypt)
        block = memory.read(0)
        if block is not None:
            fold.apply(block)
    unpack_user(pack_user(fold.users.user(1), plan.layout), stranger(plan), plan.layout)


class FoldProcess:
    """A :class:`Folder` with the sockets around it. ``run`` returns after ``stop`` was set, or raises."""

    def __init__(self, folder: Folder, feed: FeedServer, writer_socket: Path) -> None:
        self._folder = folder
        self._feed = feed
        self._writer = WriterClient(writer_socket)
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._caught_up = False

    async def run(self, stop: asyncio.Event) -> None:
        """Announce, then fold until ``stop`` is set; what is in the log by then is folded first."""
        await self._feed.start()
        following = asyncio.create_task(self._follow())
        stopping = asyncio.create_task(stop.wait())
        try:
            self._turn()
            ends: list[asyncio.Future[Any]] = [following, stopping, self._failed]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for ended in (self._failed, following):
                if ended.done():
                    ended.result()
            while self._folder.advance():
                await asyncio.sleep(0)
        finally:
            if self._timer is not None:
                self._timer.cancel()
            stopping.cancel()
            following.cancel()
            await asyncio.gather(stopping, following, return_exceptions=True)
            if not self._failed.done():
                self._failed.cancel()
            await self._writer.close()
            await self._feed.stop()

    async def _follow(self) -> None:
        async with contextlib.aclosing(self._writer.follow()) as offsets:
            async for offset in offsets:
                if offset > self._folder.fold.offset:
                    self._turn()

    def _turn(self) -> None:
        """One block; then again at once, when the next epoch is due, or when the log is to be looked at anyway."""
        if self._timer is not None:
            self._timer.cancel()
        try:
            more = self._folder.advance()
        except Exception as error:  # noqa: BLE001  (whatever it is, it ends the process: see `run`)
            if not self._failed.done():
                self._failed.set_exception(error)
            return
        if not more and not self._caught_up:
            self._caught_up = True
            log.info("fold_caught_up", offset=self._folder.fold.offset, events=self._folder.fold.counts.events)
        due = None if more else self._folder.epoch_in_s()
        wait = 0.0 if more else POLL_S if due is None else min(due, POLL_S)
        self._timer = asyncio.get_running_loop().call_later(wait, self._turn)


async def run_fold(config: Config, data: Path, *, stop: asyncio.Event, plan_hash: str | None = None) -> None:
    """Be the fold process of ``data`` for the plan of ``config`` until ``stop`` is set.

    State and feed are the plan's own, so the folds of two plans can follow one log side by side.

    Raises:
        ConfigurationError: the plan is not the one with ``plan_hash`` (None: any will do).
        CorruptLogError: the log does not read as it was written; state stays at the last good offset.
        UnavailableError: the state is damaged; the next process drops it and folds anew.
    """
    plan = expected_plan(config, plan_hash)
    warm_up(config, plan)
    event_log = await _open_log(data, stop)
    if event_log is None:
        return
    if drop_old_layout(data):
        log.warning("state_dropped", reason="it lay where one plan had room", hint="it is folded anew from the log")
    state = await _open_state(config, data, plan, event_log, stop)
    if state is None:
        event_log.close()
        return
    try:
        fold = Fold(plan, state, unseal=Profiles(data))
        meta = state.meta()
        feed = FeedServer(feed_socket(data, plan.hash), Position(fold.offset, meta.epoch, 0))
        folder = Folder(event_log, fold, publish=feed.publish, epoch=meta.epoch, check=state.meta)
        folder.offer_everything()
        gc.collect()
        gc.freeze()  # what is here now stays: the collector need not look at it again
        log.info("fold_ready", offset=fold.offset, behind=event_log.last_offset - fold.offset, plan=plan.hash)
        await FoldProcess(folder, feed, data / "run" / "writer.sock").run(stop)
        log.info("fold_stopped", offset=fold.offset, skipped=dict(fold.counts.skipped))
    except CorruptStateError as error:
        mark_damaged(state)
        raise UnavailableError(f"{error}; the next fold process does that") from error
    finally:
        state.close()
        event_log.close()


async def _open_log(data: Path, stop: asyncio.Event) -> ArchivedLog | None:
    """The log, as soon as the writer has made it; None when the process is to stop before that."""
    waiting = False
    while not stop.is_set():
        try:
            return open_log(data)
        except StoreError as error:
            if not waiting:
                log.info("fold_waits_for_log", reason=str(error))
                waiting = True
        await asyncio.sleep(OPEN_PAUSE_S)
    return None


async def _open_state(config: Config, data: Path, plan: Plan, event_log: EventLog, stop: asyncio.Event) -> State | None:
    """The state, as soon as the server that holds it answers; None when the process is to stop before that."""
    waiting = False
    while not stop.is_set():
        try:
            return open_fold_state(config, data, plan, event_log)
        except UnavailableError as error:
            if config.state.store == "lmdb":
                raise
            if not waiting:
                log.info("fold_waits_for_state", reason=str(error))
                waiting = True
        await asyncio.sleep(jittered(STATE_PAUSE_S))
    return None
