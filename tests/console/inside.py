"""The console without a server: its real application, guard and keys on a data directory, asked in process."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
from litestar.types import ASGIApp

from headwater.cli.console import CommandLine
from headwater.console.app import console_app
from headwater.console.desk import Live
from headwater.console.guard import COOKIE
from headwater.console.planes import Planes
from headwater.console.seeing import Past, Play, Pulses
from headwater.console.sessions import Sessions, console_secret
from headwater.features.plan import compile_plan
from headwater.online.access import Access
from headwater.online.console import ConsoleKeys
from headwater.online.console_keys import ConsoleKeyRing
from headwater.online.console_rules import ConsoleRules
from headwater.online.keys import add_key
from headwater.online.metrics import Metrics
from headwater.schema.config import Config
from headwater.schema.errors import UnavailableError
from headwater.schema.events import Event
from headwater.schema.explanation import Explanation
from headwater.schema.keys import Scope
from headwater.schema.requests import RecommendRequest
from headwater.schema.seen import Card, PastList, Person, Pulse, ShownList, Step, Whom
from headwater.serving.stages import described

HOST = "console.test"


@dataclass
class Clock:
    """The wall's time, set by the test."""

    now_ms: int = 1_772_000_000_000

    def __call__(self) -> int:
        return self.now_ms


class Away:
    """The parts behind the pages of lists, none of which can be reached."""

    def cards(self, items: Sequence[str]) -> dict[str, Card]:
        return {item: Card(item, item, []) for item in items}

    def person(self, whom: Whom) -> Person:
        raise UnavailableError(f"{whom}: the state is away")

    def look(self, request: RecommendRequest, whom: Whom) -> ShownList:
        raise UnavailableError(f"{request} for {whom}: the state is away")

    async def ask(self, request: RecommendRequest) -> ShownList:
        raise UnavailableError(f"{request}: the state is away")

    async def act(self, event: Event, request: RecommendRequest, shown: Sequence[str]) -> Step:
        raise UnavailableError(f"{event}, {request}, {shown}: the writer is away")

    async def compare(self, request: RecommendRequest, whom: Whom, way: str) -> tuple[ShownList, ShownList]:
        raise UnavailableError(f"{request} for {whom} {way}: the state is away")

    async def forget(self, user: str) -> None:
        raise UnavailableError(f"{user}: the writer is away")

    async def newest(self, limit: int, surface: str, user: int) -> list[PastList]:
        raise UnavailableError(f"{limit} {surface} {user}: the log is away")

    async def explain(self, request_id: str, item: str, bundle: str, after: int) -> Explanation:
        raise UnavailableError(f"{request_id} {item} {bundle} {after}: the log is away")

    async def pulse(self) -> Pulse:
        raise UnavailableError("the figures are away")


@dataclass
class Quiet:
    """A server that has nothing to say, or that fails."""

    play: Play = field(default_factory=Away)
    past: Past = field(default_factory=Away)
    pulses: Pulses = field(default_factory=Away)
    reasons: list[str] = field(default_factory=list)
    failure: Exception | None = None

    def health(self) -> Mapping[str, Any]:
        if self.failure is not None:
            raise self.failure
        return {"plan": "0123456789abcdef", "rules": ""}

    async def why_not_ready(self) -> list[str]:
        return self.reasons


class Console:
    """The console of ``data``, and what a browser would do with it."""

    def __init__(
        self, data: Path, *, live: Live | None = None, config: Config | None = None, path: Path | None = None, looks: Any = None
    ) -> None:  # fmt: skip
        self.data, self.clock = data, Clock()
        config = Config() if config is None else config
        plan = compile_plan(config)
        self._access = Access(data, Config().limits, Metrics(), clock=self.clock, timer=lambda: 0.0)
        self.keys = keys = ConsoleKeys(self._access)
        planes = Planes(
            rules=ConsoleRules(data, path, plan, lambda: config, self.clock, self.clock),
            keys=ConsoleKeyRing(data, self._access, self.clock), commands=CommandLine(path, data), plan=plan.hash,
            pipeline=lambda: described(config), config=lambda: config, config_path=path, looks=looks,
        )  # fmt: skip
        self.app: ASGIApp = console_app(config, data, keys, live or Quiet(), planes, clock=self.clock, wall=self.clock)
        self.sessions = Sessions(console_secret(data), keys, self.clock)

    def key(self, name: str, *scopes: Scope, expires_ms: int | None = None) -> str:
        """The text of a new key, which is in force."""
        text, _ = add_key(self.data, name, scopes, now_ms=self.clock(), expires_ms=expires_ms)
        self._access.refresh()
        return text

    def follow(self) -> None:
        """Take up what changed in the key file."""
        self._access.refresh()

    def ask(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, form: Mapping[str, str | list[str]] | None = None,
        cookie: str = "", host: str = HOST,
    ) -> httpx.Response:  # fmt: skip
        """The answer to one request; redirects are not followed."""
        sent = {"host": host, **(headers or {})}
        if cookie:
            sent["cookie"] = f"{COOKIE}={cookie}"

        async def one() -> httpx.Response:
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(cast(Any, self.app)), base_url=f"https://{host}"
            ) as client:
                return await client.request(method, path, headers=sent, data=form)

        # in a thread: the browser tests of the same process have a loop that runs in this one
        with ThreadPoolExecutor(1) as apart:
            return apart.submit(asyncio.run, one()).result()

    def log_in(self, key: str, *, host: str = HOST) -> str:
        """The cookie of a new session."""
        answer = self.ask("POST", "/console/login", form={"key": key}, host=host)
        assert answer.status_code == 303, answer.text
        return cookie_of(answer)

    def change(self, path: str, cookie: str, **form: str | list[str]) -> httpx.Response:
        """The answer to a change, sent as a page sends it, from this machine."""
        headers = {"x-csrf-token": self.token(cookie, host="localhost"), "hx-request": "true"}
        return self.ask("POST", path, headers=headers, form=form, cookie=cookie, host="localhost")

    def visit(self) -> str:
        """The session of somebody on this machine, while there are no keys."""
        return cookie_of(self.ask("GET", "/console", host="localhost"))

    def token(self, cookie: str, *, host: str = HOST) -> str:
        """The token that the pages of a session carry."""
        found = re.search(
            r'"X-CSRF-Token": "([0-9a-f]{64})"', self.ask("GET", "/console", cookie=cookie, host=host).text
        )
        assert found is not None
        return found[1]


def cookie_of(answer: httpx.Response) -> str:
    """The session that an answer sets."""
    (said,) = [each for each in answer.headers.get_list("set-cookie") if each.startswith(f"{COOKIE}=")]
    return said.split(";")[0].partition("=")[2]


def scripts_of(html: str) -> Sequence[str]:
    """What stands between script tags of a page."""
    return [inside for inside in re.findall(r"<script[^>]*>(.*?)</script>", html, re.DOTALL) if inside.strip()]
