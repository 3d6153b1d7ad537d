"""``DELETE /v1/users/{user_id}`` on a running system."""

from __future__ import annotations

import time
from urllib.parse import quote

from headwater.log.identity import LmdbIdentity
from headwater.registry.audit import AUDIT_FILE, read_audit
from tests.online.conftest import Site
from tests.online.running import PATIENCE_S


def test_an_erased_user_is_a_stranger(server: Site) -> None:
    name = "gone/for good@example.org"
    server.ingest("/v1/users", {"id": name, "country": "DE"})
    token = server.ingest("/v1/events", [{"user": name, "item": f"item-{i}", "type": "click"} for i in range(5)])
    before = server.recommend(user=name, k=100, token=token)
    assert not {f"item-{i}" for i in range(5)} & {item["id"] for item in before["items"]}
    reply = server.http.delete(f"/v1/users/{quote(name, safe='')}")
    assert (reply.status_code, reply.json()["accepted"]) == (200, 1)
    assert server.http.delete(f"/v1/users/{quote(name, safe='')}").json()["accepted"] == 0
    told = [entry for entry in read_audit(server.data) if entry.action == "user.erase"][:2]
    assert [(entry.by, entry.subject) for entry in told] == [("api", "a user")] * 2
    assert name not in (server.data / AUDIT_FILE).read_text()
    identity = LmdbIdentity(server.data / "identity", readonly=True)
    try:
        assert identity.lookup(name) is None
    finally:
        identity.close()
    after = server.recommend(user=name, k=100, token=reply.json()["token"])
    assert {f"item-{i}" for i in range(5)} & {item["id"] for item in after["items"]}
    until = time.monotonic() + PATIENCE_S
    while "/v1/users/{user_id}" not in server.http.get("/metrics").text:
        assert time.monotonic() < until
    assert server.http.delete("/v1/users/").status_code == 405
