"""The model card: what a bundle is, what it was trained on and what it was seen to do; ``card.json`` and ``card.md`` in it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

import msgspec
from msgspec import Struct

from headwater.registry.bundle import Bundle, BundleError, DataRange

CARD_FILE, CARD_TEXT = "card.json", "card.md"

CANDIDATE, IN_SERVICE, RECENT_POPULARITY = "candidate", "in_service", "recent_popularity"
NDCG, SHOWN_NDCG = "ndcg@10", "shown_ndcg"  # what the gate compares: on questions, on lists

Weighting = Literal["propensity", "position"]


class Estimate(Struct, frozen=True, forbid_unknown_fields=True):
    """A figure with its 95% interval (users as clusters)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


class Measured(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a system did on the held-out questions.

    ``ndcg_over`` and ``relative_over``: how much better the candidate is than this one, paired (``None`` for itself;
    a ratio to 0 has none). Medians, in ms: ``score_ms`` for ranking 300 rows, ``fetch_ms`` for all sources of a request
    (encoders included), ``list_ms`` for a whole list.
    """

    version: str | None
    metrics: dict[str, Estimate]
    ndcg_over: Estimate | None = None
    relative_over: Estimate | None = None
    score_ms: float | None = None
    fetch_ms: float
    list_ms: float


class SegmentFigures(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """NDCG@10 of the candidate on a part of the questions; ``over``: what it gains over the bundle in service there."""

    segment: str
    questions: int
    ndcg: Estimate
    over: Estimate | None


class OnLists(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a bundle made of the held-out lists: NDCG of the shown items, and the share of those left that an item taken was scored above.

    ``ndcg_over``, ``relative_over`` and ``auc_over``: how much better the candidate is than this one, paired (``None`` for itself).
    """

    version: str
    shown_ndcg: Estimate
    shown_auc: Estimate
    ndcg_over: Estimate | None = None
    relative_over: Estimate | None = None
    auc_over: Estimate | None = None


class HeldLists(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Held-out lists as they were shown, and what each bundle made of them.

    ``rows`` are shown items, of which ``taken`` were. ``weighting``: what an item taken counts by, the inverse of its logged propensity or of the
    rate of its place; ``ess`` is the effective sample size of these weights, ``clipped`` the share of them that was lowered.
    """

    lists: int
    rows: int
    taken: int
    users: int
    weighting: Weighting
    ess: float
    clipped: float
    systems: dict[str, OnLists]


class HeldOut(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The last stretch of the log, which the bundle was not trained on: what was asked there, and what came of it.

    ``coverage`` is the share of questions to which a source had an offer, by fitted source. ``lists``: what decides in place of the
    questions where a bundle learnt from lists; ``no_lists`` says why it is not there then.
    """

    first_offset: int
    last_offset: int
    first_ms: int
    last_ms: int
    questions: int
    users: int
    seed: int
    systems: dict[str, Measured]
    segments: tuple[SegmentFigures, ...]
    coverage: dict[str, float]
    lists: HeldLists | None = None
    no_lists: str = ""


class ModelCard(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``card.json``. ``sizes`` are bytes by file, ``versions`` those of what took part in training.

    ``history`` says which models scored the rows that the ranker was trained on, ``indexes`` by source how its vectors are
    searched and what the choice was made by. ``held_out`` is ``None`` for a bundle
    that was published without the gate.
    """

    format: int = 1
    created_ms: int
    plan_hash: str
    ranker: str
    sources: tuple[str, ...]
    columns: int
    data: DataRange
    licence: str
    training: dict[str, str | int | float | bool | None]
    versions: dict[str, str]
    training_metrics: dict[str, float]
    sizes: dict[str, int]
    history: str
    indexes: dict[str, str] = {}
    held_out: HeldOut | None


def encode_card(card: ModelCard) -> dict[str, bytes]:
    """The two files of a card."""
    text = msgspec.json.format(msgspec.json.encode(card, order="sorted"), indent=2) + b"\n"
    return {CARD_FILE: text, CARD_TEXT: render_card(card).encode()}


def read_card(bundle: Bundle) -> ModelCard | None:
    """The card of a bundle; ``None`` when it was published without one.

    Raises:
        BundleError: the card is of a later release.
    """
    data = bundle.files.get(CARD_FILE)
    if data is None:
        return None
    try:
        return msgspec.json.decode(data, type=ModelCard)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"The card of {bundle.version} cannot be read: {error}. Update Headwater here.") from error


def render_card(card: ModelCard) -> str:
    """The card as Markdown."""
    data = card.data
    facts: list[tuple[str, object]] = [
        ("created", _moment(card.created_ms)),
        ("plan", f"{card.plan_hash}, {card.columns} columns"),
        ("ranker", card.ranker),
        ("trained sources", ", ".join(card.sources) or "none"),
        ("data", f"offsets {data.first_offset:,} to {data.last_offset:,}, {_moment(data.first_ms)} to {_moment(data.last_ms)}"),
        ("licence of the data", card.licence or "not stated"),
        ("training history", card.history),
        *((f"index of {name}", text) for name, text in card.indexes.items()),
        *((f"training: {name}", value) for name, value in card.training.items()),
        *((f"metric of the training: {name}", value) for name, value in card.training_metrics.items()),
        *((f"version of {name}", value) for name, value in card.versions.items()),
        *((f"size of {name}", f"{size:,} bytes") for name, size in card.sizes.items()),
    ]  # fmt: skip
    rows = [f"| {name} | {value} |" for name, value in facts]
    return "\n".join(["# Model card", "", "| | |", "|---|---|", *rows, "", *_held_out(card.held_out), ""])


def _held_out(held: HeldOut | None) -> list[str]:
    if held is None:
        return ["Published without the gate: nothing was held out, nothing was measured."]
    what = (
        f"Held out: {held.questions:,} questions of {held.users:,} users at offsets {held.first_offset:,} to "
        f"{held.last_offset:,} ({_moment(held.first_ms)} to {_moment(held.last_ms)}), answered by the pipeline that serves. "
        "95% intervals, users as clusters."
    )
    lines = [
        what,
        "",
        "| system | HR@10 | NDCG@10 | MRR | candidate's gain in NDCG@10 | ms per 300 rows | ms for sources | ms a list |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, measured in held.systems.items():
        figures = [str(measured.metrics[key]) for key in ("hr@10", "ndcg@10", "mrr")]
        gain = "" if measured.ndcg_over is None else str(measured.ndcg_over)
        score = "" if measured.score_ms is None else f"{measured.score_ms:.3f}"
        shown = name.replace("_", " ") + (f" {measured.version}" if measured.version else "")
        cells = [shown, *figures, gain, score, f"{measured.fetch_ms:.2f}", f"{measured.list_ms:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| segment | questions | NDCG@10 | gain over the bundle in service |", "|---|---|---|---|"]
    for part in held.segments:
        lines.append(f"| {part.segment} | {part.questions:,} | {part.ndcg} | {part.over or ''} |")
    if held.coverage:
        lines += ["", "| source | share of questions with an offer |", "|---|---|"]
        lines += [f"| {name} | {share:.3f} |" for name, share in held.coverage.items()]
    return [*lines, "", *_judged_by(held)]


def _judged_by(held: HeldOut) -> list[str]:
    lists = held.lists
    if lists is None:
        return [f"The gate compares {NDCG} on questions{f', not lists: {held.no_lists}' if held.no_lists else ''}."]
    weighting = "logged propensity" if lists.weighting == "propensity" else "rate of its place"
    what = (
        f"The gate compares {SHOWN_NDCG}, on {lists.lists:,} held-out lists of {lists.users:,} users as they were shown: {lists.rows:,} items, "
        f"{lists.taken:,} taken, each weighted by the inverse of its {weighting} (effective sample size {lists.ess:,.0f}, {lists.clipped:.1%} clipped)."
    )
    lines = [
        what,
        "",
        f"| bundle | {SHOWN_NDCG} | shown_auc | candidate's gain in {SHOWN_NDCG} | in shown_auc |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for name, of in lists.systems.items():
        cells = (
            f"{name.replace('_', ' ')} {of.version}",
            of.shown_ndcg,
            of.shown_auc,
            of.ndcg_over or "",
            of.auc_over or "",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _moment(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S}Z"
