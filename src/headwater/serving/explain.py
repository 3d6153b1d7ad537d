"""Why a served list is as it is: the logged request asked again at its address, with an observer in the pipeline.

There is no second pipeline and no second opinion: what is said here was told by the one that serves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from headwater.features.plan import Plan
from headwater.features.zones import Zones
from headwater.log.protocol import Vocabulary
from headwater.log.record import Namespace
from headwater.schema.config import Config
from headwater.schema.explanation import (
    Comparison,
    Difference,
    Drawn,
    ExplainedItem,
    ExplainedRequest,
    Explanation,
    Placed,
    PromisedPlace,
    Replay,
    SourceRank,
)
from headwater.schema.requests import Explored, Promised, ServedQuery
from headwater.serving.attribution import Attribution
from headwater.serving.fates import Fates
from headwater.serving.model import Model
from headwater.serving.observer import Observer
from headwater.serving.pace import Pace
from headwater.serving.pipeline import Conditions, Pipeline
from headwater.serving.region import StoredRegion
from headwater.serving.request import NO_MODEL, Answer, Query
from headwater.serving.rules import open_rules
from headwater.serving.served import Served
from headwater.serving.stages import TIER_FULL, TIER_LAST, TIER_LIGHT
from headwater.serving.view import View

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

FOREVER_MS = float("inf")

_OLDER_LISTS = (
    "the replay gives another list: what is popular, trending or new is not looked up for each request when serving, so the list "
    "may rest on lookups as old as cache.popular_ttl and cache.popular_stale together"
)


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What to explain besides the list: an ``item`` that may not be in it, and what another ``bundle`` would give.

    ``candidates`` are shown of each source, ``features`` of each item.
    """

    item: str | None = None
    bundle: str | None = None
    candidates: int = 10
    features: int = 8


@dataclass(frozen=True, slots=True)
class Stand:
    """The state to explain with: "as-of" the address, or the "present" one, and the moment that it is asked at. ``notes``: why not the
    other, and what is not as it was.
    """

    view: View
    state: Literal["as-of", "present"]
    now_ms: int
    notes: tuple[str, ...] = ()


