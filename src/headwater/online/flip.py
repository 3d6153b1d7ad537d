"""From one feature plan to another while requests go on: the part of the supervisor that watches ``state/CURRENT``.

``headwater features backfill`` writes there which plan is wanted. New fold and new workers start beside the old ones,
on the same sockets, and hold until they are ready; then they take over and the old ones give way. Whatever goes
wrong before that moment leaves the old ones as they were, and says why.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from headwater.features.paths import (
    Current,
    Flip,
    building_dir,
    drop_other_states,
    read_current,
    state_dir,
    write_current,
    write_flip,
)
from headwater.features.pinned import config_digest, drop_pinned, pin_config
from headwater.features.redis_states import drop_other_states_in_redis, has_state_in_redis
from headwater.online.supervisor import EXIT_INPUT, POLL_S, Child, Supervisor
from headwater.schema.config import Config, load_config
from headwater.schema.errors import HeadwaterError

log = structlog.get_logger()

LOOK_S = 0.25
READY_S = 180.0  # compiling every kernel from nothing takes its time


class FlipRefusedError(HeadwaterError):
    """The plan that is wanted cannot come into service; the old one serves."""


@dataclass(frozen=True, slots=True)
class Generation:
    """The processes of one plan: where they read their configuration, what it was, and who they are."""

    config: Config
    pinned: Path
    children: Sequence[Child]

    def of(self, part: str) -> list[Child]:
        """Those that do ``part``."""
        return [child for child in self.children if child.part == part]


class Flipper:
    """Keeps ``supervisor`` on the plan that ``state/CURRENT`` of ``data`` asks for.

    ``config_path`` is the configuration file that the server was started with (None: the defaults). ``make`` gives the
    fold and api children of a pinned configuration, to start with the plan of that hash; ``write_command`` the
    arguments of the writer.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        data: Path,
        config_path: Path | None,
        first: Generation,
        *,
        make: Callable[[Path, str], Sequence[Child]],
        writer: Child,
        write_command: Callable[[Path], Sequence[str]],
        ready_s: float = READY_S,
        look_s: float = LOOK_S,
    ) -> None:
        self._supervisor, self._data = supervisor, data
        self._config_path = None if config_path is None else str(config_path.resolve())
        self._now = first
        self._make, self._writer, self._write_command = make, writer, write_command
        self._ready_s, self._look_s = ready_s, look_s
        self._current = Current(plan="")
        self._asked = _request(data)  # what was asked of an earlier server is over
        self._roll_asked = False
        write_flip(data, None)

    @property
    def pinned(self) -> Path:
        """The copy of the configuration that is in service."""
        return self._now.pinned

    async def watch(self) -> None:
        """Write down what serves; then follow every request until cancelled."""
        plan = await _plan_of(self._now)
        before = _read(self._data)
        for child in self._now.children:  # whoever is started again must come back with this plan or not at all
            child.command = [*child.command, "--plan", plan]
        self._current = Current(
            plan=plan,
            before=before.before if before is not None and before.plan == plan else before.plan if before else None,
            config=self._config_path,
            digest=config_digest(self._now.config),
            request=before.request if before is not None else "",
        )
        if _request(self._data) == self._asked:
            write_current(self._data, self._current)
        while True:
            wanted = _read(self._data)
            if wanted is not None and wanted.request != self._asked:
                self._asked = wanted.request
                await self._answer(wanted)
            if self._roll_asked:
                self._roll_asked = False
                await self._roll()
            await asyncio.sleep(self._look_s)

    def restart_workers(self) -> None:
        """Have every api process replaced soon, one after the other, while requests go on."""
        self._roll_asked = True

    async def _roll(self) -> None:
        """A new worker on the socket of each old one, ready before that gives way. One that is not ready ends the roll."""
        log.info("workers_restart", workers=len(self._now.of("api")))
        for old in self._now.of("api"):
            new = Child(old.part, old.command, old.listener, hold=True)
            self._supervisor.add([new])
            try:
                await self._until_ready([new])
            except FlipRefusedError as error:
                await self._supervisor.retire([new], signal.SIGTERM)
                log.error("worker_not_restarted", reason=str(error), hint="the workers that are left serve on")
                return
            children = [new if child is old else child for child in self._now.children]
            self._now = Generation(self._now.config, self._now.pinned, children)
            self._supervisor.release(new)
            await self._supervisor.retire([old], signal.SIGUSR1)
        log.info("workers_restarted")

    async def _answer(self, wanted: Current) -> None:
        log.info("flip_begins", plan=wanted.plan, before=self._current.plan)
        write_flip(self._data, Flip(request=wanted.request, plan=wanted.plan, stage="switching"))
        try:
            await self._switch(wanted)
        except (HeadwaterError, OSError) as error:
            log.error("flip_refused", plan=wanted.plan, serving=self._current.plan, reason=str(error))
            self._current = msgspec.structs.replace(self._current, request=wanted.request)
            if _request(self._data) == wanted.request:
                write_current(self._data, self._current)
            reason = str(error)
            write_flip(self._data, Flip(request=wanted.request, plan=wanted.plan, stage="refused", reason=reason))
        else:
            log.info("flip_done", plan=wanted.plan, before=self._current.before)
            write_flip(self._data, Flip(request=wanted.request, plan=wanted.plan, stage="serving"))

    async def _switch(self, wanted: Current) -> None:
        """Start the new processes, hand over to them, take the old ones down.

        Raises:
            FlipRefusedError, ConfigurationError: nothing has changed.
        """
        config = await asyncio.to_thread(self._checked, wanted)  # it may have to ask Redis
        pinned = pin_config(config, self._data / "run")
        new = Generation(config, pinned, self._make(pinned, wanted.plan))
        self._supervisor.add(new.children)
        try:
            await self._until_ready(new.children)
        except BaseException:
            await self._supervisor.retire(new.children, signal.SIGTERM)
            raise
        old, self._now = self._now, new
        # The old ones leave the queue of connections and the new ones come to it: from here on there is no way back.
        leaving = asyncio.create_task(self._supervisor.retire(old.of("api"), signal.SIGUSR1))
        for child in new.children:
            self._supervisor.release(child)
        self._current = Current(
            plan=wanted.plan,
            before=self._current.plan,
            config=wanted.config,
            digest=wanted.digest,
            request=wanted.request,
        )
        write_current(self._data, self._current)
        await leaving
        await self._supervisor.retire(old.of("fold"), signal.SIGTERM)
        await self._supervisor.retire(old.of("tables"), signal.SIGTERM)
        await self._supervisor.retire(old.of("monitor"), signal.SIGTERM)
        await self._reload_writer(old.config)
        drop_pinned(self._data / "run", pinned)
        kept = [plan for plan in (self._current.plan, self._current.before) if plan is not None]
        await asyncio.to_thread(self._drop_others, kept)

    def _drop_others(self, kept: list[str]) -> None:
        """Remove the states of plans that nobody will go back to. The flip is done, whatever becomes of this."""
        try:
            dropped = [*drop_other_states(self._data, kept), *drop_other_states_in_redis(self._now.config, kept)]
        except (HeadwaterError, OSError) as error:
            log.warning("states_not_dropped", reason=str(error), hint="the next flip tries again")
            return
        if dropped:
            log.info("states_dropped", plans=dropped, kept=kept)

    def _checked(self, wanted: Current) -> Config:
        """The configuration behind a request. Raises :class:`FlipRefusedError` when it is not what was backfilled."""
        if wanted.plan == self._current.plan:
            raise FlipRefusedError(f"plan {wanted.plan} is in service already")
        if wanted.config != self._config_path:
            raise FlipRefusedError(
                f"the server was started with {self._config_path or 'no configuration file'} and the backfill with "
                f"{wanted.config or 'none'}: make the change in the server's file and run the backfill again"
            )
        config = load_config(None if wanted.config is None else Path(wanted.config))
        if config_digest(config) != wanted.digest:
            raise FlipRefusedError(f"{wanted.config} has changed since the backfill: run it again")
        if config.state.store == "redis":
            there = not building_dir(self._data, wanted.plan).exists() and has_state_in_redis(config, wanted.plan)
        else:
            there = state_dir(self._data, wanted.plan).is_dir()
        if not there:
            raise FlipRefusedError(f"there is no state of plan {wanted.plan}: run the backfill again")
        return config

    async def _until_ready(self, new: Sequence[Child]) -> None:
        apis = [child for child in new if child.part == "api"]
        try:
            async with asyncio.timeout(self._ready_s):
                while not all(child.ready.is_set() for child in apis):
                    for child in new:
                        if child.code == EXIT_INPUT and child.vital:
                            raise FlipRefusedError(
                                f"the new {child.part} process could not start; its message is in the server's log"
                            )
                    await asyncio.sleep(POLL_S)
        except TimeoutError as error:
            missing = sum(not child.ready.is_set() for child in apis)
            raise FlipRefusedError(
                f"{missing} of {len(apis)} new api processes were not ready after {self._ready_s:g} s; the server's log "
                "says what they waited for"
            ) from error

    async def _reload_writer(self, before: Config) -> None:
        """The writer goes on, unless the new configuration has other settings for it: a restart, as after a crash."""
        now = self._now.config
        command = self._write_command(self._now.pinned)
        if (now.segments, now.log) == (before.segments, before.log):
            self._writer.command = command
            return
        log.info("writer_restarts", why="[segments] or [log] changed")
        await self._supervisor.restart(self._writer, command)


async def _plan_of(generation: Generation) -> str:
    """The hash of the plan that the processes compiled."""
    first = generation.of("api")[0]
    while first.plan is None:
        await asyncio.sleep(POLL_S)
    return first.plan


def _request(data: Path) -> str:
    current = _read(data)
    return current.request if current is not None else ""


def _read(data: Path) -> Current | None:
    try:
        return read_current(data)
    except HeadwaterError as error:
        log.warning("current_unreadable", reason=str(error))
        return None
