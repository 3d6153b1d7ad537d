"""The roles of a server as separate processes on one data directory."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from headwater.cli.supervise import _lock, running_address
from headwater.online.keys import add_key
from headwater.online.roles import PARTS, Role, home
from headwater.online.supervisor import serving_process
from headwater.schema.clock import wall_ms
from headwater.schema.errors import ConfigurationError
from headwater.schema.keys import Scope
from tests.online.running import CONFIG, PATIENCE_S, Running, catalogue
from tests.online.test_serve import click, ids

LEARNING = '\n[learn]\nevery = "5s"\n[ranker]\ntrees = 2\nleaves = 2\nmax_rows = 1000\n'


class Apart:
    """A process of each role; recommend was started first, alone."""

    def __init__(self, folder: Path) -> None:
        text, _ = add_key(folder / "data", "all", list(Scope), now_ms=wall_ms())
        self.key = {"authorization": f"Bearer {text}"}
        self.of = {
            role: Running(folder, CONFIG + LEARNING, ["--role", role, *more], log=f"{role}.log")
            for role, more in {
                Role.RECOMMEND: [], Role.INGEST: ["--host", "0.0.0.0"],  # noqa: S104
                Role.FOLD: ["--port", "0"], Role.LEARN: ["--port", "0"],
            }.items()
        }  # fmt: skip

    def post(self, role: Role, path: str, body: object) -> httpx.Response:
        return self.of[role].http.post(path, json=body, headers=self.key)

    def metrics(self, role: Role, key: dict[str, str]) -> httpx.Response:
        """What a role shows that has no routes."""
        address = (home(self.of[role].data, role) / "address").read_text()
        return httpx.get(f"{address}/metrics", headers=key)

    def said(self, role: Role, text: str) -> bool:
        return text in self.of[role].log_path.read_text()


def wait_for(right: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while not right():
        assert time.monotonic() < until, what
        time.sleep(0.02)


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apart]:
    apart = Apart(tmp_path_factory.mktemp("apart"))
    try:
        apart.of[Role.RECOMMEND].launch()
        wait_for(
            lambda: apart.said(Role.RECOMMEND, "the log comes from the role ingest"), "it does not say what it needs"
        )
        for role in (Role.INGEST, Role.FOLD):
            apart.of[role].launch()
        for role in (Role.INGEST, Role.FOLD, Role.RECOMMEND):
            apart.of[role].wait_up()
        yield apart
    finally:
        for running in apart.of.values():
            with contextlib.suppress(AssertionError):  # it was not started
                if running.process.poll() is None:
                    running.stop()


def test_an_event_of_one_role_is_in_the_list_of_another(apart: Apart) -> None:
    ingest, recommend = apart.of[Role.INGEST], apart.of[Role.RECOMMEND]
    assert apart.post(Role.INGEST, "/v1/items", catalogue(30)).status_code == 200
    token = apart.post(Role.INGEST, "/v1/events", click("ann", "item-4")).json()["token"]
    wait_for(
        lambda: len(apart.post(Role.RECOMMEND, "/v1/recommend", {"k": 30}).json()["items"]) == 30,
        "the items do not come",
    )
    answer = apart.post(Role.RECOMMEND, "/v1/recommend", {"user": "ann", "k": 30, "token": token}).json()
    assert answer["address"]["user_offset"] >= int(token)
    assert sorted(ids(answer)) == sorted(f"item-{n}" for n in range(30) if n != 4)

    for role, path, body in (
        (Role.RECOMMEND, "/v1/events", click("ann", "item-4")),
        (Role.INGEST, "/v1/recommend", {"k": 1}),
    ):
        refused = apart.post(role, path, body)
        assert refused.status_code == 404
        assert "another role" in refused.json()["error"]["reason"]
    assert recommend.http.get("/v1/items/item-4", headers=apart.key).json()["id"] == "item-4"
    assert ingest.http.post("/v1/events", json=click("ann", "item-5")).status_code == 401, (
        "it may be reached from elsewhere"
    )
    assert set(ingest.http.get("/healthz").json()) == {"status"}
    assert running_address(recommend.data) == recommend.url
    assert serving_process(recommend.data) is None
    assert serving_process(recommend.data, Role.FOLD) == apart.of[Role.FOLD].process.pid
    with contextlib.ExitStack() as held, pytest.raises(ConfigurationError, match="has the role ingest on"):
        _lock(held, recommend.data, Role.ALL)


def test_the_fold_shows_what_it_counts_to_those_who_may_read_it(apart: Apart) -> None:
    def folded() -> float:
        (line,) = (
            line for line in apart.metrics(Role.FOLD, apart.key).text.splitlines()
            if line.startswith("headwater_fold_records_total ")
        )  # fmt: skip
        return float(line.split()[1])

    before = folded()
    apart.post(Role.INGEST, "/v1/events", [click("metrics", "item-7"), click("metrics", "item-8")])
    wait_for(lambda: folded() == before + 2, "the fold does not count what it folds")
    assert 'headwater_process_start_time_seconds{part="fold"}' in apart.metrics(Role.FOLD, apart.key).text
    assert apart.metrics(Role.FOLD, {}).status_code == 401


@pytest.mark.parametrize("role", [Role.INGEST, Role.FOLD, Role.RECOMMEND])
def test_a_child_that_died_comes_back(apart: Apart, role: Role) -> None:
    part = PARTS[role][0].value
    apart.of[role].wait_replaced(part, apart.of[role].kill(part))
    for waits in (Role.INGEST, Role.RECOMMEND):
        apart.of[waits].wait_ready()
    token = apart.post(Role.INGEST, "/v1/events", click(role, "item-6")).json()["token"]
    answer = apart.post(Role.RECOMMEND, "/v1/recommend", {"user": role, "k": 30, "token": token}).json()
    assert "item-6" not in ids(answer)


def test_learn_is_a_role_too(apart: Apart) -> None:
    learn = apart.of[Role.LEARN]
    learn.start()
    wait_for(lambda: apart.said(Role.LEARN, "too little is in the log to train on"), "no round was made")
    assert not apart.said(Role.LEARN, "round_failed"), "a log that has just begun is no fault"
    assert 'headwater_process_start_time_seconds{part="learner"}' in apart.metrics(Role.LEARN, apart.key).text
    assert learn.stop() == 0
    assert not (home(learn.data, Role.LEARN) / "address").exists()


def test_what_is_under_way_is_answered_before_the_end(apart: Apart) -> None:
    """The last one: it ends them, those first that need the others."""
    answers: list[httpx.Response] = []
    waiting = {"k": 3, "token": "9" * 18, "deadline_ms": 800.0}  # a token that never comes: it waits as long as it may
    asking = threading.Thread(target=lambda: answers.append(apart.post(Role.RECOMMEND, "/v1/recommend", waiting)))
    asking.start()
    time.sleep(0.3)
    apart.of[Role.RECOMMEND].process.send_signal(signal.SIGTERM)
    asking.join()
    assert (answers[0].status_code, len(answers[0].json()["items"])) == (200, 3)
    for role in (Role.RECOMMEND, Role.INGEST, Role.FOLD):
        assert apart.of[role].stop() == 0
        assert serving_process(apart.of[role].data, role) is None
