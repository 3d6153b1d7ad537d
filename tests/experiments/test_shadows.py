"""What a shadow would have shown, against a loop over everything that was written."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from scipy.stats import ttest_1samp

from headwater.experiments import credits as reading
from headwater.experiments import shadows as counted
from headwater.experiments.definitions import Experiment, parse_experiment
from headwater.experiments.guard import guard
from headwater.experiments.judge import NobodyExposedError
from headwater.experiments.shadows import (
    mean_of_users,
    read_shadows,
    shadow_lines,
    shadow_verdict,
    write_shadows,
)
from headwater.log.commands import AppendServed, AppendShadows, PutItems, ServedEntry
from headwater.log.record import Namespace
from headwater.schema.config import Config
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.schema.requests import Address, ServedList, ShadowList
from headwater.testing.events import START_MS, Step, Written

WINDOW = 600_000
NAMES = [f"i{n}" for n in range(8)]
SHADOW = parse_experiment(
    """
name = "next"
status = "running"
shadow = 0.5
[[variants]]
name = "control"
[[variants]]
name = "wide"
set = {"ranker.candidates" = 400}
""",
    "test",
)


def listed(log: Written, request: str, at_ms: int, items: list[str], tier: int = 0) -> ServedList:
    numbers = [log.log.vocabulary().index(Namespace.ITEM, item) for item in items]
    return ServedList(
        request_id=request, surface="home", items=numbers, scores=[0.0] * len(items), sources=["popular"] * len(items), tier=tier,
        reasons=[], address=Address(1, 1, at_ms, "p", "b"), context=[0, 0, 0, 0], features=b"",
    )  # fmt: skip


def entry(log: Written, user: str, payload: ServedList | ShadowList) -> ServedEntry:
    key = log.identity.lookup(user) if user else None
    return ServedEntry(*((0, 0) if key is None else (key.user, key.surrogate)), msgspec.msgpack.encode(payload))


def shadow(log: Written, user: str, answer: ServedList, of: Experiment = SHADOW, version: str = "") -> Step:
    record = ShadowList(of.name, "wide", version or of.version, answer)
    return Step(log.now_ms, AppendShadows([entry(log, user, record)]))


@pytest.mark.parametrize("seed", [1, 2])
def test_the_report_is_what_a_loop_over_the_log_counts(
    seed: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(reading, "READ_LIMIT", 37)
    rng, log = np.random.default_rng(seed), Written(Config())
    log.add([Step(START_MS, PutItems([Item(id=name) for name in NAMES]))])
    log.add([Step(START_MS, [Event(user=f"u{n}", item="i0", type="view") for n in range(5)])])
    now_ms, given, clicks = (
        START_MS + 1,
        list[tuple[str, int, list[str], list[str], bool, bool]](),
        list[tuple[str, int, str]](),
    )
    for r in range(90):
        now_ms += int(rng.integers(1, WINDOW // 4))
        user = "" if rng.random() < 0.1 else f"u{rng.integers(5)}"
        items, theirs = (rng.permutation(NAMES)[:4].tolist() for _ in range(2))
        full, asked, tier = bool(rng.random() < 0.9), bool(rng.random() < 0.6), int(rng.random() < 0.1)
        own = listed(log, f"r{r}", now_ms, items, 0 if full else 2)
        log.add([Step(now_ms, AppendServed([entry(log, user, own)]))])
        if asked:
            log.add([shadow(log, user, listed(log, f"r{r}", now_ms, theirs, tier))] * (2 if rng.random() < 0.2 else 1))
            log.add([shadow(log, user, listed(log, f"r{r}", now_ms, items), version="0" * 16)])
        given.append((user, now_ms, items, theirs, asked, asked and full and not tier))
        for item in items:
            if user and rng.random() < 0.3:
                time = now_ms + int(rng.integers(0, 2 * WINDOW))
                log.add([Step(now_ms + 1, [Event(user=user, item=item, type="click", time=time)])])
                clicks.append((user, time, item))
    end_ms = log.log.last_received_ms
    found = read_shadows(log.log, SHADOW, ["click"], window_ms=WINDOW)
    (wide,) = found.variants

    taken: set[tuple[int, str]] = set()
    for user, time, item in clicks:
        before = [n for n, one in enumerate(given) if one[0] == user and one[1] <= time and item in one[2]]
        if before and time < given[before[-1]][1] + WINDOW:
            taken.add((before[-1], item))
    over = [n for n, one in enumerate(given) if one[1] + WINDOW <= end_ms and one[5]]
    ranks = [
        (given[n][2].index(item) + 1, given[n][3].index(item) + 1 if item in given[n][3] else 0)
        for n in over for item in given[n][2] if (n, item) in taken
    ]  # fmt: skip
    assert wide.lists == len(over)
    assert wide.overlap is not None
    assert wide.overlap.value == pytest.approx(np.mean([len({*given[n][2]} & {*given[n][3]}) / 4 for n in over]))
    assert wide.clicked == len(ranks) > 20
    assert (wide.higher, wide.same) == (sum(0 < b < a for a, b in ranks), sum(a == b for a, b in ranks))
    assert (wide.lower, wide.lost) == (sum(b > a for a, b in ranks), sum(not b for _, b in ranks))
    assert wide.difference is not None
    assert wide.difference.value == pytest.approx(np.mean([(1 / b if b else 0.0) - 1 / a for a, b in ranks]))
    assert wide.difference.ci95 is not None
    assert wide.difference.ci95[0] < wide.difference.value < wide.difference.ci95[1]
    asked_late = sum(one[1] + WINDOW > end_ms and one[4] for one in given)
    assert found.open == asked_late > 0

    lines = shadow_lines(found)
    assert any(f"of {len(ranks)} clicked items it would have given" in line for line in lines)
    assert "no proof that they are worse" in shadow_verdict(found)
    assert [path.name for path in write_shadows(found, tmp_path)] == ["report.json", "report.md"]
    assert lines[0] in (tmp_path / "report.md").read_text()
    assert guard(log.log, [SHADOW], [], stop=lambda *_: None, before_ms=0)[0].reasons == ["a shadow: nobody gets its lists, so there is nothing to guard"]  # fmt: skip


def test_the_interval_takes_users_as_what_was_sampled() -> None:
    values = np.random.default_rng(3).normal(size=40)
    alone = mean_of_users(values.tolist(), list(range(40)))
    assert alone is not None
    assert alone.ci95 == pytest.approx(tuple(ttest_1samp(values, 0.0).confidence_interval()))
    thrice = mean_of_users(np.tile(values, 3).tolist(), list(range(40)) * 3)
    assert thrice is not None
    assert thrice.ci95 == pytest.approx(alone.ci95), "saying everything three times proves nothing more"
    assert mean_of_users([1.0, 2.0], [4, 4]) == counted.MeanOfUsers(1.5, None)
    assert mean_of_users([], []) is None


def test_without_a_list_there_is_no_report() -> None:
    log = Written(Config())
    log.add([Step(START_MS, PutItems([Item(id=name) for name in NAMES]))])
    with pytest.raises(NobodyExposedError, match="none of its lists in the log is 600 s old"):
        read_shadows(log.log, SHADOW, ["click"], window_ms=WINDOW)
