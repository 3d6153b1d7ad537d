"""The whole system through its processes: what goes in over HTTP comes back out as it should."""

from __future__ import annotations

import time
from typing import Any

import httpx
import msgspec
import pytest

from headwater.cli.options import EXIT_INPUT
from headwater.features.plan import compile_plan
from headwater.online.freshness import EVERY_S
from headwater.schema.requests import RecommendResponse
from tests.online.conftest import Site
from tests.online.running import PATIENCE_S, Running, publish_ranker


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["id"] for item in answer["items"]]


def click(user: str, item: str, **more: Any) -> dict[str, Any]:
    return {"user": user, "item": item, "type": "click", **more}


def test_empty_system_answers_with_a_reason(server: Site) -> None:
    assert server.empty_answer["items"] == []
    assert "the catalogue is empty" in server.empty_answer["reasons"]


def test_unknown_user_and_stranger_get_a_list(server: Site) -> None:
    for request in ({"user": "nobody-has-seen-me"}, {}):
        answer = server.recommend(k=7, **request)
        assert len(set(ids(answer))) == 7
        assert answer["tier"] == 0
        assert answer["model"] == server.version


def test_answer_fits_the_schema_and_says_where_it_stands(server: Site) -> None:
    response = server.post("/v1/recommend", {"user": "ann", "k": 3})
    answer = msgspec.json.decode(response.content, type=RecommendResponse)
    assert len(answer.request_id) == 32
    assert answer.address.bundle == answer.model == server.version
    assert answer.address.user_offset > 0
    assert answer.address.item_offset > 0
    assert abs(answer.address.now_ms - time.time() * 1000) < 60_000
    assert all(item.source and item.reason for item in answer.items)


def test_an_event_is_reflected_when_its_token_is_given(server: Site) -> None:
    for turn in range(20):
        user = f"fresh-{turn}"
        clicked = f"item-{turn}"
        token = server.ingest("/v1/events", click(user, clicked))
        answer = server.recommend(user=user, k=200, token=token)
        assert answer["address"]["user_offset"] >= int(token)
        assert clicked not in ids(answer)


def test_seen_hidden_expired_and_deleted_items_never_come_back(server: Site) -> None:
    now = int(time.time() * 1000)
    items = [
        {"id": "seen"}, {"id": "hidden", "available": False}, {"id": "expired", "expires": now - 1000},
        {"id": "later", "published": now + 3_600_000}, {"id": "deleted"}, {"id": "excluded"}, {"id": "elsewhere", "regions": ["FR"]},
        {"id": "here", "regions": ["DE"]},
    ]  # fmt: skip
    server.ingest("/v1/items", items)
    deleted = server.http.delete("/v1/items/deleted")
    assert deleted.status_code == 200
    token = server.ingest("/v1/events", click("strict", "seen"))
    server.reflected(token)
    answer = server.recommend(user="strict", k=200, token=token, exclude=["excluded"], context={"country": "DE"})
    shown = set(ids(answer))
    assert not shown & {"seen", "hidden", "expired", "later", "deleted", "excluded", "elsewhere"}
    assert {"item-1", "here"} <= set(ids(server.recommend(user="other", k=200, context={"country": "DE"})))


def test_hiding_an_item_takes_it_out_at_once(server: Site) -> None:
    server.reflected(server.ingest("/v1/items", {"id": "now-you-see-me"}))
    assert "now-you-see-me" in ids(server.recommend(k=200))
    server.reflected(server.ingest("/v1/items", {"id": "now-you-see-me", "available": False}))
    assert "now-you-see-me" not in ids(server.recommend(k=200)), "nor in a list that is kept"


def test_items_can_be_read_back_whatever_their_id(server: Site) -> None:
    for name in ("plain", "with/slash", "//two", "spaces and ünïcode", "100%", "a?b#c", ".."):
        item = {"id": name, "title": "T", "price": 2.5}
        server.reflected(server.ingest("/v1/items", item))
        path = "/v1/items/" + "".join(f"%{byte:02X}" for byte in name.encode())
        assert server.http.get(path).json() == item
        assert server.http.delete(path).json()["accepted"] == 1


