"""The floor: what a request would cost if there were nothing but its arithmetic and its HTTP.

Frozen reference code, which nothing of the product is used in: figures of different days are comparable because it stays as it is.
A scan of 50,000 vectors of 64 with numpy and ``argpartition`` of the best 300, an ONNX encoder over 50 recent items,
an ONNX DCN of width 128 over 300 rows (:mod:`headwater.cli.bench.floor_models`), and a Granian server that answers every
request with the same 2,000 bytes. Each runs on one thread with nothing else to do, its memory in the cache: the cheapest that it can be
(:func:`floor_ms`). :func:`floor_at` puts them together: that server computes all three for each request, and requests come as they
come to the product, so that each finds the caches as cold as the product's does.

``python -m headwater.cli.bench.floor kernels REPEATS`` prints milliseconds of processor time a call, ``... http PORT`` serves, ``... all PORT`` computes, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from headwater.cli.bench.schedule import Arrival, Outcome, Plan, http_request
from headwater.cli.local import free_port
from headwater.schema.errors import ConfigurationError, UnavailableError

ITEMS, SIZE, FOUND, RANKED = 50_000, 64, 300, 300
ANSWER_BYTES = 2_000
REPEATS, WARM = 300, 50
HTTP_REQUESTS, CONNECTIONS = 4_000, 8

_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_START_S = 30.0
_SPENT = "/spent"


def floor_ms(core: int | None = None) -> dict[str, float]:
    """Milliseconds of processor time: ``scan``, ``encoder``, ``ranker``, ``http`` a request, and their sum ``all``.

    ``core``: the processor that all of it runs on (None: any).

    Raises:
        ConfigurationError: the package ``onnx`` or ``granian`` is missing.
        UnavailableError: a child failed.
    """
    done = subprocess.run(  # noqa: S603
        [*_child(), "kernels", str(REPEATS)], env=_environment(core), stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode == _NO_PACKAGE:
        raise ConfigurationError("The floor needs onnx and granian, and one is missing: pip install 'headwater[bench]'")
    if done.returncode:
        raise UnavailableError(f"The reference kernels failed with exit code {done.returncode}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    found["http"] = http_ms(core)
    return {name: round(ms, 4) for name, ms in (*found.items(), ("all", sum(found.values())))}


def floor_at(core: int | None, arrivals: Sequence[Arrival]) -> dict[str, float | None]:
    """What a server costs that does nothing but the kernels and HTTP, under ``arrivals``: ``cpu_ms`` a request, ``p50_ms`` and ``p99_ms`` of its answers.

    Raises:
        ConfigurationError: the package ``onnx`` or ``granian`` is missing.
        UnavailableError: the child failed.
    """
    from headwater.cli.bench.measure import percentile_ms, send

    with _serving("all", core) as port:
        send(Plan("127.0.0.1", port, [_ASKED] * WARM, 1, closed=1))
        cpu_ms, outcomes = _measured(Plan("127.0.0.1", port, list(arrivals)))
    return {
        "cpu_ms": round(cpu_ms, 4),
        "p50_ms": percentile_ms(outcomes, 50),
        "p99_ms": percentile_ms(outcomes, 99),
    }


def kernels(repeats: int) -> dict[str, float]:
    """Median milliseconds of processor time of a call of each kernel."""
    return {name: _median_ms(call, repeats) for name, call in _calls().items()}


def _calls() -> dict[str, Callable[[], object]]:
    from headwater.cli.bench.floor_models import COLUMNS, LENGTH, encoder, ranker

    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((ITEMS, SIZE)).astype(np.float32)
    query = rng.standard_normal(SIZE).astype(np.float32)
    recent = rng.standard_normal((1, LENGTH, SIZE)).astype(np.float32)
    rows = rng.standard_normal((RANKED, COLUMNS)).astype(np.float32)
    encodes, ranks = _session(encoder()), _session(ranker(RANKED))

    def scan() -> object:
        scores = vectors @ query
        return np.argpartition(scores, ITEMS - FOUND)[ITEMS - FOUND :]

    return {
        "scan": scan,
        "encoder": lambda: encodes.run(None, {"recent": recent}),
        "ranker": lambda: ranks.run(None, {"rows": rows}),
    }


def _median_ms(call: Callable[[], object], repeats: int) -> float:
    for _ in range(WARM):
        call()
    spent = np.empty(repeats)
    for at in range(repeats):
        began = time.process_time()
        call()
        spent[at] = time.process_time() - began
    return float(np.median(spent)) * 1e3


def _session(model: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


# -- bare HTTP -----------------------------------------------------------------------------------------


_ASKED = Arrival(
    0.0, "floor",
    http_request("POST", "/v1/recommend", b'{"user":"user-00017","context":{"country":"US","device":"mobile"}}'),
)  # fmt: skip


def http_ms(core: int | None, requests: int = HTTP_REQUESTS) -> float:
    """Processor time of the bare server for a request, a closed loop over some connections."""
    from headwater.cli.bench.measure import send

    with _serving("http", core) as port:
        plan = Plan("127.0.0.1", port, [_ASKED] * requests, CONNECTIONS, closed=CONNECTIONS)
        send(plan)
        return _measured(plan)[0]


def _measured(plan: Plan) -> tuple[float, list[Outcome]]:
    """Milliseconds of the server's processor time a request of ``plan``, and what came of each."""
    from headwater.cli.bench.measure import send

    before = _spent_s(plan.port)
    outcomes = send(plan)
    spent = _spent_s(plan.port) - before
    answered = sum(outcome.ok for outcome in outcomes)
    if answered != len(plan.arrivals):
        raise UnavailableError(f"The bare server answered {answered} of {len(plan.arrivals)} requests")
    return spent * 1e3 / answered, outcomes


