"""A server of the Open Inference Protocol in another process: MLServer with the runtime of ``deploy/mlserver``, or a strict one of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import httpx

from headwater.registry.bundle import Bundle
from tests.ports import free_port
from tests.serving.mlserver import mlserver_path

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0

Kind = Literal["strict", "mlserver"]


class Elsewhere:
    """The server with the ranker of ``bundle``, at one address for as long as it lives; may be killed and started again."""

    def __init__(self, kind: Kind, folder: Path, bundle: Bundle) -> None:
        self.bundle = bundle
        self._folder, self._port = folder, free_port()
        self._path = [str(ROOT / "deploy" / "mlserver"), *sys.path]
        if kind == "mlserver":
            self._path.insert(0, str(mlserver_path()))
        self._address = f"http://127.0.0.1:{self._port}"
        self.url = f"{self._address}/v2/models/headwater"
        self._command = self._mlserver() if kind == "mlserver" else self._strict()
        self.start()

    def start(self) -> None:
        """Returns when it is ready."""
        path = os.pathsep.join(self._path)
        with (self._folder / "elsewhere.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self._command], cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        until = time.monotonic() + PATIENCE_S
        while not _ready(f"{self._address}/v2/health/ready"):
            ended, late = self.process.poll() is not None, time.monotonic() > until
            if ended or late:
                self.kill()
                raise RuntimeError("it does not start:\n" + (self._folder / "elsewhere.log").read_text())
            time.sleep(0.05)

    def kill(self) -> None:
        """End it, without a chance to say good-bye."""
        self.process.kill()
        self.process.wait(30)

    def _strict(self) -> list[str]:
        return ["-m", "tests.serving.v2_server", str(self.bundle.path), "headwater", str(self._port)]

    def _mlserver(self) -> list[str]:
        settings = {
            "host": "127.0.0.1", "http_port": self._port, "grpc_port": free_port(), "metrics_endpoint": None,
            "parallel_workers": 0,
        }  # fmt: skip
        described = {
            "name": "headwater", "implementation": "headwater_ranker.HeadwaterRanker",
            "parameters": {"uri": str(self.bundle.path), "version": self.bundle.version},
        }  # fmt: skip
        ranking = self._folder / "ranking"
        ranking.mkdir()
        (ranking / "settings.json").write_text(json.dumps(settings))
        (ranking / "model-settings.json").write_text(json.dumps(described))
        return ["-c", "from mlserver.cli import main; main()", "start", str(ranking)]


@contextmanager
def elsewhere(kind: Kind, folder: Path, bundle: Bundle) -> Iterator[Elsewhere]:
    """The server, ready, until it is killed at the end."""
    made = Elsewhere(kind, folder, bundle)
    try:
        yield made
    finally:
        made.kill()


def _ready(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False
