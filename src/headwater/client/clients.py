"""The two clients: they only differ in how they send and how they wait."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, TypeVar

import httpx

from headwater.client import exchange
from headwater.client.errors import ClientError, TransportError
from headwater.client.exchange import Call, Reply, Retries
from headwater.schema.events import Event, IngestReply
from headwater.schema.explanation import Explanation
from headwater.schema.items import Item
from headwater.schema.requests import RecommendRequest, RecommendResponse
from headwater.schema.users import UserProfile

T = TypeVar("T")


def _new_id() -> str:
    return uuid.uuid4().hex


class Client:
    """A blocking client of the server at ``base_url``; use it as a context manager, or ``close`` it.

    ``timeout`` is in seconds, for each attempt. ``new_id`` names events that have no id, ``jitter`` spreads the
    waits between attempts (uniform in [0, 1)), ``sleep`` waits; tests pass their own. Safe to share among threads.

    Every method raises :class:`~headwater.client.errors.RejectedError` (correct the request),
    ``UnauthorizedError``, ``NotFoundError``, ``OverloadedError``, ``ServerError`` or ``TransportError``
    (the last three after all attempts).
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        timeout: float = 5.0,
        *,
        retries: Retries | None = None,
        transport: httpx.BaseTransport | None = None,
        new_id: Callable[[], str] = _new_id,
        jitter: Callable[[], float] = random.random,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._http = httpx.Client(
            base_url=base_url, headers=exchange.headers(api_key), timeout=timeout, transport=transport
        )
        self._retries = retries or Retries()
        self._new_id, self._jitter, self._sleep = new_id, jitter, sleep

    def send_events(self, events: Sequence[Event]) -> IngestReply:
        """Send events; the reply's ``token`` makes a following ``recommend`` reflect them."""
        return self._run(exchange.send_events(events, self._new_id))

    def put_items(self, items: Sequence[Item]) -> IngestReply:
        """Add or replace items."""
        return self._run(exchange.put_items(items))

    def delete_item(self, item_id: str) -> IngestReply:
        """Take an item out of the catalogue. Raises ``NotFoundError`` for an item that was never there."""
        return self._run(exchange.delete_item(item_id))

    def get_item(self, item_id: str) -> Item:
        """What the catalogue says of an item. Raises ``NotFoundError`` for one that is not (or no longer) there."""
        return self._run(exchange.get_item(item_id))

    def put_users(self, users: Sequence[UserProfile]) -> IngestReply:
        """Add or replace user profiles."""
        return self._run(exchange.put_users(users))

    def login(self, anonymous: str, user: str) -> IngestReply:
        """What ``anonymous`` did belongs to ``user`` from now on."""
        return self._run(exchange.login(anonymous, user))

    def recommend(self, request: RecommendRequest) -> RecommendResponse:
        """What should this person see now?"""
        return self._run(exchange.recommend(request))

    def recommend_many(self, requests: Sequence[RecommendRequest]) -> list[RecommendResponse]:
        """Answers to 1 to 100 requests, in their order."""
        return self._run(exchange.recommend_many(requests))

    def similar(self, item_id: str, k: int | None = None, user: str | None = None) -> RecommendResponse:
        """Items like this one; what ``user`` has seen stays out."""
        return self._run(exchange.similar(item_id, k, user))

    def explain(
        self, request_id: str, *, item: str | None = None, bundle: str | None = None, after: int | None = None,
        candidates: int | None = None, features: int | None = None,
    ) -> Explanation:  # fmt: skip
        """Why the list of an answer was as it was; what became of ``item``; what another ``bundle`` would give.

        ``after`` is the ``user_offset`` of the answer's address and makes the list quick to find. It may take half a minute.
        Raises ``NotFoundError`` for a request that is not in the log (yet).
        """
        return self._run(exchange.explain(request_id, item, bundle, after, candidates, features))

    def healthy(self) -> bool:
        """Whether the server is alive (one attempt; never raises)."""
        return self._answers(exchange.probe("/healthz"))

    def ready(self) -> bool:
        """Whether the server can answer (one attempt; never raises)."""
        return self._answers(exchange.probe("/readyz"))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _answers(self, call: Call[bool]) -> bool:
        try:
            return self._run(call, Retries(attempts=1))
        except (ClientError, TransportError):
            return False

    def _run(self, call: Call[T], retries: Retries | None = None) -> T:
        steps = exchange.attempts(call, retries or self._retries, self._jitter)
        step = next(steps)
        try:
            while True:
                if step is None:
                    step = steps.send(self._send(call))
                else:
                    self._sleep(step.seconds)
                    step = next(steps)
        except StopIteration as done:
            value: T = done.value
            return value

    def _send(self, call: Call[T]) -> Reply:
        try:
            return _reply(
                self._http.request(
                    call.method, call.path, content=call.body, timeout=_timeout(call, self._http.timeout)
                )
            )
        except httpx.TransportError as error:
            return _no_answer(error)


