"""``GET /v1/explain`` on a running system, as the page about it has it, and the command beside it."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from headwater.cli.main import build_app
from headwater.client import Client, NotFoundError, RejectedError
from headwater.offline.backup import backup, verify_backup
from headwater.online.errors import RefusalError
from headwater.online.explain import Explaining
from headwater.schema.clock import wall_ms
from headwater.schema.errors import HeadwaterError
from headwater.schema.explanation import Explanation
from headwater.schema.request_ids import new_request_id
from headwater.schema.requests import RecommendResponse
from headwater.serving.explain import Question
from headwater.serving.explain_logged import Limits, explain_logged
from headwater.serving.served import CLOCKS_MS
from tests.online.conftest import Site
from tests.online.running import PATIENCE_S

PAGE = Path(__file__).parents[2] / "docs" / "explain.md"


def run_the_page(server: Site) -> tuple[RecommendResponse, Explanation]:
    """The page's Python, with the items of this catalogue; explained as soon as the list is in the log."""
    asks, explains = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(asks.replace("http://localhost:8080", server.url).replace("article-", "item-"), names)  # noqa: S102  (it is our own page)
    until = time.monotonic() + PATIENCE_S
    time.sleep(0.3)  # lists go to the log every 50 ms, and every attempt is a process
    with names["client"]:
        while "why" not in names:
            try:
                exec(explains.replace("article-", "item-"), names)  # noqa: S102
            except NotFoundError:
                assert time.monotonic() < until, "the list did not reach the log"
    return names["answer"], names["why"]


def test_a_list_is_explained_beside_the_server_and_by_the_command(server: Site, tmp_path: Path) -> None:
    kept = tmp_path / "backup"
    backup(server.data, kept, created_ms=1, with_state=True)
    server.reflected(server.ingest("/v1/events", {"user": "ada", "item": "item-7", "type": "click"}))
    time.sleep(1.3)  # what is popular and new is kept for a second: this request looks it up itself
    answer, why = run_the_page(server)
    assert (why.request.request_id, why.request.k, why.request.excluded) == (answer.request_id, 5, 1)
    assert (why.replay.exact, why.replay.same_list, why.replay.same_features) == (True, True, True)
    assert why.replay.notes == []
    assert [placed.item for placed in why.served] == [item.id for item in answer.items]
    assert [(item.score, item.source) for item in why.items] == [(item.score, item.source) for item in answer.items]
    assert all(item.features and item.features[0].effect is not None for item in why.items)
    assert why.item
    assert (why.item.stage, why.item.reason.partition(" (")[0]) == (
        "eligibility", "excluded by the request, or shown on an earlier page",
    )  # fmt: skip
    arguments = ["explain", answer.request_id, "--config", str(server.config_path), "--item", "item-7"]
    said = CliRunner().invoke(build_app(), [*arguments, "--after", str(answer.address.user_offset)])
    assert said.exit_code == 0, said.output
    for text in (
        "exact: as-of state",
        "the same list, features the same bytes",
        "item-7: eligibility, seen by this user",
    ):
        assert text in said.output
    assert not re.search(r"\bada\b", said.output), "the hexadecimal digits of an id may well hold those three letters"
    later = explain_logged(server.config, server.data, answer.request_id, Question(), backup=kept)
    assert later.replay == why.replay
    verify_backup(kept)  # nothing was added to it
    with pytest.raises(HeadwaterError, match="holds no state of plan"):
        explain_logged(server.config, server.data, answer.request_id, Question(), backup=tmp_path)
    question, at_once = Question(bundle=server.version), Limits(replay_s=0.0)
    without = explain_logged(server.config, server.data, answer.request_id, question, limits=at_once)
    assert (without.replay.exact, without.replay.state) == (False, "present")
    assert "more than the 0 s that there are. The state of offset" in without.replay.notes[0]
    assert without.other
    assert (without.other.bundle, without.other.differences) == (server.version, [])


def test_what_cannot_be_explained_is_said(server: Site) -> None:
    with Client(server.url) as client:
        with pytest.raises(NotFoundError, match="32 hexadecimal digits"):
            client.explain("curious")
        with pytest.raises(RejectedError, match="at most 1000") as refused:
            client.explain("f" * 32, features=1_001)
    assert refused.value.field == "features"
    assert server.http.get("/v1/explain/x?user=curious").json()["error"]["field"] == "user"


def refusals(server: Site, most_s: float, *request_ids: str, recorded: tuple[int, int]) -> list[RefusalError]:
    """What becomes of questions about requests that nobody made, all at once."""

    async def ask() -> list[RefusalError]:
        explaining = Explaining(server.config, server.data, lambda: recorded, most_s=most_s)
        asked = [explaining.explain(request_id, Question(), None) for request_id in request_ids]
        return await asyncio.gather(*asked, return_exceptions=True)  # type: ignore[return-value]

    return asyncio.run(ask())


def test_one_request_is_explained_at_a_time_and_not_for_long(server: Site) -> None:
    now_ms = wall_ms()
    one, other = new_request_id(now_ms), new_request_id(now_ms)
    unknown, busy = refusals(server, 300.0, one, other, recorded=(0, now_ms))
    assert (unknown.status, unknown.field) == (404, "request_id")
    assert "in the background" in str(unknown)
    assert (busy.status, busy.retry_after_s) == (503, 2)
    (late,) = refusals(server, 0.01, one, recorded=(0, now_ms))
    assert (late.status, "`headwater explain` takes its time" in str(late)) == (503, True)


def test_what_the_log_cannot_hold_is_not_looked_for(server: Site) -> None:
    """No process is started: it would find no time to answer."""
    now_ms = wall_ms()
    early, late = new_request_id(now_ms - CLOCKS_MS - 1), new_request_id(now_ms + CLOCKS_MS + 1)
    for refusal in refusals(server, 0.01, early, late, "f" * 32, recorded=(now_ms, now_ms)):
        assert (refusal.status, refusal.field) == (404, "request_id")
        assert "first 12 digits are the time" in str(refusal)
    (looked_for,) = refusals(server, 0.01, new_request_id(now_ms - CLOCKS_MS), recorded=(now_ms, now_ms))
    assert looked_for.status == 503
    with Client(server.url) as client, pytest.raises(NotFoundError, match="still to come"):
        client.explain("f" * 32)
