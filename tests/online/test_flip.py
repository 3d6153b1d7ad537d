"""From one feature plan to another while requests go on: whole systems, and the supervisor's part alone."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self, cast

import httpx
import msgspec
import pytest
from structlog.testing import capture_logs

from headwater.cli.backfill import run as backfill_here
from headwater.cli.options import EXIT_CHECK_FAILED, Settings
from headwater.features.paths import Current, Flip, read_current, read_flip, state_dir, state_dirs, write_current
from headwater.features.pinned import config_digest, drop_pinned, load_pinned, pin_config
from headwater.features.plan import compile_plan
from headwater.log.lmdb import LmdbLog
from headwater.offline.backfill import request_flip
from headwater.online.flip import Flipper, Generation
from headwater.online.metrics import Metrics
from headwater.online.models import ModelWatch
from headwater.online.recommender import Recommender
from headwater.online.supervisor import Child, Supervisor
from headwater.online.worker import LINGER_S
from headwater.schema.config import Config, Features, load_config
from tests.online.running import CONFIG, PATIENCE_S, Running, catalogue, publish_ranker
from tests.online.test_commands import headwater, last_json
from tests.reliability.kill import compare_state
from tests.reliability.load import Poster

EDITED = CONFIG + '\n[features]\nuser_half_lives = ["1d", "3d", "14d"]\n'


MODULE = """
from headwater.features.declare import mean

features = [mean("item_value", "item", ["click"], half_life="{half_life}", unit="", description="d", owner="o")]
"""


class Watcher:
    """Asks for lists without a pause and keeps (plan, bundle) of each answer; any failure is kept, nothing is retried.

    But for one: a server may close a connection that was idle, and does so when it gives way to another and has lingered. Whoever
    was held up for so long asks once more, as every client has to.

    ``keep``: on one connection as long as the server keeps it, else on a new one each time.
    """

    def __init__(self, url: str, *, keep: bool) -> None:
        self.seen: list[tuple[str, str]] = []
        self.failures: list[str] = []
        self._url, self._keep = url, keep
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=PATIENCE_S) as http:
            number, answered = 0, time.monotonic()
            while not self._stop.is_set():
                number += 1
                request = {"user": f"user-{number % 50}", "k": 5}
                idle_s = time.monotonic() - answered
                try:
                    if self._keep:
                        response = http.post("/v1/recommend", json=request)
                    else:
                        response = httpx.post(f"{self._url}/v1/recommend", json=request, timeout=PATIENCE_S)
                except httpx.TransportError as error:
                    if self._keep and idle_s > LINGER_S:
                        answered = time.monotonic()
                        continue
                    self.failures.append(repr(error))
                    continue
                answered = time.monotonic()
                if response.status_code != 200:
                    self.failures.append(response.text)
                    continue
                answer = response.json()
                assert answer["model"] == answer["address"]["bundle"]
                self.seen.append((answer["address"]["plan"], answer["model"]))
                self._stop.wait(0.02)


class Site(Running):
    """A system with items, events and a ranker, of two workers."""

    version: str


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("flip"), arguments=["--workers", "2"]) as site:
        site.version = publish_ranker(site.data, site.config, seed=1, created_ms=1_772_000_000_000)
        site.reflected(site.ingest("/v1/items", catalogue(60)))
        site.wait_serving(site.version)
        yield site


def backfill(site: Site, *more: str) -> tuple[int, dict[str, Any], str]:
    """Run the command on the site's configuration; (exit code, report, standard error)."""
    code, out, err = headwater(
        "features", "backfill", "--config", str(site.config_path), "--data", str(site.data), "--json", *more,
        folder=site.folder,
    )  # fmt: skip
    return code, last_json(out) if out else {}, err


