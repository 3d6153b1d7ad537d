"""Whose picks are clicked, against a loop over everything that was written."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest

from headwater.experiments import credits as counted
from headwater.experiments.credits import (
    PreferenceReport,
    preference_lines,
    read_preference,
    verdict,
    write_preference,
)
from headwater.experiments.definitions import Experiment, parse_experiment
from headwater.experiments.guard import guard
from headwater.experiments.interleaving import preference
from headwater.experiments.judge import NobodyExposedError, judge
from headwater.log.commands import AppendServed, ExposureEntry, PutItems, ServedEntry
from headwater.log.record import Namespace
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.schema.events import Event
from headwater.schema.experiments import ExposureRecord
from headwater.schema.items import Item
from headwater.schema.requests import Address, ServedList
from headwater.testing.events import START_MS, Step, Written

WINDOW = 600_000
EXPERIMENT = parse_experiment(
    """
name = "both"
status = "running"
interleave = true
buckets = [[0, 10000]]
[[variants]]
name = "control"
[[variants]]
name = "wide"
set = {"ranker.candidates" = 400}
""",
    "test",
)


class Shown(NamedTuple):
    user: str
    at_ms: int
    items: list[str]
    teams: bytes


class Taken(NamedTuple):
    user: str
    at_ms: int
    item: str


def expose(log: Written, user: str, experiment: Experiment = EXPERIMENT) -> None:
    record = ExposureRecord(experiment.name, "interleaved", experiment.version, "r")
    log.writer.append_exposures([ExposureEntry(0, 0, user, msgspec.msgpack.encode(record))])


def served(log: Written, request: str, shown: Shown, name: str = "both") -> AppendServed:
    key = log.identity.lookup(shown.user)
    assert key is not None
    items = [log.log.vocabulary().index(Namespace.ITEM, item) for item in shown.items]
    made = ServedList(
        request_id=request, surface="home", items=items, scores=[0.0] * len(items), sources=["popular"] * len(items), tier=0,
        reasons=[], address=Address(1, 1, shown.at_ms, "p", "b"), context=[0, 0, 0, 0], features=b"",
        experiments={name: "interleaved"}, teams=shown.teams,
    )  # fmt: skip
    return AppendServed([ServedEntry(key.user, key.surrogate, msgspec.msgpack.encode(made))])


def written(rng: np.random.Generator, liked: float) -> tuple[Written, list[Shown], list[Taken]]:
    """Users who click on picks of the second team ``liked`` times as often."""
    log, lists, clicks = Written(Config()), list[Shown](), list[Taken]()
    names = [f"i{n}" for n in range(6)]
    log.add([Step(START_MS, PutItems([Item(id=name) for name in names]))])
    log.now_ms = START_MS
    for n in range(6):
        expose(log, f"u{n}")
    now_ms = START_MS + 1
    for r in range(240):
        now_ms += int(rng.integers(1, WINDOW // 4))
        user = f"u{rng.integers(6)}"
        items = rng.permutation(names)[:4].tolist()
        shown = Shown(user, now_ms, items, b"" if rng.random() < 0.1 else bytes(rng.permutation([1, 2, 1, 2]).tolist()))
        log.add([Step(now_ms, served(log, f"r{r}", shown))] * (2 if rng.random() < 0.1 else 1))
        lists.append(shown)
        log.add([Step(now_ms, served(log, f"x{r}", shown, "another"))])
        for item, team in zip(items, shown.teams, strict=False):
            for _ in range(int(rng.poisson(0.3 * (liked if team == 2 else 1.0)))):
                time = now_ms + int(rng.integers(0, 2 * WINDOW))
                kind, back = str(rng.choice(["click", "click", "view"])), bool(rng.random() < 0.1)
                log.add([Step(now_ms + 1, [Event(user=user, item=item, type=kind, time=time, retract=back)])])
                if kind == "click" and not back:
                    clicks.append(Taken(user, time, item))
    return log, lists, clicks


def by_hand(lists: list[Shown], clicks: list[Taken], end_ms: int) -> list[tuple[str, int, int]]:
    """(user, clicked items of the first team, of the second) of each list that counts."""
    taken: list[set[str]] = [set() for _ in lists]
    for click in clicks:
        before = [
            n for n, shown in enumerate(lists)
            if shown.user == click.user and shown.at_ms <= click.at_ms and click.item in shown.items
        ]  # fmt: skip
        if before and click.at_ms < lists[before[-1]].at_ms + WINDOW:
            taken[before[-1]].add(click.item)
    return [
        (shown.user, picked(shown, mine, 1), picked(shown, mine, 2))
        for shown, mine in zip(lists, taken, strict=True)
        if counts(shown, end_ms)
    ]


def picked(shown: Shown, taken: set[str], team: int) -> int:
    return sum(shown.teams[shown.items.index(item)] == team for item in taken)


def counts(shown: Shown, end_ms: int) -> bool:
    return bool(shown.teams) and shown.at_ms + WINDOW <= end_ms


@pytest.mark.parametrize(("seed", "liked"), [(1, 1.0), (2, 3.0)])
def test_the_report_is_what_a_loop_over_the_log_counts(
    seed: int, liked: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(counted, "READ_LIMIT", 53)
    log, lists, clicks = written(np.random.default_rng(seed), liked)
    end_ms = log.log.last_received_ms
    found = read_preference(log.log, EXPERIMENT, ["click"], window_ms=WINDOW)
    rows = by_hand(lists, clicks, end_ms)
    user = np.array([int(name[1:]) for name, _, _ in rows])
    expected = preference(user, np.array([row[1] for row in rows]), np.array([row[2] for row in rows]))
    assert found.preference == expected
    assert found.preference.wins + found.preference.losses > 30
    assert (found.variants, found.preferred, found.until_ms) == (("control", "wide"), "", end_ms)
    alone = [shown for shown in lists if not shown.teams and shown.at_ms + WINDOW <= end_ms]
    assert (found.alone, found.open) == (len(alone), sum(shown.at_ms + WINDOW > end_ms for shown in lists))
    assert found.open > 0
    assert "not known yet" in verdict(found), "six users are too few"
    assert f"{len(rows)} interleaved lists of 6 users" in preference_lines(found)[0]
    for path in write_preference(found, tmp_path):
        text = path.read_text()
        if path.suffix == ".json":
            assert msgspec.json.decode(text, type=PreferenceReport) == found
        else:
            assert text.startswith("# both\n\n**it is not known yet whether users prefer wide or control**")
    halfway = lists[len(lists) // 2].at_ms
    earlier = read_preference(log.log, EXPERIMENT, ["click"], window_ms=WINDOW, until_ms=halfway)
    assert earlier.preference.lists == sum(counts(shown, halfway) for shown in lists)


def test_lists_of_other_versions_and_too_few_users_are_told() -> None:
    log, _, _ = written(np.random.default_rng(3), 1.0)
    changed = msgspec.structs.replace(EXPERIMENT, salt="other")
    with pytest.raises(NobodyExposedError, match="0 users got interleaved lists that are 600 s old"):
        read_preference(log.log, changed, ["click"], window_ms=WINDOW)


def test_no_split_is_judged() -> None:
    log, _, _ = written(np.random.default_rng(4), 1.0)
    with pytest.raises(HeadwaterError, match="there is no split to judge"):
        judge(log.log, EXPERIMENT, [])
    (seen,) = guard(log.log, [EXPERIMENT], [], stop=lambda *_: pytest.fail("stopped"), before_ms=0)
    assert (seen.decision, seen.stopped, seen.problem) == ("continue", False, "")
    assert "interleaved" in seen.reasons[0]
