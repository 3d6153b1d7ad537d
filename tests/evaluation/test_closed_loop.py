"""The closed loop, and the acceptance test of the product: it has to make people more content than a popular list does.

This is the one test that may take longer than ten seconds: it lives through days with the whole product.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from headwater.cli.main import build_app
from headwater.evaluation.closed_loop import POLICIES, Sizes, closed_loop, delayed
from headwater.evaluation.closed_loop.compare import START_MS, ClosedLoopReport
from headwater.evaluation.closed_loop.estimates import impressions_to_know
from headwater.evaluation.closed_loop.figures import figures_of, versus
from headwater.evaluation.closed_loop.report import write_closed_loop
from headwater.evaluation.closed_loop.run import SUMS, Ledger, run_policy
from headwater.evaluation.closed_loop.system import Start, System
from headwater.log.record import Kind
from headwater.schema.errors import ConfigurationError
from headwater.simulator import Life, World
from headwater.simulator.catalogue import HOUR_MS, NEVER
from headwater.simulator.scenario import parse_scenario

SMALL = Sizes(users=120, items=200, days=3, births=12.0, impressions=5)
TINY = Sizes(users=50, items=80, days=2, births=6.0, impressions=3)
MARGIN = 0.01  # of satisfaction, 0 to 1: the interval begins at 0.036, two standard errors of it above


@pytest.fixture(scope="module")
def accepted() -> ClosedLoopReport:
    # so small a world has too few lists for "auto"
    lists = replace(POLICIES["headwater"], learns="lists")
    return closed_loop(SMALL, [1, 2, 3], [POLICIES["popular"], lists, POLICIES["on-questions"]])


@pytest.mark.parametrize("full", ["headwater", "on-questions"])
def test_the_product_makes_people_more_content_than_popular_lists_do(accepted: ClosedLoopReport, full: str) -> None:
    """Not on average alone: the whole interval lies above the margin, whatever the ranker learns from."""
    found = accepted.over_popular[full]
    assert found.ci95["satisfaction"][0] > MARGIN, accepted
    assert found.ci95["regret"][1] < -0.02
    assert accepted.policies[full].coverage > accepted.policies["popular"].coverage
    assert accepted.policies[full].gini < accepted.policies["popular"].gini


def test_every_figure_has_its_interval(accepted: ClosedLoopReport) -> None:
    for name, each in accepted.policies.items():
        assert each.says == POLICIES[name].says
        for metric, (low, high) in each.ci95.items():
            assert low <= getattr(each, metric) + 1e-5
            assert getattr(each, metric) <= high + 1e-5
        assert len(each.by_seed) == 3
        assert len(each.by_day) == SMALL.days
        assert each.lists > 500
        assert each.new_items > 20
    assert accepted.policies["popular"].ci95["satisfaction"] != accepted.policies["headwater"].ci95["satisfaction"]


def test_the_report_is_written_and_read_again(accepted: ClosedLoopReport, tmp_path: Path) -> None:
    paths = write_closed_loop(accepted, tmp_path / "new")
    assert [path.name for path in paths] == [
        "closed-loop.json", "closed-loop.md", "closed-loop.svg", "closed-loop-days.svg",
    ]  # fmt: skip
    assert msgspec.json.decode(paths[0].read_bytes(), type=ClosedLoopReport) == accepted
    text = paths[1].read_text()
    assert "| popular |" in text
    assert "| headwater | +" in text
    assert all(path.read_text().startswith("<svg") for path in paths[2:])


def test_the_same_arguments_give_the_same_figures_and_late_events_other_ones() -> None:
    def run() -> ClosedLoopReport:
        return closed_loop(TINY, [5], [], [delayed("0s"), delayed("1d")])

    first, again = run(), run()
    assert msgspec.structs.replace(first, seconds=0.0) == msgspec.structs.replace(again, seconds=0.0)
    assert set(first.over_first_delay) == {"1d late"}
    assert first.delays["0s late"].by_day != first.delays["1d late"].by_day


def test_scenarios_reach_the_product() -> None:
    """Bots fool a popular list, and while serving is out nobody gets any."""
    text = """
    name = "trouble"
    description = "bots all the time, no lists on the second day"
    [[changes]]
    kind = "bot-attack"
    at = "0s"
    lasts = "48h"
    bots = 20
    clicks_per_hour = 10.0
    [[changes]]
    kind = "outage"
    at = "12h"
    lasts = "6h"
    part = "events"
    [[changes]]
    kind = "outage"
    at = "24h"
    lasts = "24h"
    part = "serving"
    """
    start = Start(World(5, start_ms=START_MS, users=50, items=80, hours=24, visits_per_day=1.5))
    life = Life(start.world, seed=5, births_per_day=6.0)
    lasting = np.flatnonzero(life.alive & (life.catalogue.expires_ms == NEVER))
    worst = lasting[np.argsort(life.catalogue.quality[lasting], kind="stable")[:3]]
    found = run_policy(
        POLICIES["popular"], start, seed=5, days=2, births_per_day=6.0, share=0.0, scenario=parse_scenario(text, "here")
    )  # fmt: skip
    assert found.sums["visits"].sum(axis=0).min() > 10
    assert found.sums["lists"].sum(axis=0)[1] == 0.0
    assert found.sums["satisfaction"].sum(axis=0)[1] == 0.0
    assert found.sums["lists"].sum(axis=0)[0] > 20
    assert found.shown[worst].sum() > 2 * len(worst) * found.shown[found.eligible].mean()


def ledger(satisfaction: list[float], visits: list[float]) -> Ledger:
    sums = {name: np.ones((len(visits), 4)) for name in SUMS}
    sums["satisfaction"] = np.array(satisfaction)[:, None] * np.ones((1, 4))
    sums["visits"] = np.array(visits)[:, None] * np.array([[1.0, 1.0, 0.0, 1.0]])
    sums["best"] = np.full((len(visits), 4), 4.0)
    born = {2: 0, 3: 0, 4: 80 * HOUR_MS}
    new = {2: [HOUR_MS, 2 * HOUR_MS], 3: [HOUR_MS]}
    return Ledger(
        sums, np.array([6, 0, 2, 1, 0]), new, born, eligible=np.ones(5, np.bool_), end_ms=96 * HOUR_MS, to_know=1
    )


def test_figures_by_hand() -> None:
    found = figures_of("x", [ledger([1.5, 0.75], [2.0, 1.0]), ledger([0.75, 0.0], [1.0, 0.0])], 2)
    assert found.satisfaction == pytest.approx(4 * 3.0 / 12.0)
    assert found.regret == pytest.approx(0.75)
    assert found.ctr == 1.0
    assert found.visits == pytest.approx((2 + 1 + 1) * 3 / 16)
    assert found.returning == 1.0  # who came in the first two days came in the last two; one never came
    assert found.new_shown == 0.5  # the third one is too young to tell
    assert found.new_hours == pytest.approx((2 + 48) / 2)
    assert found.new_known == 1.0
    assert found.known_hours == 1.0
    assert found.coverage == pytest.approx(3 / 5)
    assert found.gini == pytest.approx((-4 * 0 - 2 * 0 + 0 * 1 + 2 * 2 + 4 * 6) / (5 * 9))
    assert found.new_items == 4
    assert found.by_seed == [1.0, 1.0]
    ours = [ledger([1.5, 0.75], [2.0, 1.0])]
    assert versus(ours, ours).ci95["satisfaction"] == (0.0, 0.0)


def test_so_many_impressions_tell_items_apart_as_well_as_chance_does() -> None:
    """Of rates that are drawn from the true chances, half of the variance is that of the true rates."""
    life = Life(World(4, start_ms=START_MS, users=150, items=400, hours=12))
    n = impressions_to_know(life, k=10, seed=4)
    items, draws = np.flatnonzero(life.alive), np.random.default_rng(1)
    chance = np.stack([life.click_probability(user, items, life.start_ms, -1) for user in range(life.humans)])
    true = chance.mean(axis=0) * np.mean(0.92 ** np.arange(10))
    shown = draws.binomial(n, true, (200, len(items))) / n
    reliability = np.mean([np.corrcoef(true, rates)[0, 1] ** 2 for rates in shown])
    assert 0.4 < reliability < 0.6


def test_events_reach_the_log_when_they_arrive_with_the_time_at_which_they_happened() -> None:
    world = World(3, start_ms=START_MS, users=50, items=80, hours=12)
    system = System(POLICIES["popular"], Start(world), seed=1, share=0.0)
    life = Life(world)
    before, now_ms = system.log.last_offset, life.start_ms + HOUR_MS
    system.catch_up(life, now_ms)
    shown = system.recommend(life, 3, 0, 0, 10, now_ms)
    assert len(set(shown.tolist())) == 10
    assert life.alive[shown].all()
    part = world.history().take(slice(0, 5))
    system.hear(part, now_ms + 600_000)
    system.catch_up(life, now_ms + 599_999)
    assert system.log.last_offset == before + 1  # the list alone
    system.catch_up(life, now_ms + 600_000)
    block = system.log.read(before)
    assert block is not None
    assert block.records["kind"].tolist() == [Kind.SERVED] + [Kind.EVENT] * 5
    assert block.records["received_ms"][1:].tolist() == [now_ms + 600_000] * 5
    assert block.records["time_ms"][1:].tolist() == part.time_ms.tolist()
    assert system.fold.offset == system.log.last_offset
    system.close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--policies", "populer"], 'There is no policy "populer", did you mean "popular"'),
        (["--policies", ""], "nothing to compare"),
        (["--seeds", "one"], "--seeds: Expected whole numbers"),
        (["--delays", "soon"], "Expected a duration"),
        (["--scenario", "flood"], 'There is no scenario "flood"'),
    ],
)
def test_wrong_words_are_refused(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(build_app(), ["closed-loop", *arguments])
    assert isinstance(result.exception, ConfigurationError)
    assert said in str(result.exception)
