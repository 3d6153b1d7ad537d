"""What became of the items of a request, read off its observer: sources, filters, and where one item was lost."""

from __future__ import annotations

from collections.abc import Iterable

from headwater.log.protocol import Vocabulary
from headwater.log.record import Namespace
from headwater.policy.eligibility import ABOUT, ELSEWHERE, EXCLUDED, EXPIRED, HIDDEN, SEEN, TIRED, UNPUBLISHED
from headwater.schema.explanation import Candidate, ExplainedItem, ExplainedSource, Fate, Filter, Stage
from headwater.serving.observer import Observer, Offered
from headwater.serving.request import Query
from headwater.serving.rules import Rules

EXAMPLES = 5

WHY = {
    SEEN: "seen by this user",
    EXCLUDED: "excluded by the request, or shown on an earlier page",
    ABOUT: "the list is about it",
    TIRED: "shown to this user often enough, and not touched",
    HIDDEN: "hidden: not available, or deleted",
    UNPUBLISHED: "not yet published",
    EXPIRED: "expired",
    ELSEWHERE: "not for the region of the request",
}


class Fates:
    """Reads an observed request. ``rules`` are those of the pipeline, still at that request."""

    def __init__(self, vocabulary: Vocabulary, rules: Rules | None, observer: Observer, query: Query) -> None:
        self._vocabulary, self._rules, self._observer, self._query = vocabulary, rules, observer, query
        self._places = observer.places()
        self._why = {item: WHY[verdict] for item, verdict in observer.refused.items()}
        self._by_rule: dict[int, str] = {}
        for name, removed in ({} if rules is None else rules.removed()).items():
            for item in removed.tolist():
                self._by_rule.setdefault(item, f'rule "{name}"')
        self._candidates = set(observer.candidates.items.tolist())

    def sources(self, most: int) -> list[ExplainedSource]:
        """Every source that was asked, with its first ``most`` candidates; then what else put items into the list."""
        observer = self._observer
        shown = self._places["shown"]
        found = []
        for offer in observer.offers:
            items = offer.ranked.items.tolist()
            found.append(
                ExplainedSource(
                    source=offer.source,
                    weight=offer.weight,
                    width=offer.width,
                    offered=len(items),
                    kept=sum(item in self._candidates for item in items),
                    listed=sum(item in shown for item in items),
                    why_empty=offer.why_empty,
                    candidates=[self._candidate(offer, rank, item) for rank, item in enumerate(items[:most], 1)],
                )
            )
        asked = {offer.source for offer in observer.offers}
        offered = set(observer.merged.items.tolist())
        listed = observer.listed.tolist()
        for at, name in enumerate(observer.sources):
            own = observer.candidates.items[observer.candidates.source == at].tolist()
            own = [item for item in own if item not in offered]
            if own and name not in asked:
                found.append(
                    ExplainedSource(
                        source=name, weight=0.0, width=len(own), offered=len(own), kept=len(own),
                        listed=sum(item in listed for item in own), why_empty="", candidates=[],
                    )
                )  # fmt: skip
        return found

    def filters(self) -> list[Filter]:
        """What kept items back, stage by stage; an item counts where it was lost."""
        observer, found = self._observer, []
        reasons: dict[str, list[int]] = {}
        for item, why in (*self._why.items(), *self._by_rule.items()):
            reasons.setdefault(why, []).append(item)
        found += [self._filter("eligibility", why, items) for why, items in reasons.items()]
        merged = set(observer.merged.items.tolist())
        offered = {item for offer in observer.offers for item in offer.ranked.items.tolist()}
        beyond = [item for item in offered if item not in merged and self._refusal(item) == ""]
        cut = [item for item in observer.merged.items.tolist() if item not in self._candidates]
        ranked, shown = self._places["ranked"], self._places["shown"]
        light = [item for item in observer.candidates.items.tolist() if item not in ranked]
        unplaced = [item for item in ranked if item not in shown]
        k = self._query.k
        parts: tuple[tuple[Stage, str, Iterable[int]], ...] = (
            ("merge", "below the width of its source", sorted(beyond)),
            ("merge", f"behind the first {observer.limit} of the merged order", cut),
            ("light_rank", "not among those that the light ranker lets through", light),
            ("rank", f"ranked behind place {k}", [item for item in unplaced if ranked[item] > k]),
            ("policy", "kept out by policy", [item for item in unplaced if ranked[item] <= k]),
        )
        return [*found, *(self._filter(stage, why, items) for stage, why, items in parts if items)]

    def of(self, item: int, described: ExplainedItem, served_at: int) -> Fate:
        """The first stage that ``item`` (0: unknown to the log) did not pass; ``served_at`` is its place in the recorded list, 0: none."""
        stage, reason = self._fate(item, described)
        if served_at and stage != "listed":
            reason += f". It was served at place {served_at}: the replay is not the list that was served"
        return Fate(stage=stage, reason=reason, of=described)

    # -- parts ---------------------------------------------------------------------------------------------

    def _fate(self, item: int, described: ExplainedItem) -> tuple[Stage, str]:
        observer = self._observer
        if not item:
            return "unknown", "no record of the log names an item of that id"
        if described.place is not None:
            return "listed", self._moved(described)
        if not observer.item:
            return "unknown", "the item columns that the request saw did not know it yet"
        ranks = ", ".join(f"place {found.rank} of {found.source}" for found in described.sources)
        if why := self._refusal(item):
            return "eligibility", f"{why} ({ranks})" if ranks else why
        if self._query.candidates is not None and item not in self._candidates:
            return "sources", "it is not among the candidates of the request"
        if item not in self._candidates:
            if not ranks:
                asked = ", ".join(offer.source for offer in observer.offers)
                return "sources", f"none of the sources offered it: {asked}"
            if described.merged is None:
                widths = "; ".join(
                    f"place {self._allowed_rank(offer, item)} of what may be shown of {offer.source}, whose first {offer.width} count"
                    for offer in observer.offers
                    if offer.rank_of(item)
                )
                return "merge", f"below the width of every source that offered it: {widths}"
            return (
                "merge",
                f"place {described.merged} of the merged order, whose first {observer.limit} go on ({ranks})",
            )
        if described.ranked is None:
            kept = len(observer.order.positions)
            return "light_rank", f"the light ranker let {kept} others of {len(self._candidates)} candidates through"
        if described.ranked > self._query.k:
            return (
                "rank",
                f"ranked {described.ranked} of {len(observer.order.positions)}, and the list has {self._query.k} places",
            )
        by = (
            f"rules that concern it: {', '.join(described.rules)}"
            if described.rules
            else "diversity, or pins of others"
        )
        return "policy", f"ranked {described.ranked}, which would be in the list, but policy kept it out ({by})"

    def _moved(self, described: ExplainedItem) -> str:
        if described.ranked is None or described.ranked == described.place:
            return f"at place {described.place}"
        by = f" (rules that concern it: {', '.join(described.rules)})" if described.rules else ""
        return f"at place {described.place}; ranked {described.ranked}, policy moved it{by}"

    def _refusal(self, item: int) -> str:
        return self._why.get(item) or self._by_rule.get(item, "")

    def _allowed_rank(self, offer: Offered, item: int) -> int:
        """The place of ``item`` among the offered items that may be shown."""
        before = offer.ranked.items[: offer.rank_of(item)].tolist()
        return sum(self._refusal(other) == "" for other in before)

    def _candidate(self, offer: Offered, rank: int, item: int) -> Candidate:
        return Candidate(
            item=self._name(item),
            rank=rank,
            score=float(offer.ranked.scores[rank - 1]),
            refused=self._refusal(item),
            merged=self._places["merged"].get(item),
            ranked=self._places["ranked"].get(item),
            place=self._places["shown"].get(item),
        )

    def _filter(self, stage: Stage, reason: str, items: Iterable[int]) -> Filter:
        kept_back = list(items)
        return Filter(stage, reason, len(kept_back), [self._name(item) for item in kept_back[:EXAMPLES]])

    def _name(self, item: int) -> str:
        return self._vocabulary.text(Namespace.ITEM, item) or ""
