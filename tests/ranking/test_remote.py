"""The client of the Open Inference Protocol against a server that does what a test says. A real one: ``tests/serving/test_remote_ranker.py``."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import msgspec
import numpy as np
import pytest

from headwater.ranking.ranker import RankerError, Timed, UnreachableError
from headwater.ranking.remote import RemoteRanker, from_tensors, to_tensors
from headwater.retrieval.fitted import Attended

ROWS = np.array([[1.0, np.nan], [3.0, 0.1], [-np.inf, 2.0]], np.float32)[:2]
VERSION = "20260101T000000000Z-0123456789ab"
LIMIT_S = 60.0  # no answer of these tests takes long

Reply = Callable[[socket.socket, bytes], bool]
"""Answers a request; False: the connection ends."""


def answer(body: object, status: int = 200) -> Reply:
    text = body if isinstance(body, bytes) else msgspec.json.encode(body)
    head = f"HTTP/1.1 {status} x\r\ncontent-length: {len(text)}\r\ncontent-type: application/json\r\n\r\n"

    def reply(connection: socket.socket, _: bytes) -> bool:
        connection.sendall(head.encode() + text)
        return True

    return reply


def scores(*values: float | None, version: str = VERSION, name: str = "headwater") -> Reply:
    output = {"name": "scores", "shape": [len(values)], "datatype": "FP32", "data": list(values)}
    return answer({"model_name": name, "model_version": version, "outputs": [output]})


def hang_up(_: socket.socket, __: bytes) -> bool:
    return False


def drip(connection: socket.socket, _: bytes) -> bool:
    """A byte every 20 ms, for a minute."""
    connection.sendall(b"HTTP/1.1 200 x\r\ncontent-length: 100000\r\n\r\n")
    try:
        for _turn in range(3_000):
            connection.sendall(b" ")
            time.sleep(0.02)
    except OSError:  # the client had enough
        pass
    return False


class Server:
    """Answers the requests that come with ``replies``, in their order; keeps what it was sent, and counts connections."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.requests: list[tuple[str, bytes]] = []
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v2/models/headwater"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            rest = b""
            while True:
                while b"\r\n\r\n" not in rest:
                    if not (data := connection.recv(65_536)):
                        return
                    rest += data
                head, _, rest = rest.partition(b"\r\n\r\n")
                lines = head.decode().split("\r\n")
                lengths = [int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length")]
                while len(rest) < sum(lengths):
                    rest += connection.recv(65_536)
                body, rest = rest[: sum(lengths)], rest[sum(lengths) :]
                self.requests.append((lines[0].rpartition(" ")[0], body))
                if not self.replies.pop(0)(connection, body):
                    return

    def wait_closed(self) -> None:
        """Until all connections so far have ended."""
        for thread in self._threads[1:]:
            thread.join(60.0)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture
def ranker(server: Server) -> Iterator[RemoteRanker]:
    made = remote(server.url)
    yield made
    made.close()


def remote(url: str, *, attends: bool = False) -> RemoteRanker:
    return RemoteRanker(url, version=VERSION, plan_hash="plan", columns=("a", "b"), attends=attends)


def test_rows_go_as_the_protocol_says_and_connections_stay_open(server: Server, ranker: RemoteRanker) -> None:
    assert isinstance(ranker, Timed)
    server.replies += [scores(0.5, -1.25)] * 3
    for _ in range(3):
        assert ranker.score(ROWS).tolist() == [0.5, -1.25]
    assert server.connections == 1
    line, body = server.requests[0]
    assert line == f"POST /v2/models/headwater/versions/{VERSION}/infer"
    (tensor,) = msgspec.json.decode(body)["inputs"]
    assert (tensor["name"], tensor["datatype"], tensor["shape"]) == ("features", "FP32", [2, 2])
    assert tensor["data"] == [1.0, None, 3.0, float(np.float32(0.1))]
    assert msgspec.json.decode(body)["outputs"] == [{"name": "scores"}]
    assert ranker.score(ROWS[:0]).shape == (0,)
    assert len(server.requests) == 3


@pytest.mark.parametrize("recent", [0, 3])
def test_what_an_attending_ranker_looks_at_arrives_to_the_bit(recent: int) -> None:
    random = np.random.default_rng(3)
    attention = Attended(
        random.random((recent, 4), np.float32), np.arange(recent), random.random(recent, np.float32),
        random.random((2, 4), np.float32),
    )  # fmt: skip
    wire = {
        name: (list(rows.shape), msgspec.json.decode(msgspec.json.encode(rows.ravel().tolist())))
        for name, rows in to_tensors(ROWS, attention).items()
    }
    features, found = from_tensors(wire)
    assert features.tobytes() == ROWS.tobytes()
    assert found is not None
    for name in Attended._fields:
        there, given = getattr(found, name), getattr(attention, name)
        assert (there.dtype, there.shape, there.tobytes()) == (given.dtype, given.shape, given.tobytes()), name


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({}, "Expected the tensors features"),
        ({"features": ([1, 2], [1.0])}, "of shape"),
        ({"features": ([1, 1], ["one"])}, "cannot be read"),
        ({"features": ([1, 1], [1.0]), "recent": ([0, 4], [])}, "Expected the tensors age_s"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tensors: dict[str, tuple[list[int], list[object]]], why: str) -> None:
    with pytest.raises(RankerError, match=why):
        from_tensors(tensors)


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (scores(1.0, 2.0, version="another"), "answered as headwater another"),
        (scores(1.0, 2.0, version=""), "without a version"),
        (scores(1.0, 2.0, name="other"), "answered as other"),
        (scores(1.0), "1 scores for 2 rows"),
        (scores(1.0, None), "not finite"),
        (answer(b"<html>"), "no answer of the protocol"),
        (answer({"model_name": "headwater", "model_version": VERSION, "outputs": []}), "no tensor `scores`"),
        (answer({"error": "no"}, 400), "answered 400"),
        (answer({}, 307), "answered 307"),
    ],
)
def test_an_answer_that_cannot_be_used_is_no_answer(
    server: Server, ranker: RemoteRanker, reply: Reply, why: str
) -> None:
    server.replies.append(reply)
    with pytest.raises(UnreachableError, match=why):
        ranker.score_within(ROWS, None, LIMIT_S)
    assert (ranker.budget.calls, ranker.budget.retries) == (1, 0)