def test_similar_items(server: Site) -> None:
    answer = server.http.get("/v1/similar/item-3", params={"k": 90}).json()
    assert len(answer["items"]) == 90
    assert "item-3" not in ids(answer)
    content = [item["id"] for item in answer["items"] if item["source"] == "content"]
    assert content, answer
    server.ingest("/v1/events", click("looker", content[0]))
    token = server.ingest("/v1/events", click("looker", "item-90"))
    server.recommend(user="looker", token=token, k=1)
    assert content[0] not in ids(server.http.get("/v1/similar/item-3", params={"k": 50, "user": "looker"}).json())


def test_profiles_put_a_user_into_segments(server: Site) -> None:
    token = server.ingest("/v1/users", [{"id": "pat", "country": "DE"}, {"id": "sam", "attributes": {"device": "tv"}}])
    assert server.recommend(user="pat", token=token, k=3)["items"]


def test_an_item_of_a_region_shows_to_those_whose_profile_says_so(server: Site) -> None:
    server.reflected(server.ingest("/v1/items", {"id": "only-in-at", "regions": ["AT"]}))
    token = server.ingest("/v1/users", [{"id": "anna", "country": "AT"}, {"id": "bert", "country": "CH"}])
    assert "only-in-at" in ids(server.recommend(user="anna", token=token, k=200))
    assert "only-in-at" not in ids(server.recommend(user="anna", token=token, k=200, context={"country": "CH"}))
    assert "only-in-at" not in ids(server.recommend(user="bert", token=token, k=200))


def test_good_entries_are_kept_and_bad_ones_named(server: Site) -> None:
    body = [click("u", "item-1"), {"user": "u"}, click("u", "item-2", type="clik"), click("u", "item-2", extra=1)]
    response = server.post("/v1/events", body)
    assert response.status_code == 200
    assert response.json()["accepted"] == 1
    rejected = {entry["index"]: entry for entry in response.json()["rejected"]}
    assert sorted(rejected) == [1, 2, 3]
    assert rejected[1]["field"] == "item"
    assert rejected[2]["field"] == "type"
    assert '"click"' in rejected[2]["reason"]
    assert rejected[3]["field"] == "extra"


def test_a_repeated_event_id_changes_nothing(server: Site) -> None:
    event = click("twice", "item-9", event_id="the-same")
    first, second = server.post("/v1/events", event).json(), server.post("/v1/events", [event, event]).json()
    assert (first["accepted"], first["duplicates"]) == (1, 0)
    assert (second["accepted"], second["duplicates"]) == (0, 2)


BAD = [
    ("/v1/recommend", '{"k": 0}', "k"),
    ("/v1/recommend", '{"k": "20"}', "k"),
    ("/v1/recommend", '{"k": 201}', "k"),
    ("/v1/recommend", '{"usr": "ann"}', "usr"),
    ("/v1/recommend", '{"user": ""}', "user"),
    ("/v1/recommend", '{"token": "-1"}', "token"),
    ("/v1/recommend", '{"surface": "hom"}', "surface"),
    ("/v1/recommend", '{"deadline_ms": 0}', "deadline_ms"),
    ("/v1/recommend", "[1]", "$"),
    ("/v1/recommend", "{", "$"),
    ("/v1/recommend", "", "$"),
    ("/v1/recommend", '"\\ud800"', "$"),
    ("/v1/recommend", b"\xff\xfe", "$"),
    ("/v1/events", "[]", "$"),
    ("/v1/events", '{"user": "a", "item": "b"}', "type"),
    ("/v1/events", '[{"user": "a", "item": "b", "type": "buy"}]', "type"),
    ("/v1/events", '{"user": "a", "item": "b", "type": "click", "time": -5}', "time"),
    ("/v1/events", '{"user": "a", "item": "b", "type": "click", "attributes": {"x": [1]}}', "attributes"),
    ("/v1/events", "[" * 100_000, "$"),
    ("/v1/events", "[" * 10_000 + "]" * 10_000, "$"),
    ("/v1/items", '{"title": "no id"}', "id"),
    ("/v1/items", '{"id": "x", "published": 9, "expires": 5}', "expires"),
    ("/v1/users", '{"id": "x", "birth_year": 1066}', "birth_year"),
]