class Explainer:
    """Explains served lists under one configuration. ``vocabulary`` is that of the log.

    Raises:
        ConfigurationError: the rules of ``config`` do not compile.
    """

    def __init__(self, config: Config, plan: Plan, vocabulary: Vocabulary) -> None:
        self._plan, self._vocabulary = plan, vocabulary
        self._pace = Pace()
        self._rules = open_rules(config, plan, vocabulary)
        self._pipeline = Pipeline(
            config, plan, stored_region=StoredRegion(vocabulary), zones=Zones(vocabulary),
            conditions=Conditions(pace=self._pace), rules=self._rules,
        )  # fmt: skip

    def explain(
        self, served: Served, stand: Stand, model: Model | None, question: Question, other: Model | None = None
    ) -> Explanation:
        """Explain ``served`` with ``model``, and compare with ``other`` (None: with nothing)."""
        query, view = replace(query_of(served), exploration=self._explored(served)), stand.view
        item = 0 if question.item is None else self._vocabulary.index(Namespace.ITEM, question.item)
        known = item if 0 < item < view.table.count else 0
        self._pace.quality = 1.0 if served.answer.query is None else served.answer.query.quality
        observer = Observer(known, _tier(served))
        answer = self._pipeline.recommend(query, view, model, stand.now_ms, observer)
        items = _Items(self._pipeline, self._plan, self._vocabulary, query, stand, model, observer, answer, question)
        fates = Fates(self._vocabulary, self._rules, observer, query)
        fate = None
        if question.item is not None:
            of = items.describe(known) if known else _nothing(question.item)
            fate = fates.of(item, of, served.answer.items.index(item) + 1 if item in served.answer.items else 0)
        explanation = Explanation(
            request=self._request(served),
            served=self._placed(np.array(served.answer.items, np.int64), np.array(served.answer.scores, np.float32)),
            replay=self._replay(served, stand, model, query, answer),
            sources=fates.sources(question.candidates),
            filters=fates.filters(),
            items=[items.describe(shown) for shown in answer.items.tolist()],
        )
        if fate is not None:
            explanation = msgspec.structs.replace(explanation, item=fate)
        if other is not None:
            # the memory of the first request is used again: everything about it is said by now
            with_other = self._pipeline.recommend(query, view, other, stand.now_ms, Observer(tier=_tier(served)))
            compared = self._compared(answer.items, with_other, other.version)
            explanation = msgspec.structs.replace(explanation, other=compared)
        return explanation

    def _explored(self, served: Served) -> float:
        """The factor on exploration (``Controls``) under which the list was made; 0 for one that was not drawn, for it is not to be drawn now."""
        said = served.answer.explored
        if said is None:
            return 0.0
        for surface in self._pipeline.config.surfaces:
            if surface.name == served.answer.surface:
                rate = surface.exploration.uniform if said.uniform else surface.exploration.share
                return said.share / rate if rate > 0.0 else 1.0
        return 1.0

    def _request(self, served: Served) -> ExplainedRequest:
        answer, text = served.answer, self._vocabulary.text
        said = answer.query or ServedQuery(k=len(answer.items))
        about = [item for item in (*answer.context[4:], answer.context[2]) if item]
        return ExplainedRequest(
            request_id=answer.request_id,
            surface=answer.surface,
            known_user=served.user > 0,
            k=said.k,
            segments=[text(Namespace.SEGMENT, segment) or "" for segment in answer.context[:2] if segment],
            region=None if said.region is None else text(Namespace.REGION, said.region) or "",
            about=self._names(about),
            candidates=None if said.candidates is None else self._names(said.candidates),
            excluded=len(said.exclude),
            paged=said.paged,
            tier=answer.tier,
            reasons=answer.reasons,
            address=answer.address,
            walked=answer.walked,
            quality=said.quality,
            rules=said.rules,
            whole=answer.query is not None,
            experiments=answer.experiments,
            drawn=_drawn(answer.explored),
            promised=_promised(answer.promised),
        )

    def _replay(self, served: Served, stand: Stand, model: Model | None, query: Query, answer: Answer) -> Replay:
        recorded, address = served.answer, served.answer.address
        bundle = NO_MODEL if model is None else model.version
        rules = "" if self._rules is None else self._rules.version
        notes = [*stand.notes]
        if bundle != address.bundle:
            notes.append(f"served with bundle {address.bundle}, explained with {bundle}")
        if self._plan.hash != address.plan:
            notes.append(f"served under plan {address.plan}, explained under {self._plan.hash}: other features")
        if recorded.query is None:
            notes.append(
                "an older release recorded the list: k, exclusions and candidates of the request are not known"
            )
        elif recorded.query.rules != rules:
            notes.append("the rules of the configuration are not those that the list was served under")
        exact = not notes and stand.state == "as-of"
        same_list = answer.items.tolist() == recorded.items
        if recorded.teams:
            notes.append(
                "the list was interleaved, two variants picked its items in turns: this is the list that the control picked from"
            )
        elif recorded.tier >= TIER_LAST:
            notes.append(
                f"tier {recorded.tier} gave a list from a worker's memory, which is not in the log: this is what the full path would "
                "have given"
            )
        elif not same_list and stand.state == "as-of":
            notes += _why_another(recorded.reasons, answer.degraded)
        same_features = None
        if recorded.features and self._plan.hash == address.plan:
            same_features = self._rows(recorded.items, query, stand) == recorded.features
        return Replay(
            exact=exact,
            state=stand.state,
            user_offset=answer.address.user_offset,
            item_offset=answer.address.item_offset,
            now_ms=stand.now_ms,
            bundle=bundle,
            rules=rules,
            same_list=same_list,
            same_features=same_features,
            notes=notes,
        )

    def _rows(self, items: list[int], query: Query, stand: Stand) -> bytes:
        """The feature rows of ``items`` for the request that was just asked again; none when the columns lack one of them."""
        shown = np.array(items, np.int64)
        if int(shown.max()) >= stand.view.table.count:
            return b""
        out = np.zeros((len(shown), len(self._plan.columns)), np.float32)
        return self._pipeline.features(query, stand.view, shown, stand.now_ms, out).tobytes()

    def _compared(self, items: Int64, other: Answer, bundle: str) -> Comparison:
        ours, theirs = self._names(items.tolist()), self._names(other.items.tolist())
        differences = []
        for place in range(max(len(ours), len(theirs))):
            here = ours[place] if place < len(ours) else None
            there = theirs[place] if place < len(theirs) else None
            if here != there:
                moved = theirs.index(here) + 1 if here in theirs else None
                differences.append(Difference(place + 1, here, there, moved))
        return Comparison(bundle, other.tier, other.degraded, self._placed(other.items, other.scores), differences)

    def _placed(self, items: Int64, scores: Float32) -> list[Placed]:
        return [Placed(*pair) for pair in zip(self._names(items.tolist()), scores.tolist(), strict=True)]

    def _names(self, items: list[int]) -> list[str]:
        return [self._vocabulary.text(Namespace.ITEM, item) or "" for item in items]


