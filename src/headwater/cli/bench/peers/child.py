"""The process of one peer: loads the workload, runs it, writes down answers and times.

``python -P child.py PEER.py FOLDER JOB``. It may run under an interpreter that has neither Headwater nor its
dependencies: it and the peers import numpy, the standard library and the peer's own package, nothing of ours. That also
keeps Headwater out of what is measured.

``FOLDER`` holds ``spec.json`` and the columns of both tables, ``JOB`` gets ``result.json`` and a file a feature.
"""

from __future__ import annotations

import importlib.util
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np
import numpy.typing as npt

Column = npt.NDArray[Any]


class Wanted(TypedDict):
    """A feature, as in ``workload.Feature``."""

    name: str
    entity: str
    kind: str
    span_ms: int
    tiles: int


class Spec(TypedDict):
    """What a peer is told beside the tables. ``middle_ms`` is the landmark of decayed sums."""

    positive: list[int]
    features: list[Wanted]
    threads: int
    middle_ms: int


class Peer(Protocol):
    """A way of computing features; made once (its own tables are loaded then), run as often as wanted."""

    features: tuple[str, ...]
    version: str
    formulation: str
    notes: dict[str, float]

    def run(self) -> Any:
        """Everything that counts: from the raw tables to all features of all questions, in the peer's own memory."""

    def columns(self, answer: Any) -> dict[str, Column]:
        """The answer as arrays in the order of the questions; not timed."""


def table(folder: Path, name: str) -> dict[str, Column]:
    """The columns of ``events`` or ``questions``."""
    return {path.stem: np.load(path, allow_pickle=False) for path in sorted((folder / name).glob("*.npy"))}


def main() -> None:
    """Run the peer that the command line names.

    Raises:
        ImportError: the file holds no peer.
    """
    source, folder, job = map(Path, sys.argv[1:4])
    settings = json.loads((job / "job.json").read_text(encoding="utf-8"))
    spec: Spec = json.loads((folder / "spec.json").read_text(encoding="utf-8")) | {"threads": settings["threads"]}
    described = importlib.util.spec_from_file_location(f"peer_{source.stem}", source)
    if described is None or described.loader is None:
        raise ImportError(f"no peer at {source}")
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    events, questions = table(folder, "events"), table(folder, "questions")
    if settings["rows"] is not None:
        questions = {name: column[settings["rows"]] for name, column in questions.items()}
    start = time.perf_counter()
    peer: Peer = module.make(events, questions, spec)
    prepared = time.perf_counter() - start
    seconds, cpu = [], []
    answer: Any = None
    for _ in range(settings["repeats"]):
        answer = None
        wall, used = time.perf_counter(), time.process_time()
        answer = peer.run()
        seconds.append(time.perf_counter() - wall)
        cpu.append(time.process_time() - used)
    for name, column in peer.columns(answer).items():
        np.save(job / f"{name}.npy", column, allow_pickle=False)
    result = {
        "rows": len(questions["position"]),
        "prepare_s": prepared,
        "seconds_of_runs": seconds,
        "cpu_seconds": min(cpu),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "features": list(peer.features),
        "version": peer.version,
        "formulation": peer.formulation,
        **peer.notes,
    }
    (job / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
