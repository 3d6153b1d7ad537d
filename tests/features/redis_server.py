"""A real Redis for tests: Debian's redis-server, installed if need be, private, on a Unix socket in a folder of its own."""

from __future__ import annotations

import atexit
import functools
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import redis

from tests.debian import program
from tests.ports import free_port

_READY = "eady to accept connections"


class RedisServer:
    """A server on a Unix socket. ``options`` are command line options; data stays in ``folder`` between starts."""

    def __init__(self, *options: str, port: int = 0) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="headwater-redis-"))
        self.socket = self.folder / "redis.sock"
        self.port = port
        self.url = f"unix://{self.socket}"
        self._options = options
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self.start()

    def start(self) -> None:
        """Returns when it takes connections."""
        self.socket.unlink(missing_ok=True)
        command = [
            program("redis-server", "redis-server"), "--port", str(self.port), "--unixsocket", str(self.socket),
            "--dir", str(self.folder), "--save", "", "--daemonize", "no", "--logfile", "", *self._options,
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if _READY in line:
                break
        else:
            raise RuntimeError("redis-server did not start:\n" + "".join(said))
        self._process = process
        self._reader = threading.Thread(target=process.stdout.read, daemon=True)  # a full pipe would stop the server
        self._reader.start()

    def kill(self, how: int = signal.SIGKILL) -> None:
        """End it, by default without a chance to write anything."""
        if self._process is None or self._reader is None:
            return
        self._process.send_signal(how)
        self._process.wait(30)
        self._reader.join(30)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None

    def stop(self) -> None:
        """End it and remove its files."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class RedisCluster:
    """Three servers that share the slots, on free ports of this machine."""

    def __init__(self) -> None:
        options = "--cluster-enabled", "yes", "--bind", "127.0.0.1", "--cluster-config-file", "nodes.conf"
        self._servers = [
            RedisServer(*options, port=port) for port in (free_port(beside=10_000) for _ in range(3))
        ]  # the nodes talk on that one
        self.url = f"redis://127.0.0.1:{self._servers[0].port}/0"
        bounds = (0, 5461, 10923, 16384)
        nodes = self.nodes()
        for k, node in enumerate(nodes):
            node.execute_command("CLUSTER", "ADDSLOTSRANGE", bounds[k], bounds[k + 1] - 1)
            node.execute_command("CLUSTER", "SET-CONFIG-EPOCH", k + 1)
        for server in self._servers[1:]:
            nodes[0].execute_command("CLUSTER", "MEET", "127.0.0.1", server.port)
        until = time.monotonic() + 30
        while not all(_agrees(node) for node in nodes):
            if time.monotonic() > until:
                raise RuntimeError("the nodes of the cluster did not find each other within 30 s")
            time.sleep(0.05)  # they gossip at their own pace and tell nobody

    def nodes(self) -> list[Any]:
        """A client of each node."""
        return [redis.Redis(port=server.port, protocol=2) for server in self._servers]

    def close(self) -> None:
        for server in self._servers:
            server.stop()


def _agrees(node: Any) -> bool:
    info = node.execute_command("CLUSTER", "INFO")
    said = info if isinstance(info, dict) else dict(line.split(":") for line in info.decode().split())
    return bool(said["cluster_state"] == "ok" and said["cluster_known_nodes"] == "3")


@functools.cache
def shared_server() -> RedisServer:
    """One server for all tests of a session, without persistence; it ends with the session."""
    server = RedisServer("--appendonly", "no")
    atexit.register(server.stop)
    return server
