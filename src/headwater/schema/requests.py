"""Recommend requests, responses, and the served list that is logged."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from headwater.schema.events import Attributes, Id, Name, check_attributes
from headwater.schema.experiments import INTERLEAVED

MAX_K = 200
MAX_ABOUT = 20
MAX_CANDIDATES = 1_000
MAX_PAGED = 1_000  # items of earlier pages that a cursor remembers
MAX_REQUESTS = 100


class RecommendRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Ask for ``k`` items for ``user`` (absent: a stranger).

    ``token`` is what an ingest call returned: the answer then reflects that event. ``context`` holds
    attributes of the moment (country, device, timezone, ...), ``exclude`` items that must not come back. ``about`` makes the
    list about these items, the last one above all (a cart, the article that is open); ``candidates`` are ranked and nothing
    else is. ``cursor`` is the ``next`` of an answer: what the pages before showed does not come back. ``trace`` asks what each
    stage did.
    """

    user: Id | None = None
    surface: Name = "home"
    k: Annotated[int, Meta(ge=1, le=MAX_K)] = 20
    context: Attributes | None = None
    exclude: Annotated[list[Id], Meta(max_length=1000)] = []
    about: Annotated[list[Id], Meta(max_length=MAX_ABOUT)] = []
    candidates: Annotated[list[Id], Meta(max_length=MAX_CANDIDATES)] = []
    cursor: Annotated[str, Meta(min_length=1, max_length=6 * MAX_PAGED, pattern=r"^[A-Za-z0-9_-]+$")] | None = None
    token: Annotated[str, Meta(max_length=64, pattern=r"^[0-9]+$")] | None = None
    deadline_ms: Annotated[float, Meta(ge=1, le=10_000)] | None = None
    trace: bool = False

    def __post_init__(self) -> None:
        check_attributes(self.context)


class RecommendedItem(Struct, frozen=True):
    """One item of the answer: the source that found it and a reason that a person can read."""

    id: str
    score: float
    source: str
    reason: str


class Address(Struct, frozen=True):
    """Where the log stood when a list was assembled: replay at this address gives the same bytes."""

    user_offset: int
    item_offset: int
    now_ms: int
    plan: str
    bundle: str


class StageTrace(Struct, frozen=True):
    """What a stage did: its time, how many items it left (0: it is not about items), and whether it was "ok", "shortened"
    (fewer than without the deadline or the load), "skipped" or "failed".
    """

    stage: str
    ms: float
    width: int
    outcome: str


class RecommendResponse(Struct, frozen=True):
    """The answer. ``tier`` 0 is the full path; ``reasons`` say why it is not, and what was skipped. ``about`` are the items
    that the list is about, ``next`` the ``cursor`` of the next page, if there may be one. ``trace`` is there when it was asked for, and
    with it ``experiments``: the user's variant of each that had a say in the list.
    """

    request_id: str
    items: list[RecommendedItem]
    tier: int
    reasons: list[str]
    model: str
    address: Address
    about: list[str] | UnsetType = UNSET
    next: str | UnsetType = UNSET
    trace: list[StageTrace] | UnsetType = UNSET
    experiments: dict[str, str] | UnsetType = UNSET


class ServedQuery(Struct, frozen=True, array_like=True):
    """What of a request its list does not tell, so that it can be asked again at its address.

    ``region`` (dense) and ``zone`` are those that the request named, None: none. ``exclude`` are dense items, those of
    earlier pages (``paged``) too; ``candidates`` those that were to be ranked, None: whatever the sources find. ``quality`` is the share of
    the full widths, ``rules`` the version of the rules that acted ("": there were none).
    """

    k: int
    region: int | None = None
    zone: str | None = None
    exclude: list[int] = []
    candidates: list[int] | None = None
    paged: bool = False
    quality: float = 1.0
    rules: str = ""


class Explored(Struct, frozen=True, array_like=True):
    """How a list was drawn by lot (``policy.exploration``), which a ``share`` of the requests of the surface are.

    ``log_propensities``: for each item the natural logarithm of the probability that it was drawn for its place, given the items
    above it and the pinned ones; 0 where nothing else could stand there. Their sum is that of the list, given that it was
    drawn. ``candidates`` are the dense items that were drawn from, best first, ``temperature`` what they were drawn with. ``uniform``: from all
    candidates, each as likely as the other, which ``share`` of the requests are; then there is no temperature (0).
    """

    log_propensities: list[float]
    candidates: list[int]
    temperature: float
    share: float
    uniform: bool = False


class Promised(Struct, frozen=True, array_like=True):
    """Which places of a list could go to new items that were promised impressions (``serving.new_items``): ``places``, from 0, for each the
    probability (``chances``) that it went to one as such, whether it did (``kept``), and the natural logarithm of the probability of
    what stands there, by either way.
    """

    places: list[int]
    chances: list[float]
    kept: list[bool]
    log_propensities: list[float]


class ServedList(Struct, frozen=True, array_like=True):
    """Payload of a ``SERVED`` record.

    ``items`` are dense item indexes in the order shown, ``features`` the assembled rows of these items
    (``float32``, shape ``(len(items), columns)``, C order; empty when not sampled), ``context`` is
    ``[segment 0, segment 1, anchor item]`` as dense numbers (0: none), then local time less UTC in ms, then further items
    that the list is about. ``modelled`` are the scores
    that the fitted sources of the bundle gave (``float32``, shape ``(len(items), sources)``): logged as served, not replayed.
    ``walked`` is the tier that the request was sent down to on purpose, by lot (0: none): the lists of one such tier are a
    random sample, whatever tier they came out of in the end. ``query`` is the rest of the request (None: lists of older
    releases did not keep it). ``log_propensity`` is the natural logarithm of the probability of the list, given that it was drawn by
    lot or that it was not; ``explored`` is there for one that was, ``promised`` for one with places that could go to promised items.
    It is 0 for one with neither. ``experiments`` names the user's variant of each experiment that had a say in the list. ``teams`` has a byte
    for each place of a list that two variants drafted in turns, whose pick it is: 1 the control's, 2 the other variant's, 0 nobody's.
    """

    request_id: str
    surface: str
    items: list[int]
    scores: list[float]
    sources: list[str]
    tier: int
    reasons: list[str]
    address: Address
    context: list[int]
    features: bytes
    modelled: bytes = b""
    walked: int = 0
    query: ServedQuery | None = None
    log_propensity: float = 0.0
    explored: Explored | None = None
    experiments: dict[str, str] = {}
    promised: Promised | None = None
    teams: bytes = b""

    @property
    def lots(self) -> bool:
        """Whether the request took part in lotteries; those of interleaved experiments do not."""
        return INTERLEAVED not in self.experiments.values()


class ShadowList(Struct, frozen=True, array_like=True):
    """Payload of a ``SHADOW`` record: what the ``variant`` of a shadow experiment of this ``version`` would have given to the request of ``answer``. Nobody got
    it; the list that was given has the same request id.
    """

    experiment: str
    variant: str
    version: str
    answer: ServedList
