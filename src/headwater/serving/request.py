"""What the pipeline is asked and what it answers, in dense numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from headwater.schema.requests import Address, Explored, Promised, ServedList, ServedQuery
from headwater.serving.run import Lap
from headwater.serving.stages import Outcome

NO_MODEL = "none"

NO_ITEMS = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Query:
    """One request. Users, items, segments and regions are dense indexes, 0 is unknown.

    ``region`` None is a request that says nothing of it: the user's last known country counts instead.
    ``zone`` is the name of a time zone; None: that of the user's profile. ``anchor`` makes the list about that item
    ("similar to") and about those ``before`` it (a cart). ``candidates`` int64[n]: rank these, in place of what the sources find.
    ``paged``: earlier pages are excluded. ``reuse`` False: an answer that was given before will not do. ``since`` is the offset
    of the user's own event that the request asks for: no list from before it will do. ``arm`` names how the configuration differs for
    this request ("": not at all), so that lists of one arm are never given in another. ``lots`` False: nothing of
    the list is drawn by lot, whatever the surface explores and is promised to new items; ``exploration`` is a factor on the rates of the surface.
    ``tier_floor``: the answer is to come from this tier or a lower one. ``deadline_ms`` counts from the call.
    """

    request_id: str
    user: int = 0
    surface: str = "home"
    k: int = 20
    segments: tuple[int, int] = (0, 0)
    region: int | None = None
    zone: str | None = None
    exclude: npt.NDArray[np.int64] = field(default_factory=lambda: NO_ITEMS)
    anchor: int = 0
    before: tuple[int, ...] = ()
    candidates: npt.NDArray[np.int64] | None = None
    paged: bool = False
    reuse: bool = True
    since: int = 0
    arm: str = ""
    lots: bool = True
    exploration: float = 1.0
    tier_floor: int = 0
    deadline_ms: float = 50.0

    @property
    def again(self) -> bool:
        """Whether who asks like this later may get the same list: a first page of what the sources find."""
        return self.candidates is None and not self.paged and not self.before


@dataclass(frozen=True, slots=True)
class Answer:
    """The list: ``items`` int64[k], ``scores`` float32[k], and for each its source and reason.

    A reason may hold ``{item}``, which stands for the item ``causes[i]``. ``features`` are the assembled
    rows of the items, ``float32[k, d]`` (empty when nothing was assembled), ``modelled`` what the fitted sources of the
    bundle think of them, ``float32[k, sources]``. ``trace`` is what each stage did, in order;
    ``widths`` candidates by source, ``missed`` the sources that were not asked or failed; ``rules`` what each rule of the configuration that acted did (``serving.rules``).
    ``walked`` is the tier that the request walked on purpose, 0: none; ``quality`` the share of the full widths that it got,
    ``rules_version`` says which rules there were ("": none). ``explored`` says how the list was drawn, None: it was not; ``promised`` which
    places could go to promised new items, None: none. ``teams`` has a byte for each place of a list that two variants drafted in turns
    (:class:`ServedList`), else none.
    """

    items: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    sources: list[str]
    reasons: list[str]
    causes: npt.NDArray[np.int64]
    tier: int
    degraded: list[str]
    address: Address
    features: npt.NDArray[np.float32]
    modelled: npt.NDArray[np.float32]
    context: list[int]
    trace: dict[str, Lap]
    widths: dict[str, int]
    missed: dict[str, Outcome] = field(default_factory=dict)
    rules: dict[str, int] = field(default_factory=dict)
    walked: int = 0
    quality: float = 1.0
    rules_version: str = ""
    explored: Explored | None = None
    promised: Promised | None = None
    teams: bytes = b""

    @property
    def log_propensity(self) -> float:
        """The natural logarithm of the probability of the list, given which lots the request drew."""
        drawn = self.explored or self.promised
        return 0.0 if drawn is None else math.fsum(drawn.log_propensities)

    @property
    def took_ms(self) -> float:
        """All stages together."""
        return sum(lap.ms for lap in self.trace.values())


def served_list(
    query: Query, answer: Answer, *, sampled: bool, experiments: dict[str, str] | None = None
) -> ServedList:
    """The record of an answer; ``sampled`` keeps the feature rows for replay, ``experiments`` are the variants that it was made with."""
    return ServedList(
        request_id=query.request_id,
        surface=query.surface,
        items=answer.items.tolist(),
        scores=answer.scores.tolist(),
        sources=answer.sources,
        tier=answer.tier,
        reasons=answer.degraded,
        address=answer.address,
        context=answer.context,
        features=answer.features.tobytes() if sampled else b"",
        modelled=answer.modelled.tobytes() if sampled else b"",
        walked=answer.walked,
        query=ServedQuery(
            query.k, query.region, query.zone, query.exclude.tolist(),
            None if query.candidates is None else query.candidates.tolist(), query.paged, answer.quality,
            answer.rules_version,
        ),
        log_propensity=answer.log_propensity,
        explored=answer.explored,
        experiments=experiments or {},
        promised=answer.promised,
        teams=answer.teams,
    )  # fmt: skip
