"""``GET /v1/explain`` on a running system, and the command beside it."""

from __future__ import annotations

import time

import pytest
from typer.testing import CliRunner

from headwater.cli.main import build_app
from headwater.client import Client, NotFoundError, RejectedError
from headwater.schema.explanation import Explanation
from headwater.serving.explain import Question
from headwater.serving.explain_logged import Limits, explain_logged
from tests.online.conftest import Site


def explained(server: Site, request_id: str, **more: str) -> Explanation:
    """The explanation, as soon as the list is in the log."""
    until = time.monotonic() + 10.0
    time.sleep(0.3)  # lists go to the log every 50 ms, and every attempt is a process
    with Client(server.url) as client:
        while True:
            try:
                return client.explain(request_id, **more)  # type: ignore[arg-type]
            except NotFoundError:
                assert time.monotonic() < until, "the list did not reach the log"


def test_a_list_is_explained_beside_the_server_and_by_the_command(server: Site) -> None:
    seen = {"user": "curious", "item": "item-7", "type": "click"}
    token = server.ingest("/v1/events", seen)
    candidates = [f"item-{n}" for n in range(30)]
    answer = server.recommend(user="curious", k=5, token=token, candidates=candidates, exclude=["item-3"])
    why = explained(server, answer["request_id"], item="item-3", bundle=server.version)
    assert (why.request.request_id, why.request.k, why.request.candidates) == (answer["request_id"], 5, candidates)
    assert (why.replay.exact, why.replay.same_list, why.replay.same_features) == (True, True, True)
    assert why.replay.notes == []
    assert [placed.item for placed in why.served] == [item["id"] for item in answer["items"]]
    assert [item.score for item in why.items] == [item["score"] for item in answer["items"]]
    assert all(item.features and item.features[0].effect is not None for item in why.items)
    assert why.item
    assert (why.item.stage, why.item.reason) == ("eligibility", "excluded by the request, or shown on an earlier page")
    assert why.other
    assert (why.other.bundle, why.other.differences) == (server.version, [])
    offset = str(answer["address"]["user_offset"])
    arguments = [
        "explain",
        answer["request_id"],
        "--config",
        str(server.config_path),
        "--after",
        offset,
        "--item",
        "item-3",
    ]
    said = CliRunner().invoke(build_app(), arguments)
    assert said.exit_code == 0, said.output
    for text in (
        "exact: as-of state",
        "the same list, features the same bytes",
        "item-3: eligibility, excluded",
        "given",
    ):
        assert text in said.output
    assert "curious" not in said.output
    without = explain_logged(server.config, server.data, answer["request_id"], Question(), limits=Limits(replay_s=0.0))
    assert (without.replay.exact, without.replay.state, without.replay.same_list) == (False, "present", True)
    assert "more than the 0 s that there are. The state of offset" in without.replay.notes[0]


def test_what_cannot_be_explained_is_said(server: Site) -> None:
    with Client(server.url) as client:
        with pytest.raises(
            NotFoundError, match=r"no served list of request f+ in offsets .* reach the log in the background"
        ):
            client.explain("f" * 32)
        with pytest.raises(NotFoundError, match="32 hexadecimal digits"):
            client.explain("curious")
        with pytest.raises(RejectedError, match="at most 1000") as refused:
            client.explain("f" * 32, features=1_001)
    assert refused.value.field == "features"
    assert server.http.get("/v1/explain/x?user=curious").json()["error"]["field"] == "user"