@pytest.mark.parametrize(("path", "body", "field"), BAD, ids=range(len(BAD)))
def test_bad_input_is_refused_with_field_and_reason(server: Site, path: str, body: str | bytes, field: str) -> None:
    response = server.http.post(path, content=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["field"].split("[")[0].split(".")[0] == field
    assert error["reason"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/similar/no-such-item", 404),
        ("GET", "/v1/similar/item-1?k=0", 400),
        ("GET", "/v1/similar/item-1?k=many", 400),
        ("GET", "/v1/similar/item-1?usr=ann", 400),
        ("GET", "/v1/items/no-such-item", 404),
        ("DELETE", "/v1/items/no-such-item", 404),
        ("GET", "/v1/nothing", 404),
        ("PUT", "/v1/items", 405),
        ("GET", "/v1/recommend", 405),
    ],
)
def test_wrong_paths_and_parameters(server: Site, method: str, path: str, status: int) -> None:
    response = server.http.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["reason"]


def test_oversized_and_compressed_bodies(server: Site) -> None:
    assert server.http.post("/v1/events", content=b" " * (8 * 1024 * 1024 + 1)).status_code == 413
    many = [click("u", "i")] * 10_001
    assert server.post("/v1/events", many).status_code == 413
    assert server.http.post("/v1/events", content=b"x", headers={"content-encoding": "gzip"}).status_code == 415


def test_a_token_that_never_comes_is_answered_with_a_reason(server: Site) -> None:
    answer = server.recommend(k=3, token="9" * 20, deadline_ms=100)
    assert len(answer["items"]) == 3
    (reason,) = [reason for reason in answer["reasons"] if reason.startswith("token not reached")]
    assert "waited 100 ms" in reason, "as long as the caller may, who may less than the configuration"


def test_health_metrics_and_schema(server: Site) -> None:
    assert server.http.get("/healthz").json() == {
        "status": "ok", "plan": compile_plan(server.config).hash, "rules": ""
    }  # fmt: skip
    assert server.http.get("/readyz").json() == {"status": "ready", "reasons": []}
    text = server.http.get("/metrics").text
    assert 'headwater_request_seconds_count{route="/v1/recommend",status="200"}' in text
    assert "headwater_served_lost_total 0.0" in text
    document = server.http.get("/schema").json()
    assert document["openapi"].startswith("3.1")


def test_every_process_shows_its_metrics(server: Site) -> None:
    def shown() -> dict[str, float]:
        lines = server.http.get("/metrics").text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    server.reflected(server.ingest("/v1/events", click("counted", "item-3")))
    time.sleep(EVERY_S)
    server.reflected(server.ingest("/v1/events", click("counted", "item-4")))
    figures = shown()
    for part in ("writer", "fold", "api"):
        assert time.time() - figures[f'headwater_process_start_time_seconds{{part="{part}"}}'] < 3_600.0
    for name in (
        "writer_commit_seconds_count",
        "writer_lag_seconds_count",
        "fold_commit_seconds_count",
        "fold_records_total",
    ):
        assert figures[f"headwater_{name}"] > 0.0, name
    assert figures["headwater_event_to_recommendation_seconds_count"] > 0.0
    assert figures["headwater_event_to_recommendation_seconds_sum"] < 60.0
    assert 0.0 <= figures['headwater_feature_staleness_seconds{entity="user"}'] < 60.0
    assert figures["headwater_log_offset"] > 0.0
    assert figures["headwater_bundle_age_seconds"] > 0.0


def test_a_model_is_swapped_without_a_restart_and_a_bad_one_refused(server: Site) -> None:
    before = server.pids("api")
    server.version = version = publish_ranker(server.data, server.config, seed=2, created_ms=1_772_000_001_000)
    until = time.monotonic() + PATIENCE_S
    while (answer := server.recommend(user="swap", k=5))["model"] != version:
        assert answer["tier"] == 0
        assert time.monotonic() < until, "the new bundle did not come into service"
    plan = compile_plan(server.config).hash
    (server.data / "models" / "plans" / plan / "CURRENT").write_text("20260302T101500000Z-000000000000\n")
    until = time.monotonic() + PATIENCE_S
    while "bundle_refused" not in server.log_path.read_text():
        assert time.monotonic() < until, "nobody looked at the bad bundle"
        time.sleep(0.05)
    answer = server.recommend(user="swap", k=5)
    assert (answer["model"], answer["tier"]) == (version, 0)
    assert server.pids("api") == before


