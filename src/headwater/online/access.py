"""Who may do what: the table of routes and scopes, and the check before every request.

Without a key file everybody may do everything, and ``headwater serve`` listens on loopback only. With one, a request
needs a key with the scope of its route, and the server stays closed whatever becomes of the keys or of the file.
"""

from __future__ import annotations

import asyncio
import hmac
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import structlog
from litestar import Request

from headwater.online.errors import RefusalError
from headwater.online.keys import digest_of, id_of_key, read_keys
from headwater.online.limits import Bucket, Rate
from headwater.online.metrics import Metrics
from headwater.registry.files import Stamp, stamp
from headwater.schema.errors import ConfigurationError
from headwater.schema.keys import KEYS_FILE, ApiKey, Scope
from headwater.schema.limits import Limits
from headwater.schema.urls import is_known_host

log = structlog.get_logger()

POLL_S = 0.5
MOST_HOSTS = 64
_BUCKET = "bucket"
PUBLIC_CALL = "public"  # in the state of a request whose key everybody may know
REALM = 'Bearer realm="headwater"'

# Every route and the scope that it takes; None: open to everybody. What is not here is refused.
SCOPES: dict[tuple[str, str], Scope | None] = {
    ("POST", "/v1/events"): Scope.INGEST,
    ("POST", "/v1/items"): Scope.INGEST,
    ("DELETE", "/v1/items/{item_id}"): Scope.INGEST,
    ("GET", "/v1/items/{item_id}"): Scope.READ,
    ("POST", "/v1/users"): Scope.INGEST,
    ("DELETE", "/v1/users/{user_id}"): Scope.ADMIN,
    ("POST", "/v1/logins"): Scope.INGEST,
    ("POST", "/v1/recommend"): Scope.RECOMMEND,
    ("POST", "/v1/recommend/batch"): Scope.RECOMMEND,
    ("GET", "/v1/similar/{item_id}"): Scope.RECOMMEND,
    ("GET", "/v1/explain/{request_id}"): Scope.READ,
    ("GET", "/v1/headwater.js"): None,
    ("GET", "/healthz"): None,
    ("GET", "/readyz"): None,
    ("GET", "/metrics"): Scope.READ,
    ("GET", "/schema"): Scope.READ,
    ("GET", "/schema/openapi.json"): Scope.READ,
}

# What of this a public key opens, if it has the scope: no catalogue, no profiles, no hundred requests in one.
PUBLIC = frozenset({
    ("POST", "/v1/events"), ("POST", "/v1/logins"), ("POST", "/v1/recommend"), ("GET", "/v1/similar/{item_id}"),
})  # fmt: skip


class Caller:
    """A key as a request meets it: its hash, its scopes, and how much of its rate is left."""

    __slots__ = ("bucket", "digest", "key", "scopes")

    def __init__(self, key: ApiKey, bucket: Bucket) -> None:
        self.key = key
        self.digest = bytes.fromhex(key.sha256)
        self.scopes = frozenset(key.scopes)
        self.bucket = bucket


