"""What is counted of the parts behind a connection: calls, second tries, whether the breaker is open."""

from __future__ import annotations

from headwater.breaker import Remote, RetryBudget
from headwater.features.store import State
from headwater.log.client import WriterClient
from headwater.online.metrics import Metrics
from headwater.ranking.remote import RemoteRanker
from headwater.serving.model import Model
from headwater.serving.scorer import ThreadScorer


class RemoteParts:
    """Carries over what the parts count themselves."""

    def __init__(self, metrics: Metrics, state: State, writer: WriterClient, scorer: ThreadScorer) -> None:
        self._metrics, self._scorer = metrics, scorer
        self._parts: dict[str, Remote] = {"writer": writer}
        if isinstance(state, Remote):  # in Redis
            self._parts["state"] = state
        self._counted: dict[str, tuple[RetryBudget, int, int]] = {}

    def count(self, model: Model | None) -> None:
        """Take over what was counted since the last call. ``model``: the one in service."""
        for name, part in self._parts.items():
            self._carry(name, part.budget)
        if model is not None and isinstance(model.ranker, RemoteRanker):
            self._carry("ranker", model.ranker.budget)

    def show_breakers(self) -> None:
        """Set the gauges: 1 while a part is not asked."""
        for name, part in self._parts.items():
            self._metrics.breaker_open.labels(name).set(part.breaker.is_open)
        self._metrics.breaker_open.labels("ranker").set(self._scorer.resting > 0)

    def _carry(self, name: str, budget: RetryBudget) -> None:
        known, calls, retries = self._counted.get(name, (budget, 0, 0))
        if known is not budget:  # another bundle: it counts from 0
            calls = retries = 0
        if budget.calls > calls or known is not budget:
            self._metrics.remote_calls.labels(name).inc(budget.calls - calls)
            self._metrics.remote_retries.labels(name).inc(budget.retries - retries)
            self._counted[name] = (budget, budget.calls, budget.retries)
