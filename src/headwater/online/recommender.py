"""Between the API's words and the pipeline's numbers: a request becomes a query, an answer a response."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt
import structlog
from msgspec import UNSET, Meta, Struct, UnsetType

from headwater.experiments.assignment import Choice
from headwater.features.plan import Plan
from headwater.features.zones import Zones
from headwater.log.identity import IdentityStore, UserKey
from headwater.log.protocol import Vocabulary
from headwater.log.record import Namespace
from headwater.online.arms import NO_ARMS, Arm, Arms, Chosen
from headwater.online.bodies import decode_one
from headwater.online.cursor import next_cursor, shown_before
from headwater.online.errors import RefusalError
from headwater.online.interleaved import interleaved
from headwater.schema.config import Config
from headwater.schema.controls import Controls
from headwater.schema.events import Attributes, Scalar
from headwater.schema.requests import (
    MAX_K,
    MAX_REQUESTS,
    RecommendedItem,
    RecommendRequest,
    RecommendResponse,
    StageTrace,
)
from headwater.schema.segments import segment_of
from headwater.serving.model import Model
from headwater.serving.pipeline import Conditions, Pipeline
from headwater.serving.region import REGION_KEY, StoredRegion
from headwater.serving.request import NO_ITEMS, Answer, Query
from headwater.serving.rules import open_rules
from headwater.serving.run import Deadline
from headwater.serving.stages import TIER_FULL
from headwater.serving.targeting import Asking
from headwater.serving.view import View

log = structlog.get_logger()

SIMILAR = "similar"
STRANGER = UserKey(0, 0)
NO_CONTEXT: Mapping[str, Scalar] = MappingProxyType({})


class _Stated(Struct, frozen=True):
    """Whether a request says how many items it wants: the surface's own length is the default."""

    k: int | UnsetType = UNSET


