"""Route × scope × state of the key, over a running server; and that nothing secret reaches its log."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import msgspec
import pytest
from litestar import Litestar, Request, Response, get
from litestar.testing import TestClient
from typer.testing import CliRunner

from headwater.cli.main import build_app
from headwater.client import Client, UnauthorizedError
from headwater.online.access import MOST_HOSTS, SCOPES, Access
from headwater.online.app import create_app
from headwater.online.errors import RefusalError
from headwater.online.keys import add_key, revoke_key
from headwater.online.metrics import Metrics
from headwater.online.openapi import document, operations
from headwater.online.roles import Role
from headwater.online.service import Service
from headwater.schema.clock import wall_ms
from headwater.schema.config import Config
from headwater.schema.errors import ConfigurationError
from headwater.schema.events import Event
from headwater.schema.keys import KEYS_FILE, Scope
from headwater.schema.limits import Limits
from headwater.schema.requests import RecommendRequest
from tests.online.running import CONFIG, PATIENCE_S, Running, catalogue

# What the table has to be, written down once more: route, what to send, the scope that it takes.
ROUTES: list[tuple[str, str, Any, Scope | None]] = [
    ("POST", "/v1/events", {"user": "secret-user", "item": "item-1", "type": "view"}, Scope.INGEST),
    ("POST", "/v1/items", {"id": "item-1"}, Scope.INGEST),
    ("DELETE", "/v1/items/item-2", None, Scope.INGEST),
    ("GET", "/v1/items/item-1", None, Scope.READ),
    ("POST", "/v1/users", {"id": "secret-user"}, Scope.INGEST),
    ("DELETE", "/v1/users/secret-user", None, Scope.ADMIN),
    ("POST", "/v1/logins", {"anonymous": "secret-visitor", "user": "secret-user"}, Scope.INGEST),
    ("POST", "/v1/recommend", {"user": "secret-user", "k": 1}, Scope.RECOMMEND),
    ("POST", "/v1/recommend/batch", [{"user": "secret-user", "k": 1}], Scope.RECOMMEND),
    ("GET", "/v1/similar/item-1?k=1&user=secret-user", None, Scope.RECOMMEND),
    ("GET", "/v1/explain/no-request", None, Scope.READ),
    ("GET", "/metrics", None, Scope.READ),
    ("GET", "/schema", None, Scope.READ),
    ("GET", "/schema/openapi.json", None, Scope.READ),
    ("GET", "/v1/headwater.js", None, None),
    ("GET", "/healthz", None, None),
    ("GET", "/readyz", None, None),
]
SETS = [frozenset(chosen) for size in range(1, 5) for chosen in itertools.combinations(Scope, size)]


@dataclass(frozen=True)
class Made:
    """Keys of a running server, by scopes and state."""

    site: Running
    texts: dict[tuple[frozenset[Scope], str], str]

    def send(self, method: str, path: str, body: Any, *authorization: str) -> httpx.Response:
        headers = [("authorization", value) for value in authorization]
        request = self.site.http.build_request(method, path, json=body, headers=headers)
        return self.site.http.send(request)

    def until(self, right: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + PATIENCE_S
        while not right():
            assert time.monotonic() < until, what
            time.sleep(0.02)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """A server with a key for every set of scopes in every state."""
    folder = tmp_path_factory.mktemp("closed")
    now_ms = wall_ms()
    config = CONFIG + "\n[limits]\nuser_events_per_hour = { purchase = 3 }\n"
    with Running(folder, config) as site:
        site.reflected(site.ingest("/v1/items", catalogue(10)))  # without keys all is open
        texts: dict[tuple[frozenset[Scope], str], str] = {}
        for number, scopes in enumerate(SETS):
            for state in ("good", "expired", "revoked"):
                name = f"{state}-{number}"
                expires_ms = {"good": now_ms + 3_600_000, "expired": now_ms - 1, "revoked": None}[state]
                texts[scopes, state], _ = add_key(
                    site.data, name, sorted(scopes), now_ms=now_ms - 60_000, expires_ms=expires_ms
                )
                if state == "revoked":
                    revoke_key(site.data, name, now_ms=now_ms)
        made = Made(site, texts)
        last = f"Bearer {texts[SETS[-1], 'good']}"
        made.until(lambda: made.send("GET", "/metrics", None, last).status_code == 200, "the keys are not known")
        made.until(lambda: made.send("GET", "/metrics", None).status_code == 401, "the server is still open")
        gone = f"Bearer {texts[SETS[-1], 'revoked']}"  # the last one was good for a moment
        made.until(lambda: "revoked" in made.send("GET", "/metrics", None, gone).text, "a revocation is not known")
        yield made


def challenge(response: httpx.Response) -> str:
    assert response.status_code == 401, response.text
    assert response.json()["error"]["field"] == "authorization"
    value: str = response.headers["www-authenticate"]
    assert value.startswith('Bearer realm="headwater"')
    return value


@pytest.mark.parametrize(("method", "path", "body", "scope"), ROUTES, ids=[f"{r[0]} {r[1]}" for r in ROUTES])
def test_nobody_is_let_in_who_may_not(made: Made, method: str, path: str, body: Any, scope: Scope | None) -> None:
    for (scopes, state), text in made.texts.items():
        secret = text.split("_", 2)[2]
        for given in (text, text.replace(secret, secret[::-1])):
            response = made.send(method, path, body, f"Bearer {given}")
            if scope is None or (scope in scopes and state == "good" and given == text):
                assert response.status_code in (200, 404), response.text  # 404: an item that was deleted before
            elif state == "good" and given == text:
                assert response.status_code == 403
                assert f'lacks the scope "{scope}"' in response.json()["error"]["reason"]
                assert f'scope="{scope}"' in response.headers["www-authenticate"]
            else:
                assert 'error="invalid_token"' in challenge(response)
                why = {"good": "no such", "expired": "has expired", "revoked": "was revoked"}[state]
                assert (why if given == text else "no such") in response.json()["error"]["reason"]


@pytest.mark.parametrize(("method", "path", "body", "scope"), ROUTES, ids=[f"{r[0]} {r[1]}" for r in ROUTES])
def test_what_is_no_key_opens_nothing(made: Made, method: str, path: str, body: Any, scope: Scope | None) -> None:
    good = made.texts[SETS[-1], "good"]
    number, secret = good.split("_", 2)[1:]
    wrong: list[tuple[str, ...]] = [
        (), ("",), ("Bearer",), (good,), (f"Basic {good}",), (f"Bearer {good} more",), (f"Bearer {good}x",),
        (f"Bearer {good[:-1]}",), (f"Bearer hw__{secret}",), (f"Bearer hw_{number}_",), (f"Bearer {secret}",), ("Bearer hw",),
        (f"Bearer {good.upper()}",), (f"Bearer {good}", f"Bearer {good}"), (f"Bearer {good}", "Bearer x"),
    ]  # fmt: skip
    for authorization in wrong:
        response = made.send(method, path, body, *authorization)
        if scope is None:
            assert response.status_code == 200
        else:
            assert ("error=" in challenge(response)) == bool(authorization)
    for right in (f"Bearer {good}", f"bearer  {good}"):
        assert made.send(method, path, body, right).status_code in (200, 404)


@pytest.mark.parametrize(
    "path", ["//v1/events", "/v1//events", "/v1/events/", "/V1/events", "/v1/%65vents", "/v1/./events"]
)
def test_another_spelling_of_a_path_opens_nothing(made: Made, path: str) -> None:
    assert made.send("POST", path, ROUTES[0][2]).status_code in (401, 404)
    assert made.send("GET", "/v1/../metrics", None).status_code in (401, 404)


def test_options_tell_methods_and_nothing_else(made: Made) -> None:
    for _, path, _, _ in ROUTES:
        response = made.send("OPTIONS", path, None)
        assert (response.status_code, response.content) == (204, b"")
        assert "OPTIONS" in response.headers["allow"]


def test_keys_are_taken_up_and_dropped_while_it_runs(made: Made) -> None:
    text, _ = add_key(made.site.data, "passing", [Scope.READ], now_ms=wall_ms())

    def answer() -> int:
        return made.send("GET", "/metrics", None, f"Bearer {text}").status_code

    made.until(lambda: answer() == 200, "the new key is not known")
    revoke_key(made.site.data, "passing", now_ms=wall_ms())
    made.until(lambda: answer() == 401, "the revoked key still opens")


def test_a_file_that_is_broken_changes_nothing_and_one_that_is_gone_closes(made: Made) -> None:
    path = made.site.data / KEYS_FILE
    content, good = path.read_bytes(), f"Bearer {made.texts[SETS[-1], 'good']}"
    try:
        path.write_text("{")
        made.until(lambda: "keys_refused" in made.site.log_path.read_text(), "nobody noticed")
        assert made.send("GET", "/metrics", None, good).status_code == 200
        assert made.send("GET", "/metrics", None).status_code == 401
        path.unlink()
        made.until(lambda: made.send("GET", "/metrics", None, good).status_code == 401, "still open with the keys gone")
        for method, route, body, scope in ROUTES:
            assert made.send(method, route, body).status_code == (200 if scope is None else 401)
    finally:
        path.write_bytes(content)
    made.until(lambda: made.send("GET", "/metrics", None, good).status_code == 200, "the keys did not come back")


def test_above_the_cap_of_a_user_events_are_refused_by_index(made: Made) -> None:
    key = f"Bearer {made.texts[frozenset([Scope.INGEST]), 'good']}"
    read = f"Bearer {made.texts[frozenset([Scope.READ]), 'good']}"
    buys = [
        {"user": user, "item": "item-1", "type": "purchase"}
        for user in ("secret-eager", "secret-eager", "calm", "secret-eager", "secret-eager")
    ]
    reply = made.send(
        "POST", "/v1/events", [*buys, {"user": "secret-eager", "item": "item-1", "type": "view"}], key
    ).json()
    assert reply["accepted"] == 5
    (refused,) = reply["rejected"]
    assert (refused["index"], refused["field"]) == (4, "user")
    assert "cap of 3" in refused["reason"]
    alone = made.send("POST", "/v1/events", buys[0], key)
    assert alone.status_code == 400
    assert "cap of 3" in alone.json()["error"]["reason"]
    assert 'headwater_events_capped_total{type="purchase"} 2.0' in made.send("GET", "/metrics", None, read).text


def test_a_public_key_opens_what_one_visitor_needs(made: Made) -> None:
    text, _ = add_key(made.site.data, "page", [Scope.INGEST, Scope.RECOMMEND], now_ms=wall_ms(), public=True)
    key = f"Bearer {text}"
    made.until(lambda: made.send("POST", "/v1/recommend", {"k": 1}, key).status_code == 200, "the key is not known")
    opened = {f"{method} {path}" for method, path, body, _ in ROUTES if made.send(method, path, body, key).is_success}
    assert opened == {
        "POST /v1/events", "POST /v1/recommend", "GET /v1/similar/item-1?k=1&user=secret-user", "GET /v1/headwater.js",
        "GET /healthz", "GET /readyz",
    }  # fmt: skip
    refused = made.send("POST", "/v1/items", {"id": "item-1"}, key)
    assert refused.status_code == 403
    assert "public" in refused.json()["error"]["reason"]

    event = {"user": "secret-user", "item": "item-1", "type": "view"}
    for field, value in (("item", "nobody-knows-it"), ("time", 5), ("value", 1.5), ("retract", True)):
        wrong = made.send("POST", "/v1/events", [event, {**event, field: value}], key).json()
        assert (wrong["accepted"], [entry["field"] for entry in wrong["rejected"]]) == (1, [field])
    several = made.send("POST", "/v1/events", [event, {**event, "user": "another"}], key)
    assert (several.status_code, several.json()["error"]["field"]) == (400, "user")
    assert made.send("POST", "/v1/events", [event] * 1_500, key).status_code == 413

    stolen = made.send("POST", "/v1/logins", {"anonymous": "secret-user", "user": "thief"}, key)
    assert (stolen.status_code, stolen.json()["error"]["field"]) == (400, "anonymous")
    own = {"anonymous": "anon-" + "0" * 32, "user": "secret-user"}
    assert made.send("POST", "/v1/logins", own, key).status_code == 200


def test_the_client_and_the_commands_send_the_key(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    text = made.texts[frozenset([Scope.INGEST, Scope.RECOMMEND]), "good"]
    with Client(made.site.url, text) as client:
        token = client.send_events([Event(user="secret-caller", item="item-3", type="click")]).token
        assert client.recommend(RecommendRequest(user="secret-caller", k=2, token=token)).items
        with pytest.raises(UnauthorizedError, match="read"):
            client.get_item("item-1")
    with Client(made.site.url) as client, pytest.raises(UnauthorizedError, match="Send an API key"):
        client.recommend(RecommendRequest())
    arguments = ["recommend", "--k", "2", "--config", str(made.site.config_path), "--json"]
    refused = CliRunner().invoke(build_app(), arguments)
    assert isinstance(refused.exception, UnauthorizedError)
    monkeypatch.setenv("HEADWATER_API_KEY", text)
    for more in ([], ["--url", made.site.url]):
        answered = CliRunner().invoke(build_app(), [*arguments, *more])
        assert answered.exit_code == 0, answered.output
    assert CliRunner().invoke(build_app(), ["recommend", "--help"]).exit_code == 0


def test_with_every_key_revoked_the_server_stays_closed(made: Made) -> None:
    path = made.site.data / KEYS_FILE
    content, good = path.read_bytes(), f"Bearer {made.texts[SETS[-1], 'good']}"
    try:
        for number in range(len(SETS)):
            revoke_key(made.site.data, f"good-{number}", now_ms=wall_ms())
        made.until(lambda: made.send("GET", "/metrics", None, good).status_code == 401, "a revoked key still opens")
        made.site.wait_replaced("api", made.site.kill("api"))  # a new process is as closed as the old one
        made.site.wait_ready()
        for method, route, body, scope in ROUTES:
            for authorization in ([], [good]):
                response = made.send(method, route, body, *authorization)
                assert response.status_code == (200 if scope is None else 401)
    finally:
        path.write_bytes(content)
    made.until(lambda: made.send("GET", "/metrics", None, good).status_code == 200, "the keys did not come back")


def test_no_key_and_no_user_is_in_the_log(made: Made) -> None:
    """The last one of this file: the log has all of the above in it, and a failure with a key in its request."""
    good = made.texts[SETS[-1], "good"]
    made.send("GET", f"/v1/items/{good}?api_key={good}", None, f"Bearer {good}")
    made.send("POST", "/v1/recommend", {"user": "secret-user", "usr": good}, f"Bearer {good}")
    text = made.site.log_path.read_text()
    assert "keys_in_force" in text
    for line in text.splitlines():
        assert isinstance(msgspec.json.decode(line), dict)
    for (_, state), key in made.texts.items():
        assert key.split("_", 2)[2] not in text, state
    for name in ("secret-user", "secret-eager", "secret-caller"):
        assert name not in text
    stored = (made.site.data / KEYS_FILE).read_text()
    assert not any(key.split("_", 2)[2] in stored for key in made.texts.values())


# -- without a server --------------------------------------------------------------------------------------


def test_the_table_is_what_it_has_to_be() -> None:
    templates = {("item-1", "item-2"): "{item_id}", ("secret-user",): "{user_id}", ("no-request",): "{request_id}"}
    expected = {}
    for method, path, _, scope in ROUTES:
        route = path.partition("?")[0]
        for names, template in templates.items():
            for name in names:
                route = route.replace(f"/{name}", f"/{template}")
        expected[method, route] = scope
    assert expected == SCOPES
    documented = {(operation.method.upper(), operation.path) for operation in operations(Config())}
    assert documented == set(SCOPES) - {("GET", "/schema/openapi.json")}


def test_the_document_says_which_scope() -> None:
    described = document(Config())
    (scheme,) = described["components"]["securitySchemes"]
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            scope = SCOPES[method.upper(), path]
            assert operation["security"] == ([] if scope is None else [{scheme: [scope.value]}])
            assert {"401", "403", "429"} <= set(operation["responses"]) or scope is None


def app_of(access: Access, metrics: Metrics) -> Any:
    stub = SimpleNamespace(config=Config(), metrics=metrics, retiring=False, access=access, role=Role.ALL)
    return create_app(cast(Service, stub))


def calls(app: Any, *requests: tuple[str, str, str | None], base: str = "http://localhost") -> list[httpx.Response]:
    """Answers to (method, path, key)."""

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=base) as http:
            return [
                await http.request(method, path, headers={"authorization": f"Bearer {key}"} if key else {})
                for method, path, key in requests
            ]

    return asyncio.run(run())


def test_every_route_has_an_entry() -> None:
    metrics = Metrics()
    access = Access(Path("no-such-folder"), Limits(), metrics, clock=lambda: 0, timer=lambda: 0.0)
    stub = SimpleNamespace(config=Config(), metrics=metrics, retiring=False, access=access, role=Role.ALL)
    seen: set[tuple[str, str]] = set()
    original = Litestar.__init__

    def noting(self: Litestar, *arguments: Any, **more: Any) -> None:
        original(self, *arguments, **more)
        seen.update((str(m), route.path_format) for route in self.routes for m in getattr(route, "methods", ()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Litestar, "__init__", noting)
        create_app(cast(Service, stub))
    assert {entry for entry in seen if entry[0] != "OPTIONS"} == set(SCOPES)


def test_a_route_without_an_entry_is_refused(tmp_path: Path) -> None:
    @get("/forgotten")
    async def forgotten() -> str:
        return "secrets"

    text, _ = add_key(tmp_path, "all", list(Scope), now_ms=0)
    for data, key in ((tmp_path, text), (Path("no-such-folder"), None)):
        access = Access(data, Limits(), Metrics(), clock=lambda: 0, timer=lambda: 0.0)
        (response,) = calls(
            Litestar([forgotten], before_request=access.check, openapi_config=None), ("GET", "/forgotten", key)
        )
        assert not response.is_success
        assert "secrets" not in response.text


def test_a_key_expires_by_the_wall_and_is_limited_by_its_own_rate(tmp_path: Path) -> None:
    now_ms, now_s = 1_000, 50.0
    keys = [add_key(tmp_path, name, [Scope.READ], now_ms=0, expires_ms=2_000)[0] for name in ("one", "two")]
    metrics = Metrics()
    limits = Limits(requests_per_s=0.25, burst=3)
    access = Access(tmp_path, limits, metrics, clock=lambda: now_ms, timer=lambda: now_s)
    app = app_of(access, metrics)
    ask = [("GET", "/schema", keys[0])] * 4 + [("GET", "/schema", keys[1])]
    answers = calls(app, *ask)
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 200]
    assert answers[3].headers["retry-after"] == "4"
    assert "requests_per_s" in answers[3].json()["error"]["reason"]
    add_key(tmp_path, "three", [Scope.READ], now_ms=0)
    access.refresh()  # a new file does not fill the buckets of the old keys
    now_s = 53.9
    assert calls(app, ask[0])[0].status_code == 429
    now_s = 54.1
    assert [answer.status_code for answer in calls(app, ask[0], ask[0])] == [200, 429]
    now_s, now_ms = 1_000.0, 2_000
    assert calls(app, ask[0])[0].status_code == 401
    for reason, count in (("rate", 3.0), ("key", 1.0)):
        assert metrics.registry.get_sample_value("headwater_access_refused_total", {"reason": reason}) == count


def test_a_file_that_cannot_be_read_for_a_moment_is_read_later(tmp_path: Path) -> None:
    text, _ = add_key(tmp_path, "one", [Scope.READ], now_ms=0)
    metrics = Metrics()
    access = Access(tmp_path, Limits(), metrics, clock=lambda: 0, timer=lambda: 0.0)
    revoke_key(tmp_path, "one", now_ms=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headwater.online.keys.MAX_FILE", 1)
        for _ in range(2):
            with pytest.raises(ConfigurationError):
                access.refresh()
    app = app_of(access, metrics)
    assert calls(app, ("GET", "/schema", text))[0].status_code == 200
    access.refresh()
    assert calls(app, ("GET", "/schema", text))[0].status_code == 401


def test_without_keys_the_server_answers_to_names_of_this_machine_alone(tmp_path: Path) -> None:
    metrics = Metrics()
    ways: dict[str, Any] = {"clock": lambda: 0, "timer": lambda: 0.0, "hosts": ("rec.test",)}
    access = Access(tmp_path, Limits(), metrics, **ways)
    good = [
        b"localhost",
        b"localhost:8080",
        b"LOCALHOST",
        b"127.0.0.1:1",
        b"127.9.9.9",
        b"[::1]",
        b"[::1]:8080",
        b"rec.test:80",
    ]
    bad = [
        b"evil.test",
        b"localhost.evil.test",
        b"127.0.0.1.evil.test",
        b"10.0.0.1",
        b"[::2]",
        b"[",
        b"",
        b"rec.test.evil",
        b"\xff",
    ]
    for (method, path), _ in [*SCOPES.items(), (("OPTIONS", "/v1/events"), None)]:
        for host in good * 2:
            access.allowed(method, path, [(b"host", host)])
        access.allowed(method, path, [])  # no browser leaves it out
        for host in bad * 2:
            with pytest.raises(RefusalError, match=r"serving\.allowed_hosts") as refused:
                # a page of a name that points at this machine is of the server's own origin to its browser
                access.allowed(method, path, [(b"host", host), (b"origin", b"http://" + host)])
            assert refused.value.status == 421
    count = 2.0 * len(bad) * (len(SCOPES) + 1)
    assert metrics.registry.get_sample_value("headwater_access_refused_total", {"reason": "host"}) == count
    for port in range(2_000):
        access.allowed("GET", "/metrics", [(b"host", b"localhost:%d" % port)])
    assert len(access._known_hosts) == MOST_HOSTS, "whoever asks decides how much is remembered"
    text, _ = add_key(tmp_path, "all", list(Scope), now_ms=0)
    access.refresh()
    for host in bad:  # a key is what no foreign page has
        access.allowed("GET", "/metrics", [(b"host", host), (b"authorization", b"Bearer " + text.encode())])


def test_a_foreign_name_gets_nothing_of_an_open_server() -> None:
    access = Access(Path("no-such-folder"), Limits(), Metrics(), clock=lambda: 0, timer=lambda: 0.0)
    app = app_of(access, Metrics())
    for method, path, _, _ in ROUTES:
        (answer,) = calls(app, (method, path, None), base="http://evil.test:8080")
        assert (answer.status_code, answer.json()["error"]["field"]) == (421, "host"), path


def test_without_keys_all_callers_share_one_rate() -> None:
    metrics = Metrics()
    access = Access(
        Path("no-such-folder"), Limits(requests_per_s=1.0, burst=2), metrics, clock=lambda: 0, timer=lambda: 9.0
    )
    answers = calls(app_of(access, metrics), *[("GET", "/schema", key) for key in (None, "any", None)])
    assert [answer.status_code for answer in answers] == [200, 200, 429]


def test_a_batch_counts_as_its_requests() -> None:
    access = Access(
        Path("no-such-folder"), Limits(requests_per_s=1.0, burst=5), Metrics(), clock=lambda: 0, timer=lambda: 9.0
    )

    @get("/schema")
    async def batch(request: Request[Any, Any, Any]) -> str:
        access.take(request, int(request.query_params["n"]) - 1)
        return "good"

    handlers: Any = {RefusalError: lambda _, refusal: Response(refusal.body(), status_code=refusal.status)}
    app = Litestar([batch], before_request=access.check, openapi_config=None, exception_handlers=handlers)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        answers = [client.get("/schema", params={"n": n}) for n in (3, 7, 1, 1)]
    assert [answer.status_code for answer in answers] == [200, 429, 200, 429]
    assert "limits.burst: 5" in answers[1].text


def test_a_caller_never_sees_hashes(tmp_path: Path) -> None:
    text, key = add_key(tmp_path, "all", list(Scope), now_ms=0)
    metrics = Metrics()
    access = Access(tmp_path, Limits(), metrics, clock=lambda: 0, timer=lambda: 0.0)
    for answer in calls(app_of(access, metrics), ("GET", "/schema", text), ("GET", "/schema", text[:-1])):
        assert key.sha256 not in answer.text
