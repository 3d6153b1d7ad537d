"""The same features by other tools: what ``headwater bench replay`` puts beside Headwater's own rows a second.

``workload`` makes events and questions and says what each feature is; ``reference`` answers slowly and obviously;
``duckdb``, ``polars`` and ``feast`` answer as fast as we could make them. Every peer runs in a process of its own
(``child``) with as many threads as were asked for. What counts is its best run from the raw tables, loaded
before, to all features of all questions in its own memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from headwater.cli.bench.peers.workload import Feature, Workload, feature_table
from headwater.schema.errors import HeadwaterError

TOLERANCE = 1e-5
# Below this, differences are measured against it: 2^-500 events and none at all are the same.
SMALLEST = 1e-3
FEAST_VARIABLE = "HEADWATER_BENCH_FEAST"
Column = npt.NDArray[Any]


class PeerError(HeadwaterError):
    """A peer did not run."""


class Peer(NamedTuple):
    """How a peer is started. A slow one is asked at most ``questions`` questions, ``repeats`` times."""

    name: str
    package: str
    install: str
    variable: str | None = None  # names another interpreter that has the package
    questions: int | None = None
    repeats: int | None = None

    @property
    def interpreter(self) -> str | None:
        """The Python that has the package; ``None``: there is none.

        Raises:
            PeerError: the variable names no file.
        """
        if self.variable and (path := os.environ.get(self.variable)):
            if not Path(path).is_file():
                raise PeerError(
                    f"{self.variable} names {path}, which is not there; set it to a Python with {self.package}"
                )
            return path
        return sys.executable if find_spec(self.package) is not None else None


PEERS = (
    Peer("duckdb", "duckdb", "pip install 'headwater[bench]'"),
    Peer("polars", "polars", "pip install headwater"),
    Peer(
        "feast",
        "feast",
        f"python -m venv feast && feast/bin/pip install 'feast[duckdb]' && export {FEAST_VARIABLE}=$PWD/feast/bin/python",
        FEAST_VARIABLE,
        2_000,
        1,
    ),
)


@dataclass(frozen=True)
class Comparison:
    """How two sides agree, over the features that both have.

    ``differences``: feature to the largest ``|a - b| / max(|a|, |b|, 0.001)`` of its rows (infinite for NaN on one side).
    """

    differences: dict[str, float]
    unequal: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether whole numbers are the same and the rest differs by at most 1e-5; false when nothing was compared."""
        return bool(self.differences) and not self.unequal

    @property
    def max_relative_difference(self) -> float | None:
        """The largest of all differences; ``None`` when nothing was compared."""
        return max(self.differences.values(), default=None)


def compare(
    ours: Mapping[str, Column], theirs: Mapping[str, Column], table: tuple[Feature, ...] | None = None
) -> Comparison:
    """Compare feature by feature: counts and ids exactly, everything else to ``TOLERANCE``.

    Raises:
        PeerError: two columns of one feature differ in length.
    """
    differences, unequal = {}, []
    for feature in table or feature_table():
        if feature.name not in ours or feature.name not in theirs:
            continue
        a, b = (np.asarray(side[feature.name], np.float64) for side in (ours, theirs))
        if a.shape != b.shape:
            raise PeerError(
                f"{feature.name}: {len(a)} rows against {len(b)}; both sides must answer the same questions"
            )
        scale = np.maximum(np.maximum(np.abs(a), np.abs(b)), SMALLEST)
        relative = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b) / scale)
        worst = float(np.max(np.where(np.isnan(relative), np.inf, relative), initial=0.0))
        differences[feature.name] = worst
        if worst > (0.0 if feature.exact else TOLERANCE):
            unequal.append(feature.name)
    return Comparison(differences, tuple(unequal))


@contextlib.contextmanager
def handed_over(workload: Workload) -> Iterator[Path]:
    """A temporary folder with the workload as peers read it."""
    with tempfile.TemporaryDirectory(prefix="headwater-peers-") as name:
        folder = Path(name)
        for table, columns in (("events", workload.events), ("questions", workload.questions)):
            (folder / table).mkdir()
            for column, values in columns._asdict().items():
                np.save(folder / table / f"{column}.npy", values, allow_pickle=False)
        times = workload.events.time_ms
        spec = {
            "positive": list(workload.positive),
            "features": [feature._asdict() for feature in feature_table()],
            "middle_ms": int(times[0] + times[-1]) // 2,
        }
        (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
        yield folder


def answers(
    peer: Peer, workload: Workload, folder: Path, *, threads: int = 1, repeats: int = 3, questions: int | None = None
) -> tuple[dict[str, Column], dict[str, Any], npt.NDArray[np.int64]]:
    """What a peer answers: a column a feature, what it says about its runs, and which questions it was asked (rows).

    ``folder`` comes from ``handed_over(workload)``. ``questions`` overrides how many the peer is asked at most.

    Raises:
        PeerError: the peer is not installed, or failed; with the end of what it said.
    """
    interpreter = peer.interpreter
    if interpreter is None:
        raise PeerError(f"{peer.package} is not installed; {peer.install}")
    everything = len(workload.questions.position)
    _, rows = workload.sample(questions or peer.questions or everything)
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory(prefix=f"{peer.name}-", dir=folder) as name:
        job = Path(name)
        settings = {
            "threads": threads,
            "repeats": peer.repeats or repeats,
            "rows": None if len(rows) == everything else rows.tolist(),
        }
        (job / "job.json").write_text(json.dumps(settings), encoding="utf-8")
        limits = {key: str(threads) for key in ("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        # -P: the peers are named after their packages and must not be found in place of them
        command = [interpreter, "-P", str(here / "child.py"), str(here / f"{peer.name}.py"), str(folder), str(job)]
        done = subprocess.run(  # noqa: S603
            command, env=os.environ | limits, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        if done.returncode:
            raise PeerError(f"{peer.name} ended with {done.returncode}: {done.stderr[-2_000:].strip()}")
        result: dict[str, Any] = json.loads((job / "result.json").read_text(encoding="utf-8"))
        columns = {feature: np.load(job / f"{feature}.npy", allow_pickle=False) for feature in result["features"]}
    return columns, result, rows


def measure(
    peer: Peer,
    workload: Workload,
    folder: Path,
    ours: Mapping[str, Column],
    *,
    threads: int = 1,
    repeats: int = 3,
    questions: int | None = None,
) -> dict[str, Any]:
    """Time a peer and compare its answers with ``ours`` (a column a feature, a row a question of ``workload``).

    ``seconds`` is the best of ``repeats`` runs, ``rows_per_s`` the questions over it; ``cpu_seconds`` is the least processor
    time of a run, which other load on the machine disturbs less. A peer that is not installed gives
    ``{"installed": False, "install": how}``.

    Raises:
        PeerError: the peer failed.
    """
    if peer.interpreter is None:
        return {"installed": False, "install": peer.install}
    theirs, result, rows = answers(peer, workload, folder, threads=threads, repeats=repeats, questions=questions)
    compared = compare({name: np.asarray(column)[rows] for name, column in ours.items()}, theirs)
    seconds = min(result["seconds_of_runs"])
    return {
        "installed": True,
        "rows_per_s": round(result["rows"] / seconds, 1),
        "rows_per_cpu_s": round(result["rows"] / result["cpu_seconds"], 1),
        "seconds": seconds,
        **result,
        "threads": threads,
        "equal": compared.equal,
        "max_relative_difference": compared.max_relative_difference,
        "unequal": list(compared.unequal),
        "compared": len(compared.differences),
    }
