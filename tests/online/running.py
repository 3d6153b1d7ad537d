"""A whole system in a folder: ``headwater serve`` as a user starts it, and what tests do to it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np

from headwater.features.plan import compile_plan
from headwater.learning.gbdt import GbdtParams, fit_gbdt
from headwater.ranking.gbdt import MODEL_FILE
from headwater.registry.bundle import DataRange, ManifestFields
from headwater.registry.registry import Registry
from headwater.schema.config import Config, load_config

CONFIG = """
[serving]
port = 0
feature_sample = 1.0

[ladder]
deadline_ms = 2000.0  # the machine that runs tests is busy with other things
walk = 0.0

[log]
dedup_window = 1000000
map_size_gib = 4.0

[monitoring]
enabled = false  # a process more, which only its own tests need
"""
START_S = 300.0  # compiling every kernel from nothing takes its time
PATIENCE_S = 120.0
PARTS = ("writer", "fold", "api")


class Running:
    """``headwater serve`` on ``folder``, from ``__enter__`` (it answers) to ``__exit__`` (it is gone)."""

    def __init__(
        self, folder: Path, config: str = CONFIG, arguments: Sequence[str] = (), log: str = "serve.log",
        environment: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.config_path = folder / "headwater.toml"
        self.config_path.write_text(config)
        self.config: Config = load_config(self.config_path)
        self.data = folder / "data"
        self.log_path = folder / log
        self.url = ""
        self._arguments = list(arguments)
        self._environment = environment
        self._process: subprocess.Popen[str] | None = None
        self.http = httpx.Client()

    @property
    def process(self) -> subprocess.Popen[str]:
        assert self._process is not None, "not started"
        return self._process

    def start(self) -> None:
        """Start, and wait until it says that it is up."""
        self.launch()
        self.wait_up()

    def launch(self) -> None:
        """Start, and wait for nothing."""
        command = [sys.executable, "-m", "headwater.cli.main", "serve", "--config", str(self.config_path)]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command + self._arguments,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                stdin=subprocess.DEVNULL,
                env=self._environment,
            )

    def wait_up(self) -> None:
        """Wait until the process that was launched says that it is up; its address is then in ``url`` if it has one."""
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], START_S)
        line = self.process.stdout.readline() if readable else ""
        if " has the role " in line:
            return
        if " serves at http" not in line:
            self.process.kill()  # nobody else would: it never came to `__exit__`
            self.process.wait()
            raise AssertionError(f"{line!r}\n{self.log_path.read_text()}")
        self.url = line.split()[3]
        self.http = httpx.Client(base_url=self.url, timeout=60.0)

    def stop(self) -> int:
        """End it politely; returns its exit code."""
        self.http.close()
        self.process.terminate()
        try:
            return self.process.wait(PATIENCE_S)
        finally:
            if self.process.poll() is None:
                self.process.kill()
            if self.process.stdout is not None:
                self.process.stdout.close()

    def pids(self, part: str) -> list[int]:
        """Process ids of the children that do ``part`` now."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                continue
            if parent == self.process.pid and b"--part" in words and words[words.index(b"--part") + 1] == part.encode():
                found.append(int(entry.name))
        return found

    def kill(self, part: str) -> int:
        """SIGKILL the (first) process of ``part`` and wait until its connections are closed; returns what its number was.

        Else a request on a connection that is kept would be sent to a process that is just being taken apart.
        """
        (pid, *_) = self.pids(part)
        os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + PATIENCE_S
        while _lives(pid):
            assert time.monotonic() < until, f"process {pid} survives SIGKILL"
            time.sleep(0.005)
        return pid

    def wait_replaced(self, part: str, pid: int, patience_s: float = PATIENCE_S) -> None:
        """Wait until process ``pid``, which was killed, is gone and there is one of ``part``.

        Beside other work a worker may say for a moment longer that it is ready: it has not noticed yet.
        """
        until = time.monotonic() + patience_s
        while not (found := self.pids(part)) or pid in found:
            assert time.monotonic() < until, f"no {part} process after {patience_s} s"
            time.sleep(0.01)

    def wait_ready(self, patience_s: float = PATIENCE_S) -> float:
        """Seconds until ``/readyz`` says yes.

        A process takes 1.6 s of processor time to start, a multiple of that by the clock beside other work, and one that was
        killed again and again soon after its start is started up to 5 s later.
        """
        began = time.monotonic()
        reply = "no answer"
        while time.monotonic() - began < patience_s:
            try:
                response = httpx.get(self.url + "/readyz", timeout=5.0)
            except httpx.TransportError as error:
                reply = repr(error)
            else:
                reply = response.text
                if response.status_code == 200:
                    return time.monotonic() - began
            time.sleep(0.02)
        raise AssertionError(f"not ready after {patience_s} s: {reply}\n{self.log_path.read_text()[-4000:]}")

    def post(self, path: str, body: Any) -> httpx.Response:
        """POST ``body`` as JSON."""
        return self.http.post(path, json=body)

    def recommend(self, **request: Any) -> dict[str, Any]:
        """The answer to a recommend request, which must be a good one."""
        response = self.post("/v1/recommend", request)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def ingest(self, path: str, body: Any) -> str:
        """The token of an ingest call that must be accepted whole."""
        response = self.post(path, body)
        assert response.status_code == 200, response.text
        assert response.json()["rejected"] == []
        token: str = response.json()["token"]
        return token

    def reflected(self, token: str, patience_s: float = PATIENCE_S) -> None:
        """Wait until item columns reflect ``token`` (with a trace the answer is one of the moment)."""
        until = time.monotonic() + patience_s
        while self.recommend(k=1, token=token, trace=True)["address"]["item_offset"] < int(token):
            assert time.monotonic() < until, f"items do not reflect {token}"
            time.sleep(0.01)

    def wait_serving(self, version: str) -> None:
        """Wait until lists are made by the bundle ``version``."""
        until = time.monotonic() + PATIENCE_S
        while self.recommend(k=1)["model"] != version:
            assert time.monotonic() < until, "the bundle did not come into service"
            time.sleep(0.05)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.stop()


