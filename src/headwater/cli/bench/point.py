"""One measured load: latencies as the load process saw them, processor time and stages as the server counts them."""

from __future__ import annotations

from typing import Any

import httpx

from headwater.cli.bench.measure import (
    Metrics,
    failures,
    growth,
    lag_p99_ms,
    percentile_ms,
    seconds_by_part,
    send,
)
from headwater.cli.bench.schedule import Arrival, Outcome, Plan
from headwater.cli.bench.workload import Requests
from headwater.cli.local import Server


class Measuring:
    """Sends lists' requests to a server at any rate. ``sources`` are those that offered something so far."""

    def __init__(self, server: Server, requests: Requests) -> None:
        self._server, self._requests = server, requests
        self.sources: dict[str, float] = {}

    def arrivals(self, per_s: float, seconds: float) -> list[Arrival]:
        """Poisson arrivals of requests for lists."""
        return self._requests.recommend(self._requests.times(per_s, 0.0, seconds))

    def load(self, per_s: float, seconds: float) -> list[Outcome]:
        """Poisson arrivals; what came of each."""
        return send(Plan("127.0.0.1", self._server.port, self.arrivals(per_s, seconds)))

    def at(self, per_s: float, seconds: float) -> dict[str, Any]:
        """Figures of that load. ``candidates`` and ``ranked`` are means over all answers, ``full`` the share of tier 0."""
        before, spent = self._scrape(), seconds_by_part(self._server.pid)
        outcomes = self.load(per_s, seconds)
        spent_after, after = seconds_by_part(self._server.pid), self._scrape()
        answers = max(len(outcomes), 1)
        cpu_ms = {part: round(s * 1_000 / answers, 3) for part, s in growth(spent, spent_after).items()}
        offered = after.growth_since(before, "headwater_source_candidates_total")
        left = after.growth_since(before, "headwater_stage_items_total")
        stages = after.means_since(before, "headwater_stage_seconds", "stage")
        tiers = after.growth_since(before, "headwater_answers_total", "tier")
        self.sources |= {source: count for source, count in offered.items() if count}
        return {
            "rate": round(per_s, 1),
            "requests": len(outcomes),
            "candidates": round(left.get("eligibility", 0.0) / answers, 1),
            "ranked": round(left.get("deep_rank", 0.0) / answers, 1),
            "full": round(tiers.get("0", 0.0) / answers, 4),
            "candidates_by_source": {source: round(count / answers, 1) for source, count in offered.items()},
            "p50_ms": percentile_ms(outcomes, 50),
            "p95_ms": percentile_ms(outcomes, 95),
            "p99_ms": percentile_ms(outcomes, 99),
            "max_ms": percentile_ms(outcomes, 100),
            "errors": sum(not outcome.ok for outcome in outcomes),
            "why": failures(outcomes),
            "cpu_ms_per_request": cpu_ms.get("api"),
            "cpu_ms_by_part": cpu_ms,
            "stages_ms": {stage: round(s * 1_000, 4) for stage, s in stages.items()},
            "load_lag_p99_ms": lag_p99_ms(outcomes),
        }

    def _scrape(self) -> Metrics:
        return Metrics(httpx.get(f"{self._server.url}/metrics", timeout=10.0).text)
