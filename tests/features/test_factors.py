"""Online factors: what the fold learns from them, and what it does not. Their numbers are compared with the slow fold's wherever states are."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from headwater.features.assemble import anchor_user
from headwater.features.declare import read
from headwater.features.factors import RING
from headwater.features.fold import Fold
from headwater.features.plan import Plan, compile_plan
from headwater.features.wording import column_in_words, entity_of, kind_of
from headwater.log.commands import EraseUsers, Login
from headwater.log.record import Namespace
from headwater.schema.config import Config, EventType, Factors, Features
from headwater.schema.errors import ConfigurationError
from headwater.schema.events import Event
from headwater.schema.segments import Segments
from headwater.testing.events import START_MS, Step, Written
from tests.features.states import assembled, folded

CONFIG = Config(
    features=Features(factors=Factors(size=8, negatives=10)),
    segments=Segments(keys=("country",)),
    events=(EventType(name="click", positive=True, weight=1.0), EventType(name="view", sequence=True)),
)
PLAN = compile_plan(CONFIG)
COLUMNS = ("factors", "factors_recent", "factors_segments", "factors_user")
MINUTE_MS = 60_000


def click(user: str, item: str, at_ms: int, country: str = "", **more: object) -> Event:
    said = {"country": country} if country else None
    return msgspec.convert(
        {"user": user, "item": item, "type": "click", "time": at_ms, "attributes": said, **more}, Event
    )


def factors(
    fold: Fold, log: Written, user: str, items: list[str], country: str = "", plan: Plan = PLAN
) -> npt.NDArray[np.float32]:
    """``float32[items, 4]``: the columns of factors, at the moment after the last event."""
    segment = log.log.vocabulary().index(Namespace.SEGMENT, f"country={country}") if country else 0
    row = fold.users.user(log.user(user))
    made = assembled(plan, fold, row, log.items(*items), (segment, 0), log.now_ms)
    return made[:, [plan.columns.index(name) for name in COLUMNS]]


def two_tastes(visits: int = 400) -> Written:
    """Visitors of two countries: each country clicks on items of its own, ``a…`` and ``b…``, and goes on from each item to the next."""
    log = Written(CONFIG)
    rng = np.random.default_rng(3)
    at_ms = START_MS
    for visit in range(visits):
        country = "ab"[visit % 2]
        first = int(rng.integers(0, 6))
        for step in range(3):
            at_ms += MINUTE_MS // 4
            log.add([Step(at_ms, [click(f"visitor {visit}", f"{country}{(first + step) % 6}", at_ms, country)])])
    return log


def test_lifts_are_learnt_of_segments_and_of_what_comes_next() -> None:
    log = two_tastes()
    at_ms = log.now_ms + MINUTE_MS
    log.add([Step(at_ms, [click("guest", "a0", at_ms)])])
    fold = folded(PLAN, log)
    items = [*(f"a{k}" for k in range(1, 6)), *(f"b{k}" for k in range(1, 6))]
    here = factors(fold, log, "guest", items, "a")
    assert here[:5, 2].min() > here[5:, 2].max() + 0.5, "a country's own items are likelier there"
    assert here[:5, 1].argmax() == 0, "a1 comes after a0"
    np.testing.assert_allclose(here[:, 0], here[:, 1:].sum(axis=1), atol=1e-5)
    abroad = factors(fold, log, "guest", items, "b")
    assert abroad[5:, 2].min() > abroad[:5, 2].max() + 0.5
    np.testing.assert_array_equal(here[:, 1], abroad[:, 1])


def test_a_hidden_layer_learns_where_a_region_goes_on_from_an_item() -> None:
    """Six countries, six first items, and for each two of them one that is next: no sum of a country's vector and an item's says that."""
    onward = np.random.default_rng(1).integers(0, 6, (6, 6))
    right = {}
    for hidden in (0, 32):
        config = msgspec.structs.replace(
            CONFIG,
            features=Features(
                factors=Factors(size=8, hidden=hidden, negatives=10, learning_rate=0.3, regularisation=0.0)
            ),
        )
        plan, log = compile_plan(config), Written(config)
        rng, at_ms = np.random.default_rng(4), START_MS
        for visit in range(6000):
            country, first, last = rng.integers(6), rng.integers(6), rng.integers(60)
            for item in (f"first {first}", f"next {onward[country, first]}", f"last {last}"):
                at_ms += 1000
                log.add([Step(at_ms, [click(f"visitor {visit}", item, at_ms, f"c{country}")])])
        log.add([Step(at_ms, [click(f"guest {first}", f"first {first}", at_ms) for first in range(6)])])
        fold, items = folded(plan, log), [f"next {k}" for k in range(6)]
        likeliest = [
            [factors(fold, log, f"guest {first}", items, f"c{country}", plan)[:, 0].argmax() for first in range(6)]
            for country in range(6)
        ]
        right[hidden] = (np.array(likeliest) == onward).mean()
    assert right[32] > right[0] + 0.15, right


def test_what_a_score_tends_to_is_the_log_of_how_much_likelier_an_item_is() -> None:
    """Two countries, one event a visit each; in country a item x is taken with 0.6, in b with 0.2, so by 0.4 of everybody."""
    config = msgspec.structs.replace(
        CONFIG, features=Features(factors=Factors(size=4, negatives=30, learning_rate=0.03, regularisation=0.0))
    )
    plan, log = compile_plan(config), Written(config)
    rng = np.random.default_rng(5)
    at_ms = START_MS
    for visit in range(12_000):
        at_ms += 1000
        country = "ab"[visit % 2]
        item = "x" if rng.random() < (0.6 if country == "a" else 0.2) else f"other {rng.integers(0, 4)}"
        log.add([Step(at_ms, [click(f"visitor {visit}", item, at_ms, country)])])
    fold = folded(plan, log)
    for country, share in (("a", 0.6), ("b", 0.2)):
        found = factors(fold, log, "stranger", ["x"], country, plan)[0, 2]
        assert found == pytest.approx(math.log(share / 0.4), abs=0.2), country


def test_a_user_has_a_vector_of_their_own() -> None:
    log = two_tastes()
    for visit in range(30):
        at_ms = log.now_ms + 24 * 60 * MINUTE_MS
        log.add([Step(at_ms, [click("fan", f"b{visit % 6}", at_ms)])])
    items = [*(f"a{k}" for k in range(6)), *(f"b{k}" for k in range(6))]
    fan = factors(folded(PLAN, log), log, "fan", items)
    assert fan[6:, 3].mean() > fan[:6, 3].mean() + 0.1
    assert not factors(folded(PLAN, log), log, "stranger", items)[:, 3].any()


@pytest.mark.parametrize(
    "event",
    [
        msgspec.convert({"user": "u", "item": "a1", "type": "view", "time": START_MS}, Event),
        click("u", "a1", START_MS, retract=True),
    ],
    ids=["not positive", "retracted"],
)
def test_only_positive_events_that_stand_teach(event: Event) -> None:
    log = two_tastes(20)
    before = learnt(folded(PLAN, log))
    assert learnt(folded(PLAN, log.add([Step(log.now_ms + 1, [event])]))) == before


def test_what_is_tried_out_teaches_nothing() -> None:
    log = two_tastes(20)
    before = learnt(folded(PLAN, log))
    log.add([Step(log.now_ms + 1, [click("operator", "a1", log.now_ms)], trial=True)])
    assert learnt(folded(PLAN, log)) == before


def test_an_item_that_the_visit_holds_already_teaches_nothing() -> None:
    log = two_tastes(20)
    at_ms = log.now_ms + MINUTE_MS
    log.add([Step(at_ms, [click("u", "a0", at_ms), click("u", "a1", at_ms)])])
    before = vectors(folded(PLAN, log))
    log.add([Step(at_ms + 1, [click("u", "a0", at_ms + 1)])])
    np.testing.assert_array_equal(vectors(folded(PLAN, log)), before)


def vectors(fold: Fold) -> npt.NDArray[np.float32]:
    """Every block of every item row."""
    return fold.items.rows.f4[: fold.items.count, PLAN.factors.item_f4 :].copy()


def learnt(fold: Fold) -> tuple[bytes, bytes]:
    at = PLAN.factors.item_u4
    return vectors(fold).tobytes(), fold.items.rows.u4[: fold.items.count, at : at + 2].tobytes()


def test_negatives_are_drawn_from_the_latest_events_alone() -> None:
    log = Written(CONFIG)
    for n in range(RING + 40):
        log.add([Step(START_MS + n, [click(f"u{n}", f"i{n}", START_MS + n)])])
    fold = folded(PLAN, log)
    at = PLAN.factors.item_u4
    ring = fold.items.rows.u4[1 : 1 + RING, at]
    assert fold.items.rows.u4[0, at : at + 2].tolist() == [RING + 40, log.item(f"i{RING + 39}")]
    assert log.item(f"i{RING + 39}") in ring
    assert not fold.items.rows.u4[1 + RING : fold.items.count, at].any()


def test_a_row_that_was_anchored_is_about_its_item() -> None:
    log = two_tastes()
    fold = folded(PLAN, log)
    items = [f"a{k}" for k in range(1, 6)]
    clicked, row = fold.users.user(0), fold.users.user(0)
    anchor_user(row, log.item("a0"), PLAN.layout)
    about = assembled(PLAN, fold, row, log.items(*items), (0, 0), log.now_ms)
    nothing = assembled(PLAN, fold, clicked, log.items(*items), (0, 0), log.now_ms)
    at = PLAN.columns.index("factors_recent")
    assert about[:, at].argmax() == 0, "a1 comes after a0"
    assert not nothing[:, at].any()


def test_at_login_the_vector_that_learnt_more_stays_and_erasure_leaves_none() -> None:
    log = two_tastes(100)
    for n in range(12):
        at_ms = log.now_ms + 24 * 60 * MINUTE_MS
        log.add(
            [Step(at_ms, [click("anonymous", f"a{n % 6}", at_ms), *([click("member", "b0", at_ms)] if n == 0 else [])])]
        )
    own = slice(PLAN.factors.user_f4, PLAN.factors.user_f4 + 9)
    before = folded(PLAN, log).users.user(log.user("anonymous")).f4[own].copy()
    log.add([Step(log.now_ms + 1, Login("anonymous", "member"))])
    np.testing.assert_array_equal(folded(PLAN, log).users.user(log.user("member")).f4[own], before)
    member = log.user("member")
    log.add([Step(log.now_ms + 1, EraseUsers(["member"]))])
    assert not folded(PLAN, log).users.user(member).f4.any()


def test_words_for_the_columns() -> None:
    columns = {column.name: column for column in PLAN.declared if column.name in COLUMNS}
    assert {name: entity_of(column) for name, column in columns.items()} == {
        "factors": "user × item × request", "factors_recent": "user × item", "factors_segments": "item × request", "factors_user": "user × item",
    }  # fmt: skip
    assert all(
        kind_of(column) == "online factors" and "factors" in column_in_words(column) for column in columns.values()
    )


def test_a_feature_that_reads_factors_needs_some() -> None:
    with pytest.raises(
        ConfigurationError, match=r'feature "mine" reads online factors, and none are kept: set features\.factors\.size'
    ):
        compile_plan(Config(), (read("mine", "factors_user"),))


def test_a_plan_without_factors_is_the_one_that_it_always_was() -> None:
    without = compile_plan(Config())
    assert (
        without.hash
        == compile_plan(msgspec.structs.replace(Config(), features=Features(factors=Factors(negatives=3)))).hash
    )
    kept = [
        compile_plan(msgspec.structs.replace(Config(), features=Features(factors=each)))
        for each in (Factors(size=4), Factors(size=4, negatives=3))
    ]
    assert len({without.hash, *(plan.hash for plan in kept)}) == 3
