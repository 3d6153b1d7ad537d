"""Which pages may call from a browser, as the server answers; what browsers make of it is in ``test_browser``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import httpx
import pytest

from headwater.online.access import Access
from headwater.online.app import create_app
from headwater.online.keys import add_key
from headwater.online.metrics import Metrics
from headwater.online.roles import Role
from headwater.online.service import Service
from headwater.schema.config import Config, parse_config
from headwater.schema.cors import Cors
from headwater.schema.errors import ConfigurationError
from headwater.schema.keys import Scope
from headwater.schema.limits import Limits

SHOP, STRANGER = "https://shop.example.org", "https://elsewhere.example.org"
ASKED = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}


def ask(
    data: Path, method: str, path: str, headers: Mapping[str, str], *, origins: tuple[str, ...] = (SHOP,)
) -> httpx.Response:  # fmt: skip
    """The answer to a request with ``headers`` of a server with the keys in ``data``."""
    metrics, config = Metrics(), Config(cors=Cors(origins=origins))
    access = Access(data, Limits(), metrics, clock=lambda: 0, timer=lambda: 0.0, origins=origins)
    stub = SimpleNamespace(config=config, metrics=metrics, retiring=False, access=access, role=Role.ALL)

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(cast(Service, stub)), raise_app_exceptions=False)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return await http.request(method, path, headers=headers)

    return asyncio.run(run())


def of_cors(response: httpx.Response) -> dict[str, str]:
    return {k: v for k, v in response.headers.items() if k.startswith("access-control-")}


def test_a_browser_that_asks_first_is_told(tmp_path: Path) -> None:
    add_key(tmp_path, "page", [Scope.INGEST], now_ms=0, public=True)
    told = ask(tmp_path, "OPTIONS", "/v1/events", {"origin": SHOP, **ASKED})
    assert (told.status_code, told.content, told.headers["vary"]) == (204, b"", "origin")
    assert of_cors(told) == {
        "access-control-allow-origin": SHOP,
        "access-control-allow-methods": "GET, POST",
        "access-control-allow-headers": "authorization, content-type, x-priority",
        "access-control-max-age": "7200",
    }
    for headers in ({"origin": STRANGER, **ASKED}, {"origin": "null", **ASKED}, ASKED):
        other = ask(tmp_path, "OPTIONS", "/v1/events", headers)
        assert of_cors(other) == {}
        assert other.headers["vary"] == "origin", "a cache must not give one page's answer to another"


def test_a_page_can_read_why_it_was_refused(tmp_path: Path) -> None:
    text, _ = add_key(tmp_path, "read", [Scope.READ], now_ms=0)
    refused = ask(tmp_path, "POST", "/v1/events", {"origin": SHOP})
    assert refused.status_code == 401
    assert of_cors(refused)["access-control-allow-origin"] == SHOP
    assert of_cors(refused)["access-control-expose-headers"] == "retry-after"
    good = {"authorization": f"Bearer {text}"}
    for origin, seen in ((SHOP, {SHOP}), (STRANGER, set())):
        answered = ask(tmp_path, "GET", "/schema", {"origin": origin, **good})
        assert answered.status_code == 200, "with keys, it is the key that counts"
        assert {v for k, v in of_cors(answered).items() if k.endswith("origin")} == seen


def test_without_keys_pages_of_strangers_are_turned_away_before_anything_happens() -> None:
    nowhere = Path("no-such-folder")
    for origin, status in ((SHOP, 200), ("http://localhost", 200), (STRANGER, 403), ("null", 403)):
        answered = ask(nowhere, "GET", "/schema", {"origin": origin})
        assert answered.status_code == status, origin
    assert ask(nowhere, "GET", "/schema", {"origin": SHOP}, origins=()).status_code == 403
    assert ask(nowhere, "GET", "/schema", {}).status_code == 200
    assert "cors.origins" in ask(nowhere, "GET", "/schema", {"origin": STRANGER}).json()["error"]["reason"]


def test_without_origins_no_header_is_added(tmp_path: Path) -> None:
    answered = ask(tmp_path, "GET", "/healthz", {"origin": SHOP}, origins=())
    assert of_cors(answered) == {}
    assert "vary" not in answered.headers


@pytest.mark.parametrize(
    ("origin", "why"),
    [
        ("*", "no patterns"),
        ("https://*.example.org", "no patterns"),
        ("shop.example.org", "begin with http"),
        ("ftp://shop.example.org", "begin with http"),
        ("https://", "begin with http"),
        ("https://shop.example.org/", "slash at the end"),
        ("https://shop.example.org/cart", "leave out path"),
        ("https://me@shop.example.org", "leave out path, user"),
        ("https://Shop.example.org", "lower case"),
        ("https://shop.example.org:443", "leave out the port"),
        ("http://shop.example.org:80", "leave out the port"),
        ("https://shop.example.org:", "leave out the port"),
        ("https://shop.example.org:x", "port is no number"),
        ("null", "begin with http"),
    ],
)
def test_an_origin_that_no_browser_sends_is_refused(origin: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why) as caught:
        parse_config(f'[cors]\norigins = ["http://127.0.0.1:8000", "{origin}"]')
    assert "cors.origins[1]" in str(caught.value)
