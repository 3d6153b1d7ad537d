"""Scenarios: what they do to a world, and what is said of a wrong one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headwater.schema.errors import ConfigurationError
from headwater.simulator import Life, Scenario, World, load_scenario
from headwater.simulator.catalogue import HOUR_MS
from headwater.simulator.history import CLICK, IMPRESSION
from headwater.simulator.scenario import builtin_scenarios, parse_scenario
from headwater.simulator.traffic import WorldVisitors
from headwater.simulator.words import CATEGORIES

START_MS = 1_760_313_600_000
HEAD = 'name = "mine"\ndescription = "what I want to see"\n[[changes]]\n'


@pytest.fixture(scope="module")
def world() -> World:
    return World(7, start_ms=START_MS, users=300, items=400, hours=24)


def lived(world: World, change: str, hours: int) -> Life:
    life = Life(world, scenario=parse_scenario(HEAD + change, "mine.toml"), births_per_day=0.0)
    for hour in range(hours + 1):
        life.advance(life.start_ms + hour * HOUR_MS)
    return life


def test_the_built_in_ones_are_read_and_can_go_faster() -> None:
    names = builtin_scenarios()
    assert names == ["bot-attack", "new-item-flood", "outage", "taste-drift", "taste-turn", "viral-item"]
    for name in names:
        scenario = load_scenario(name)
        assert scenario.name == name
        assert scenario.description
        fast = scenario.faster(720.0)
        assert [change.at_ms for change in fast.changes] == [change.at_ms // 720 for change in scenario.changes]


def test_a_file_is_a_scenario_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(HEAD + 'kind = "viral-item"\nat = "0s"\n')
    assert load_scenario(str(path)).name == "mine"
    with pytest.raises(ConfigurationError, match=r"other\.toml: Cannot read"):
        load_scenario(str(tmp_path / "other.toml"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('kind = "viral"\nat = "1h"', r'changes\[0\]\.kind: There is no kind "viral", did you mean "viral-item"'),
        ('at = "1h"', r"changes\[0\]\.kind: Say a `kind`"),
        ('kind = "outage"\nat = "1h"\nlast = "3h"', r'Unknown key `changes\[0\]\.last`, did you mean "lasts"'),
        ('kind = "outage"\nat = "1 hour"\nlasts = "3h"\npart = "events"', r"changes\[0\]\.at: Expected a duration"),
        ('kind = "outage"\nat = "1h"\nlasts = "99999d"\npart = "events"', r"changes\[0\]\.lasts: Expected a duration"),
        ('kind = "outage"\nat = "1h"\nlasts = "3h"\npart = "all"', r"changes\[0\]\.part: Invalid enum value"),
        ('kind = "taste-drift"\nat = "1h"\nshare = 1.5\nstrength = 1.0', r"changes\[0\]\.share: Expected `float` <= 1"),
        (
            'kind = "taste-drift"\nat = "1h"\nshare = 1.0\nstrength = 1.0\ntoward = "Runing"',
            r'changes\[0\]\.toward: There is no category "Runing", did you mean "Running"',
        ),
    ],
)
def test_a_wrong_one_is_refused_with_the_place(change: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^mine\.toml: {said}"):
        parse_scenario(HEAD + change, "mine.toml")


def test_unknown_names_and_empty_files_are_refused() -> None:
    with pytest.raises(ConfigurationError, match='"viral", did you mean "viral-item"'):
        load_scenario("viral")
    with pytest.raises(ConfigurationError, match=r"mine\.toml: Not valid TOML"):
        parse_scenario("= 1", "mine.toml")
    with pytest.raises(ConfigurationError, match=r"mine\.toml: Object missing required field"):
        parse_scenario("", "mine.toml")


def test_tastes_drift(world: World) -> None:
    running = [c.name for c in CATEGORIES].index("Running")
    change = 'kind = "taste-drift"\nat = "1h"\nshare = 0.5\nstrength = 0.8\ntoward = "Running"'
    before, after = (lived(world, change, hours).people.tastes for hours in (0, 1))
    gained = after[:, running * 4 : running * 4 + 4].sum(axis=1) - before[:, running * 4 : running * 4 + 4].sum(axis=1)
    assert 0.35 < (gained > 0.3).mean() < 0.65


def test_an_item_goes_viral_and_is_forgotten(world: World) -> None:
    change = 'kind = "viral-item"\nat = "1h"\nstrength = 100.0\nhalf_life = "6h"'
    at, later = lived(world, change, 1), lived(world, change, 49)
    [viral] = at.trouble.viral
    assert at.burst[viral] == 100.0
    assert later.alive[viral]
    assert later.burst[viral] < 1.0
    user = np.array([viral])
    assert at.click_probability(1, user, at.now_ms, 0)[0] > 3 * later.click_probability(1, user, later.now_ms, 0)[0]


def test_a_flood_brings_items_of_one_poor_creator(world: World) -> None:
    life = lived(world, 'kind = "new-item-flood"\nat = "2h"\nlasts = "4h"\nitems = 50\nskill = -2.0', 8)
    new = np.flatnonzero(life.catalogue.born_ms > life.start_ms)
    assert len(new) == 50
    assert len(np.unique(life.catalogue.creator[new])) == 1
    assert life.catalogue.quality[new].mean() < -0.5
    assert life.catalogue.born_ms[new].min() >= life.start_ms + 2 * HOUR_MS
    assert life.catalogue.born_ms[new].max() <= life.start_ms + 6 * HOUR_MS


def test_bots_click_what_people_do_not_like(world: World) -> None:
    text = HEAD + 'kind = "bot-attack"\nat = "1h"\nlasts = "3h"\nbots = 20\nclicks_per_hour = 10.0\nitems = 2\n'
    life = Life(world, scenario=parse_scenario(text, "mine.toml"), births_per_day=0.0)
    events = [life.advance(life.start_ms + hour * HOUR_MS).events for hour in range(7)]
    assert [part is not None for part in events] == [False, False, True, True, True, False, False]
    clicks = sum(int((part.type == CLICK).sum()) for part in events if part is not None)
    assert 450 < clicks < 750
    for part in events:
        if part is not None:
            assert (part.user >= life.humans).all()
            assert (part.type == IMPRESSION).sum() == (part.type == CLICK).sum()
            assert set(part.item.tolist()) <= set(life.trouble.attacked)
            assert (np.diff(part.time_ms) >= 0).all()
    assert life.catalogue.quality[life.trouble.attacked].max() < np.quantile(life.catalogue.quality, 0.05)
    assert (life.arrivals(life.now_ms + HOUR_MS).user < life.humans).all()


def outages() -> Scenario:
    part = 'kind = "outage"\nat = "{at}"\nlasts = "1h"\npart = "{part}"\n'
    return parse_scenario(
        HEAD + part.format(at="1h", part="events") + "[[changes]]\n" + part.format(at="3h", part="serving"), "o"
    )


def test_an_outage_is_there_as_long_as_it_lasts(world: World) -> None:
    life = Life(world, scenario=outages())
    parts = [life.outage(life.start_ms + half * HOUR_MS // 2) for half in range(9)]
    assert parts == ["", "", "events", "events", "", "", "serving", "serving", ""]


def test_visitors_suffer_an_outage(world: World) -> None:
    visitors, rng = WorldVisitors(world, scenario=outages()), np.random.default_rng(1)
    shown = [item.id for item in world.catalogue.items[:10]]

    def visit(hour: float) -> int:
        user, _ = visitors.arrive(rng)
        return len(visitors.respond(rng, user, shown, world.end_ms + round(hour * HOUR_MS), "r"))

    assert visit(0.5) >= 10
    assert visit(1.5) == visit(1.6) == 0  # events are on their way
    assert visit(2.5) >= 30
    assert visit(3.5) == 0  # nobody sees anything
    assert visit(4.5) >= 10
