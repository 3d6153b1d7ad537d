"""One door to the training of every fitted source: by name, with what any of them may need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import structlog

from headwater.learning.sequences import Sequences
from headwater.schema.config import FITTED_NAMES, Config
from headwater.schema.errors import HeadwaterError

log = structlog.get_logger()

Float32 = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]


class FitError(HeadwaterError):
    """A fitted source cannot be trained on what there is."""


def _none() -> Float32:
    return np.zeros((0, 0), np.float32)


@dataclass(frozen=True, slots=True)
class FitJob:
    """What a training may use beside the sequences.

    ``now_ms``: the moment up to which the sequences go. ``content`` float32[items, size] and ``price`` float32[items], by
    dense item (zeros where there is none; both may be shorter than the items). ``born_ms`` int64[items]: when each was published or first
    seen, 0 for not known. ``warm``: files of the source in the last
    bundle, to go on from; ``checkpoint``: a file that a killed run goes on from. Sources that need none of these ignore them.
    """

    now_ms: int
    event_types: tuple[str, ...] = ()
    content: Float32 = field(default_factory=_none)
    price: Float32 = field(default_factory=lambda: np.zeros(0, np.float32))
    born_ms: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    seed: int = 7
    threads: int = 1
    device: str = "cpu"
    checkpoint: Path | None = None
    warm: Mapping[str, bytes] | None = None
    progress: Progress | None = None


def fit_source(name: str, sequences: Sequences, config: Config, job: FitJob) -> dict[str, bytes]:
    """The files of the fitted source ``name``, trained on ``sequences`` with ``config.models``.

    Raises:
        FitError: no such source, or nothing to train it on.
    """
    if name not in FITTERS:
        raise FitError(f"there is no training for a source {name!r}; there is: {', '.join(FITTERS)}")
    if not len(sequences):
        raise FitError(
            f"the source {name} has no event to learn from: import events of the types that a sequence holds"
        )
    return FITTERS[name](sequences, config, job)


def enabled_sources(config: Config) -> tuple[str, ...]:
    """The fitted sources that the configuration enables, in one order."""
    return tuple(name for name in FITTED_NAMES if getattr(config.sources, name).enabled)


def _item_knn(sequences: Sequences, config: Config, job: FitJob) -> dict[str, bytes]:
    from headwater.learning.item_knn import fit_item_knn

    return fit_item_knn(sequences, config.models.item_knn, now_ms=job.now_ms)


def _ease(sequences: Sequences, config: Config, job: FitJob) -> dict[str, bytes]:  # noqa: ARG001
    from headwater.learning.ease import fit_ease

    return fit_ease(sequences, config.models.ease)


def _als(sequences: Sequences, config: Config, job: FitJob) -> dict[str, bytes]:
    from headwater.learning.als import fit_als

    return fit_als(sequences, config.models.als, seed=job.seed, threads=job.threads)


def _sequence(sequences: Sequences, config: Config, job: FitJob) -> dict[str, bytes]:
    try:
        from headwater.learning.sequence.fit import fit_sequence
    except ModuleNotFoundError as error:
        raise FitError(f"the source sequence needs {error.name}: pip install 'headwater[train]'") from error
    tell = job.progress
    files, report = fit_sequence(
        sequences, job.content, job.price, config.models.sequence, event_types=job.event_types, seed=job.seed,
        threads=job.threads, born_ms=job.born_ms, device=job.device, checkpoint=job.checkpoint, warm=job.warm,
        progress=None if tell is None else lambda epoch, epochs, _: tell(epoch, epochs),
    )  # fmt: skip
    log.info("sequence_fitted", epochs=report.epochs, stopped=report.stopped, items=report.items, ndcg10=report.ndcg10)
    return files


FITTERS: dict[str, Callable[[Sequences, Config, FitJob], dict[str, bytes]]] = {
    "sequence": _sequence,
    "item_knn": _item_knn,
    "ease": _ease,
    "als": _als,
}
