"""``headwater serve`` with its state in Redis: fresh lists, a killed fold, a server that is away, and one that lost all."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
import redis

from headwater.cli.backfill import run as backfill
from headwater.cli.doctor import _redis as check_redis
from headwater.cli.options import Settings
from headwater.features.fold import Fold
from headwater.features.plan import compile_plan
from headwater.features.replay import fold_to
from headwater.features.snapshot import open_snapshot
from headwater.features.state import open_store
from headwater.features.state_memory import MemoryState
from headwater.features.store import State
from headwater.log.archived import open_log
from headwater.log.identity import LmdbIdentity
from headwater.log.lmdb import LmdbLog
from headwater.offline.erase import erase
from headwater.schema.config import load_config
from tests.features.redis_server import RedisServer
from tests.online.running import CONFIG, Running, catalogue, publish_ranker
from tests.online.test_commands import headwater, last_json
from tests.online.test_flip import Watcher
from tests.reliability import redis_down, redis_slow
from tests.reliability.load import Poster
from tests.reliability.proxy import SlowProxy

PASSWORD = "hunter2-and-more"  # noqa: S105


class Site(Running):
    """The running system, its Redis, and the version of its bundle."""

    redis: RedisServer
    proxy: SlowProxy
    version: str

    def click(self, user: str, item: str) -> str:
        return self.ingest("/v1/events", {"user": user, "item": item, "type": "click"})

    def shown(self, user: str, token: str | None = None) -> set[str]:
        """The items of a long list that was answered with state and ranker."""
        answer = self.recommend(user=user, k=200, **({} if token is None else {"token": token}))
        assert answer["tier"] == 0, answer["reasons"]
        return {item["id"] for item in answer["items"]}

    def wait_recovered(self, patience_s: float = 60.0) -> None:
        """Wait until lists are answered in full again."""
        until = time.monotonic() + patience_s
        while (answer := self.recommend(user="ann", k=1))["tier"] != 0:
            assert time.monotonic() < until, answer
            time.sleep(0.02)

    def state(self) -> State:
        plan = compile_plan(self.config)
        return open_store(self.config, self.data, plan, writable=False, hurried=False)

    def events(self, name: str) -> list[str]:
        return [line for line in self.log_path.read_text().splitlines() if f'"{name}"' in line]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    server = RedisServer("--appendonly", "yes", "--requirepass", PASSWORD)
    proxy = SlowProxy(server.folder / "proxy.sock", server.socket, seed=7)
    state = f'\n[state]\nstore = "redis"\nurl = "{proxy.url}"\npartitions = 3\ntimeout_ms = 400.0\n'
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADWATER_STATE_PASSWORD", PASSWORD)
        try:
            with Site(tmp_path_factory.mktemp("redis"), CONFIG + state) as site:
                site.redis, site.proxy = server, proxy
                site.version = publish_ranker(site.data, site.config, seed=1, created_ms=1_772_000_000_000)
                site.reflected(site.ingest("/v1/items", catalogue(40)))
                site.wait_serving(site.version)
                yield site
        finally:
            proxy.close()
            server.stop()


def test_an_event_is_reflected_when_its_token_is_given(site: Site) -> None:
    for turn in range(20):
        token = site.click("ann", f"item-{turn}")
        assert f"item-{turn}" not in site.shown("ann", token)
    assert site.shown("ann") == {f"item-{n}" for n in range(20, 40)}
    assert not (site.data / "state" / compile_plan(site.config).hash).exists(), "there is a state in LMDB, too"


def test_a_killed_fold_goes_on_where_it_stood(site: Site) -> None:
    token = ""
    for number in range(60):
        token = site.click(f"user-{number % 20}", f"item-{number % 30}")
        if number == 30:
            site.kill("fold")
    site.wait_ready(60.0)
    assert not {"item-1", "item-11", "item-21"} & site.shown("user-1", token)
    assert len(site.events("fold_ready")) == 2
    assert not site.events("state_dropped")


def test_lists_are_answered_while_redis_is_away_and_in_full_when_it_is_back(site: Site) -> None:
    """The short form of :mod:`tests.reliability.redis_down`: no time is asserted, but that all is answered; rows that are kept are answered in full."""
    outcome = asyncio.run(
        redis_down.measure(
            site, site.redis, before_s=1.5, down_s=1.5, after_s=1.5, rate=40.0, seed=7, password=PASSWORD
        )
    )
    print(outcome)  # noqa: T201  (the seed stands in it)
    assert outcome.requests > 60
    assert outcome.failed == 0
    assert {"3", "4"} & set(outcome.tiers)
    site.wait_recovered()
    site.wait_ready(60.0)
    assert "item-7" not in site.shown("bob", site.click("bob", "item-7"))
    assert site.shown("ann") == {f"item-{n}" for n in range(20, 40)}
    assert not site.events("state_dropped")
    assert len(site.events("worker_ready")) == 1, "the worker was there all the time"
    assert site.events("redis_rests")
    assert site.events("redis_back")


def test_a_slow_and_lossy_redis_costs_the_state_and_no_answer(site: Site) -> None:
    """The short form of :mod:`tests.reliability.redis_slow`."""
    outcome = asyncio.run(
        redis_slow.measure(
            site, site.proxy, before_s=0.5, slow_s=1.5, after_s=1.5, delay_s=0.6, loss=0.05, rate=40.0, seed=7
        )
    )
    print(outcome)  # noqa: T201
    assert outcome.failed == 0
    assert {"3", "4"} & set(outcome.tiers)
    assert outcome.retry_ratio <= 1.1
    site.wait_recovered()


def test_a_redis_that_hangs_holds_up_one_request_at_most(site: Site) -> None:
    site.shown("ann", site.click("user-5", "item-3"))  # so no worker has kept the row of user-5, and one that of ann
    with redis.Redis(unix_socket_path=str(site.redis.socket), password=PASSWORD) as raw:
        number = int(raw.info("server")["process_id"])
    before, asked = redis_down.counted(site, "headwater_remote_calls_total"), 40
    os.kill(number, signal.SIGSTOP)
    try:
        for _ in range(asked):
            assert site.recommend(user="user-5", k=5)["tier"] in (3, 4)
        assert site.recommend(user="ann", k=5)["tier"] == 0, "nothing has changed the row that the worker has kept"
    finally:
        os.kill(number, signal.SIGCONT)
    waited = redis_down.counted(site, "headwater_remote_calls_total") - before
    assert 1 <= waited < asked / 2, "one waits, then one trial a pause goes on beside the others"
    site.wait_recovered()


def test_a_state_that_is_gone_is_folded_anew_and_workers_start_again(site: Site) -> None:
    with redis.Redis(unix_socket_path=str(site.redis.socket), password=PASSWORD) as raw:
        raw.flushall()
    until = time.monotonic() + 60.0
    while len(site.events("worker_ready")) < 2:
        assert time.monotonic() < until, site.log_path.read_text()[-4000:]
        time.sleep(0.02)
    site.wait_ready(60.0)
    assert site.shown("ann") == {f"item-{n}" for n in range(20, 40)}


def test_commands_know_where_the_state_is(site: Site) -> None:
    chosen = Settings(site.config, site.config_path, site.data)
    assert backfill(chosen, without_ranker=False).flip == "served already"
    check = check_redis(chosen)
    assert check.level == "ok", check
    assert check.figures["offset"] > 0
    with closing(LmdbIdentity(site.data / "identity", readonly=True)) as identity:
        key = identity.lookup("user-3")
    assert key is not None
    with closing(site.state()) as state:
        assert state.user(key.user) is not None
    certificate = erase(site.data, site.config, ["user-3"], at_ms=1, search=False)
    assert (certificate.erased, certificate.state_rows) == (1, 0)
    assert all(offset >= certificate.offset for offset in certificate.states.values())
    assert list(certificate.states) == [f"{compile_plan(site.config).hash} in Redis"]
    with closing(site.state()) as state:
        assert state.user(key.user) is None


def test_another_plan_comes_into_service_and_a_backup_is_made_meanwhile(site: Site) -> None:
    """Two states side by side, none of it in LMDB; no request fails, and the way back is short."""
    a = compile_plan(site.config).hash
    text = site.config_path.read_text()
    site.config_path.write_text(text + '\n[features]\nuser_half_lives = ["1d", "3d", "14d"]\n')
    edited = load_config(site.config_path)
    b = compile_plan(edited).hash
    publish_ranker(site.data, edited, seed=2, created_ms=1_772_000_001_000)
    command = ["--config", str(site.config_path), "--data", str(site.data), "--json"]
    poster = Poster(site.url, "flip", seed=3, users=50, items=40, batch=20, pause_s=0.01)
    with Watcher(site.url, keep=True) as watcher:
        poster.start()
        try:
            code, out, err = headwater("features", "backfill", *command, folder=site.folder)
            assert (code, last_json(out)["flip"]) == (0, "done"), (err, out)
            code, out, err = headwater("backup", "saved", "--state", *command, folder=site.folder)
            assert code == 0, err
        finally:
            poster.stop()
    assert watcher.failures == []
    assert [plan for plan, _ in watcher.seen] == sorted((plan for plan, _ in watcher.seen), key=[a, b].index)
    assert site.recommend(k=1)["address"]["plan"] == b
    report = last_json(out)
    assert set(report["states"]) == {a, b}
    assert 0 < report["states"][b] <= report["last_offset"]
    assert sorted(path.name for path in (site.folder / "saved" / "state").iterdir()) == sorted(
        f"{plan}.snapshot" for plan in (a, b)
    )
    saved = compile_plan(edited)
    with closing(open_log(site.folder / "saved")) as event_log:
        rows = open_snapshot(site.folder / "saved" / "state" / f"{b}.snapshot", saved, log_id=event_log.log_id)
        again = MemoryState(saved)
        straight = Fold(saved, again)
        fold_to(event_log, straight, report["states"][b])
        straight.commit(epoch=False)
        assert list(rows.dump()) == list(again.dump())
    site.config_path.write_text(text)
    code, out, err = headwater("features", "backfill", *command, folder=site.folder)
    assert (code, last_json(out)["flip"]) == (0, "done"), (err, out)
    assert last_json(out)["first"] > 0, "the state of the plan before was still there"
    assert site.recommend(k=1)["model"] == site.version
    assert not list((site.data / "state").glob("*/data.mdb"))


def test_state_is_what_a_straight_fold_makes_and_nobody_told_the_password(site: Site) -> None:
    assert site.stop() == 0
    plan = compile_plan(site.config)
    with (
        closing(LmdbLog(site.data / "log", readonly=True)) as event_log,
        closing(site.state()) as state,
        closing(MemoryState(plan)) as memory,
    ):
        fold = Fold(plan, memory)
        while (block := event_log.read(fold.offset)) is not None:
            fold.apply(block)
        fold.commit(epoch=False)
        assert state.meta().offset == event_log.last_offset
        rows = list(state.dump())
        assert len(rows) > 100
        assert rows == list(memory.dump())
    assert PASSWORD not in site.log_path.read_text()
