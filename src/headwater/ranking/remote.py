"""The ranker of a bundle in another process: the client of a server that speaks the Open Inference Protocol (V2, REST).

Source: https://github.com/kserve/open-inference-protocol, ``specification/protocol/inference_rest.md``. Rows go there as
FP32 tensors in JSON, NaN as ``null``; ``scores`` FP32[n] come back. The version of the bundle stands in the path and in each
answer, so a list is never ordered by another model than the one in service. ``deploy/mlserver`` holds the other end.
"""

from __future__ import annotations

import http.client
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from headwater.breaker import RetryBudget, jittered
from headwater.ranking.ranker import Attention, Features, RankerError, Scores, UnreachableError

RETRY_S = 0.002
LEAST_S = 0.001  # with less time than that nobody is asked
MARGIN = 0.95  # of the limit: the thread is to be back before it is given up
IDLE = 4  # connections that are kept open
_READ = 64 * 1024
_AGAIN = (502, 503, 504)
_ATTENTION = {"candidates": np.float32, "recent": np.float32, "types": np.int64, "age_s": np.float32}
_DATATYPES = {"float32": "FP32", "int64": "INT64"}

Tensors = dict[str, npt.NDArray[Any]]


class Tensor(Struct, frozen=True):
    """A tensor of the protocol; ``data`` is flat, row by row."""

    name: str
    shape: list[int]
    datatype: str
    data: list[float | None]


class _Answer(Struct, frozen=True):
    model_name: str
    outputs: list[Tensor]
    model_version: str = ""


class _Shape(Struct, frozen=True):
    name: str
    shape: list[int]


class _Metadata(Struct, frozen=True):
    name: str
    versions: list[str] = []
    inputs: list[_Shape] = []
    parameters: dict[str, Any] = {}


_encode = msgspec.json.Encoder().encode
_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_metadata = msgspec.json.Decoder(_Metadata).decode


def to_tensors(features: Features, attention: Attention | None) -> Tensors:
    """What a ranker is given, by the names that it has on the wire."""
    tensors: Tensors = {"features": features}
    if attention is not None:
        for name, kind in _ATTENTION.items():
            tensors[name] = np.asarray(getattr(attention, name), kind)
    return tensors


class Received(Struct, frozen=True):
    """What :func:`to_tensors` was given; as an argument of a ranker it is the attention."""

    features: Features
    recent: Features
    types: npt.NDArray[np.int64]
    age_s: Features
    candidates: Features


def from_tensors(tensors: Mapping[str, tuple[list[int], list[Any]]]) -> tuple[Features, Attention | None]:
    """The arguments of :meth:`Ranker.score` from shapes and flat data by name: the other end of :func:`to_tensors`.

    Raises:
        RankerError: a tensor is missing, or its data do not fill its shape.
    """
    wanted: dict[str, Any] = {"features": np.float32}
    if len(tensors) > 1:
        wanted |= _ATTENTION
    if set(tensors) != set(wanted):
        raise RankerError(f"Expected the tensors {', '.join(sorted(wanted))}, got {', '.join(sorted(tensors))}.")
    found: Tensors = {}
    for name, (shape, data) in tensors.items():
        try:
            found[name] = np.array(data, wanted[name]).reshape(shape)  # null becomes NaN
        except (TypeError, ValueError, OverflowError) as error:
            raise RankerError(f"The tensor {name} of shape {shape} cannot be read: {error}.") from error
    attention = Received(**found) if len(found) > 1 else None
    return found["features"], attention


