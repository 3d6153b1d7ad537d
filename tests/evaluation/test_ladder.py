"""The report on the tiers, against a loop over everything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from headwater.cli.main import build_app
from headwater.evaluation.ladder import measure_ladder
from headwater.log.commands import AppendServed, PutItems, ServedEntry
from headwater.log.record import Namespace
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.schema.requests import Address, ServedList
from headwater.serving.stages import STAGES
from headwater.testing.events import START_MS, Step, Written

WINDOW_MS = 600_000
CONFIG = Config()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[list[object]]:
    with capture_logs():
        yield []


def entry(log: Written, user: str | None, request: str, items: list[int], now_ms: int, walked: int) -> ServedEntry:
    served = ServedList(
        request_id=request, surface="home", items=items, scores=[0.0] * len(items), sources=["popular"] * len(items),
        tier=walked + (walked == 3), reasons=[], address=Address(1, 1, now_ms, "p", "b"), context=[0, 0, 0, 0],
        features=b"", walked=walked,
    )  # fmt: skip
    key = log.identity.lookup(user) if user is not None else None
    payload = msgspec.msgpack.encode(served)
    return ServedEntry(key.user, key.surrogate, payload) if key is not None else ServedEntry(0, 0, payload)


def test_the_report_is_what_a_loop_over_all_lists_and_events_says() -> None:
    rng = np.random.default_rng(5)
    log = Written(CONFIG)
    names = [f"i{n}" for n in range(12)]
    log.add([Step(START_MS, PutItems([Item(id=name) for name in names]))])
    log.add([Step(START_MS, [Event(user=f"u{u}", item="i0", type="impression") for u in range(6)])])
    lists: list[tuple[str, int, int, list[str]]] = []
    events: list[tuple[str, str, int]] = []
    now_ms = START_MS
    for r in range(300):
        now_ms += int(rng.exponential(60_000))
        user, walked = f"u{rng.integers(6)}", int(rng.choice([0, 0, 0, 1, 2, 3, 4]))
        shown = [str(name) for name in rng.choice(names, 3, replace=False)]
        stranger = rng.random() < 0.1
        numbers = [log.log.vocabulary().index(Namespace.ITEM, name) for name in shown]
        made = entry(log, None if stranger else user, f"r{r}", numbers, now_ms, walked)
        log.add([Step(now_ms, AppendServed([made]))] * (2 if rng.random() < 0.1 else 1))
        if not stranger:
            lists.append((user, walked, now_ms, shown))
        kind = str(rng.choice(["click", "view", "purchase", "skip"]))
        event = Event(user=user, item=str(rng.choice(names)), type=kind, time=now_ms + int(rng.integers(0, 30_000)))
        log.add([Step(now_ms + 30_000, [event])])
        if kind in ("click", "purchase"):
            assert event.time is not None
            events.append((user, event.item, event.time))
    report = measure_ladder(log.log, CONFIG, window_ms=WINDOW_MS)
    assert [line.walked for line in report.tiers] == [0, 1, 2, 3, 4]
    assert report.strangers == 300 - len(lists)
    for line in report.tiers:
        mine = [one for one in lists if one[1] == line.walked]
        taken = [
            any(u == user and i in shown and at < t <= at + WINDOW_MS for u, i, t in events)
            for user, _, at, shown in mine
        ]
        assert (line.lists, line.taken) == (len(mine), sum(taken))
        assert line.rate == pytest.approx(np.mean(taken))
        assert line.ci95[0] <= line.rate <= line.ci95[1]
        assert line.served == {str(line.walked + (line.walked == 3)): len(mine)}


def test_a_log_without_lists_says_what_to_do() -> None:
    with pytest.raises(HeadwaterError, match="no served list"):
        measure_ladder(Written(CONFIG).log, CONFIG, window_ms=WINDOW_MS)


def test_the_pipeline_describes_itself(tmp_path: Path) -> None:
    config = tmp_path / "headwater.toml"
    config.write_text(
        '[ladder]\ndeadline_ms = 80.0\n[ranker]\nkind = "deep"\n[fatigue]\nimpressions = 5\n[[surfaces]]\nname = "home"\n'
        'objective = {click = 2.0}\ndiversity = 0.3\nexploration = {share = 0.05}\nfatigue = {action = "drop"}\n'
    )
    runner = CliRunner()
    shown = runner.invoke(build_app(), ["pipeline", "show", "--config", str(config), "--json"])
    described = json.loads(shown.stdout.splitlines()[-1])
    assert [stage["name"] for stage in described["stages"]] == [stage.name for stage in STAGES]
    assert next(stage for stage in described["stages"] if stage["name"] == "deep_rank")["until_ms"] == 64.0
    assert [tier["number"] for tier in described["tiers"]] == [0, 1, 2, 3, 4]
    table = runner.invoke(build_app(), ["pipeline", "show", "--config", str(config)])
    assert table.exit_code == 0
    assert "deep_rank" in table.stdout
    said = " ".join(table.stdout.split())
    for words in ("2 × click", "drop after 5", "mmr 0.3", "0.05 of requests"):
        assert words in said
    assert described["surfaces"][0]["exploration"]["share"] == 0.05
