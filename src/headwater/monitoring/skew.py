"""Served features against their replay: what the last ``headwater features verify`` of the plan found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import structlog
from msgspec import Struct

from headwater.monitoring.samples import Sample, sample
from headwater.registry.files import read_regular

log = structlog.get_logger()

_MOST_BYTES = 16 << 20


class _Report(Struct, frozen=True):
    """The part of a report that is told (``headwater.evaluation.verify.Verification``)."""

    requests: int
    mismatched_bytes: int
    by_feature: dict[str, int]


def skew_samples(checks: Path, plan: str) -> Iterator[Sample]:
    """How many bytes differed, in all and by feature; nothing where no check of the plan is kept."""
    if not plan.isalnum():
        return
    try:
        report = msgspec.json.decode(read_regular(checks / f"{plan}.json", _MOST_BYTES), type=_Report)
    except FileNotFoundError:
        return
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        log.warning("skew_unknown", plan=plan, reason=str(error))
        return
    yield sample("headwater_skew_checked_requests", report.requests)
    yield sample("headwater_skew_mismatched_bytes", report.mismatched_bytes)
    for name, count in report.by_feature.items():
        if count:
            yield sample("headwater_feature_skew_bytes", count, feature=name)
