"""Put every kind of bad bundle in the place of the good one, while requests go on: none is loaded, none runs code.

``python -m tests.reliability.bundles`` prints one JSON object: for each kind why it was refused. Exit code 1 when one came
into service, a request failed, or code ran.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from onnx import numpy_helper

from headwater.cli.options import configure_logging
from headwater.features.plan import compile_plan
from headwater.ranking.gbdt import MODEL_FILE
from headwater.registry import bundle as bundles
from headwater.registry.bundle import MANIFEST, FileEntry, ManifestFields, read_manifest
from headwater.registry.files import replace_file
from headwater.schema.config import Config
from tests.online.running import Running, catalogue
from tests.registry.onnx_models import WEIGHTS, external, linear, model
from tests.reliability.marked import constant, publish_marked

PATIENCE_S = 120.0


class Outcome(Struct, frozen=True):
    """``refused``: by kind, what the server logged. ``served``: kinds that came into service. ``ran``: whether code ran."""

    kinds: int
    refused: dict[str, str]
    served: list[str]
    ran: bool
    requests: int
    failed: int
    still_serving: bool

    @property
    def good(self) -> bool:
        """Whether every one was refused and the old model kept serving."""
        return (
            len(self.refused) == self.kinds
            and not self.served
            and not self.ran
            and not self.failed
            and self.still_serving
        )


class _Touch:
    """What a pickle does when it is opened."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, int]]:
        return os.open, (self.path, os.O_CREAT | os.O_WRONLY)


def _sealed(data: Path, config: Config, number: int, files: Mapping[str, bytes], **changes: Any) -> str:
    """A bundle with a manifest that vouches for every byte, as a hostile publisher would write it; returns its version."""
    plan = compile_plan(config)
    template = read_manifest(data / "models" / "bundles" / publish_marked(data, config, number))
    stated = {name: getattr(template, name) for name in ManifestFields.__struct_fields__} | changes
    fields = ManifestFields(**{"plan_hash": plan.hash, **stated})
    entries = {name: FileEntry(hashlib.sha256(content).hexdigest(), len(content)) for name, content in files.items()}
    manifest = bundles._seal(fields, entries)
    folder = data / "models" / "bundles" / manifest.version
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / MANIFEST).write_bytes(bundles._render(manifest))
    return manifest.version


def bad_bundles(data: Path, config: Config, touched: Path) -> dict[str, str]:
    """Version by kind."""
    plan = compile_plan(config)
    fine = {MODEL_FILE: constant(1.0, len(plan.columns))}
    touch = pickle.dumps(_Touch(str(touched)))
    weights = WEIGHTS.copy()
    weights[0, 0] = np.nan
    outside = model([external(numpy_helper.from_array(WEIGHTS, "w"))], [])
    folder = data / "models" / "bundles"
    made = {
        "pickle": _sealed(data, config, 101, fine | {"ranker.pkl": touch}),
        "disguised pickle": _sealed(data, config, 102, {MODEL_FILE: touch}),
        "external data": _sealed(data, config, 103, fine | {"tower.onnx": outside.SerializeToString()}),
        "NaN weights": _sealed(data, config, 104, fine | {"tower.onnx": linear(weights).SerializeToString()}),
        "NaN leaf": _sealed(data, config, 105, {MODEL_FILE: constant(float("nan"), len(plan.columns))}),
        "wrong plan": _sealed(data, config, 106, fine, plan_hash="another-plan"),
        "no model": _sealed(data, config, 107, {"card.md": b"# nothing\n"}),
        "truncated ONNX": _sealed(data, config, 108, fine | {"tower.onnx": linear().SerializeToString()[:-20]}),
    }
    for number, kind in ((109, "truncated"), (110, "wrong hash"), (111, "altered manifest"), (112, "earlier format")):
        version = made[kind] = _sealed(data, config, number, fine)
        path, stated = folder / version / MODEL_FILE, folder / version / MANIFEST
        if kind == "truncated":
            path.write_bytes(path.read_bytes()[:-1])
        elif kind == "wrong hash":
            path.write_bytes(path.read_bytes().replace(b"leaf_value=1.0", b"leaf_value=2.0"))
        elif kind == "altered manifest":
            stated.write_bytes(stated.read_bytes().replace(b'"ranker": "lightgbm"', b'"ranker": "none"    '))
        else:
            stated.write_bytes(json.dumps({"format": 1, "version": version}).encode())
    return made


def run(folder: Path, *, kinds: int | None = None) -> Outcome:
    """Serve a good bundle in ``folder``, then make each bad one current by hand."""
    touched = folder / "code-ran"
    refused: dict[str, str] = {}
    served: list[str] = []
    requests = failed = 0
    with Running(folder) as running:
        running.ingest("/v1/items", catalogue(50))
        good = publish_marked(running.data, running.config, 1)
        plan = compile_plan(running.config)
        pointer = running.data / "models" / "plans" / plan.hash / "CURRENT"
        pointer.parent.mkdir(parents=True, exist_ok=True)
        replace_file(pointer, f"{good}\n".encode())
        until = time.monotonic() + PATIENCE_S
        while running.recommend(k=1)["model"] != good:
            assert time.monotonic() < until, "the good bundle does not come into service"
            time.sleep(0.02)
        bad = list(bad_bundles(running.data, running.config, touched).items())[:kinds]
        for kind, version in bad:
            before = len(_refusals(running))
            replace_file(pointer, f"{version}\n".encode())
            until = time.monotonic() + PATIENCE_S
            while len(_refusals(running)) == before and time.monotonic() < until:
                response = running.post("/v1/recommend", {"user": "u", "k": 5})
                requests += 1
                failed += response.status_code != 200
                if response.status_code == 200 and response.json()["model"] != good:
                    served.append(kind)
                    break
                time.sleep(0.02)
            if len(said := _refusals(running)) > before:
                refused[kind] = said[-1]
        still = running.recommend(user="u", k=5)["model"] == good
        assert running.stop() == 0
    return Outcome(
        kinds=len(bad), refused=refused, served=served, ran=touched.exists(), requests=requests, failed=failed,
        still_serving=still,
    )  # fmt: skip


def _refusals(running: Running) -> list[str]:
    lines = [line for line in running.log_path.read_text().splitlines() if '"bundle_refused"' in line]
    return [json.loads(line)["reason"] for line in lines]


def main() -> int:
    """Run from the command line."""
    configure_logging("warning")
    with tempfile.TemporaryDirectory() as folder:
        outcome = run(Path(folder))
    print(msgspec.json.encode(outcome).decode())  # noqa: T201
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
