"""The way to a Redis server or cluster: several commands a round trip, no silent retries, errors without passwords."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import redis
import structlog
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from headwater.schema.errors import ConfigurationError, UnavailableError

log = structlog.get_logger()

Command = tuple[str | bytes | int, ...]

_T = TypeVar("_T")
_SAFE_POLICIES = ("noeviction", "volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl")  # ours never expire


def shown(url: str) -> str:
    """A Redis URL as messages may name it: without user, password and options."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def script(text: str, keys: Iterable[str], *arguments: str | bytes | int) -> Command:
    """The command that runs a script."""
    keys = tuple(keys)
    return ("EVAL", text, len(keys), *keys, *arguments)


class Wire:
    """A connection to the Redis at ``url`` (``redis://``, ``rediss://``, ``unix://``), a single server or a cluster.

    Nothing is sent twice: who asked decides what a lost answer means. ``timeout_s`` is how long an answer may be
    waited for, ``patience_s`` (default: as long) one that is large. With ``pause_s``, whoever asks that soon after
    a failure gets the same failure at once. ``seconds`` is a monotonic clock.

    Raises:
        UnavailableError: (every method) Redis cannot be reached or refuses.
        ConfigurationError: the server throws rows away when memory is short.
    """

    def __init__(
        self, url: str, *, password: str | None = None, timeout_s: float = 30.0, patience_s: float | None = None,
        pause_s: float = 0.0, seconds: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.name = shown(url)
        self._url, self._password, self._patience_s = url, password, patience_s
        self._pause_s, self._seconds = pause_s, seconds
        self._again_s, self._failure = 0.0, ""
        self._cluster = False
        self._patient: Any = None
        self._client: Any = self._guarded(lambda: self._connect(timeout_s))
        try:
            self._cluster = bool(self._guarded(lambda: self._client.info("cluster"))["cluster_enabled"])
            if self._cluster:
                self._client.close()
                self._client = self._guarded(lambda: self._connect(timeout_s))
            self._check_policy()
        except BaseException:
            self.close()
            raise

    def _connect(self, timeout_s: float) -> Any:
        options: dict[str, Any] = {"socket_timeout": timeout_s, "socket_connect_timeout": min(timeout_s, 5.0)}
        if self._password is not None and urlsplit(self._url).password is None:
            options["password"] = self._password
        if self._cluster:
            return redis.RedisCluster.from_url(self._url, **options)
        return redis.Redis.from_url(self._url, retry=Retry(NoBackoff(), 0), **options)

    def close(self) -> None:
        self._client.close()
        if self._patient is not None:
            self._patient.close()

    def trip(self, commands: Sequence[Command], *, together: bool = False, patient: bool = False) -> list[Any]:
        """The answers to ``commands``; ``together``: as one step (all keys must be of one partition); ``patient``: they
        are large."""

        def send() -> list[Any]:
            client = self._client
            if patient and self._patience_s is not None:
                client = self._patient = self._patient or self._connect(self._patience_s)
            with client.pipeline(transaction=together) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                answers: list[Any] = pipe.execute()
                return answers

        return self._guarded(send) if commands else []

    def keys(self, pattern: str) -> Iterator[bytes]:
        """All keys that match, in parts."""
        scan: Iterator[bytes] = self._client.scan_iter(match=pattern, count=1000)
        while (key := self._guarded(lambda: next(scan, None))) is not None:
            yield key

    def _check_policy(self) -> None:
        """Refuse a server that throws rows away when it is full."""
        try:
            everywhere = {"target_nodes": redis.RedisCluster.PRIMARIES} if self._cluster else {}
            found = self._client.info("memory", **everywhere)
        except ResponseError as error:  # a user without the right to ask
            log.warning("redis_policy_unknown", redis=self.name, reason=str(error), hint="make sure it is noeviction")
            return
        except (RedisError, OSError) as error:
            raise self._unavailable(error) from error
        for memory in [found] if "maxmemory_policy" in found else found.values():
            policy = memory["maxmemory_policy"]
            if policy not in _SAFE_POLICIES:
                raise ConfigurationError(
                    f"Redis at {self.name} has maxmemory-policy {policy}: it would drop rows of the state when memory is "
                    "short; set it to noeviction"
                )

    def _guarded(self, call: Callable[[], _T]) -> _T:
        if self._seconds() < self._again_s:
            raise UnavailableError(self._failure)
        try:
            return call()
        except (RedisError, OSError) as error:
            failed = self._unavailable(error)
            if self._pause_s and not isinstance(error, ResponseError):
                self._again_s, self._failure = self._seconds() + self._pause_s, str(failed)
            raise failed from error

    def _unavailable(self, error: Exception) -> UnavailableError:
        return UnavailableError(f"Redis at {self.name} cannot be used: {error}")
