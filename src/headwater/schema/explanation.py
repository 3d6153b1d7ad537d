"""What is said of a logged request when somebody asks why its list is as it is."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from headwater.schema.requests import Address

MAX_EXPLAINED = 1_000  # candidates of a source, features of an item

Stage = Literal["unknown", "sources", "eligibility", "merge", "light_rank", "rank", "policy", "listed"]


class Drawn(Struct, frozen=True, kw_only=True):
    """How a list was drawn by lot, which a ``share`` of the requests of its surface are, from the best ``candidates`` with ``temperature`` (``uniform``:
    each as likely as the other). ``propensities`` are the probabilities of each item for its place, given those above it; ``propensity`` that of the
    whole list, given that it was drawn.
    """

    share: float
    temperature: float
    uniform: bool
    candidates: int
    propensities: list[float]
    propensity: float


class PromisedPlace(Struct, frozen=True):
    """A ``place``, from 1, that could go to a new item that was promised impressions, the ``chance`` that it did, and whether it was ``kept`` for one."""

    place: int
    chance: float
    kept: bool


class ExplainedRequest(Struct, frozen=True, kw_only=True):
    """The request as it was recorded. ``known_user``: it was not a stranger; who it was is not said.

    ``segments`` are the texts that counted ("country=DE"), ``region`` the one that the request named, ``about`` and ``candidates`` items, ``excluded`` how many
    it excluded or had seen on earlier pages. ``drawn`` says how the list was drawn by lot (None: it was not), ``promised`` which places could go to
    new items that were promised impressions. ``experiments`` are the variants that had a say in the list. ``whole``: the record has all of it (lists of older releases lack ``k`` and others).
    """

    request_id: str
    surface: str
    known_user: bool
    k: int
    segments: list[str]
    region: str | None
    about: list[str]
    candidates: list[str] | None
    excluded: int
    paged: bool
    tier: int
    reasons: list[str]
    address: Address
    walked: int
    quality: float
    rules: str
    whole: bool
    experiments: dict[str, str] = {}
    drawn: Drawn | None = None
    promised: list[PromisedPlace] = []


class Replay(Struct, frozen=True, kw_only=True):
    """What the explanation was worked out from. ``exact``: state, bundle, rules and request are those of the served list.

    ``state`` "as-of": replayed to the address; "present": as it stands now, because the log could not be replayed. ``same_list``: the
    replay gives the served list; ``same_features``: and the same bytes of features (None: they were not logged). ``notes``
    say what differs and why.
    """

    exact: bool
    state: Literal["as-of", "present"]
    user_offset: int
    item_offset: int
    now_ms: int
    bundle: str
    rules: str
    same_list: bool
    same_features: bool | None
    notes: list[str]


class SourceRank(Struct, frozen=True):
    """A source that offered an item: at which place of its offer, from 1, with which score of its own."""

    source: str
    rank: int
    score: float


class Candidate(Struct, frozen=True, kw_only=True):
    """An offer of a source. ``refused`` says why it may not be shown ("": it may), ``merged``, ``ranked`` and ``place`` where it
    stands after merging, after ranking and in the list (None: it did not come so far).
    """

    item: str
    rank: int
    score: float
    refused: str
    merged: int | None
    ranked: int | None
    place: int | None


class ExplainedSource(Struct, frozen=True, kw_only=True):
    """A source: its ``weight`` in the merged order, how many it ``offered``, of which the first ``width`` that may be shown
    count; ``kept`` of them went on to the ranker, ``listed`` stand in the list. ``why_empty`` when it offered nothing. ``candidates`` are the first ones.
    """

    source: str
    weight: float
    width: int
    offered: int
    kept: int
    listed: int
    why_empty: str
    candidates: list[Candidate]


class Filter(Struct, frozen=True):
    """What kept ``items`` back: ``stage`` and the reason, or the name of the rule. ``examples`` are some of them."""

    stage: Stage
    reason: str
    items: int
    examples: list[str]


class FeatureValue(Struct, frozen=True, kw_only=True):
    """A feature of an item. ``effect``: by how much the score is higher than with the feature at its default, everything else as it is
    (None: nothing ranked it). ``age_ms``: since the event that last changed the value (``age_of`` "event"), or since the latest
    event of the row that it was read from ("row": the value may be older); None: no event has changed it.
    """

    name: str
    value: float
    unit: str
    effect: float | None
    age_ms: int | None
    age_of: Literal["", "event", "row"]


class ExplainedItem(Struct, frozen=True, kw_only=True):
    """An item of the list, or the one that was asked about. ``source`` is the one that the answer names, ``sources`` are all that
    offered it. ``merged``, ``ranked`` and ``place`` as in :class:`Candidate`; ``merged_score`` is that of the merged order, ``score`` that of
    the ranker, ``heads`` what each of its heads said. ``rules`` have a say in its place. ``features`` are those with the largest effect.
    """

    item: str
    source: str
    sources: list[SourceRank]
    merged: int | None
    merged_score: float | None
    ranked: int | None
    score: float | None
    heads: dict[str, float]
    place: int | None
    rules: list[str]
    features: list[FeatureValue]


class Fate(Struct, frozen=True, kw_only=True):
    """What became of one item: the first ``stage`` that it did not pass ("listed": it stands in the list), and why."""

    stage: Stage
    reason: str
    of: ExplainedItem


class Placed(Struct, frozen=True):
    """An item of a list, and its score."""

    item: str
    score: float


class Difference(Struct, frozen=True):
    """A place, from 1, at which two lists differ: the item here, the item with the other bundle, where the one of here stands there (None: nowhere)."""

    place: int
    item: str | None
    other: str | None
    moved_to: int | None


class Comparison(Struct, frozen=True):
    """The same request on another bundle: its tier and reasons, its list, and where it differs from the one that is explained."""

    bundle: str
    tier: int
    reasons: list[str]
    items: list[Placed]
    differences: list[Difference]


class ShadowShown(Struct, frozen=True, kw_only=True):
    """What a variant of a shadow experiment would have given to this request, as the log has it: nobody got it. ``shared`` of its items were given too."""

    experiment: str
    variant: str
    bundle: str
    tier: int
    items: list[Placed]
    shared: int


class Explanation(Struct, frozen=True, kw_only=True):
    """Why a logged list is as it is. ``served`` is the list as it was recorded, ``shadows`` what was recorded beside it; everything else is the replay's."""

    request: ExplainedRequest
    served: list[Placed]
    replay: Replay
    sources: list[ExplainedSource]
    filters: list[Filter]
    items: list[ExplainedItem]
    item: Fate | UnsetType = UNSET
    other: Comparison | UnsetType = UNSET
    shadows: list[ShadowShown] = []