def test_from_plan_to_plan_under_load(site: Site) -> None:
    a = compile_plan(site.config).hash
    now = backfill_here(Settings(site.config, site.config_path, site.data), without_ranker=False)
    assert (now.flip, now.plan) == ("served already", a)

    site.config_path.write_text(EDITED)
    edited = load_config(site.config_path)
    b = compile_plan(edited).hash
    assert a != b
    site.kill("api")  # the file is another one now; who comes back must not notice
    site.wait_ready()
    assert {site.recommend(k=1)["address"]["plan"] for _ in range(5)} == {a}

    code, report, err = backfill(site)
    assert (code, report["flip"]) == (EXIT_CHECK_FAILED, "refused"), err
    assert site.version in report["reason"]
    assert "headwater train" in report["reason"]
    assert state_dir(site.data, b).is_dir(), "the state is built and waits"
    assert site.recommend(k=1)["address"]["plan"] == a

    version = publish_ranker(site.data, edited, seed=2, created_ms=1_772_000_001_000)
    other = site.folder / "other.toml"
    other.write_text(EDITED)
    request = request_flip(site.data, b, other, config_digest(edited))
    until = time.monotonic() + PATIENCE_S
    while (flip := read_flip(site.data)) is None or (flip.request, flip.stage) != (request, "refused"):
        assert time.monotonic() < until, flip
        time.sleep(0.02)
    assert "the server was started with" in flip.reason
    told = site.http.get("/healthz").json()
    refused = {"plan": b, "reason": flip.reason}
    assert told == {"status": "ok", "plan": a, "rules": "", "refused": refused}
    assert site.recommend(k=1)["model"] == site.version

    poster = Poster(site.url, "flip", seed=3, users=50, items=60, batch=20, pause_s=0.01)
    with (
        Watcher(site.url, keep=True) as kept,
        Watcher(site.url, keep=True) as kept_too,
        Watcher(site.url, keep=False) as fresh,
    ):
        poster.start()
        try:
            code, report, err = backfill(site)
            enough = [len(watcher.seen) + 20 for watcher in (kept, kept_too, fresh)]
            until = time.monotonic() + PATIENCE_S
            while any(len(w.seen) < n for w, n in zip((kept, kept_too, fresh), enough, strict=True)):
                assert time.monotonic() < until
                time.sleep(0.02)
        finally:
            poster.stop()
    assert (code, report["flip"]) == (0, "done"), (err, report)
    assert report["first"] > 0, "the state that waited was brought up to date, not built again"
    assert poster.retries == 0
    for watcher in (kept, kept_too, fresh):
        assert watcher.failures == []
        assert set(watcher.seen) == {(a, site.version), (b, version)}, "a list of one plan and another's bundle"
        plans = [plan for plan, _ in watcher.seen]
        assert plans == sorted(plans, key=[a, b].index), "it changed more than once"

    current = read_current(site.data)
    assert current is not None
    assert (current.plan, current.before) == (b, a)
    assert {path.name for path in state_dirs(site.data)} == {a, b}
    assert site.http.get("/healthz").json() == {"status": "ok", "plan": b, "rules": ""}
    assert (len(site.pids("fold")), len(site.pids("api"))) == (1, 2), "the old ones are gone"
    site.kill("api")
    site.wait_ready()
    assert {site.recommend(k=1)["address"]["plan"] for _ in range(5)} == {b}
    assert site.stop() == 0
    event_log = LmdbLog(site.data / "log", readonly=True)
    try:
        rows, equal = compare_state(state_dir(site.data, b), event_log, compile_plan(edited), site.folder / "replayed")
    finally:
        event_log.close()
    assert rows > 100
    assert equal
    said = [msgspec.json.decode(line) for line in site.log_path.read_text().splitlines()]
    assert [line["plan"] for line in said if line["event"] == "flip_done"] == [b]
    assert not [line for line in said if line["event"] in ("process_killed", "flip_watch_failed", "loop_error")]


# -- the supervisor's part -------------------------------------------------------------------------------------

READY = """
import socket, sys, time
control = socket.socket(fileno=int(sys.argv[sys.argv.index("--control-fd") + 1]))
control.sendall(b"ready {plan}\\n")
time.sleep(60)
"""
STAYS = [sys.executable, "-c", "import time; time.sleep(60)"]


