"""The way to a Redis server or cluster: several commands a round trip, no silent retries, errors without passwords."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import redis
import structlog
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as LostError
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from headwater.breaker import Breaker, RetryBudget, jittered
from headwater.schema.errors import ConfigurationError, UnavailableError

log = structlog.get_logger()

Command = tuple[str | bytes | int, ...]

_T = TypeVar("_T")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 1.0  # how long a Redis that did not answer is left alone
RETRY_S = 0.004
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

    ``timeout_s`` is how long an answer may be waited for, ``patience_s`` (default: as long) one that is large. Nothing is
    sent twice, for who asked decides what a lost answer means, unless the wire is for ``reads`` alone: then what a lost
    connection swallowed is asked once more, as far as ``budget`` allows, and after a failure ``breaker`` opens: whoever asks
    gets the same failure at once, and a thread on the side tries what was asked until that is answered in time.
    ``seconds`` is a monotonic clock.

    Raises:
        UnavailableError: (every method) Redis cannot be reached or refuses.
        ConfigurationError: the server throws rows away when memory is short.
    """

    def __init__(
        self, url: str, *, password: str | None = None, timeout_s: float = 30.0, patience_s: float | None = None,
        reads: bool = False, seconds: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.name = shown(url)
        self.breaker, self.budget = Breaker(FIRST_PAUSE_S, LONGEST_PAUSE_S, clock=seconds), RetryBudget()
        self._url, self._password, self._timeout_s, self._patience_s = url, password, timeout_s, patience_s
        self._reads, self._seconds = reads, seconds
        self._failure = ""
        self._cluster = False
        self._patient: Any = None
        self._client: Any = self._once(lambda: self._connect(timeout_s))
        try:
            self._cluster = bool(self._once(lambda: self._client.info("cluster"))["cluster_enabled"])
            if self._cluster:
                self._client.close()
                self._client = self._once(lambda: self._connect(timeout_s))
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

        if not commands:
            return []
        return self._read(send) if self._reads else self._once(send)

    def keys(self, pattern: str) -> Iterator[bytes]:
        """All keys that match, in parts."""
        scan: Iterator[bytes] = self._client.scan_iter(match=pattern, count=1000)
        while (key := self._once(lambda: next(scan, None))) is not None:
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

    def _once(self, call: Callable[[], _T]) -> _T:
        self.budget.call()
        try:
            return call()
        except (RedisError, OSError) as error:
            raise self._unavailable(error) from error

    def _read(self, call: Callable[[], _T]) -> _T:
        if self.breaker.is_open:
            if self.breaker.trial():
                threading.Thread(target=self._try, args=(call,), name="redis trial", daemon=True).start()
            raise UnavailableError(self._failure)
        self.budget.call()
        began_s = self._seconds()
        try:
            try:
                return call()
            except LostError:
                left_s = self._timeout_s - (self._seconds() - began_s)
                if left_s < RETRY_S or not self.budget.retry():
                    raise
                time.sleep(jittered(RETRY_S))  # all workers lost their connections at the same moment
                return call()
        except ResponseError as error:  # Redis is well, it does not like what was asked
            raise self._unavailable(error) from error
        except (RedisError, OSError) as error:
            failed = self._unavailable(error)
            self._failure = str(failed)
            self.breaker.failed()
            log.warning("redis_rests", redis=self.name, reason=str(error))
            raise failed from error

    def _try(self, call: Callable[[], object]) -> None:
        """The trial while the breaker is open: is ``call`` answered in the time that a request would give it?"""
        began_s = self._seconds()
        self.budget.call()
        try:
            call()
        except (RedisError, OSError) as error:
            self._failure = str(self._unavailable(error))
            self.breaker.failed()
            return
        if self._seconds() - began_s > self._timeout_s:
            self.breaker.failed()
            return
        after_s = self._seconds() - self.breaker.since_s
        self.breaker.succeeded()
        log.info("redis_back", redis=self.name, after_s=round(after_s, 3))

    def _unavailable(self, error: Exception) -> UnavailableError:
        return UnavailableError(f"Redis at {self.name} cannot be used: {error}")
