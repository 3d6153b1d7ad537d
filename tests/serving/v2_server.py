"""A server of the Open Inference Protocol, written from its specification and strict about it; one bundle, one model.

``python -m tests.serving.v2_server BUNDLE NAME PORT``. Accepts nothing that the protocol does not say.
Source: https://github.com/kserve/open-inference-protocol, ``specification/protocol/inference_rest.md``.
"""

from __future__ import annotations

import math
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec
from msgspec import Struct

from headwater.ranking.ranker import Ranker, RankerError, open_ranker
from headwater.ranking.remote import from_tensors
from headwater.registry.bundle import Manifest, load_bundle


class RequestInput(Struct, forbid_unknown_fields=True):
    """``$request_input``, of the datatypes that a ranker takes."""

    name: str
    shape: list[int]
    datatype: Literal["FP32", "INT64"]
    data: list[float | None]
    parameters: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if math.prod(self.shape) != len(self.data):
            raise ValueError(f"{self.name}: {len(self.data)} values for the shape {self.shape}")


class RequestOutput(Struct, forbid_unknown_fields=True):
    """``$request_output``."""

    name: Literal["scores"]
    parameters: dict[str, Any] = {}


class InferenceRequest(Struct, forbid_unknown_fields=True):
    """``$inference_request``."""

    inputs: list[RequestInput]
    outputs: list[RequestOutput] = []
    id: str = ""
    parameters: dict[str, Any] = {}


class Handler(BaseHTTPRequestHandler):
    """The routes of the specification."""

    disable_nagle_algorithm = (
        True  # head and body are two writes: the second would wait 40 ms for the first to be acknowledged
    )

    protocol_version = "HTTP/1.1"
    name: ClassVar[str]
    manifest: ClassVar[Manifest]
    ranker: ClassVar[Ranker]

    def do_GET(self) -> None:
        model = f"/v2/models/{self.name}"
        versioned = f"{model}/versions/{self.manifest.version}"
        if self.path in ("/v2/health/live", "/v2/health/ready", f"{model}/ready", f"{versioned}/ready"):
            self._answer(200, {})
        elif self.path == "/v2":
            self._answer(200, {"name": "strict", "version": "2", "extensions": []})
        elif self.path in (model, versioned):
            self._answer(
                200,
                {
                    "name": self.name,
                    "versions": [self.manifest.version],
                    "platform": "headwater",
                    "inputs": [{"name": "features", "datatype": "FP32", "shape": [-1, len(self.manifest.columns)]}],
                    "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1]}],
                    "parameters": {"plan_hash": self.manifest.plan_hash},
                },
            )
        else:
            self._answer(404, {"error": f"there is no {self.path}"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        model = f"/v2/models/{self.name}"
        if self.path not in (f"{model}/infer", f"{model}/versions/{self.manifest.version}/infer"):
            self._answer(404, {"error": f"there is no {self.path}"})
            return
        try:
            if self.headers["content-type"] != "application/json":
                raise ValueError("Expected JSON")
            request = msgspec.json.decode(body, type=InferenceRequest)
            scores = self.ranker.score(*from_tensors({t.name: (t.shape, t.data) for t in request.inputs}))
        except (ValueError, RankerError) as error:
            self._answer(400, {"error": str(error)})
            return
        output = {"name": "scores", "datatype": "FP32", "shape": [len(scores)], "data": scores.tolist()}
        self._answer(
            200,
            {"model_name": self.name, "model_version": self.manifest.version, "id": request.id, "outputs": [output]},
        )

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        text = msgspec.json.encode(body)
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def main() -> None:
    """Serve until killed."""
    bundle = load_bundle(Path(sys.argv[1]), plan_hash=None)
    ranker = open_ranker(bundle.manifest.ranker, bundle.files, bundle.manifest.columns)
    assert ranker is not None
    Handler.name, Handler.manifest, Handler.ranker = sys.argv[2], bundle.manifest, ranker
    with ThreadingHTTPServer(("127.0.0.1", int(sys.argv[3])), Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
