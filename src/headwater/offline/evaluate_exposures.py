"""The exposures protocol as a job: materialised impressions, rankers trained on those before a moment, judged on those after it."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from headwater.evaluation.exposures import ExposureModel, HeadMetrics, judge_head
from headwater.evaluation.rates import item_rates
from headwater.features.fold import Unseal
from headwater.features.plan import Plan, compile_plan
from headwater.learning.binary import fit_binary
from headwater.learning.deep.calibration import fit_calibration
from headwater.learning.deep.fit import HOLDOUT, FitReport, fit_deep
from headwater.learning.deep.rows import Histories, RankingRows
from headwater.learning.follow import WINDOW_MS, follow
from headwater.learning.impressions import Impressions, histories, impressions, of_user_alone
from headwater.learning.labels import closes_after_ms, label_rules
from headwater.learning.rowstore import load_rows
from headwater.learning.sequences import read_sequences
from headwater.learning.vectors import item_vectors
from headwater.log.protocol import EventLog
from headwater.log.record import Namespace
from headwater.offline.materialize import materialize
from headwater.offline.tables.history import Lookup
from headwater.ranking.calibration import sigmoid
from headwater.ranking.deep import DEEP_FILE, DESCRIPTION_FILE, DeepRanker
from headwater.retrieval.fitted import Attended
from headwater.schema.config import Config
from headwater.schema.durations import parse_duration
from headwater.schema.errors import HeadwaterError

Float64 = npt.NDArray[np.float64]
Progress = Callable[[str, int, int], None]

PROTOCOL = "exposures"
VECTOR_SIZE = 64
LENGTH = 50  # recent events that are attended to
_MIN_ROWS = 100


class ExposureReport(Struct, frozen=True, kw_only=True):
    """What ``headwater evaluate --protocol exposures`` prints. ``n`` impressions were judged, of ``users`` users.

    ``held`` are the columns that all impressions of a user and day have as the first one has them; ``rates`` the share of the
    judged impressions with each label. ``trained`` says of the deep ranker how training went.
    """

    protocol: str
    data: dict[str, int]
    n: int
    users: int
    models: dict[str, ExposureModel]
    rates: dict[str, float]
    held: tuple[str, ...]
    trained: FitReport | None
    seed: int
    plan: str


def evaluate_exposures(
    config: Config, log: EventLog, out: Path, *, split_ms: int, seed: int, threads: int, until_ms: int | None = None,
    unseal: Unseal | None = None, lookup: Lookup | None = None, progress: Progress | None = None,
) -> ExposureReport:  # fmt: skip
    """Train on impressions before ``split_ms`` and judge on those from it on (before ``until_ms``).

    ``out`` is a folder in which each plan's rows are kept: a second run does not make them again. Days, for the columns
    that are held, begin at the time of day of the split.

    Raises:
        HeadwaterError: too few impressions on one side, or the log has none.
    """
    plan = compile_plan(config)
    heads = tuple(label.name for label in config.training.labels)
    wanted = config.models.deep.heads
    if wanted:
        if missing := [name for name in wanted if name not in heads]:
            raise HeadwaterError(f"models.deep.heads names {', '.join(missing)}, and [[training.labels]] does not")
        heads = wanted
    folder = out / f"impressions-{plan.hash}"
    materialize(
        config, log, folder, to_ms=until_ms, threads=threads, slices=threads, unseal=unseal, lookup=lookup,
        progress=progress,
    )  # fmt: skip
    rows = load_rows(folder).collect()
    held = of_user_alone(plan)
    if until_ms is not None:  # the folder may hold more, of an earlier run
        rows = rows.filter(rows["now_ms"] < until_ms)
    all_ = impressions(rows, plan.columns, heads, day_start_ms=split_ms, hold=held)
    later = all_.now_ms[all_.first] >= split_ms
    before, after = np.flatnonzero(~later), np.flatnonzero(later)
    counts = [int(all_.groups[groups].sum()) for groups in (before, after)]
    if min(counts) < _MIN_ROWS:
        raise HeadwaterError(
            f"there are {counts[0]} impressions before the split and {counts[1]} after it (at least {_MIN_ROWS} each are "
            "needed): choose another --split"
        )
    judged = np.repeat(later, all_.groups)
    user, labels = all_.user[judged], all_.labels[judged].astype(np.int64)
    closed = max(closes_after_ms(label_rules(config.training), parse_duration(config.training.watermark)), 1)
    recent = ~judged & (
        all_.now_ms >= split_ms - WINDOW_MS
    )  # what a calibration that follows has seen when the split comes
    rows_of = _Rows(before, after, judged, recent, closed)
    models: dict[str, ExposureModel] = {}
    told = _told(all_, plan, config, log, heads, rows_of, seed=seed, threads=threads, progress=progress)
    trained: FitReport | None = None
    for name, scores, probabilities, train_s, report in told:
        trained = report or trained
        of = {head: _judge(all_, scores[:, h], probabilities[:, h], h, rows_of, seed) for h, head in enumerate(heads)}
        models[name] = ExposureModel(heads=of, train_s=round(train_s, 2), peak_mb=_peak_mb())
    return ExposureReport(
        protocol=PROTOCOL,
        data={
            "first_offset": log.first_offset, "last_offset": log.last_offset, "split_ms": split_ms,
            "train": counts[0], "test": counts[1],
        },
        n=counts[1], users=len(np.unique(user)), models=models,
        rates={head: float(labels[:, h].mean()) for h, head in enumerate(heads)},
        held=held, trained=trained, seed=seed, plan=plan.hash,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Rows:
    """Groups ``before`` and ``after`` the split; rows that are ``judged``, and ``recent`` ones before the split."""

    before: npt.NDArray[np.int64]
    after: npt.NDArray[np.int64]
    judged: npt.NDArray[np.bool_]
    recent: npt.NDArray[np.bool_]
    closed_after_ms: int


def _told(
    all_: Impressions, plan: Plan, config: Config, log: EventLog, heads: tuple[str, ...], rows: _Rows, *, seed: int,
    threads: int, progress: Progress | None,
) -> Iterator[tuple[str, Float64, Float64, float, FitReport | None]]:  # fmt: skip
    """Name, scores and probabilities ``float64[n, h]`` of all impressions, seconds of training and report of each model."""
    learnt = ~rows.judged
    cut = learnt & (np.cumsum(learnt) > int(learnt.sum() * (1.0 - HOLDOUT)))  # what baselines are calibrated on
    popular: list[Float64] = []
    rated: list[Float64] = []
    rates: list[Float64] = []
    for h in range(len(heads)):
        prior = float(all_.labels[learnt, h].mean())
        rate, shown = item_rates(all_.item, all_.now_ms, all_.labels[:, h], all_.delay_ms[:, h], prior)
        rates.append(rate)
        for found, logit in ((popular, np.log1p(shown)), (rated, np.log(rate / (1.0 - rate)))):
            calibration = fit_calibration(logit[cut], all_.labels[cut, h])
            found.append(calibration.apply(logit).astype(np.float64))
    yield "popularity", np.repeat(shown[:, None].astype(np.float64), len(heads), 1), np.stack(popular, 1), 0.0, None
    yield "item_rate", np.stack(rates, 1), np.stack(rated, 1), 0.0, None

    began = time.perf_counter()
    ranker = config.ranker
    trees = fit_binary(
        all_.ranking().take(rows.before), trees=ranker.trees, leaves=ranker.leaves, learning_rate=ranker.learning_rate,
        seed=seed, threads=threads,
    )  # fmt: skip
    probabilities = trees.probabilities(all_.features)
    yield "lightgbm", probabilities, probabilities, time.perf_counter() - began, None

    began = time.perf_counter()
    ranking = all_.ranking(_histories(log, plan, config, all_, seed))
    files, report = fit_deep(
        ranking.take(rows.before), config.models.deep, columns=plan.columns, heads=heads, objective="pointwise", seed=seed,
        threads=threads,
        progress=None if progress is None else lambda epoch, epochs, _: progress("deep", epoch, epochs),
    )  # fmt: skip
    spent = time.perf_counter() - began
    served = DeepRanker(files[DEEP_FILE], files[DESCRIPTION_FILE], plan.columns)
    probabilities = _served(served, ranking, rows.judged | rows.recent)
    yield "deep", probabilities, probabilities, spent, report


def _served(ranker: DeepRanker, rows: RankingRows, wanted: npt.NDArray[np.bool_]) -> Float64:
    """What the served model says of the ``wanted`` rows, group by group, as requests would ask; 0.5 of the others."""
    out = np.full(rows.labels.shape, 0.5)
    starts = rows.starts
    for g in np.unique(rows.group_of[wanted]).tolist():
        of = slice(int(starts[g]), int(starts[g + 1]))
        attention = None
        if rows.histories is not None:
            h = rows.histories
            there = h.recent[g] > 0
            attention = Attended(
                h.vectors[h.recent[g][there]], h.types[g][there], h.age_s[g][there], h.vectors[h.item[of]]
            )
        out[of] = ranker.heads(rows.features[of], attention)
    return out


def _histories(log: EventLog, plan: Plan, config: Config, all_: Impressions, seed: int) -> Histories | None:
    """Vectors of what people did before the first impression, so that no row's outcome is in them; None: nobody did anything."""
    items = len(log.vocabulary().texts(Namespace.ITEM)) - 1
    early = read_sequences(log, plan, config, until=int(all_.offset.min()))
    if len(early) < _MIN_ROWS:
        return None
    vectors = item_vectors(early, items, VECTOR_SIZE, seed=seed)
    sequences = read_sequences(log, plan, config, until=int(all_.offset.max()))
    return histories(all_, sequences, vectors, length=LENGTH)


def _judge(all_: Impressions, scores: Float64, probabilities: Float64, h: int, rows: _Rows, seed: int) -> HeadMetrics:
    p = np.clip(probabilities, 1e-7, 1.0 - 1e-7)
    labels = all_.labels[:, h].astype(np.float64)
    logits = np.log(p / (1.0 - p))
    known = rows.judged | rows.recent
    shift = np.zeros(len(p))
    shift[known] = follow(logits[known], labels[known], all_.now_ms[known], rows.closed_after_ms)
    of = rows.judged
    return judge_head(
        labels[of].astype(np.int64), scores[of], sigmoid(logits + shift)[of], all_.user[of], frozen=p[of], seed=seed
    )


def _peak_mb() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