class Stage:
    """A supervisor of processes that do nothing, at plan-a, and a flipper that is asked for plan-b."""

    def __init__(self, folder: Path, new: str, ready_s: float = 0.3) -> None:
        self.folder, self.data = folder, folder / "data"
        self.path = folder / "headwater.toml"
        self.path.write_text("")
        (self.data / "run").mkdir(parents=True)
        (self.data / "state" / "plan-b").mkdir(parents=True)
        self.socket = socket.socket()
        self.config = load_config(self.path)
        self.old = Child("api", [sys.executable, "-c", READY.format(plan="plan-a")], self.socket)
        self.writer = Child("writer", STAYS)
        self.supervisor = Supervisor([self.writer, self.old], self.data, None)
        first = Generation(self.config, pin_config(self.config, self.data / "run"), [self.old])
        self.flipper = Flipper(
            self.supervisor, self.data, self.path, first,
            make=lambda _, __: [Child("api", [sys.executable, "-c", new], self.socket, hold=True)],
            writer=self.writer, write_command=lambda pinned: [*STAYS, str(pinned)], ready_s=ready_s, look_s=0.01,
        )  # fmt: skip

    def ask(self, **changes: Any) -> Flip:
        """Serve plan-a, ask for plan-b, and give back what became of it; plan-a must serve afterwards."""
        wanted = Current(plan="plan-b", config=str(self.path.resolve()), digest=config_digest(self.config), request="r")

        async def run() -> Flip:
            running = asyncio.create_task(self.supervisor.run(lambda: None, self.flipper.watch))
            await self._until(lambda: (now := read_current(self.data)) is not None and now.plan == "plan-a")
            write_current(self.data, msgspec.structs.replace(wanted, **changes))
            await self._until(lambda: (flip := read_flip(self.data)) is not None and flip.stage != "switching")
            flip, now = read_flip(self.data), read_current(self.data)
            assert flip is not None
            assert now is not None
            assert self.old.starts == 1
            if flip.stage == "refused":
                assert self.writer.starts == 1
                assert self.supervisor.children == [self.writer, self.old]
                assert now.plan == "plan-a", "what serves is written down again"
            else:
                assert (now.plan, now.before) == ("plan-b", "plan-a")
                assert self.old not in self.supervisor.children
            self.supervisor.stop()
            await asyncio.wait_for(running, 60.0)
            return flip

        return asyncio.run(run())

    async def _until(self, done: Any) -> None:
        for _ in range(3_000):
            if done():
                return
            await asyncio.sleep(0.02)
        raise AssertionError("it did not come to that")


def test_new_processes_that_do_not_become_ready_are_given_up(tmp_path: Path) -> None:
    with capture_logs() as said:
        flip = Stage(tmp_path, "import time; time.sleep(60)").ask()
    assert (flip.stage, flip.request) == ("refused", "r")
    assert "1 of 1 new api processes were not ready after 0.3 s" in flip.reason
    assert [line["serving"] for line in said if line["event"] == "flip_refused"] == ["plan-a"]


def test_new_processes_that_cannot_start_are_given_up_at_once(tmp_path: Path) -> None:
    flip = Stage(tmp_path, "raise SystemExit(2)", ready_s=60.0).ask()
    assert flip.stage == "refused"
    assert "the new api process could not start" in flip.reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"digest": "of another file"}, "has changed since the backfill"),
        ({"config": None}, "the backfill with none"),
        ({"plan": "plan-c"}, "no state of plan plan-c"),
        ({"plan": "plan-a"}, "in service already"),
    ],
)
def test_a_request_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    flip = Stage(tmp_path, "import time; time.sleep(60)", ready_s=60.0).ask(**changes)
    assert flip.stage == "refused"
    assert reason in flip.reason


def test_a_configuration_that_is_broken_by_then_is_refused(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "import time; time.sleep(60)", ready_s=60.0)
    stage.path.write_text("[featurs]\n")
    flip = stage.ask()
    assert flip.stage == "refused"
    assert "did you mean `features`" in flip.reason


