"""What a product of a given size needs: the arithmetic behind ``headwater capacity``.

Nothing here is measured. A :class:`Calibration` holds what one request, one event, one user and one item took on a machine;
:func:`sized` multiplies.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

DAY_S = 86_400
GIB = 1 << 30

_Positive = Annotated[float, Meta(gt=0.0)]


class Calibration(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the machine was seen to take. Processor times are those of all processes of the server together.

    ``writer_ms_per_event`` and ``fold_ms_per_event`` are parts of ``ms_per_event``: of either process there is one a machine.
    ``capacity_rps`` is the highest rate that one worker held beside everything else on the machine.
    """

    format: int = 1
    ms_per_request: _Positive
    capacity_rps: _Positive
    p99_ms: _Positive
    ms_per_event: _Positive
    writer_ms_per_event: _Positive
    fold_ms_per_event: _Positive
    log_bytes_per_event: _Positive
    state_bytes_per_user: _Positive
    identity_bytes_per_user: _Positive
    item_bytes: _Positive
    items: int
    ranker: str
    machine: dict[str, str | int]
    versions: dict[str, str]


class Product(Struct, frozen=True, kw_only=True):
    """A product: people, what each does a day, and how uneven the day is (``peak``: busiest second over the mean)."""

    daily_users: int
    users: int
    requests: float
    events: float
    items: int
    peak: float
    headroom: float


class Needs(Struct, frozen=True, kw_only=True):
    """What the product needs. Cores are for the busiest second; ``cores`` is what to buy (all of them, times the headroom)."""

    requests_per_s_mean: float
    requests_per_s_peak: float
    events_per_s_mean: float
    events_per_s_peak: float
    serving_cores: float
    ingest_cores: float
    cores: float
    core_seconds_per_million_requests: float
    state_gib: float
    identity_gib: float
    item_gib_a_worker: float
    memory_gib: float
    log_gib_a_day: float
    machine_limit_events_per_s: float
    notes: list[str]


def sized(product: Product, seen: Calibration) -> Needs:
    """Multiply: rates by processor time, people and items by bytes."""
    mean = product.daily_users * product.requests / DAY_S
    arriving = product.daily_users * product.events / DAY_S
    peak, peak_events = mean * product.peak, arriving * product.peak
    serving = peak * seen.ms_per_request / 1e3
    ingest = peak_events * seen.ms_per_event / 1e3
    cores = (serving + ingest) * product.headroom
    state = product.users * seen.state_bytes_per_user / GIB
    identity = product.users * seen.identity_bytes_per_user / GIB
    items = product.items * seen.item_bytes / GIB
    workers = max(1.0, serving * product.headroom)
    single = 1e3 / max(seen.writer_ms_per_event, seen.fold_ms_per_event)
    return Needs(
        requests_per_s_mean=mean, requests_per_s_peak=peak, events_per_s_mean=arriving, events_per_s_peak=peak_events,
        serving_cores=serving, ingest_cores=ingest, cores=cores,
        core_seconds_per_million_requests=seen.ms_per_request * 1e3,
        state_gib=state, identity_gib=identity, item_gib_a_worker=items,
        memory_gib=state + identity + items * (1.0 + workers),  # the state's own and a copy in every worker
        log_gib_a_day=product.daily_users * product.events * seen.log_bytes_per_event / GIB,
        machine_limit_events_per_s=single, notes=_notes(product, seen, peak_events, single),
    )  # fmt: skip


def _notes(product: Product, seen: Calibration, peak_events: float, single: float) -> list[str]:
    notes = []
    if peak_events > single:
        notes.append(
            f"{peak_events:,.0f} events/s at the peak are more than the {single:,.0f}/s that one writer and one fold take "
            "on such a core: spread the users over several machines, each with its log"
        )
    if product.items > 2 * seen.items:
        notes.append(
            f"calibrated with {seen.items:,} items: searching {product.items:,} takes longer, calibrate with --items "
            f"{product.items}"
        )
    if 1e3 / seen.ms_per_request > 1.5 * seen.capacity_rps:
        notes.append(
            f"a worker held {seen.capacity_rps:,.0f} requests/s where its processor time alone would allow "
            f"{1e3 / seen.ms_per_request:,.0f}: the machine did other work too, so plan with more headroom"
        )
    return notes
