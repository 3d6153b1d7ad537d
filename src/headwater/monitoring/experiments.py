"""Running experiments as the monitor looks at them: do they do harm?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from headwater.experiments import store
from headwater.log.protocol import EventLog
from headwater.monitoring.samples import Details, Sample, sample
from headwater.prometheus import Described

if TYPE_CHECKING:
    from headwater.experiments.metrics import Metric

HARM = "headwater_experiment_harm"
METRICS = (
    Described(HARM, "gauge", ("experiment",), "1 while the verdict on an experiment is to stop it"),
    Described("headwater_experiment_users", "gauge", ("experiment",), "Users who were exposed to an experiment"),
)  # fmt: skip

log = structlog.get_logger()


class ExperimentsWatch:
    """Judges every running experiment of ``data`` by ``metrics()`` of ``event_log``, as ``headwater experiments guard`` does, and stops none: that is for the alert."""

    name = "experiments"

    def __init__(
        self,
        data: Path,
        event_log: EventLog,
        metrics: Callable[[], Sequence[Metric]],
        *,
        before_ms: int,
        alpha: float = 0.05,
        details: Details | None = None,
    ) -> None:
        self._data, self._log, self._metrics = data, event_log, metrics
        self._before_ms, self._alpha = before_ms, alpha
        self._details: Details = {} if details is None else details

    def look(self, now_ms: int) -> Iterator[Sample]:  # noqa: ARG002  (it is judged by the log's time)
        """``headwater_experiment_harm`` (1: its verdict is to stop it) and ``headwater_experiment_users`` of each."""
        running = [
            each for each in store.read_experiments(self._data)[0].values() if each.is_running and not each.shadow
        ]
        if not running:
            return
        from headwater.experiments.guard import guard  # with scipy: 100 MB, for those who experiment

        judged = guard(
            self._log, running, self._metrics(), stop=lambda *_: None, before_ms=self._before_ms, alpha=self._alpha
        )
        for one in judged:
            if one.problem:
                log.warning("experiment_not_judged", experiment=one.experiment, reason=one.problem)
                continue
            if one.stopped:
                log.warning("experiment_harm", experiment=one.experiment, decision=one.decision, reasons=one.reasons)
            self._details[HARM, one.experiment] = f"{one.decision}: {'; '.join(one.reasons)}"
            yield sample(HARM, float(one.stopped), experiment=one.experiment)
            yield sample("headwater_experiment_users", float(one.users), experiment=one.experiment)


def about_running(data: Path, found: Sample) -> bool:
    """Whether the experiment that ``found`` is about runs now: the verdict on one that was stopped is over at once, however long it takes to judge again."""
    experiment = store.read_experiments(data)[0].get(dict(found.labels)["experiment"])
    return experiment is not None and experiment.is_running