def publish_ranker(data: Path, config: Config, *, seed: int, created_ms: int) -> str:
    """Publish and promote a small ranker that was fitted on noise; returns its version."""
    plan = compile_plan(config)
    random = np.random.default_rng(seed)
    rows = random.random((400, len(plan.columns)), np.float32)
    labels = np.tile([1, 0, 0, 0], 100)
    text, _ = fit_gbdt(
        rows, labels, np.full(100, 4), None, columns=plan.columns, params=GbdtParams(trees=5, leaves=4), seed=seed,
        num_threads=1,
    )  # fmt: skip
    fields = ManifestFields(
        created_ms=created_ms,
        plan_hash=plan.hash,
        columns=plan.columns,
        ranker="lightgbm",
        event_types=plan.event_types,
        data=DataRange(first_offset=1, last_offset=1, first_ms=0, last_ms=0),
    )
    registry = Registry(data / "models")
    version = registry.publish(fields, {MODEL_FILE: text}).version
    registry.put_in_service(version, plan_hash=plan.hash)
    return version


def catalogue(count: int) -> list[dict[str, Any]]:
    """``count`` items in ten categories."""
    return [
        {"id": f"item-{i}", "title": f"Number {i} of topic {i % 10}", "categories": [f"topic-{i % 10}"]}
        for i in range(count)
    ]


def _lives(pid: int) -> bool:
    """Whether process ``pid`` is there and is more than an entry that its parent has not read yet.

    A leader may be dead before its last thread is, and it is that one that closes the connections.
    """
    try:
        dead = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        return not dead or len(list(Path(f"/proc/{pid}/task").iterdir())) > 1
    except (FileNotFoundError, ProcessLookupError):
        return False
