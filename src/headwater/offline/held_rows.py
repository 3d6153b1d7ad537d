"""What came of the training rows that a ranker did not learn from: the part of a bundle's reference that is about labels."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import numpy.typing as npt

from headwater.features.plan import Plan
from headwater.learning.giveaways import withheld
from headwater.learning.rankers import FittedRanker
from headwater.learning.trainingset import QUESTIONS, TrainingSet
from headwater.ranking.ranker import open_ranker
from headwater.registry.reference import BundleReference, ReferenceBin, ReferenceLabel
from headwater.schema.config import Config

HELD_OUT = 0.1  # of the groups, the last: as little as any ranker leaves out of its training
BINS = 10


def reference_of(
    config: Config, plan: Plan, columns: tuple[str, ...], made: FittedRanker, rows: TrainingSet
) -> BundleReference:
    """Label rates by positive event type and the share that was taken by score, over the last groups of ``rows``.

    A ranker that attends to a history is not asked (there is no calibration): its own stands in the bundle.
    """
    cut = int(rows.groups[: len(rows.groups) - max(int(len(rows.groups) * HELD_OUT), 1)].sum())
    count = len(rows.labels) - cut
    labels = tuple(
        ReferenceLabel(type=kind.name, rows=count, rate=float((rows.outcomes[cut:] >> bit & 1).mean()))
        for bit, kind in enumerate(config.events)
        if kind.positive
    )
    calibration: tuple[ReferenceBin, ...] = ()
    ranker = None if made.attends else open_ranker(config.ranker.kind, made.files, columns)
    if ranker is not None:
        held = np.ascontiguousarray(rows.features[cut:])
        with withheld(held, plan, config) if rows.learnt_from == QUESTIONS else nullcontext():
            calibration = by_score(ranker.score(held), rows.labels[cut:])
        ranker.close()
    return BundleReference(learnt_from=rows.learnt_from, labels=labels, calibration=calibration)


def by_score(scores: npt.NDArray[np.float32], labels: npt.NDArray[np.int32]) -> tuple[ReferenceBin, ...]:
    """The share of rows that was taken in each tenth, by score; rows of one score stay together."""
    edges = np.unique(np.quantile(scores, np.arange(1, BINS + 1) / BINS, method="higher"))
    at = np.searchsorted(edges, scores, side="left")
    there, taken = np.bincount(at, minlength=len(edges)), np.bincount(at, labels > 0, minlength=len(edges))
    return tuple(
        ReferenceBin(up_to=float(edge), rows=int(n), rate=float(k / n))
        for edge, n, k in zip(edges, there, taken, strict=True)
        if n
    )
