"""Assignment: sticky, uniform, independent between layers, exclusive inside one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from headwater.experiments.assignment import Acting, Assigner, Choice, arm_of, arms_of, bucket_of, variant_of
from headwater.experiments.definitions import Experiment, Variant, hashed_id
from headwater.experiments.layers import with_buckets
from tests.experiments.test_definitions import of, running

USERS = [f"user-{n}" for n in range(20_000)]


def everywhere(*experiments: Experiment) -> Assigner:
    return Assigner([Acting(each, None) for each in experiments])


def chosen(assigner: Assigner, experiment: str, users: list[str], surface: str = "home") -> dict[str, str]:
    """The variant of each of ``users`` who takes part in ``experiment``."""
    found = {user: assigner.choose(user, surface) for user in users}
    return {u: c.variant for u, choices in found.items() for c in choices if c.experiment == experiment}


def test_buckets_and_variants_are_uniform() -> None:
    """Chi-squared with 99 and 3 degrees of freedom, far above what chance does; the users are fixed."""
    counts = np.bincount([bucket_of("main", user) // 100 for user in USERS], minlength=100)
    assert ((counts - 200) ** 2 / 200).sum() < 150
    weights = (1.0, 2.0, 1.0, 4.0)
    variants = [Variant(name=f"v{n}", weight=w, set_={"ranker.candidates": n + 1}) for n, w in enumerate(weights)]
    variants[0] = Variant(name="v0", weight=1.0)
    experiment = replace(running("one", 1.0), variants=tuple(variants))
    found = [int(variant_of(experiment, user)[1]) for user in USERS]
    expected = np.array(weights) / 8 * len(USERS)
    assert ((np.bincount(found, minlength=4) - expected) ** 2 / expected).sum() < 17


def test_layers_and_successive_experiments_are_independent() -> None:
    one, two = running("one", 1.0), running("two", 1.0, layer="other")
    after = running("after", 1.0)
    mine, theirs, later = (
        np.array([variant_of(each, user) == "v1" for user in USERS], np.float64) for each in (one, two, after)
    )
    buckets = np.array([[bucket_of("main", user), bucket_of("other", user)] for user in USERS], np.float64)
    for a, b in ((mine, theirs), (mine, later), (buckets[:, 0], buckets[:, 1]), (buckets[:, 0], mine)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4.5 / len(USERS) ** 0.5


@given(st.text(min_size=1, max_size=20), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_who_is_in_stays_in_and_keeps_their_variant(user: str, first: float, second: float) -> None:
    low, high = sorted((first, second))
    small = running("one", low)
    large = replace(with_buckets(replace(small, status="draft", share=high), []), status="running")
    before, after = everywhere(small).choose(user, "home"), everywhere(large).choose(user, "home")
    assert everywhere(small).choose(user, "home") == before
    assert not before or before == after


def test_the_share_takes_part_and_one_layer_never_shares_a_user() -> None:
    one = running("one", 0.3, holdout=0.1)
    two = running("two", 0.6, one, holdout=0.1)
    other = running("three", 1.0, layer="other")
    assigner = everywhere(one, two, other)
    first, second = chosen(assigner, "one", USERS), chosen(assigner, "two", USERS)
    assert not first.keys() & second.keys()
    assert abs(len(first) / len(USERS) - 0.3) < 0.015
    assert abs(len(second) / len(USERS) - 0.6) < 0.015
    held_out = set(USERS) - first.keys() - second.keys()
    assert abs(len(held_out) / len(USERS) - 0.1) < 0.01
    assert len(chosen(assigner, "three", USERS)) == len(USERS)


def test_strangers_are_in_nothing_and_who_is_not_targeted_is_not_assigned() -> None:
    asked: list[str] = []

    def targeted(experiment: str) -> bool:
        asked.append(experiment)
        return False

    said = running("one", 0.5, when="context.country == 'NL'")
    assigner = everywhere(said, running("two", 0.5, said))
    assert assigner.choose(None, "home", targeted) == ()
    found = {user: assigner.choose(user, "home", targeted) for user in USERS[:500]}
    assert {choice.experiment for choices in found.values() for choice in choices} == {"two"}
    assert set(asked) == {"one"}
    assert len(asked) == sum(not choices for choices in found.values()), (
        "only those whose bucket is the experiment's are asked about"
    )
    assert all(assigner.choose(user, "home") for user in USERS[:500])


def test_an_experiment_acts_on_its_surfaces_only() -> None:
    home = Acting(running("one", 1.0), frozenset({"home"}))
    both = Acting(running("two", 1.0, layer="other"), None)
    assigner = Assigner([home, both])
    assert [choice.experiment for choice in assigner.choose("ann", "home")] == ["one", "two"]
    assert [choice.experiment for choice in assigner.choose("ann", "cart")] == ["two"]
    assert Assigner([home]).choose("ann", "cart") == ()
    assert Assigner().choose("ann", "home") == ()


def test_testers_get_what_they_are_given() -> None:
    plain = running("one", 0.0)
    two = running("two", 1.0)
    given_v1 = replace(plain, overrides={hashed_id(plain, "ann"): "v1", hashed_id(plain, "bob"): "control"})
    assigner = everywhere(given_v1, two)
    assert assigner.choose("ann", "home") == (Choice("one", "v1", plain.version, False, True),)
    assert assigner.choose("bob", "home") == (Choice("one", "control", plain.version, True, True),)
    assert [choice.experiment for choice in assigner.choose("eve", "home")] == ["two"]
    assert "ann" not in str(given_v1)


def test_arms_are_all_that_requests_can_have() -> None:
    one = Acting(
        replace(of({"ranker.candidates": 1}, {"ranker.candidates": 2}), name="one"), frozenset({"home", "cart"})
    )
    two = Acting(of({"ranker.kind": "none"}, name="two", layer="other"), frozenset({"home"}))
    three = Acting(of({"ranker.kind": "none"}, name="three"), None)
    arms = arms_of([one, two, three])
    a, b, c, d = ("one", "v1"), ("one", "v2"), ("two", "v1"), ("three", "v1")
    assert arms == {tuple(sorted(arm)) for arm in ((a,), (b,), (d,), (c,), (a, c), (b, c), (d, c))}
    assert arms_of([]) == set()
    choices = (Choice("two", "v1", "", False, False), Choice("one", "control", "", True, False))
    assert arm_of(choices) == (c,)


@pytest.mark.parametrize("surface", ["home", "cart"])
def test_every_choice_has_its_arm(surface: str) -> None:
    one = Acting(running("one", 0.5), frozenset({"home"}))
    two = Acting(running("two", 0.5, one.experiment), None)
    three = Acting(running("three", 1.0, layer="other"), frozenset({"cart", "home"}))
    acting = [one, two, three]
    assigner, arms = Assigner(acting), arms_of(acting)
    seen = {arm_of(assigner.choose(user, surface)) for user in USERS[:500]}
    assert seen - {()} <= arms
    assert len(seen) == (6 if surface == "home" else 4)
