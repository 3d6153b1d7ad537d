"""``headwater bench models``: what a request pays for the models: ranking candidates, encoding a recent sequence."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwater.cli.bench.report import SeedOption, table
from headwater.cli.options import JsonOption, print_json
from headwater.schema.errors import ConfigurationError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

COLUMNS, SIZE, TYPES = 80, 64, 4
GROUPS, ROWS = 200, 20  # that the rankers are trained on: how long they take does not depend on what they learnt
CATALOGUE = 2_000


def register(app: typer.Typer) -> None:
    """Add ``models``."""
    app.command("models")(models)


def models(
    candidates: Annotated[int, typer.Option(min=1, max=10_000, help="Candidates of a request.")] = 300,
    recent: Annotated[int, typer.Option(min=1, max=1_000, help="Recent events of a user.")] = 50,
    repeats: Annotated[int, typer.Option(min=10, help="Calls that are timed.")] = 500,
    seed: SeedOption = 7,
    as_json: JsonOption = False,
) -> None:
    """Train the deep and the light ranker, LightGBM and the sequence encoder on next to nothing, then time them as they serve.

    One thread; processor time of the calling thread and wall time, ms a call. 80 columns, vectors of 64, the default sizes of
    `models.deep` and `models.sequence`.

    Example: headwater bench models --candidates 300 --recent 50 --json
    """
    import numpy as np

    from headwater.cli.bench.measure import machine, versions

    try:
        calls = _calls(candidates, recent, seed)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"bench models trains what it times, and {error.name} is missing: pip install 'headwater[train]'"
        ) from error
    measured: dict[str, dict[str, float]] = {}
    for name, call in calls.items():
        for _ in range(20):
            call()
        wall, cpu = np.empty(repeats), np.empty(repeats)
        for i in range(repeats):
            began, spent = time.perf_counter(), time.thread_time()
            call()
            cpu[i], wall[i] = time.thread_time() - spent, time.perf_counter() - began
        measured[name] = {
            "cpu_p50_ms": round(float(np.median(cpu)) * 1e3, 4), "wall_p50_ms": round(float(np.median(wall)) * 1e3, 4),
            "wall_p95_ms": round(float(np.percentile(wall, 95)) * 1e3, 4),
        }  # fmt: skip
    figures: dict[str, Any] = {
        "candidates": candidates, "recent": recent, "columns": COLUMNS, "size": SIZE, "repeats": repeats, "calls": measured,
        "seed": seed, "machine": machine(), "versions": versions(),
    }  # fmt: skip
    if as_json:
        print_json(figures)
        return
    table(
        f"{candidates} candidates, {recent} recent events",
        {
            name: f"{found['cpu_p50_ms']:.3f} ms of CPU, p95 {found['wall_p95_ms']:.3f} ms"
            for name, found in measured.items()
        },
    )


def _calls(candidates: int, recent: int, seed: int) -> dict[str, Callable[[], object]]:
    import numpy as np

    from headwater.learning.deep.fit import fit_deep
    from headwater.learning.deep.rows import Histories, RankingRows
    from headwater.learning.gbdt import GbdtParams, fit_gbdt
    from headwater.ranking.deep import DEEP_FILE, DESCRIPTION_FILE, LIGHT_FILE, DeepRanker, LightRanker
    from headwater.ranking.gbdt import GbdtRanker
    from headwater.retrieval.fitted import Attended
    from headwater.schema.models import DeepModel

    rng = np.random.default_rng(seed)
    columns = tuple(f"column_{c}" for c in range(COLUMNS))
    features = rng.lognormal(size=(GROUPS * ROWS, COLUMNS)).astype(np.float32)
    labels = np.zeros((GROUPS, ROWS), np.float32)
    labels[np.arange(GROUPS), rng.integers(ROWS, size=GROUPS)] = 1.0
    vectors = rng.standard_normal((CATALOGUE, SIZE)).astype(np.float32)
    rows = RankingRows(
        features, labels.reshape(-1, 1), np.full(GROUPS, ROWS, np.int32),
        histories=Histories(
            vectors, rng.integers(1, CATALOGUE, len(features)), rng.integers(1, CATALOGUE, (GROUPS, recent)),
            rng.integers(1, TYPES, (GROUPS, recent)), rng.lognormal(8.0, 2.0, (GROUPS, recent)).astype(np.float32),
        ),
    )  # fmt: skip
    files, _ = fit_deep(
        rows, DeepModel(epochs=1), columns=columns, heads=("click",), objective="listwise", seed=seed, threads=1
    )
    text, _ = fit_gbdt(
        features, labels.reshape(-1).astype(np.int32), rows.groups, None, columns=columns,
        params=GbdtParams(holdout=0.0), seed=seed, num_threads=1,
    )  # fmt: skip
    deep = DeepRanker(files[DEEP_FILE], files[DESCRIPTION_FILE], columns)
    light = LightRanker(files[LIGHT_FILE], files[DESCRIPTION_FILE], columns)
    trees = GbdtRanker(text, columns)
    asked = rng.lognormal(size=(candidates, COLUMNS)).astype(np.float32)
    attended = Attended(
        vectors[rng.integers(1, CATALOGUE, recent)], rng.integers(1, TYPES, recent),
        rng.lognormal(8.0, 2.0, recent).astype(np.float32), vectors[rng.integers(1, CATALOGUE, candidates)],
    )  # fmt: skip
    return {
        "deep": lambda: deep.score(asked, attended),
        "light": lambda: light.score(asked),
        "lightgbm": lambda: trees.score(asked),
        "encoder": _encoder(vectors, recent, seed),
    }


def _encoder(vectors: npt.NDArray[np.float32], recent: int, seed: int) -> Callable[[], object]:
    """The encoder of a sequence model of the default size, as a bundle holds it."""
    import numpy as np

    from headwater.learning.sequence.fit import fit_sequence
    from headwater.learning.sequences import by_user
    from headwater.retrieval.onnx_session import open_session
    from headwater.retrieval.sequence_inputs import ENCODER_FILE, gap_slots, idle_slots
    from headwater.schema.models import SequenceModel

    rng = np.random.default_rng(seed)
    users, each = 50, 8
    who = np.repeat(np.arange(1, users + 1), each)
    moment = np.arange(len(who)) * 60_000
    sequences = by_user(
        who, rng.integers(1, 40, len(who)), np.ones(len(who), np.uint8), moment, np.arange(1, len(who) + 1),
        np.ones(len(who), np.bool_),
    )  # fmt: skip
    files, _ = fit_sequence(
        sequences, np.zeros((40, SIZE), np.float32), np.zeros(40, np.float32),
        SequenceModel(epochs=1, length=max(recent, 50)), event_types=("click",), seed=seed, threads=1,
    )  # fmt: skip
    session = open_session(files[ENCODER_FILE])
    times_s = np.cumsum(rng.integers(1, 10_000, recent))
    given = {
        "vectors": vectors[rng.integers(1, CATALOGUE, recent)][None], "types": np.ones((1, recent), np.int64),
        "gaps": gap_slots(times_s)[None], "idle": idle_slots(np.array([60])),
    }  # fmt: skip
    return lambda: session.run(None, given)
