"""The judgements of drift on sites that are well, in short: nothing is said of these, a fault is found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.reliability.alarms import (
    SMALL,
    OfBundle,
    OfSlice,
    OfSurfaces,
    Tally,
    Trial,
    Watch,
    clopper_pearson,
    dead,
    watched,
)
from tests.reliability.healthy import Fault

BUSY = replace(SMALL, click_rate=0.06, lists=1_200)


@pytest.mark.parametrize(
    ("watch", "fault", "judgement"),
    [
        (OfBundle, Fault(clicks=0.1), "label-click"),
        (OfSlice, Fault(crowd=3.0), "slice-crowding"),
        (OfSurfaces, Fault(clicks=0.2, surface="item"), "surface-click@item"),
    ],
)
def test_nothing_is_said_of_a_site_that_is_well(watch: type[Watch], fault: Fault, judgement: str) -> None:
    tally = Tally()
    watched(Trial(watch, (), (("fault", fault, (judgement,)),), 2), BUSY, 7, 1, tally)
    counted = tally.counted()
    assert all(one.windows >= 5 and one.alarms == 0 for one in counted.values())
    (found,) = counted[judgement.partition("@")[0]].found["fault"].values()
    assert (found.found, found.trials) == (1, 1)


def test_columns_are_dead_where_they_are() -> None:
    tally = Tally()
    dead(0.5, 1_000, range(24), 20, 1, tally)
    counted = tally.counted()["feature-dead"]
    assert counted.windows >= 5
    assert counted.alarms == 0
    assert counted.found["noise dead"]["50% strangers"].found == 1


def test_an_interval_covers_what_it_should() -> None:
    assert clopper_pearson(0, 1_000) == pytest.approx((0.0, 0.00368), abs=1e-5)
    assert clopper_pearson(10, 1_000) == pytest.approx((0.00480, 0.01831), abs=1e-5)
    assert clopper_pearson(5, 5)[1] == 1.0