@pytest.mark.parametrize(
    ("edit", "starts"),
    [("[features]\nrecent = 9\n", 1), ('[segments]\nkeys = ["device"]\n', 2), ("[log]\ndedup_window = 1000\n", 2)],
)
def test_the_writer_is_restarted_only_for_settings_of_its_own(tmp_path: Path, edit: str, starts: int) -> None:
    stage = Stage(tmp_path, READY.format(plan="plan-b"), ready_s=60.0)
    for plan in ("plan-a", "plan-z"):
        (stage.data / "state" / plan).mkdir()
        (stage.data / "state" / plan / "data.mdb").touch()
    stage.path.write_text(edit)
    edited = load_config(stage.path)
    assert stage.ask(digest=config_digest(edited)).stage == "serving"
    pinned = Path(stage.writer.command[-1])
    assert load_pinned(pinned) == edited, "the next writer reads the new configuration in any case"
    assert stage.writer.starts == starts
    assert list((stage.data / "run").glob("config-*")) == [pinned.parent]
    kept = {path.name for path in (stage.data / "state").iterdir()} - {"CURRENT"}
    assert kept == {"plan-a", "plan-b"}, "the plan before stays, older ones go"


def test_a_retired_child_is_not_started_again(tmp_path: Path) -> None:
    async def check() -> None:
        stubborn = (
            "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
            f"open({str(tmp_path / 'deaf')!r}, 'w'); time.sleep(60)"
        )
        stays = Child("fold", [sys.executable, "-c", stubborn])
        supervisor = Supervisor([], tmp_path, None)
        begun = asyncio.Event()
        running = asyncio.create_task(supervisor.run(begun.set))
        await begun.wait()
        supervisor.add([stays])
        while not (tmp_path / "deaf").exists():
            await asyncio.sleep(0.01)
        assert stays.process is not None
        await supervisor.retire([stays], signal.SIGTERM, 0.2)
        assert stays.process.returncode == -signal.SIGKILL
        assert supervisor.children == []
        assert stays.starts == 1
        supervisor.stop()
        await asyncio.wait_for(running, 60.0)

    asyncio.run(check())


def test_a_bundle_of_another_plan_never_comes_into_service(tmp_path: Path) -> None:
    mine, other = Config(), Config(features=Features(recent=9))
    plan, foreign_plan = compile_plan(mine), compile_plan(other)
    good = publish_ranker(tmp_path, mine, seed=1, created_ms=1_772_000_000_000)
    foreign = publish_ranker(tmp_path, other, seed=2, created_ms=1_772_000_001_000)
    recommender = cast(Recommender, SimpleNamespace(model=None))
    watch = ModelWatch(tmp_path / "models", Config(), plan, recommender, Metrics())
    watch.swap(watch.load())
    assert recommender.model is not None
    assert recommender.model.version == good, "each plan has a promoted bundle of its own"
    (tmp_path / "models" / "plans" / plan.hash / "CURRENT").write_text(f"{foreign}\n")
    with capture_logs() as said:
        watch.swap(watch.load())
    assert recommender.model.version == good
    (line,) = said
    assert line["event"] == "bundle_refused"
    assert f"trained on plan {foreign_plan.hash}" in line["reason"]
    assert f"compiles to plan {plan.hash}" in line["reason"]


def test_a_pinned_configuration_stays_as_it_was(tmp_path: Path) -> None:
    path, module = tmp_path / "headwater.toml", tmp_path / "mine.py"
    path.write_text(EDITED + 'module = "mine.py"\n')
    module.write_text(MODULE.format(half_life="2d"))
    config = load_config(path)
    plan, digest = compile_plan(config).hash, config_digest(config)
    pinned = pin_config(config, tmp_path / "run")
    path.write_text(CONFIG)
    module.write_text(MODULE.format(half_life="3d"))
    assert compile_plan(load_pinned(pinned)).hash == plan
    assert compile_plan(config).hash != plan
    assert config_digest(config) != digest
    assert load_pinned(pinned).ladder == config.ladder
    other = pin_config(Config(), tmp_path / "run")
    assert other != pinned
    drop_pinned(tmp_path / "run", other)
    assert not pinned.exists()
    assert load_pinned(other) == Config()