class Access:
    """Follows the key file of ``data`` and lets requests pass or refuses them.

    ``clock`` is the wall's time in Unix ms, by which keys expire (not that of the log, which may stand in the past);
    ``timer`` gives seconds, for rates. ``origins`` are those whose pages may call from a browser,
    ``hosts`` the names besides those of loopback that may stand in ``Host`` while there are no keys.

    Raises:
        ConfigurationError: there is a key file and it cannot be read.
    """

    def __init__(
        self, data: Path, limits: Limits, metrics: Metrics, *, clock: Callable[[], int], timer: Callable[[], float],
        origins: Sequence[str] = (), hosts: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self._data = data
        self._clock, self._timer = clock, timer
        self._origins = frozenset(origin.encode() for origin in origins)
        self._hosts = frozenset(hosts)
        self._known_hosts: set[bytes] = set()  # headers that were found good, so that each is parsed once
        self._rate = Rate(limits.requests_per_s, limits.burst) if limits.requests_per_s else None
        self._refused = metrics.refused.labels
        self._everybody = Bucket()  # without keys all callers are one
        self._callers: dict[str, Caller] | None = None  # None: there are no keys
        self._seen: Stamp | None = None
        self.refresh()

    async def check(self, request: Request[Any, Any, Any]) -> None:
        """Called before a request reaches its route, and before its body is read.

        Raises:
            RefusalError: 401 without a good key, 403 with one that lacks the scope; where there are no keys 421 for a foreign
                ``Host``, 403 for a page of another origin; 429 above the rate.
        """
        scope = request.scope
        bucket, public = self._admit(scope["method"], scope["path_template"], scope["headers"])
        if public:
            scope["state"][PUBLIC_CALL] = True
        if bucket is not None:
            request.state[_BUCKET] = bucket
            self.spend(bucket, 1)

    def allowed(self, method: str, path: str, headers: Iterable[tuple[bytes, bytes]]) -> Bucket | None:
        """Whose rate a request counts against, if it may come at all; None: nobody's. ``path`` is the route's template.

        Raises:
            RefusalError: 401 without a good key, 403 with one that lacks the scope; where there are no keys 421 for a foreign
                ``Host``, 403 for a page of another origin.
        """
        return self._admit(method, path, headers)[0]

    def _admit(self, method: str, path: str, headers: Iterable[tuple[bytes, bytes]]) -> tuple[Bucket | None, bool]:
        """Whose rate a request counts against (None: nobody's), and whether its key is public."""
        if self._callers is None:
            self._check_open(headers, SCOPES.get((method, path)) is not None)
        if method == "OPTIONS":  # the framework's own answer: which methods a path knows
            return None, False
        if (method, path) not in SCOPES:
            log.error("route_without_scope", method=method, route=path)
            raise RefusalError(403, f"{method} {path} has no entry in the table of scopes, so nobody may use it")
        if (needed := SCOPES[method, path]) is None:
            return None, False
        bucket, public = self._everybody, False
        if self._callers is not None:
            caller = self._caller(headers, self._callers)
            bucket = caller.bucket
            if needed not in caller.scopes:
                self._refused("scope").inc()
                raise RefusalError(
                    403,
                    f'This key lacks the scope "{needed}"; it has {", ".join(sorted(caller.scopes))}',
                    "authorization",
                    headers={"www-authenticate": f'{REALM}, error="insufficient_scope", scope="{needed}"'},
                )
            public = caller.key.public
            if public and (method, path) not in PUBLIC:
                self._refused("scope").inc()
                raise RefusalError(403, f"This key is public; {method} {path} takes one that is not", "authorization")
        return bucket if self._rate is not None else None, public

    def who(self, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """How the audit log names the caller of a request that was let through: by its key, or ``api`` where there are no keys."""
        return "api" if self._callers is None else f"key:{self._caller(headers, self._callers).key.id}"

    @property
    def has_keys(self) -> bool:
        """Whether requests need a key."""
        return self._callers is not None

    def key_of(self, text: bytes) -> ApiKey | None:
        """The key with that text; None: there is none, or it is not good any more."""
        caller = (self._callers or {}).get(id_of_key(text))
        if caller is None or not hmac.compare_digest(digest_of(text), caller.digest):
            return None
        return self._good(caller.key)

    def key_with(self, number: str) -> ApiKey | None:
        """The key of that id; None: there is none, or it is not good any more."""
        caller = (self._callers or {}).get(number)
        return None if caller is None else self._good(caller.key)

    def _good(self, key: ApiKey) -> ApiKey | None:
        return None if key.public or key.why_invalid(self._clock()) else key

    def take(self, request: Request[Any, Any, Any], requests: int) -> None:
        """Count ``requests`` against the rate of the caller, who was let in by :meth:`check`. Raises like :meth:`spend`."""
        if self._rate is not None and requests:
            self.spend(request.state[_BUCKET], requests)

    def spend(self, bucket: Bucket, requests: int) -> None:
        """Count ``requests`` against the rate of ``bucket``.

        Raises:
            RefusalError: 429: less of the rate is left, or the burst is smaller.
        """
        if self._rate is None:
            return
        if requests > self._rate.burst:
            self._refused("rate").inc()
            raise RefusalError(
                429, f"More requests at once than this key may ever send (limits.burst: {self._rate.burst})"
            )
        if wait_s := self._rate.take(bucket, self._timer(), requests):
            self._refused("rate").inc()
            raise RefusalError(
                429, "More requests than this key may send (limits.requests_per_s)", retry_after_s=math.ceil(wait_s)
            )

    def refresh(self) -> None:
        """Take up the key file if it changed since the last call (else this costs one ``stat``).

        Raises:
            ConfigurationError: it cannot be read; the keys stay as they were.
        """
        mark = stamp(self._data / KEYS_FILE)  # taken before reading: a change in between is seen by the next call
        if mark == self._seen:
            return
        keys = read_keys(self._data)
        self._seen = mark  # only now: a file that could not be read for want of a descriptor may hold a revocation
        before = self._callers or {}
        if keys is None and self._callers is not None:
            log.error("keys_gone", hint="nobody is let in until there is a key file again")
        if keys is not None or self._callers is not None:
            self._callers = {
                key.id: Caller(key, before[key.id].bucket if key.id in before else Bucket()) for key in keys or ()
            }
            log.info("keys_in_force", keys=sum(not key.why_invalid(self._clock()) for key in keys or ()))

    async def run(self) -> None:
        """Follow the key file until cancelled."""
        said = ""
        while True:
            await asyncio.sleep(POLL_S)
            try:
                self.refresh()
                said = ""
            except ConfigurationError as error:
                if said != (said := str(error)):
                    log.error("keys_refused", reason=said, hint="the keys from before stay in force")

    def _check_open(self, headers: Iterable[tuple[bytes, bytes]], scoped: bool) -> None:
        """Without keys whoever reaches the server may do everything, and any page that is open in a browser on this machine
        reaches it. A browser says whose page it is: let in those that are named, and the server's own. A page whose name was
        made to point at this machine says that it is the server's own; the name in ``Host`` gives it away.
        """
        host = origin = None
        for name, value in headers:
            if name == b"host":
                host = value
            elif name == b"origin":
                origin = value
        if host is not None and host not in self._known_hosts:
            self._check_host(host)
        if not scoped or origin is None or origin in self._origins or origin.partition(b"://")[2] == host:
            return
        self._refused("origin").inc()
        raise RefusalError(403, "Pages of this origin may not call the server; name it in cors.origins", "origin")

    def _check_host(self, host: bytes) -> None:
        """Whether this machine, or a name of the configuration, was asked."""
        if not is_known_host(host.decode("latin-1"), self._hosts):
            self._refused("host").inc()
            raise RefusalError(
                421,
                "Without API keys the server answers to localhost only; name this host in serving.allowed_hosts, or make a key",
                "host",
            )
        if len(self._known_hosts) < MOST_HOSTS:
            self._known_hosts.add(host)

    def _caller(self, headers: Iterable[tuple[bytes, bytes]], callers: dict[str, Caller]) -> Caller:
        given = [value for name, value in headers if name == b"authorization"]
        if not given:
            raise self._stranger('Send an API key: "Authorization: Bearer hw_..."', REALM)
        scheme, _, text = given[0].partition(b" ")
        text = text.strip()
        caller = callers.get(id_of_key(text)) if len(given) == 1 and scheme.lower() == b"bearer" else None
        invalid = f'{REALM}, error="invalid_token"'
        # the time that a wrong id saves tells nothing: ids are no secret. The hashes are compared in constant time
        if caller is None or not hmac.compare_digest(digest_of(text), caller.digest):
            raise self._stranger("There is no such API key", invalid)
        if why := caller.key.why_invalid(self._clock()):
            raise self._stranger(f"This API key {why}", invalid)
        return caller

    def _stranger(self, reason: str, challenge: str) -> RefusalError:
        self._refused("key").inc()
        return RefusalError(401, reason, "authorization", headers={"www-authenticate": challenge})