def test_served_lists_reach_the_log(server: Site) -> None:
    before = _served(server)
    for _ in range(10):
        server.recommend(user="served", k=2)
    until = time.monotonic() + PATIENCE_S
    while _served(server) < before + 10:
        assert time.monotonic() < until, "served lists did not reach the log"
        time.sleep(0.05)


def _served(server: Site) -> int:
    lines = server.http.get("/metrics").text.splitlines()
    return int(sum(float(line.split()[1]) for line in lines if line.startswith("headwater_served_logged_total")))


def test_log_lines_are_json_and_name_no_user(server: Site) -> None:
    server.ingest("/v1/events", click("secret-person", "item-5"))
    server.recommend(user="secret-person")
    text = server.log_path.read_text()
    for line in text.splitlines():
        assert line.startswith("{"), line  # whole, or nobody knows who wrote it
        assert isinstance(msgspec.json.decode(line), dict)
    assert "secret-person" not in text


def test_a_second_server_is_refused_clearly(server: Site, tmp_path: Any) -> None:
    port = httpx.URL(server.url).port
    second = Running(tmp_path, arguments=["--port", str(port)])
    with pytest.raises(AssertionError, match="Cannot listen on"):
        second.start()
    assert second.process.wait(PATIENCE_S) == EXIT_INPUT
    second.stop()
    same = Running(tmp_path, arguments=["--data", str(server.data)])
    with pytest.raises(AssertionError, match="serves "):
        same.start()
    assert same.process.wait(PATIENCE_S) == EXIT_INPUT
    same.stop()


def test_a_data_directory_that_sockets_do_not_fit_in_is_refused(tmp_path: Any) -> None:
    data = tmp_path / ("long-" * 20) / "data"
    running = Running(tmp_path, arguments=["--data", str(data)])
    with pytest.raises(AssertionError, match="bytes too long"):
        running.start()
    assert running.process.wait(PATIENCE_S) == EXIT_INPUT
    running.stop()


def test_an_address_that_others_can_reach_is_refused(tmp_path: Any) -> None:
    running = Running(tmp_path, arguments=["--host", "0.0.0.0"])  # noqa: S104
    with pytest.raises(AssertionError, match="no API keys"):
        running.start()
    assert running.process.wait(PATIENCE_S) == EXIT_INPUT
    running.stop()


# -- surfaces ----------------------------------------------------------------------------------------------


def test_pages_go_on_without_repeats(server: Site) -> None:
    first = server.recommend(user="reader", k=10)
    second = server.recommend(user="reader", k=10, cursor=first["next"])
    third = server.recommend(user="reader", k=10, cursor=second["next"])
    assert len({*ids(first), *ids(second), *ids(third)}) == 30
    refused = server.http.post("/v1/recommend", json={"cursor": "made-up"})
    assert refused.status_code == 400
    assert refused.json()["error"]["field"] == "cursor"


def test_a_cursor_that_names_items_nobody_has_makes_no_room_for_them(server: Site) -> None:
    highest = "____AA"  # item 2**24 - 1
    before = server.recommend(user="reader", k=5)
    answer = server.recommend(user="reader", k=5, cursor=highest)
    assert ids(answer) == ids(before)


def test_candidates_of_the_caller_are_ranked(server: Site) -> None:
    answer = server.recommend(user="ann", k=5, candidates=["item-4", "nobody-knows-this", "item-2", "item-3"])
    assert set(ids(answer)) == {"item-2", "item-3", "item-4"}
    assert "candidates: 1 of 4 items are not in the catalogue" in answer["reasons"]
    assert answer["tier"] == 0
    assert "next" not in answer


