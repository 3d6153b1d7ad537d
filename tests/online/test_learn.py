"""Learning beside a server: bundles change while requests go on, and what goes wrong stays with the learner."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

import httpx

from headwater.features.plan import compile_plan
from headwater.learning.collecting import SETTLES_MS
from headwater.registry.registry import Registry
from tests.online.running import CONFIG, PATIENCE_S, Running, catalogue
from tests.reliability.load import Poster

LEARNING = (
    CONFIG
    + """
[ranker]
trees = 5
leaves = 4
negatives = 5
max_rows = 1000

[gate]
margin = 1.0  # what is clicked here is drawn at random
slower = 100.0
questions = 50
"""
)


class Witness:
    """Asks without a pause to speak of; keeps every answer's status and the bundles that it names."""

    def __init__(self, url: str) -> None:
        self.answers: list[tuple[int, str, str]] = []
        self._url, self._stop = url, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=PATIENCE_S) as http:
            while not self._stop.is_set():
                response = http.post("/v1/recommend", json={"user": f"user-{len(self.answers) % 50}", "k": 5})
                body = response.json()
                model = str(body.get("model"))
                self.answers.append((response.status_code, model, str(body.get("address", {}).get("bundle"))))
                time.sleep(0.01)


def learner(running: Running, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "headwater.cli.main", "learn", "--config", str(running.config_path), "--json"]
    return subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def next_bundle(learning: subprocess.Popen[str]) -> dict[str, Any]:
    """The next round that made a bundle; rounds that wait for events are passed over."""
    assert learning.stdout is not None
    assert learning.stderr is not None
    while line := learning.stdout.readline():
        made: dict[str, Any] = json.loads(line)
        assert made["bundle"] is not None or made["waits"], made
        if made["bundle"] is not None:
            return made
    raise AssertionError(learning.stderr.read())


def test_bundles_change_while_requests_go_on(tmp_path: Path) -> None:
    with Running(tmp_path, LEARNING) as running:
        running.ingest("/v1/items", catalogue(120))
        poster = Poster(running.url, "p", seed=3, users=200, items=120, batch=20, pause_s=0.1)
        poster.start()
        try:
            until = time.monotonic() + PATIENCE_S
            while len(poster.acked) < 1_500:
                assert time.monotonic() < until
                time.sleep(0.1)
        finally:
            poster.stop()
        time.sleep(1.0 + SETTLES_MS / 1e3)  # a round reads what has settled
        rounds: list[dict[str, Any]] = []
        with Witness(running.url) as witness:
            learning = learner(running, "--every", "1s")
            try:
                for _ in range(2):
                    rounds.append(next_bundle(learning))
                    until = time.monotonic() + PATIENCE_S
                    while not witness.answers or witness.answers[-1][1] != rounds[-1]["bundle"]:
                        assert time.monotonic() < until
                        time.sleep(0.05)
                    if len(rounds) == 1:  # only now, and all at once: each round is to be seen in service
                        clicks = [
                            {"user": f"user-{n % 200}", "item": f"item-{n % 120}", "type": "click"} for n in range(400)
                        ]
                        running.ingest("/v1/events", clicks)
            finally:
                learning.send_signal(signal.SIGTERM)
                _, said = learning.communicate(timeout=900)
        assert learning.returncode == 0, said
        assert [made["promoted"] for made in rounds] == [True, True], said
        versions = [made["bundle"] for made in rounds]
        assert rounds[1]["warm"] == versions[0]
        assert {status for status, _, _ in witness.answers} == {200}
        assert all(model == bundle for _, model, bundle in witness.answers)
        seen = list(dict.fromkeys(model for _, model, _ in witness.answers))
        assert seen == ["none", *versions]
        assert [m for _, m, _ in witness.answers] == sorted((m for _, m, _ in witness.answers), key=seen.index)

        # back again, without a restart
        rolled = [
            sys.executable,
            "-m",
            "headwater.cli.main",
            "models",
            "rollback",
            "--config",
            str(running.config_path),
        ]
        assert subprocess.run(rolled, capture_output=True, text=True, check=True).stdout.startswith(versions[0])
        running.wait_serving(versions[0])


def test_a_round_that_fails_is_told_and_a_signal_ends_it(tmp_path: Path) -> None:
    config = tmp_path / "headwater.toml"
    config.write_text(LEARNING)
    command = [sys.executable, "-m", "headwater.cli.main", "learn", "--config", str(config), "--json", "--every", "1s"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        rounds = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 1  # no round made a bundle
    assert [made["number"] for made in rounds] == [1, 2]
    assert all(made["bundle"] is None and made["reason"] for made in rounds)
    registry = Registry(tmp_path / "data" / "models")
    assert registry.current(compile_plan(Running(tmp_path, LEARNING).config).hash) is None