@contextlib.contextmanager
def _serving(what: str, core: int | None) -> Iterator[int]:
    """The port of a child that serves ``what``, "http" or "all"."""
    port = free_port()
    server = subprocess.Popen([*_child(), what, str(port)], env=_environment(core))  # noqa: S603
    try:
        _spent_s(port, patience_s=_START_S)
        yield port
    finally:
        server.terminate()
        server.wait()


def _spent_s(port: int, patience_s: float = 0.0) -> float:
    until = time.monotonic() + patience_s
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{_SPENT}", timeout=5.0) as answer:
                return float(answer.read())
        except OSError as error:
            if time.monotonic() > until:
                raise UnavailableError(f"The bare server does not answer: {error}") from error
        time.sleep(0.05)


async def _bare(
    calls: Sequence[Callable[[], object]],
    scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:  # fmt: skip
    """Read the body, do the ``calls``, answer with the same bytes; ``/spent``: processor time of this process so far, in seconds."""
    body = b"x" * ANSWER_BYTES
    if scope["path"] == _SPENT:
        body = str(time.process_time()).encode()
    else:
        await receive()
        for call in calls:
            call()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _serve(port: int, calls: Sequence[Callable[[], object]]) -> None:
    from granian.constants import HTTPModes, Interfaces
    from granian.server.embed import Server

    server = Server(
        partial(_bare, calls), address="127.0.0.1", port=port, interface=Interfaces.ASGINL, http=HTTPModes.http1, websockets=False,
        log_enabled=False,
    )  # fmt: skip
    await server.serve()


# -- children ------------------------------------------------------------------------------------------

_NO_PACKAGE = 65
_CORE = "HEADWATER_BENCH_CORE"


def _child() -> list[str]:
    return [sys.executable, "-m", "headwater.cli.bench.floor"]


def _environment(core: int | None) -> dict[str, str]:
    return {**os.environ, **_ONE_THREAD, **({} if core is None else {_CORE: str(core)})}


def main(arguments: list[str]) -> None:
    """Entry point of the children."""
    if _CORE in os.environ:
        os.sched_setaffinity(0, {int(os.environ[_CORE])})
    if arguments[0] in ("http", "all"):
        import uvloop

        calls = [*_calls().values()] if arguments[0] == "all" else []
        with contextlib.suppress(asyncio.CancelledError):
            uvloop.run(_serve(int(arguments[1]), calls))
        return
    try:
        import granian  # noqa: F401  (the part "http" is a process of its own, too late to say so)

        found = kernels(int(arguments[1]))
    except ModuleNotFoundError as error:
        if error.name not in ("onnx", "granian"):
            raise
        sys.exit(_NO_PACKAGE)
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