def test_because_and_cart_say_what_they_are_about(server: Site) -> None:
    token = server.ingest("/v1/events", click("turner", "item-5"))
    because = server.recommend(user="turner", surface="because", k=5, token=token)
    assert because["about"] == ["item-5"]
    cart = server.recommend(surface="cart", k=5, about=["item-6", "item-7"])
    assert cart["about"] == ["item-6", "item-7"]
    assert not {"item-6", "item-7"} & set(ids(cart))
    assert "about" not in server.recommend(user="turner", k=5)


def test_a_batch_answers_each_request_as_if_alone(server: Site) -> None:
    requests = [{"user": "ann", "k": 3}, {"surface": "trending", "k": 4}]
    answers = server.http.post("/v1/recommend/batch", json=requests).json()
    assert [len(answer["items"]) for answer in answers] == [3, 4]
    for wrong, field in (
        ([{"k": 3}, {"k": 0}], "[1].k"),
        ([], "$"),
        ({"k": 3}, "$"),
        ([{"k": 1}] * 101, "$"),
        ([{"surface": "x"}], "[0].surface"),
    ):
        refused = server.http.post("/v1/recommend/batch", json=wrong)
        assert refused.status_code == 400
        assert refused.json()["error"]["field"] == field


def test_a_login_joins_what_a_visitor_did(server: Site) -> None:
    server.ingest("/v1/events", click("known", "item-11"))
    server.ingest("/v1/events", click("visit-1", "item-12"))
    token = server.ingest("/v1/logins", {"anonymous": "visit-1", "user": "known"})
    shown = set(ids(server.recommend(user="known", k=200, token=token)))
    assert not shown & {"item-11", "item-12"}
    assert server.recommend(user="known", surface="because", k=3, token=token)["about"] == ["item-12"]
    assert "item-12" in ids(server.recommend(user="visit-1", k=200, token=token))
    for wrong, field in (({"anonymous": "a", "user": "a"}, "user"), ({"anonymous": "a"}, "user")):
        refused = server.http.post("/v1/logins", json=wrong)
        assert refused.status_code == 400
        assert refused.json()["error"]["field"] == field


# -- answers that are given again ----------------------------------------------------------------------------


def cached(answer: dict[str, Any]) -> bool:
    return any(reason.startswith("from the cache") for reason in answer["reasons"])


def asked_again(server: Site, **request: Any) -> dict[str, Any]:
    """The answer to a question that was asked a moment ago, from the cache."""
    until = time.monotonic() + PATIENCE_S
    while not cached(answer := server.recommend(**request)):
        assert time.monotonic() < until, answer["reasons"]
    return answer


def test_a_list_goes_with_the_next_event_of_its_user(server: Site) -> None:
    """With the token no answer is older than the event, and nothing hidden or of somebody else comes back."""
    ann, bob = {"user": "cached-ann", "k": 5}, {"user": "cached-bob", "k": 5}
    for name in ("cached-ann", "cached-bob"):
        server.ingest("/v1/events", click(name, "item-50"))
    for _ in range(5):
        first = asked_again(server, **ann)
        taken = ids(first)[0]
        token = server.ingest("/v1/events", click("cached-ann", taken))
        answer = server.recommend(**ann, token=token)
        assert not cached(answer)
        assert taken not in ids(answer)
        assert answer["address"]["user_offset"] >= int(token)
        again = asked_again(server, **ann, token=token)
        assert taken not in ids(again)
        assert again["address"]["user_offset"] >= int(token)
    asked_again(server, **bob)
    assert taken in ids(server.recommend(user="cached-bob", k=200)), "what ann took is not kept from bob"

    gone = ids(asked_again(server, **ann))[0]
    hidden = server.ingest("/v1/items", {"id": gone, "title": "gone", "available": False})
    server.reflected(hidden)
    assert gone not in ids(server.recommend(**ann)), "the list from before is filtered again"
    server.ingest("/v1/items", {"id": gone, "title": "back again", "available": True})

    assert server.http.delete("/v1/users/cached-ann").status_code == 200
    text = server.http.get("/metrics").text
    hits = [line for line in text.splitlines() if 'cache="results",outcome="hit"' in line]
    assert float(hits[0].rpartition(" ")[2]) >= 10
