"""Definitions: what may stand in a file, what variants may change, and which experiments go together."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from headwater.experiments.changes import REFUSED, changed, check_changes, check_key, where_it_parts
from headwater.experiments.definitions import BUCKETS, Experiment, ExperimentError, Guardrail, Variant, parse_experiment
from headwater.experiments.layers import check_together, with_buckets
from headwater.schema.config import Config, known_keys, parse_config

TEXT = """
name = "wide"
hypothesis = "more candidates, more clicks"
metrics = ["clicks"]

[[guardrails]]
metric = "latency"
direction = "increase"
bound = 0.1

[[variants]]
name = "control"

[[variants]]
name = "wide"
set = {"ranker.candidates" = 300, "surfaces.home.diversity" = 0.4}
"""
WIDE = parse_experiment(TEXT, "wide.toml")
RULED = parse_config(
    """
[[surfaces]]
name = "home"
[[surfaces]]
name = "home.top"
[[rules]]
name = "lift"
surfaces = ["home"]
boost = {where = "price > 5", factor = 2.0}
"""
)


def of(*changes: dict[str, object], **more: object) -> Experiment:
    """An experiment with a control and a variant for each of ``changes``."""
    variants = tuple(Variant(name=f"v{n}", set_=said) for n, said in enumerate(changes, 1))
    fields = {"name": "one", "variants": (Variant(name="control"), *variants), **more}
    return Experiment(**fields)  # type: ignore[arg-type]


def running(name: str, share: float, *others: Experiment, **more: object) -> Experiment:
    """A running one that only changes a width."""
    plain = of({"ranker.candidates": 7}, name=name, share=share, **more)
    return replace(with_buckets(plain, others), status="running")


def test_a_file_says_what_it_says() -> None:
    assert (WIDE.layer, WIDE.status, WIDE.control, WIDE.variant_names) == (
        "main",
        "draft",
        "control",
        ("control", "wide"),
    )
    assert WIDE.guardrails[0].bound == 0.1
    assert WIDE.variant("wide").changes == {"ranker.candidates": 300, "surfaces.home.diversity": 0.4}
    nested = TEXT.replace(
        '{"ranker.candidates" = 300, "surfaces.home.diversity" = 0.4}',
        "{ranker.candidates = 300, surfaces.home.diversity = 0.4}",
    )
    assert parse_experiment(nested, "wide.toml").version == WIDE.version


def test_the_version_names_the_variants_and_not_how_many_see_them() -> None:
    assert replace(WIDE, share=0.1, hypothesis="", status="stopped").version == WIDE.version
    assert replace(WIDE, salt="again").version != WIDE.version
    heavier = (WIDE.variants[0], replace(WIDE.variants[1], weight=2.0))
    assert replace(WIDE, variants=heavier).version != WIDE.version


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "wide"\nhypo', 'nam = "wide"\nhypo', "wide.toml: Unknown key `nam`; did you mean `name`?"),
        ("bound = 0.1", "bond = 0.1", r"Unknown key `guardrails\[0\].bond`; did you mean `guardrails\[0\].bound`?"),
        ('name = "control"', 'name = "wide"', 'experiment "wide": variants: Expected different names'),
        ('name = "control"', 'name = "control"\nbundle = "new"', r"variants\[0\].bundle: Expected `str` matching regex"),
        ('name = "control"', 'name = "control"\nset = {"ranker.candidates" = 1}', "is the control: the configuration as it is"),
        ("set =", "# set =", '"wide" changes nothing; give it `set`'),
        ('metrics = ["clicks"]', 'status = "running"', "A share of 1 is 10000 of 10000 buckets, and it has 0"),
        ('metrics = ["clicks"]', "buckets = [[0, 5], [4, 6]]", r"ranges \[first, end\) of 0 to 10000 that do not overlap"),
        ('metrics = ["clicks"]', "when = {country = ['NL', 'DE'], app = ['7']}",
         r"""when: It is an expression, as in rules: when = 'context.country in \["NL", "DE"\] and context.app in \["7"\]'"""),
        ('metrics = ["clicks"]', "share = 1.5", "share: Expected `float` <= 1.0"),
        ('metrics = ["clicks"]', "metrics = [", "Not valid TOML"),
        ("[[variants]]\nname = \"control\"\n", "", "variants: Expected `array` of length >= 2"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(old: str, new: str, message: str) -> None:
    assert old in TEXT
    with pytest.raises(ExperimentError, match=message):
        parse_experiment(TEXT.replace(old, new), "wide.toml")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ranker.candidate", 3, "no configuration key `ranker.candidate`; did you mean `ranker.candidates`?"),
        ("surfaces.home.diversty", 0.1, "did you mean `surfaces.home.diversity`?"),
        ("surfaces.hom.diversity", 0.1, 'There is no surface "hom", did you mean "home"?'),
        ("ranker.candidates.x", 3, "`candidates` holds a value and no keys"),
        ("ranker", 3, "`ranker` is a table: say which of its keys"),
        ("log.dedup_window", 3, "cannot differ between variants: what is stored, and where, is the same for all"),
        ("features.recent", 3, "all users share one state"),
        ("limits.burst", 3, "it belongs to the whole process"),
        ("learn.every", "1h", "give the variant `bundle`"),
        ("surfaces.home.k", 3, "settled by the request"),
        ("ranker.candidates", 0, 'variant "v1": Expected `int` >= 1 - at `..?ranker.candidates`'),
        ("surfaces.home.diversity", "much", "Expected `float`, got `str`"),
        ("surfaces.home.sources", ["popula"], 'There is no source "popula", did you mean "popular"?'),
    ],
)
def test_what_a_variant_cannot_change_is_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        check_changes(of({key: value}), Config())


def test_every_key_can_be_changed_or_says_why_not() -> None:
    for key in known_keys():
        table, _, rest = key.partition("[].")
        full = f"{table}.{'home' if table == 'surfaces' else 'lift'}.{rest}" if table in ("surfaces", "rules") else key
        try:
            check_key(full.replace("[]", ""), RULED)
        except ExperimentError as error:
            assert "cannot differ between variants: " in str(error)  # noqa: PT017  (either is fine)
    for key in REFUSED:
        known = [name.replace("[]", ".*") for name in known_keys()]
        assert any(name == key or name.startswith((f"{key}.", f"{key}.*")) for name in known), f"{key} is gone"


def test_a_variant_is_a_configuration_and_the_rest_stays() -> None:
    extra = parse_experiment(
        TEXT.replace("0.4}", '0.4, "surfaces.home.exploration.share" = 0.2}')
        + '[[variants.rules]]\nname = "no-cheap"\nfilter = "price > 1"\n',
        "wide.toml",
    ).variants[1]
    made = changed(Config(), [extra])
    assert (made.ranker.candidates, made.surfaces[0].diversity, made.surfaces[0].exploration.share) == (300, 0.4, 0.2)
    assert [rule.name for rule in made.rules] == ["no-cheap"]
    assert replace(made, ranker=Config().ranker, surfaces=Config().surfaces, rules=()) == Config()
    lifted = changed(
        RULED, [Variant(name="v", set_={"rules.lift.boost.factor": 9.0, "surfaces.home.top.diversity": 0.3})]
    )
    assert lifted.rules[0].boost is not None
    assert lifted.rules[0].boost.factor == 9.0
    assert [surface.diversity for surface in lifted.surfaces] == [0.0, 0.3]


@pytest.mark.parametrize(
    ("said", "surfaces"),
    [
        ({"surfaces.home.diversity": 0.1}, {"home"}),
        ({"surfaces.home.diversity": 0.1, "surfaces.home.top.diversity": 0.1}, {"home", "home.top"}),
        ({"rules.lift.boost.factor": 3.0}, {"home"}),
        ({"rules.lift.surfaces": ["home.top"]}, None),
        ({"ranker.candidates": 9}, None),
    ],
)
def test_an_experiment_acts_where_its_variants_part(said: dict[str, object], surfaces: set[str] | None) -> None:
    assert where_it_parts(of(said), RULED) == (None if surfaces is None else frozenset(surfaces))
    assert where_it_parts(of(said, surfaces=("home",)), RULED) == frozenset({"home"})
    with pytest.raises(ExperimentError, match='There is no surface "hme", did you mean "home"'):
        where_it_parts(of(said, surfaces=("hme",)), RULED)


def test_surfaces_that_no_variant_changes_are_a_mistake() -> None:
    with pytest.raises(ExperimentError, match=r"The variants change nothing on home\.top"):
        where_it_parts(of({"surfaces.home.diversity": 0.1}, surfaces=("home.top",)), RULED)


@given(st.lists(st.floats(0.0, 0.5), min_size=2, max_size=6), st.sampled_from([0.0, 0.1]))
@example([0.5, 0.5], 0.0)  # the layer is full
def test_buckets_are_disjoint_in_a_layer_and_a_larger_share_only_adds(shares: list[float], holdout: float) -> None:
    made: list[Experiment] = []
    for number, share in enumerate(shares):
        try:
            made.append(running(f"e{number}", share, *made, holdout=holdout))
        except ExperimentError as error:
            room = 1.0 - holdout - sum(each.share for each in made)
            assert share > room - 2e-4 * (len(made) + 1), str(error)  # noqa: PT017
    check_together(made)
    used = [n for each in made for a, b in each.buckets for n in range(a, b)]
    assert len(used) == len(set(used)) == sum(each.wanted_buckets for each in made)
    assert max(used, default=0) < BUCKETS - round(holdout * BUCKETS)
    first, *others = made
    before = {n for a, b in first.buckets for n in range(a, b)}
    wider = replace(first, status="draft", share=min(1.0, first.share + 1e-3))
    if wider.wanted_buckets - first.bucket_count > BUCKETS - round(holdout * BUCKETS) - len(used):
        with pytest.raises(ExperimentError, match="has room for"):
            with_buckets(wider, others)
        return
    more = with_buckets(wider, others)
    after = {n for a, b in more.buckets for n in range(a, b)}
    assert before <= after
    assert len(after) == more.wanted_buckets
    less = with_buckets(replace(more, share=first.share), others)
    assert {n for a, b in less.buckets for n in range(a, b)} == before


def test_experiments_that_would_disturb_each_other_are_refused() -> None:
    one = running("one", 0.5)
    with pytest.raises(
        ExperimentError, match=r'Layer "main" has room for 0\.5, not for 0\.6: "one" \(0\.5\) runs there'
    ):
        running("two", 0.6, one)
    with pytest.raises(ExperimentError, match='"one" has 0 to 5000 of layer "main" already'):
        check_together([one, running("two", 0.6)])
    with pytest.raises(ExperimentError, match="a layer has one holdout"):
        check_together([one, running("two", 0.2, one, holdout=0.1)])
    with pytest.raises(ExperimentError, match=r'"one" changes `ranker\.candidates` too.*put them into one layer'):
        check_together([one, running("two", 0.2, layer="other")])
    check_together([one, running("two", 0.2, one)])


# -- interleaving --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "more", "why"),
    [
        (2, {}, "Two variants can be interleaved, the control and another one; there are 3"),
        (1, {"shadow": 0.1}, "shown to nobody"),
        (1, {"metrics": ("clicks_per_user",)}, "metrics: All users of an interleaved experiment get the same"),
        (1, {"guardrails": (Guardrail(metric="hides_per_user"),)}, "guardrails: All users"),
    ],
)
def test_what_cannot_be_interleaved_is_refused(changes: int, more: dict[str, object], why: str) -> None:
    said: list[dict[str, object]] = [{"ranker.candidates": 7 + n} for n in range(changes)]
    with pytest.raises(ExperimentError, match=why):
        of(*said, interleave=True, **more)


def test_the_name_of_interleaved_users_is_nobody_elses() -> None:
    with pytest.raises(ExperimentError, match="choose another name"):
        Experiment(name="one", variants=(Variant(name="control"), Variant(name="interleaved", set_={"a.b": 1})))


def test_interleaving_makes_another_version_and_one_name_for_all() -> None:
    plain, both = of({"ranker.candidates": 7}), of({"ranker.candidates": 7}, interleave=True)
    assert plain.version != both.version
    assert (plain.exposed_names, both.exposed_names) == (("control", "v1"), ("interleaved",))


def test_two_interleaved_experiments_share_no_list() -> None:
    one = running("a", 0.5, interleave=True)
    other = replace(running("b", 0.5, layer="second"), interleave=True, variants=of({"ranker.kind": "none"}).variants)
    with pytest.raises(ExperimentError, match="a list has two teams"):
        check_together([one, other])
    check_together([one, replace(other, interleave=False)])