def test_what_a_lost_connection_swallowed_is_asked_once_more_by_one_call_in_ten(
    server: Server, ranker: RemoteRanker
) -> None:
    server.replies += [scores(1.0, 2.0)] * 10
    for _ in range(10):
        ranker.score(ROWS)
    server.replies += [hang_up, scores(3.0, 4.0)]
    assert ranker.score_within(ROWS, None, LIMIT_S).tolist() == [3.0, 4.0]
    assert (ranker.budget.calls, ranker.budget.retries) == (11, 1)
    server.replies += [hang_up]
    with pytest.raises(UnreachableError, match="cannot be reached"):
        ranker.score_within(ROWS, None, LIMIT_S)
    assert ranker.budget.retries == 1, "the budget is used up"
    for _ in range(10):
        server.replies.append(scores(1.0, 2.0))
        ranker.score(ROWS)
    server.replies += [answer({}, 503), hang_up]
    with pytest.raises(UnreachableError):
        ranker.score_within(ROWS, None, LIMIT_S)
    assert ranker.budget.retries == 2, "two tries, not three"


def test_a_connection_that_the_other_side_has_closed_costs_no_second_try(server: Server, ranker: RemoteRanker) -> None:
    def and_close(connection: socket.socket, body: bytes) -> bool:
        scores(1.0, 2.0)(connection, body)
        return False

    for _ in range(3):
        server.replies.append(and_close)
        ranker.score(ROWS)
        server.wait_closed()
    assert (ranker.budget.calls, ranker.budget.retries) == (3, 0)


def test_neither_silence_nor_a_drip_outlasts_the_deadline(server: Server, ranker: RemoteRanker) -> None:
    over = threading.Event()

    def silent(_: socket.socket, __: bytes) -> bool:
        over.wait(60.0)
        return False

    for reply in (silent, drip):
        server.replies.append(reply)
        began = time.monotonic()
        with pytest.raises(UnreachableError, match="in time"):
            ranker.score_within(ROWS, None, 0.1)
        assert time.monotonic() - began < 20.0, "a minute, if it waited for either"
    over.set()
    with pytest.raises(RankerError, match="no time"):
        ranker.score_within(ROWS, None, 0.0)


def test_nobody_is_there() -> None:
    with socket.socket() as held:  # so that nobody else listens there meanwhile
        held.bind(("127.0.0.1", 0))
        ranker = remote(f"http://127.0.0.1:{held.getsockname()[1]}/v2/models/headwater")
        with pytest.raises(UnreachableError, match="cannot be reached"):
            ranker.score_within(ROWS, None, LIMIT_S)


def test_rows_that_do_not_fit_are_not_sent(server: Server) -> None:
    ranker = remote(server.url, attends=True)
    with pytest.raises(RankerError, match=r"expects float32\[n, 2\]"):
        ranker.score(np.zeros((2, 3), np.float32))
    with pytest.raises(RankerError, match="got no vectors"):
        ranker.score(ROWS)
    ranker.close()
    ranker.close()
    with pytest.raises(RankerError, match="closed"):
        ranker.score(ROWS, Attended(ROWS, np.zeros(2, np.int64), np.zeros(2, np.float32), ROWS))
    assert not server.requests


def described(**changes: object) -> Reply:
    said = {
        "name": "headwater",
        "versions": [VERSION],
        "platform": "headwater",
        "inputs": [{"name": "features", "datatype": "FP32", "shape": [-1, 2]}],
        "parameters": {"plan_hash": "plan"},
    }
    return answer(said | changes)


def test_the_check_before_service(server: Server, ranker: RemoteRanker) -> None:
    server.replies += [answer({}), described()]
    ranker.check(LIMIT_S)
    assert [line for line, _ in server.requests] == [
        f"GET /v2/models/headwater/versions/{VERSION}{end}" for end in ("/ready", "")
    ]
    for reply, why in (
        (described(versions=["1"]), "has the versions 1"),
        (described(parameters={"plan_hash": "b"}), "plan b, the bundle to plan"),
        (described(parameters={}), "plan None"),
        (described(inputs=[]), "columns"),
        (answer(b"no"), "does not speak"),
    ):
        server.replies += [answer({}), reply]
        with pytest.raises(RankerError, match=why) as caught:
            ranker.check(LIMIT_S)
        assert not isinstance(caught.value, UnreachableError), "it is refused, not waited for"
    server.replies += [answer({"error": "not found"}, 404)]
    with pytest.raises(UnreachableError, match="404"):
        ranker.check(LIMIT_S)