class AsyncClient:
    """The same client for asyncio: the same arguments, methods and errors as :class:`Client`."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        timeout: float = 5.0,
        *,
        retries: Retries | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        new_id: Callable[[], str] = _new_id,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=base_url, headers=exchange.headers(api_key), timeout=timeout, transport=transport
        )
        self._retries = retries or Retries()
        self._new_id, self._jitter = new_id, jitter

    async def send_events(self, events: Sequence[Event]) -> IngestReply:
        """See :meth:`Client.send_events`."""
        return await self._run(exchange.send_events(events, self._new_id))

    async def put_items(self, items: Sequence[Item]) -> IngestReply:
        """See :meth:`Client.put_items`."""
        return await self._run(exchange.put_items(items))

    async def delete_item(self, item_id: str) -> IngestReply:
        """See :meth:`Client.delete_item`."""
        return await self._run(exchange.delete_item(item_id))

    async def get_item(self, item_id: str) -> Item:
        """See :meth:`Client.get_item`."""
        return await self._run(exchange.get_item(item_id))

    async def put_users(self, users: Sequence[UserProfile]) -> IngestReply:
        """See :meth:`Client.put_users`."""
        return await self._run(exchange.put_users(users))

    async def login(self, anonymous: str, user: str) -> IngestReply:
        """See :meth:`Client.login`."""
        return await self._run(exchange.login(anonymous, user))

    async def recommend(self, request: RecommendRequest) -> RecommendResponse:
        """See :meth:`Client.recommend`."""
        return await self._run(exchange.recommend(request))

    async def recommend_many(self, requests: Sequence[RecommendRequest]) -> list[RecommendResponse]:
        """See :meth:`Client.recommend_many`."""
        return await self._run(exchange.recommend_many(requests))

    async def similar(self, item_id: str, k: int | None = None, user: str | None = None) -> RecommendResponse:
        """See :meth:`Client.similar`."""
        return await self._run(exchange.similar(item_id, k, user))

    async def explain(
        self, request_id: str, *, item: str | None = None, bundle: str | None = None, after: int | None = None,
        candidates: int | None = None, features: int | None = None,
    ) -> Explanation:  # fmt: skip
        """See :meth:`Client.explain`."""
        return await self._run(exchange.explain(request_id, item, bundle, after, candidates, features))

    async def healthy(self) -> bool:
        """See :meth:`Client.healthy`."""
        return await self._answers(exchange.probe("/healthz"))

    async def ready(self) -> bool:
        """See :meth:`Client.ready`."""
        return await self._answers(exchange.probe("/readyz"))

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def _answers(self, call: Call[bool]) -> bool:
        try:
            return await self._run(call, Retries(attempts=1))
        except (ClientError, TransportError):
            return False

    async def _run(self, call: Call[T], retries: Retries | None = None) -> T:
        steps = exchange.attempts(call, retries or self._retries, self._jitter)
        step = next(steps)
        try:
            while True:
                if step is None:
                    step = steps.send(await self._send(call))
                else:
                    await asyncio.sleep(step.seconds)
                    step = next(steps)
        except StopIteration as done:
            value: T = done.value
            return value

    async def _send(self, call: Call[T]) -> Reply:
        try:
            return _reply(
                await self._http.request(
                    call.method, call.path, content=call.body, timeout=_timeout(call, self._http.timeout)
                )
            )
        except httpx.TransportError as error:
            return _no_answer(error)


def _timeout(call: Call[T], usual: httpx.Timeout) -> httpx.Timeout | float:
    return usual if call.timeout_s is None else call.timeout_s


def _reply(response: httpx.Response) -> Reply:
    return Reply(response.status_code, response.content, response.headers.get("retry-after"))


def _no_answer(error: httpx.TransportError) -> Reply:
    return Reply(0, f"{type(error).__name__}: {error}".encode())
