"""The report of an interleaved experiment: lists and clicks from the log, each click credited to the variant whose pick it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from headwater.experiments.definitions import Experiment
from headwater.experiments.drafts import FIRST, SECOND
from headwater.experiments.exposures import first_exposures, read_exposures
from headwater.experiments.interleaving import Preference, preference
from headwater.experiments.judge import RECORDED_WITHIN_MS, NobodyExposedError
from headwater.log.protocol import READ_LIMIT, EventLog, decoded
from headwater.log.record import FLAG_RETRACT, Kind, Namespace, RecordBlock, of_people
from headwater.log.seek import last_before
from headwater.schema.errors import HeadwaterError
from headwater.schema.requests import ServedList

Int64 = npt.NDArray[np.int64]
Acts = tuple[Int64, Int64, Int64]
"""Users, items and times, int64[n] each."""

_decode = msgspec.msgpack.Decoder(ServedList).decode


class PreferenceReport(Struct, frozen=True, kw_only=True):
    """Which of ``variants`` (the control, the other one) users prefer, as it stood at ``until_ms``.

    ``preferred``: the one whose advantage is known at level ``alpha`` at all looks together ("": not known yet). A list counts once its
    ``window_ms`` are over; ``open`` ones are not, of the lists that count ``alone`` were the control's and not interleaved.
    """

    experiment: str
    variants: tuple[str, str]
    preferred: str
    alpha: float
    window_ms: int
    until_ms: int
    alone: int
    open: int
    preference: Preference


class _Found(NamedTuple):
    """What the log holds: lists (``counts``: interleaved, and the window is over; the others only take the clicks that are theirs), their
    places, and events.
    """

    user: Int64
    at_ms: Int64
    counts: npt.NDArray[np.bool_]
    place_list: Int64
    place_item: Int64
    place_team: Int64
    event_user: Int64
    event_item: Int64
    event_ms: Int64
    alone: int
    open: int


def read_preference(
    event_log: EventLog, experiment: Experiment, types: Sequence[str], *, window_ms: int, alpha: float = 0.05,
    planned_users: int = 2_000, until_ms: int | None = None,
) -> PreferenceReport:  # fmt: skip
    """Say from the log whose picks are clicked in the lists of ``experiment``, as it stood at ``until_ms`` (None: now).

    An event of one of ``types`` counts for the newest list before it that showed its user the item, if that was given at most ``window_ms``
    earlier; an item counts once in a list. Lists count from their user's first exposure to the variants as they are now on.

    Raises:
        NobodyExposedError: fewer than two users got an interleaved list whose window is over.
        CorruptLogError: the log does not read as it was written.
    """
    end_ms = event_log.last_received_ms if until_ms is None else min(until_ms, event_log.last_received_ms)
    exposures = read_exposures(
        event_log, experiment.name, experiment.exposed_names, version=experiment.version,
        since_ms=experiment.started_ms, until_ms=until_ms,
    )  # fmt: skip
    arms = first_exposures(exposures)
    found = _read(
        event_log,
        experiment.name,
        types,
        arms.user.astype(np.int64),
        arms.first_ms - RECORDED_WITHIN_MS,
        window_ms,
        end_ms,
    )
    if len(users := np.unique(found.user[found.counts])) < 2:
        raise NobodyExposedError(
            f'experiment "{experiment.name}": {len(users)} users got interleaved lists that are {window_ms / 1e3:g} s old or more, and it takes two; '
            f"{found.open} younger lists: wait, or give a shorter --window"
        )
    first, second = _credits(found, window_ms)
    order = np.argsort(found.at_ms, kind="stable")
    order = order[found.counts[order]]
    seen = preference(found.user[order], first[order], second[order], alpha=alpha, planned_users=planned_users)
    names = experiment.variants[0].name, experiment.variants[1].name
    known = seen.p_value <= alpha and seen.score != 0.0
    return PreferenceReport(
        experiment=experiment.name, variants=names, preferred=names[seen.score > 0.0] if known else "", alpha=alpha,
        window_ms=window_ms, until_ms=end_ms, alone=found.alone, open=found.open, preference=seen,
    )  # fmt: skip


def blocks_until(event_log: EventLog, after: int, end_ms: int) -> Iterator[tuple[RecordBlock, npt.NDArray[np.void]]]:
    """The blocks behind offset ``after``, and of each the records that were received until ``end_ms``."""
    while after < event_log.last_offset and (block := event_log.read(after, READ_LIMIT)) is not None:
        after = block.last_offset
        records = block.records[block.records["received_ms"] <= end_ms]
        if not len(records):
            return
        yield block, records


def acts_in(records: npt.NDArray[np.void], mine: npt.NDArray[np.bool_], types: npt.NDArray[np.uint16]) -> Int64:
    """What of ``mine`` (bool[n] over ``records``) are events of one of ``types`` that take nothing back: users, items and times, ``int64[3, m]``."""
    some = records[
        mine
        & of_people(records, Kind.EVENT)
        & np.isin(records["type"], types)
        & ((records["flags"] & FLAG_RETRACT) == 0)
    ]
    return np.stack([some[key].astype(np.int64) for key in ("user", "item", "time_ms")])


def _read(
    event_log: EventLog, name: str, types: Sequence[str], users: Int64, since_ms: Int64, window_ms: int, end_ms: int
) -> _Found:  # fmt: skip
    first_of = np.full(int(users.max(initial=0)) + 1, np.iinfo(np.int64).max)
    first_of[users] = since_ms
    vocabulary = event_log.vocabulary()
    wanted = np.array([vocabulary.index(Namespace.EVENT_TYPE, kind) for kind in types], np.uint16)
    marked = msgspec.msgpack.encode(name)
    lists: list[tuple[int, int, bool]] = []
    places: list[tuple[int, int, int]] = []
    events: list[Int64] = []
    requests: set[str] = set()
    alone = still_open = 0
    begin_ms = int(since_ms.min(initial=np.iinfo(np.int64).max))
    at = last_before(event_log, begin_ms)[0] if len(users) else event_log.last_offset
    for block, records in blocks_until(event_log, at, end_ms):
        known = records["user"] < len(first_of)
        mine = known & (first_of[np.where(known, records["user"], 0)] < np.iinfo(np.int64).max)
        events.append(acts_in(records, mine, wanted))
        for row in np.flatnonzero(mine & of_people(records, Kind.SERVED)).tolist():
            payload = block.payload(row)
            if marked not in payload:
                continue
            served = decoded(_decode, payload, int(records["offset"][row]), "a served list")
            user, at_ms = int(records["user"][row]), served.address.now_ms
            if name not in served.experiments or at_ms < first_of[user] or served.request_id in requests:
                continue
            requests.add(served.request_id)
            if at_ms + window_ms > end_ms:
                still_open += 1
            elif not served.teams:
                alone += 1
            counts = bool(served.teams) and at_ms + window_ms <= end_ms
            teams = served.teams or bytes(len(served.items))
            places += [(len(lists), *pick) for pick in zip(served.items, teams, strict=True)]
            lists.append((user, at_ms, counts))
    of_list = np.array(lists, np.int64).reshape(-1, 3)
    of_place = np.array(places, np.int64).reshape(-1, 3)
    of_event = np.concatenate([np.zeros((3, 0), np.int64), *events], axis=1)
    return _Found(
        of_list[:, 0], of_list[:, 1], of_list[:, 2] > 0, of_place[:, 0], of_place[:, 1], of_place[:, 2],
        of_event[0], of_event[1], of_event[2], alone, still_open,
    )  # fmt: skip


def _credits(found: _Found, window_ms: int) -> tuple[Int64, Int64]:
    """Clicked items of each list that the control picked, and of those that the other variant did: int64[lists] each."""
    taken = clicked_places(
        (found.user[found.place_list], found.place_item, found.at_ms[found.place_list]),
        (found.event_user, found.event_item, found.event_ms), window_ms,
    )  # fmt: skip
    lists, team = found.place_list[taken], found.place_team[taken]
    first, second = (np.bincount(lists[team == one], minlength=len(found.user)) for one in (FIRST, SECOND))
    return first, second


def clicked_places(shown: Acts, events: Acts, window_ms: int) -> Int64:
    """Which of the places ``shown`` were clicked: an event counts for the newest place before it that showed its user the item, if that is
    less than ``window_ms`` old. Ascending, each once.
    """
    places = len(shown[0])
    user, item, time = (np.concatenate(pair) for pair in zip(shown, events, strict=True))
    number = np.arange(len(user))  # places before events: who clicks at once has seen the list
    order = np.lexsort((number, time, item, user))
    # by user and item in the order of time: what is clicked was shown by the last place before, of the same user and item
    before = np.where(order < places, np.arange(len(order)), -1)
    last = np.maximum.accumulate(before) if len(before) else before
    clicked = (order >= places) & (last >= 0)
    event, place = order[clicked], order[last[clicked]]
    same = (user[event] == user[place]) & (item[event] == item[place]) & (time[event] - time[place] < window_ms)
    return np.unique(place[same])


def verdict(report: PreferenceReport) -> str:
    """What is known, in a sentence."""
    control, other = report.variants
    if report.preferred:
        loser = control if report.preferred == other else other
        return f"users prefer {report.preferred} to {loser}"
    return f"it is not known yet whether users prefer {other} or {control}"


def preference_lines(report: PreferenceReport) -> list[str]:
    """What the verdict rests on, a line each."""
    control, other = report.variants
    seen = report.preference
    until = datetime.fromtimestamp(report.until_ms / 1_000, UTC).isoformat(timespec="seconds")
    low, high = ("…" if end is None else f"{end:+.4f}" for end in seen.sequence)
    return [
        f"until {until}; {seen.lists:,} interleaved lists of {seen.users:,} users, clicks within {report.window_ms / 1e3:g} s",
        f"won by {other}: {seen.wins:,}; by {control}: {seen.losses:,}; ties: {seen.ties:,}",
        f"score (1: {other} wins every list, -1: {control} does): {seen.score:+.4f}",
        f"valid at every look: {low} to {high}, p = {seen.p_value:.3g}",
        f"for one look only: {seen.interval[0]:+.4f} to {seen.interval[1]:+.4f}, p = {seen.t_p:.3g}; sign test p = {seen.sign_p:.3g}",
        f"not counted: {report.alone:,} lists that the control gave alone, {report.open:,} whose window is not over",
    ]


def write_preference(report: PreferenceReport, directory: Path) -> tuple[Path, ...]:
    """Write ``report.json`` and ``report.md`` below ``directory``. Errors as with :func:`write_plain`."""
    return write_plain(report, report.experiment, verdict(report), preference_lines(report), directory)


def write_plain(
    report: Struct, experiment: str, verdict: str, lines: Sequence[str], directory: Path
) -> tuple[Path, ...]:
    """Write ``report.json`` and, with the ``verdict`` and the ``lines`` below it, ``report.md`` into ``directory``; returns the two paths.

    Raises:
        HeadwaterError: the directory cannot be written.
    """
    paths = directory / "report.json", directory / "report.md"
    text = "\n".join([f"# {experiment}", "", f"**{verdict}**", "", *(f"- {line}" for line in lines), ""])
    try:
        directory.mkdir(parents=True, exist_ok=True)
        paths[0].write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
        paths[1].write_text(text, encoding="utf-8")
    except OSError as error:
        raise HeadwaterError(
            f"the report cannot be written below {directory}: {error}; choose another --out"
        ) from error
    return paths