class _Items:
    """What is to be said of single items of a request that was just observed."""

    def __init__(
        self, pipeline: Pipeline, plan: Plan, vocabulary: Vocabulary, query: Query, stand: Stand, model: Model | None,
        observer: Observer, answer: Answer, question: Question,
    ) -> None:  # fmt: skip
        self._pipeline, self._plan, self._vocabulary, self._query = pipeline, plan, vocabulary, query
        self._stand, self._model, self._observer, self._question = stand, model, observer, question
        # below tier 1, and without a ranker, scores are those of the merged order
        self._ranked = answer.tier <= TIER_LIGHT and len(answer.features) > 0
        ranker = None
        if model is not None and self._ranked:
            aimed = model.on(query.surface)
            ranker = aimed.light if answer.tier == TIER_LIGHT and aimed.light is not None else aimed.ranker
        self._attribution = Attribution(plan, model, ranker, pipeline.asked, stand.view)
        self._places = observer.places()
        self._listed = observer.listed
        order = observer.order
        self._scores = dict(
            zip(observer.candidates.items[order.positions].tolist(), order.scores.tolist(), strict=True)
        )
        self._named = dict(zip(answer.items.tolist(), answer.sources, strict=True))
        self._merged = dict(zip(observer.merged.items.tolist(), observer.merged.scores.tolist(), strict=True))

    def describe(self, item: int) -> ExplainedItem:
        row, rules = self._row(item), self._pipeline.rules
        one = np.array([item], np.int64)
        offers = [(offer, offer.rank_of(item)) for offer in self._observer.offers]
        scored = item in self._scores and self._ranked
        return ExplainedItem(
            item=self._vocabulary.text(Namespace.ITEM, item) or "",
            source=self._named.get(item, ""),
            sources=[
                SourceRank(offer.source, rank, float(offer.ranked.scores[rank - 1])) for offer, rank in offers if rank
            ],
            merged=self._places["merged"].get(item),
            merged_score=self._merged.get(item),
            ranked=self._places["ranked"].get(item),
            score=self._scores[item] if scored else None,
            heads=self._attribution.heads(one, row[None, :])[0] if scored else {},
            place=self._places["shown"].get(item),
            rules=[] if rules is None else rules.concerning(item, self._listed),
            features=self._attribution.features(item, row, self._question.features),
        )

    def _row(self, item: int) -> Float32:
        """What the ranker gets of an item; assembled now when it was not on the way."""
        view, one = self._stand.view, np.array([item], np.int64)
        features = np.zeros((1, len(self._plan.columns)), np.float32)
        features = self._pipeline.features(self._query, view, one, self._stand.now_ms, features)
        modelled = np.zeros((1, 0 if self._model is None else len(self._model.sources)), np.float32)
        if self._model is not None:
            self._pipeline.modelled(self._model, view, one, modelled)
        row: Float32 = np.concatenate([features[0], modelled[0]])
        return row


def query_of(served: Served) -> Query:
    """The request of a served list, without a deadline. What older releases did not record is as by default."""
    answer = served.answer
    said = answer.query or ServedQuery(k=max(len(answer.items), 1))
    return Query(
        request_id=answer.request_id,
        user=served.user,
        surface=answer.surface,
        k=said.k,
        segments=(answer.context[0], answer.context[1]),
        region=said.region,
        zone=said.zone,
        exclude=np.array(said.exclude, np.int64),
        anchor=answer.context[2],
        before=tuple(answer.context[4:]),
        candidates=None if said.candidates is None else np.array(said.candidates, np.int64),
        paged=said.paged,
        lots=answer.lots,
        deadline_ms=FOREVER_MS,
    )


def _drawn(explored: Explored | None) -> Drawn | None:
    if explored is None:
        return None
    return Drawn(
        share=explored.share, temperature=explored.temperature, uniform=explored.uniform, candidates=len(explored.candidates),
        propensities=[math.exp(log) for log in explored.log_propensities], propensity=math.exp(math.fsum(explored.log_propensities)),
    )  # fmt: skip


def _promised(promised: Promised | None) -> list[PromisedPlace]:
    if promised is None:
        return []
    drawn = zip(promised.places, promised.chances, promised.kept, strict=True)
    return [PromisedPlace(place + 1, chance, kept) for place, chance, kept in drawn]


def _tier(served: Served) -> int:
    """The tier to send the request to: that of the list, unless it came from a memory that is gone."""
    return served.answer.tier if served.answer.tier < TIER_LAST else TIER_FULL


def _why_another(recorded: list[str], replayed: list[str]) -> list[str]:
    """What may have made a list another than its replay, which has no deadline and remembers nothing."""
    only = [reason for reason in recorded if reason not in replayed]
    if only:
        return [f"the list was made under what the replay does not meet: {'; '.join(only)}"]
    return [_OLDER_LISTS]


def _nothing(item: str) -> ExplainedItem:
    return ExplainedItem(
        item=item, source="", sources=[], merged=None, merged_score=None, ranked=None, score=None, heads={}, place=None,
        rules=[], features=[],
    )  # fmt: skip