_decode_request = msgspec.json.Decoder(RecommendRequest)
_decode_parts = msgspec.json.Decoder(Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=MAX_REQUESTS)])
_decode_stated = msgspec.json.Decoder(_Stated)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request in the pipeline's terms, and whom the served list is recorded for.

    ``external`` is the id that it named; ``choices`` are the user's variants, ``arm`` what answers in place of the control,
    ``challenger`` what the list is interleaved with; ``context`` is what the request says of it.
    """

    query: Query
    user: UserKey
    trace: bool = False
    before: npt.NDArray[np.int64] = field(default_factory=lambda: NO_ITEMS)  # what earlier pages showed
    notes: tuple[str, ...] = ()
    external: str | None = None
    choices: tuple[Choice, ...] = ()
    arm: Arm | None = None
    challenger: Arm | None = None
    context: Mapping[str, Scalar] = field(default_factory=lambda: NO_CONTEXT)


class Recommender:
    """Answers requests from one view of state. ``model``, ``arms`` and ``controls`` may be replaced between two requests; ``config`` is the one with
    the rules that are in force.
    """

    def __init__(
        self, config: Config, plan: Plan, vocabulary: Vocabulary, identity: IdentityStore, view: View,
        conditions: Conditions | None = None,
    ) -> None:  # fmt: skip
        self.model: Model | None = None
        self.arms: Arms = NO_ARMS
        self.controls = Controls()
        self.config = config
        self.view = view
        stored = StoredRegion(vocabulary)
        self._regions = stored.regions
        self.pipeline = Pipeline(
            config, plan, stored_region=stored, zones=Zones(vocabulary), conditions=conditions,
            rules=open_rules(config, plan, vocabulary),
        )  # fmt: skip
        self._plan = plan
        self._vocabulary = vocabulary
        self._identity = identity
        self._surfaces = {surface.name: surface for surface in config.surfaces}

    def decode(self, body: bytes) -> RecommendRequest:
        """The request in a JSON body. Raises :class:`RefusalError` 400 that names the field."""
        request = decode_one(_decode_request, body)
        surface = self._surfaces.get(request.surface)
        if surface is None:
            names = list(self._surfaces)
            close = difflib.get_close_matches(request.surface, names, n=1)
            hint = f'did you mean "{close[0]}"?' if close else f"there are {', '.join(names)}"
            raise RefusalError(400, f'There is no surface "{request.surface}"; {hint}', "surface")
        if surface.k != request.k and _decode_stated.decode(body).k is UNSET:
            request = msgspec.structs.replace(request, k=surface.k)
        return request

    def decode_many(self, body: bytes) -> list[RecommendRequest]:
        """The requests in a JSON array. Raises :class:`RefusalError` 400 that names index and field."""
        parts = decode_one(_decode_parts, body)
        requests = []
        for index, part in enumerate(parts):
            try:
                requests.append(self.decode(bytes(part)))
            except RefusalError as error:
                field = error.field.removeprefix("$").removeprefix(".")
                raise RefusalError(error.status, str(error), f"[{index}].{field}" if field else f"[{index}]") from error
        return requests

    def asked(self, request: RecommendRequest, request_id: str, deadline_ms: float, now_ms: int) -> Asked:
        """``request`` of the time ``now_ms`` in dense numbers; what nobody has heard of is 0 or left out, and said where it matters.

        Raises :class:`RefusalError` 400 for a cursor that no answer gave.
        """
        user, notes = self._user(request.user), []
        asking = Asking(user.user, request.surface, request.context or NO_CONTEXT)
        interleave = request.cursor is None and not request.candidates
        chosen = self._chosen(request.user, asking, now_ms, interleave=interleave)
        about, candidates = self._known(request.about), self._known(request.candidates)
        for name, given, found in (("about", request.about, about), ("candidates", request.candidates, candidates)):
            if len(found) < len(given):
                notes.append(f"{name}: {len(given) - len(found)} of {len(given)} items are not in the catalogue")
        exclude, before = self._known(request.exclude), shown_before(request.cursor)
        if len(before):
            # what this worker has no row of it cannot show: no room is made for numbers that somebody made up
            exclude = np.concatenate([exclude, before[before < self.view.table.count]])
        about = about[-(self._plan.layout.recent_size) :]
        query = Query(
            request_id=request_id,
            user=user.user,
            surface=request.surface,
            k=request.k,
            segments=self._segments(request.context),
            region=self._region(request.context),
            zone=self._zone(request.context),
            exclude=exclude,
            anchor=int(about[-1]) if len(about) else 0,
            before=tuple(about[:-1].tolist()),
            candidates=candidates if request.candidates else None,
            paged=request.cursor is not None,
            reuse=not request.trace,
            since=0 if request.token is None else int(request.token),
            deadline_ms=deadline_ms,
            arm="" if chosen.arm is None else chosen.arm.name,
            lots=chosen.challenger is None,
            exploration=self.controls.exploration,
            tier_floor=self.controls.tier_floor,
        )
        return Asked(query, user, request.trace, before, tuple(notes), request.user, *chosen, asking.context)

    def similar(self, item: str, k: int | None, user: str | None, request_id: str, now_ms: int) -> Asked:
        """The query of the time ``now_ms`` for items like ``item``. Raises :class:`RefusalError`: 404 for an unknown item, 400 for a wrong k."""
        surface = self._surfaces.get(SIMILAR)
        if k is None:
            k = surface.k if surface is not None else RecommendRequest().k
        if not 1 <= k <= MAX_K:
            raise RefusalError(400, f"Expected 1 to {MAX_K}, got {k}", "k")
        anchor = self._vocabulary.index(Namespace.ITEM, item)
        if anchor == 0:
            raise RefusalError(404, "There is no item of that id", "item_id")
        owner = self._user(user)
        chosen = self._chosen(user, Asking(owner.user, SIMILAR, NO_CONTEXT), now_ms)
        query = Query(
            request_id=request_id,
            user=owner.user,
            surface=SIMILAR,
            k=k,
            anchor=anchor,
            deadline_ms=self.config.ladder.deadline_ms,
            arm="" if chosen.arm is None else chosen.arm.name,
            lots=chosen.challenger is None,
            exploration=self.controls.exploration,
            tier_floor=self.controls.tier_floor,
        )
        return Asked(query, owner, False, NO_ITEMS, (), user, *chosen)

    def answer(self, asked: Asked, now_ms: int) -> Answer:
        """Run the pipeline, or two and interleave their lists. It always answers; what went wrong is in the answer."""
        if asked.challenger is None:
            return self._answer(asked.query, asked.arm, now_ms)
        half_ms, deadline = asked.query.deadline_ms / 2.0, Deadline(self.pipeline.timer, asked.query.deadline_ms)
        answer = self._answer(replace(asked.query, deadline_ms=half_ms), asked.arm, now_ms)
        if answer.tier != TIER_FULL or (left_ms := min(half_ms, deadline.left_ms())) <= 0.0:
            return answer
        query = replace(asked.query, arm=asked.challenger.name, deadline_ms=left_ms)
        other = self._answer(query, asked.challenger, now_ms)
        return interleaved(query.request_id, answer, other, query.k) if other.tier == TIER_FULL else answer

    def _answer(self, query: Query, arm: Arm | None, now_ms: int) -> Answer:
        pipeline, model = self.pipeline, self.model
        if arm is not None:
            pipeline, model = arm.pipeline, arm.model or model
        try:
            return pipeline.recommend(query, self.view, model, now_ms)
        except Exception as error:
            # a defect, of ours or of a plug-in; the visitor gets what needs no model and no store
            log.exception("pipeline_failed", surface=query.surface)
            why = f"internal error, it is in the log: {type(error).__name__}"
            return pipeline.fallback(query, self.view, model, now_ms, why)

    def response(self, asked: Asked, answer: Answer, notes: list[str]) -> RecommendResponse:
        """The answer in the API's words; ``notes`` are reasons from before the pipeline."""
        text = self._vocabulary.text
        items = []
        for dense, score, source, reason, cause in zip(
            answer.items.tolist(), answer.scores.tolist(), answer.sources, answer.reasons, answer.causes.tolist(),
            strict=True,
        ):  # fmt: skip
            if "{item}" in reason:
                reason = reason.replace("{item}", text(Namespace.ITEM, cause) or "what you looked at")
            items.append(RecommendedItem(text(Namespace.ITEM, dense) or "", score, source, reason))
        about = [item for item in (*answer.context[4:], answer.context[2]) if item]
        cursor = next_cursor(asked.before, answer.items) if len(answer.items) == asked.query.k else None
        return RecommendResponse(
            request_id=asked.query.request_id,
            items=items,
            tier=answer.tier,
            reasons=[*notes, *asked.notes, *answer.degraded],
            model=answer.address.bundle,
            address=answer.address,
            about=[text(Namespace.ITEM, item) or "" for item in about] if about else UNSET,
            next=UNSET if cursor is None else cursor,
            trace=[StageTrace(name, *lap) for name, lap in answer.trace.items()] if asked.trace else UNSET,
            experiments={choice.experiment: choice.variant for choice in asked.choices} if asked.trace else UNSET,
        )

    def warm_up(self, now_ms: int) -> None:
        """Run the pipeline once for a stranger, so that no request waits for a kernel."""
        if self.pipeline.rules is not None:
            self.pipeline.rules.warm_up()
        self.answer(Asked(Query(request_id="warm-up", k=1, deadline_ms=60_000.0), STRANGER), now_ms)

    def _chosen(self, user: str | None, asking: Asking, now_ms: int, *, interleave: bool = True) -> Chosen:
        """The variants of the external id ``user``."""
        arms = self.arms
        return arms.choose(
            user, asking.surface, lambda experiment: arms.targets(experiment, asking, self.view, now_ms), interleave=interleave
        )  # fmt: skip

    def _known(self, items: list[str]) -> npt.NDArray[np.int64]:
        """The dense numbers of those that the catalogue knows, int64[n]."""
        if not items:
            return NO_ITEMS
        found = [self._vocabulary.index(Namespace.ITEM, item) for item in items]
        return np.array([item for item in found if item], np.int64)

    def _user(self, external: str | None) -> UserKey:
        if external is None:
            return STRANGER
        return self._identity.lookup(external) or STRANGER

    def _segments(self, context: Attributes | None) -> tuple[int, int]:
        found = [0, 0]
        if context is not None:
            for position, key in enumerate(self._plan.segment_keys):
                chosen = segment_of(key, context.get)
                if chosen is not None:
                    found[position] = self._vocabulary.index(Namespace.SEGMENT, chosen)
        return found[0], found[1]

    def _zone(self, context: Attributes | None) -> str | None:
        value = context.get("timezone") if context is not None else None
        return None if value is None else str(value)

    def _region(self, context: Attributes | None) -> int | None:
        value = context.get(REGION_KEY) if context is not None else None
        return None if value is None else self._regions.index(str(value), self.view.item_offset)
