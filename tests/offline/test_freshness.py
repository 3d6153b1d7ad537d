"""Bundles that are renewed as the log goes on: what they learn from, when, and what is reported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from headwater.cli.local import make_site, write_world
from headwater.evaluation.freshness import FreshnessReport
from headwater.features.plan import compile_plan
from headwater.features.replay import stops
from headwater.learning.trainingset import newest, positive_types, positives
from headwater.log.lmdb import LmdbLog
from headwater.offline.evaluate import freshness
from headwater.offline.fit import Fitted, fit
from headwater.offline.renewal import RegularRenewal, Renewal
from headwater.offline.train import last_offset_before
from headwater.schema.config import Config, load_config
from headwater.schema.errors import ConfigurationError
from headwater.simulator import World
from headwater.simulator.history import POSITIVE

START_MS = 1_760_313_600_000
HOUR_MS = 3_600_000
SPLIT_MS = START_MS + 18 * HOUR_MS
WORLD = World(3, start_ms=START_MS, users=600, items=80, hours=24, visits_per_day=4.0)


def renewals(every_ms: int) -> int:
    """How often there is something new behind the split, every so often: visits may go on a little after the last hour."""
    history = WORLD.history()
    return int(history.time_ms[np.isin(history.type, POSITIVE)].max() - SPLIT_MS) // every_ms


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    made = make_site(
        tmp_path_factory.mktemp("renewed"),
        {
            "ranker": {"trees": 5, "leaves": 4, "negatives": 5, "max_rows": 1_000, "learn_from": "questions"},
            "sources.item_knn": {"enabled": True},
        },
    )
    write_world(made, WORLD, lambda _: None)
    return load_config(made.config), made.data


def measured(site: tuple[Config, Path], every: tuple[str, ...]) -> FreshnessReport:
    config, data = site
    with closing(LmdbLog(data / "log", readonly=True)) as log:
        return freshness(
            config, log, split_ms=SPLIT_MS, window="12h", every=every, questions="all", sample=0.3, seed=5, threads=1
        )


def test_all_answer_the_same_questions_and_say_what_it_cost(site: tuple[Config, Path]) -> None:
    report = measured(site, ("2h", "30m"))
    assert set(report.models) == {"recent_popularity", "never", "2h", "30m"}
    assert {found.questions for found in report.models.values()} == {report.n}
    assert set(report.over_once) == {"recent_popularity", "2h", "30m"}
    assert {name: cost.renewals for name, cost in report.costs.items()} == {
        "never": 0, "2h": renewals(2 * HOUR_MS), "30m": renewals(HOUR_MS // 2),
    }  # fmt: skip
    assert report.costs["never"].seconds_an_hour == 0.0
    assert 0.0 < report.costs["2h"].seconds_each < report.costs["2h"].seconds_an_hour * 6
    again = measured(site, ("2h",))
    assert again.models["2h"].ci95 == report.models["2h"].ci95, "the seed says it all, whoever else takes part"


def first_of(site: tuple[Config, Path], log: LmdbLog) -> Fitted:
    config, _ = site
    offset, last_ms = last_offset_before(log, SPLIT_MS)
    return fit(
        config, compile_plan(config), log, until=offset, start_ms=last_ms - 12 * HOUR_MS, seed=5, threads=1, warm={}
    )


def test_a_renewal_learns_from_the_newest_rows(site: tuple[Config, Path]) -> None:
    config, data = site
    plan = compile_plan(config)
    with closing(LmdbLog(data / "log", readonly=True)) as log:
        first = first_of(site, log)
        renewal = Renewal(config, plan, log, first, window_ms=3 * HOUR_MS, share=1.0, seed=5, threads=1)
        regular = RegularRenewal(renewal, every_ms=2 * HOUR_MS, split_ms=SPLIT_MS)
        view, positive, versions = first.view, positive_types(log, config), [regular.model]
        assert view.fold.offset == first.rows.data.last_offset
        last_ms = 0
        for block, i in stops(log, view.fold, lambda block: positives(block, positive)):
            regular.look(block, i, view)
            last_ms = int(block.records["received_ms"][i])
            if regular.model is not versions[-1]:
                versions.append(regular.model)
        assert len(versions) - 1 == regular.renewals == renewals(2 * HOUR_MS) >= 2
        assert last_ms > SPLIT_MS + 4 * HOUR_MS
        kept = renewal.rows
        assert config.ranker.max_rows - 6 < len(kept.features) <= config.ranker.max_rows
        assert kept.addresses.now_ms.min() > first.rows.addresses.now_ms.min(), "the oldest made room"
        assert SPLIT_MS < kept.addresses.now_ms.max() < SPLIT_MS + (2 * renewals(2 * HOUR_MS) + 1) * HOUR_MS
        assert (np.diff(kept.addresses.offset) >= 0).all(), "in order of time, none twice"
        assert int(kept.groups.sum()) == len(kept.features) == len(kept.labels) == len(kept.addresses.item)
        assert kept.labels.sum() == len(kept.groups)
        assert kept.features.shape[1] == len(first.sources.columns)


@pytest.mark.parametrize("more", [0, 7])
def test_the_newest_groups_stay_whole(site: tuple[Config, Path], more: int) -> None:
    with closing(LmdbLog(site[1] / "log", readonly=True)) as log:
        rows = first_of(site, log).rows
    old = int(rows.groups[len(rows.groups) - more :].sum())
    count = len(rows.features) + old + 1  # there is no group of one row
    both = newest([rows, replace(rows, features=rows.features + 1.0)], count)
    assert len(both.groups) == len(rows.groups) + more
    assert (both.features[-len(rows.features) :] == rows.features + 1.0).all()
    assert (both.features[:old] == rows.features[len(rows.features) - old :]).all()
    assert len(both.features) == len(rows.features) + old == len(both.labels) == len(both.addresses.item)
    assert len(newest([rows], count).groups) == len(rows.groups), "fewer than asked for: all of them"


def test_a_ranker_that_attends_is_not_renewed(site: tuple[Config, Path]) -> None:
    config, data = site
    with closing(LmdbLog(data / "log", readonly=True)) as log:
        first = first_of(site, log)
        attending = replace(first, ranker=replace(first.ranker, attends=True))
        with pytest.raises(ConfigurationError, match="attends to the recent sequence"):
            Renewal(config, compile_plan(config), log, attending, window_ms=1, share=1.0, seed=1, threads=1)