class RemoteRanker:
    """Has the model at ``url`` (``http://host:port/v2/models/NAME``) score rows in place of the bundle's own ranker.

    ``version`` and ``plan_hash`` are those of the bundle. Connections are kept open. What a lost connection swallowed is asked
    once more while there is time and ``budget`` allows it. Threads may share it.
    """

    def __init__(
        self, url: str, *, version: str, plan_hash: str, columns: tuple[str, ...], attends: bool,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        parts = urlsplit(url)
        self.url, self.version, self.plan_hash = url, version, plan_hash
        self.budget = RetryBudget()
        self._columns, self._attends = columns, attends
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname or "", parts.port
        self._path, self._name = f"{parts.path}/versions/{version}", parts.path.rpartition("/")[2]
        self._seconds = seconds
        self._idle: deque[http.client.HTTPConnection] = deque()
        self._closed = False

    @property
    def columns(self) -> tuple[str, ...]:
        return self._columns

    @property
    def attends(self) -> bool:
        return self._attends

    def check(self, limit_s: float) -> None:
        """Whether the model is there, ready, and of the bundle in service.

        Raises:
            UnreachableError: there is no such server, or it has not loaded that version (yet).
            RankerError: what it calls by that version takes other rows, or belongs to another plan.
        """
        until_s = self._seconds() + limit_s
        self._ask("GET", f"{self._path}/ready", b"", until_s)
        try:
            said = _decode_metadata(self._ask("GET", self._path, b"", until_s))
        except msgspec.DecodeError as error:
            raise RankerError(f"{self._where} does not speak the Open Inference Protocol: {error}.") from error
        plan = said.parameters.get("plan_hash")
        width = next((tensor.shape[-1:] for tensor in said.inputs if tensor.name == "features"), None)
        wrong = None
        if said.versions and self.version not in said.versions:
            wrong = f"has the versions {', '.join(said.versions)}"
        elif plan != self.plan_hash:
            wrong = f"says that it belongs to plan {plan}, the bundle to {self.plan_hash}"
        elif width != [len(self._columns)]:
            wrong = f"takes rows of {width} columns, the bundle has {len(self._columns)}"
        if wrong is not None:
            raise RankerError(f"{self._where} {wrong}. Have it load the bundle that is promoted here.")

    def score(self, features: Features, attention: Attention | None = None) -> Scores:
        """See :meth:`Ranker.score`; waits as long as it takes."""
        return self.score_within(features, attention, 3600.0)

    def score_within(self, features: Features, attention: Attention | None, limit_s: float) -> Scores:
        """See :meth:`headwater.ranking.ranker.Timed.score_within`."""
        until_s = self._seconds() + MARGIN * limit_s
        if limit_s < LEAST_S:
            raise RankerError(f"no time to ask {self._where}")
        if features.dtype != np.float32 or features.ndim != 2 or features.shape[1] != len(self._columns):
            raise RankerError(
                f"The ranker expects float32[n, {len(self._columns)}], got {features.dtype}{list(features.shape)}. "
                "The features come from another plan than the model: train again or roll back."
            )
        if self._attends and attention is None:
            raise RankerError("The deep ranker attends to a sequence source, and got no vectors of one.")
        n = len(features)
        if not n:
            return np.zeros(0, np.float32)
        tensors = to_tensors(features, attention if self._attends else None)
        inputs = [
            Tensor(name, list(rows.shape), _DATATYPES[str(rows.dtype)], rows.ravel().tolist())
            for name, rows in tensors.items()
        ]
        body = _encode({"inputs": inputs, "outputs": [{"name": "scores"}]})
        return self._scores(self._ask("POST", f"{self._path}/infer", body, until_s), n)

    def close(self) -> None:
        """Let go of the connections; calling it again changes nothing."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    # -- the protocol ----------------------------------------------------------------------------------

    @property
    def _where(self) -> str:
        return f"the remote ranker at {self.url}"

    def _scores(self, text: bytes, n: int) -> Scores:
        try:
            answer = _decode_answer(text)
        except msgspec.DecodeError as error:
            raise UnreachableError(f"{self._where} gave no answer of the protocol: {error}") from error
        if (answer.model_name, answer.model_version) != (self._name, self.version):
            raise UnreachableError(
                f"{self._where} answered as {answer.model_name} {answer.model_version or 'without a version'}, in service is "
                f"{self.version}"
            )
        for output in answer.outputs:
            if output.name == "scores":
                scores = np.array(output.data, np.float32)
                if scores.shape != (n,) or not np.isfinite(scores).all():
                    raise UnreachableError(f"{self._where} gave {len(scores)} scores for {n} rows, or some not finite")
                return scores
        raise UnreachableError(f"{self._where} gave no tensor `scores`")

    def _ask(self, method: str, path: str, body: bytes, until_s: float) -> bytes:
        """The body of a good answer; a lost one is asked for once more."""
        if self._closed:
            raise RankerError("This ranker was closed; take the current one.")
        self.budget.call()
        try:
            try:
                return self._exchange(method, path, body, until_s)
            except _LostError:
                if until_s - self._seconds() < 2.0 * RETRY_S or not self.budget.retry():
                    raise
                time.sleep(jittered(RETRY_S))
                return self._exchange(method, path, body, until_s)
        except _LostError as error:
            raise UnreachableError(f"{self._where} cannot be reached: {error}") from error

    def _exchange(self, method: str, path: str, body: bytes, until_s: float) -> bytes:
        connection = self._connection()
        kept = False
        try:
            self._hurry(connection, until_s)
            connection.request(method, path, body or None, {"content-type": "application/json"} if body else {})
            self._hurry(connection, until_s)
            response = connection.getresponse()
            parts = []
            while part := response.read1(_READ):  # piece by piece: one that drips must not outlast the deadline
                parts.append(part)
                self._hurry(connection, until_s)
            response.close()  # of the answer; the connection is free for the next request
            kept = not response.will_close
        except TimeoutError as error:
            raise UnreachableError(f"{self._where} did not answer in time") from error
        except (OSError, http.client.HTTPException) as error:
            raise _LostError(str(error) or type(error).__name__) from error
        finally:
            if kept and len(self._idle) < IDLE and not self._closed:
                self._idle.append(connection)
            else:
                connection.close()
        text = b"".join(parts)
        if response.status in _AGAIN:
            raise _LostError(f"status {response.status}")
        if response.status != 200:
            said = text[:200].decode(errors="replace")
            raise UnreachableError(f"{self._where} answered {response.status}: {said}")
        return text

    def _connection(self) -> http.client.HTTPConnection:
        """One that is open, if the other side has not closed it meanwhile, else a new one."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
                return kind(self._host, self._port)
            if connection.sock is not None and not _readable(connection.sock):
                return connection
            connection.close()

    def _hurry(self, connection: http.client.HTTPConnection, until_s: float) -> None:
        """Let the next wait on ``connection`` end by ``until_s``."""
        left_s = until_s - self._seconds()
        if left_s <= 0.0:
            raise TimeoutError
        connection.timeout = left_s
        if connection.sock is not None:
            connection.sock.settimeout(left_s)


class _LostError(Exception):
    """The connection failed, or the server says that it cannot answer now; another try may succeed."""


def _readable(idle: socket.socket) -> bool:
    """Whether there is something to read where nothing can come: the other side has closed it."""
    poll = select.poll()
    poll.register(idle, select.POLLIN)
    return bool(poll.poll(0))
