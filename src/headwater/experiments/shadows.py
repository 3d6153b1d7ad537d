"""The report of a shadow: what the variants that answered nobody would have given, beside what was given and clicked."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct
from scipy.special import stdtrit

from headwater.experiments.credits import Acts, acts_in, blocks_until, clicked_places, write_plain
from headwater.experiments.definitions import Experiment
from headwater.experiments.judge import NobodyExposedError
from headwater.log.protocol import EventLog, decoded
from headwater.log.record import Kind, Namespace, of_people
from headwater.log.seek import last_before
from headwater.schema.requests import ServedList, ShadowList

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

_shadow = msgspec.msgpack.Decoder(ShadowList).decode
_served = msgspec.msgpack.Decoder(ServedList).decode


class MeanOfUsers(Struct, frozen=True):
    """A mean over rows, of which users have several, with its 95% interval (None: fewer than two users have any)."""

    value: float
    ci95: tuple[float, float] | None


class ShadowAgreement(Struct, frozen=True, kw_only=True):
    """One variant of a shadow. ``lists`` are those of both that came out full, of ``users``; ``degraded`` others are left out.

    ``overlap`` is the share of a given list that the variant would have given too. Of the ``clicked`` items of given lists it would have given ``found``;
    ``higher``, ``same`` and ``lower`` count where it has them, and ``lost`` those that it would not have given. ``served_rr`` and ``shadow_rr`` are the means of 1 / rank of what was
    clicked in both lists (0: not in it), ``difference`` is the second less the first.
    """

    variant: str
    lists: int
    users: int
    degraded: int
    overlap: MeanOfUsers | None
    clicked: int
    found: MeanOfUsers | None
    higher: int
    same: int
    lower: int
    lost: int
    served_rr: float | None
    shadow_rr: float | None
    difference: MeanOfUsers | None


class ShadowReport(Struct, frozen=True, kw_only=True):
    """What the log says of a shadow as it stood at ``until_ms``. ``open``: lists whose ``window_ms`` is not over; their clicks are still to come."""

    experiment: str
    version: str
    window_ms: int
    until_ms: int
    open: int
    variants: list[ShadowAgreement]


class _Given(NamedTuple):
    """A list that was given: its dense user, its time, its items in their order, and whether it was full."""

    user: int
    at_ms: int
    items: list[int]
    full: bool


class _Period(NamedTuple):
    after: int
    end_ms: int


Said = dict[str, dict[str, ServedList]]
"""What each variant said to each request."""


def read_shadows(
    event_log: EventLog, experiment: Experiment, types: Sequence[str], *, window_ms: int, until_ms: int | None = None
) -> ShadowReport:
    """Say from the log how the lists of the shadow ``experiment`` agree with those that were given, and with what was clicked in these.

    An event of one of ``types`` counts for the newest given list before it that showed its user the item, less than ``window_ms`` after it. Strangers have no
    clicks that could be told from others'.

    Raises:
        NobodyExposedError: no list of it is in the log whose window is over.
        CorruptLogError: the log does not read as it was written.
    """
    end_ms = event_log.last_received_ms if until_ms is None else min(until_ms, event_log.last_received_ms)
    period = _Period(last_before(event_log, experiment.started_ms)[0], end_ms)
    said, asked = _read_said(event_log, experiment, period)
    given, events = _read_given(event_log, asked, {request for by in said.values() for request in by}, types, period)
    over = {request for request, one in given.items() if one.at_ms + window_ms <= end_ms}
    still_open = sum(request in given and request not in over for by in said.values() for request in by)
    if not any(request in over for by in said.values() for request in by):
        raise NobodyExposedError(
            f'experiment "{experiment.name}": none of its lists in the log is {window_ms / 1e3:g} s old or more, beside the one that was given; {still_open} '
            "younger ones: wait, give a shorter --window, or see whether serving.log_served and shadow_logged keep any"
        )
    requests = list(given)
    places = [(n, item) for n, request in enumerate(requests) for item in given[request].items if given[request].user]
    of_place = np.array(places, np.int64).reshape(-1, 2)
    users = np.array([given[request].user for request in requests], np.int64)
    times = np.array([given[request].at_ms for request in requests], np.int64)
    taken = clicked_places((users[of_place[:, 0]], of_place[:, 1], times[of_place[:, 0]]), events, window_ms)
    clicks: dict[str, list[int]] = {}
    for number, item in of_place[taken].tolist():
        clicks.setdefault(requests[number], []).append(item)
    return ShadowReport(
        experiment=experiment.name, version=experiment.version, window_ms=window_ms, until_ms=end_ms, open=still_open,
        variants=[
            _agreement(variant, {r: by for r, by in said.get(variant, {}).items() if r in over}, given, clicks)
            for variant in experiment.variant_names[1:]
        ],
    )  # fmt: skip


def mean_of_users(values: Sequence[float], users: Sequence[int]) -> MeanOfUsers | None:
    """The mean of ``values`` of which ``users`` are what was sampled: Student's t times the standard error that is robust to that,
    ``sqrt(G/(G−1) Σ_g (Σ_i (x_i − x̄))²) / n``; None without any value.
    """
    if not len(values):
        return None
    x = np.asarray(values, np.float64)
    _, of = np.unique(np.asarray(users), return_inverse=True)
    count, mean = int(of.max()) + 1, float(x.mean())
    if count < 2:
        return MeanOfUsers(mean, None)
    sums = np.bincount(of, x - mean)
    half = float(stdtrit(count - 1, 0.975)) * float(np.sqrt(count / (count - 1) * np.sum(sums**2))) / len(x)
    return MeanOfUsers(mean, (mean - half, mean + half))


def shadow_lines(report: ShadowReport) -> list[str]:
    """What the log says, a line each."""
    until = datetime.fromtimestamp(report.until_ms / 1_000, UTC).isoformat(timespec="seconds")
    lines = [
        f"until {until}, clicks within {report.window_ms / 1e3:g} s; {report.open:,} lists whose window is not over"
    ]
    for one in report.variants:
        lines.append(
            f"{one.variant}: {one.lists:,} lists beside those that {one.users:,} users got, {one.degraded:,} more that were not full on both sides"
        )
        if one.overlap is not None:
            lines.append(f"{one.variant}: would have given {_text(one.overlap, percent=True)} of a list too")
        if one.found is None or one.difference is None or one.served_rr is None or one.shadow_rr is None:
            lines.append(f"{one.variant}: nothing was clicked in the lists beside it yet")
            continue
        where = f"{one.higher:,} higher, {one.same:,} at the same place, {one.lower:,} lower, {one.lost:,} not at all"
        lines.append(
            f"{one.variant}: of {one.clicked:,} clicked items it would have given {_text(one.found, percent=True)}: {where}"
        )
        lines.append(
            f"{one.variant}: 1/rank of what was clicked {one.shadow_rr:.4f}, in what was given {one.served_rr:.4f}; difference {_text(one.difference)}"
        )
    return lines


def shadow_verdict(report: ShadowReport) -> str:
    """What a shadow can say at all, in a sentence."""
    return (
        (
            "people click what they are shown, and nobody was shown these lists: a difference below 0 is no proof that they are worse; "
            "an experiment, interleaving or off-policy evaluation decides"
        )
        if any(one.clicked for one in report.variants)
        else "nothing was clicked yet"
    )


def write_shadows(report: ShadowReport, directory: Path) -> tuple[Path, ...]:
    """Write ``report.json`` and ``report.md`` below ``directory``. Raises HeadwaterError: it cannot be written."""
    return write_plain(report, report.experiment, shadow_verdict(report), shadow_lines(report), directory)


def _agreement(
    variant: str, said: dict[str, ServedList], given: dict[str, _Given], clicks: dict[str, list[int]]
) -> ShadowAgreement:
    overlaps, of_list, users = list[float](), list[int](), list[int]()
    ranks = list[tuple[int, int]]()
    degraded = 0
    for request, theirs in said.items():
        ours = given[request]
        if theirs.tier or not ours.full or not ours.items:
            degraded += 1
            continue
        overlaps.append(len(set(ours.items) & set(theirs.items)) / len(ours.items))
        of_list.append(ours.user)
        place = {item: rank for rank, item in enumerate(theirs.items, 1)}
        for item in clicks.get(request, ()):
            ranks.append((ours.items.index(item) + 1, place.get(item, 0)))
            users.append(ours.user)
    served = np.array([1.0 / ours for ours, _ in ranks])
    shadow = np.array([1.0 / theirs if theirs else 0.0 for _, theirs in ranks])
    return ShadowAgreement(
        variant=variant, lists=len(overlaps), users=len(set(of_list) - {0}), degraded=degraded,
        overlap=mean_of_users(overlaps, [user or -n for n, user in enumerate(of_list, 1)]),  # each stranger is one
        clicked=len(ranks), found=mean_of_users([float(theirs > 0) for _, theirs in ranks], users),
        higher=sum(0 < theirs < ours for ours, theirs in ranks), same=sum(theirs == ours for ours, theirs in ranks),
        lower=sum(theirs > ours for ours, theirs in ranks), lost=sum(not theirs for _, theirs in ranks),
        served_rr=float(served.mean()) if ranks else None, shadow_rr=float(shadow.mean()) if ranks else None,
        difference=mean_of_users((shadow - served).tolist(), users),
    )  # fmt: skip


def _read_said(event_log: EventLog, experiment: Experiment, period: _Period) -> tuple[Said, Int64]:
    """What the variants said, and the dense users that they were asked about, 0 for strangers."""
    marked = msgspec.msgpack.encode(experiment.name)
    found: Said = {}
    users: set[int] = set()
    for block, records in blocks_until(event_log, period.after, period.end_ms):
        for row in np.flatnonzero(records["kind"] == Kind.SHADOW).tolist():
            payload = block.payload(row)
            if marked not in payload:
                continue
            one = decoded(_shadow, payload, int(records["offset"][row]), "a list of a shadow")
            if (one.experiment, one.version) == (experiment.name, experiment.version):
                found.setdefault(one.variant, {}).setdefault(one.answer.request_id, one.answer)
                users.add(int(records["user"][row]))
    return found, np.array(sorted(users), np.int64)


def _read_given(
    event_log: EventLog, asked: Int64, requests: set[str], types: Sequence[str], period: _Period
) -> tuple[dict[str, _Given], Acts]:
    """All lists that the users ``asked`` about were given in the period, for an event counts for the newest that showed its item, and their events; of strangers
    the lists of ``requests``.
    """
    vocabulary = event_log.vocabulary()
    wanted = np.array([vocabulary.index(Namespace.EVENT_TYPE, kind) for kind in types], np.uint16)
    given: dict[str, _Given] = {}
    events: list[Int64] = []
    for block, records in blocks_until(event_log, period.after, period.end_ms):
        mine = np.isin(records["user"], asked)
        events.append(acts_in(records, mine & (records["user"] > 0), wanted))
        for row in np.flatnonzero(mine & of_people(records, Kind.SERVED)).tolist():
            one = decoded(_served, block.payload(row), int(records["offset"][row]), "a served list")
            user = int(records["user"][row])
            if user or one.request_id in requests:
                given.setdefault(one.request_id, _Given(user, one.address.now_ms, one.items, one.tier == 0))
    acts = np.concatenate([np.zeros((3, 0), np.int64), *events], axis=1)
    return given, (acts[0], acts[1], acts[2])


def _text(mean: MeanOfUsers, *, percent: bool = False) -> str:
    form = "{:.1%}" if percent else "{:+.4f}"
    if mean.ci95 is None:
        return f"{form.format(mean.value)} (of one user)"
    low, high = (form.format(end) for end in mean.ci95)
    return f"{form.format(mean.value)} (95%: {low} to {high})"
