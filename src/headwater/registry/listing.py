"""The bundles of a registry as people look at them: which one serves, where a rollback leads, what was measured and what the gate said."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
from msgspec import Struct

from headwater.registry.bundle import VERSION_PATTERN, Manifest, file_alone
from headwater.registry.card import CARD_FILE, IN_SERVICE, NDCG, HeldOut, ModelCard
from headwater.registry.errors import BundleError
from headwater.registry.registry import Registry
from headwater.schema.errors import ConfigurationError


class GateReport(Struct, frozen=True, kw_only=True):
    """The verdict on ``version`` beside the bundle ``against`` (``None``: none was in service).

    ``reasons`` say why it did not pass, ``notes`` what else a person should know. ``forced``: it was promoted all the
    same. ``margin``, ``slower``, ``questions`` and ``lists`` are the rule of that moment. ``metric`` is what was compared: "ndcg@10" on
    questions, "shown_ndcg" on lists.
    """

    version: str
    against: str | None
    passed: bool
    forced: bool = False
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    margin: float
    slower: float
    questions: int
    held_out: HeldOut | None
    judged_ms: int
    metric: str = NDCG
    lists: int | None = None


def in_words(report: GateReport | None) -> str:
    """What the gate came to, in a line; None: it was not asked."""
    if report is None:
        return "the gate was not asked"
    if not report.passed:
        said = "refuses it; it was promoted all the same" if report.forced else "refuses it"
        return f"the gate {said}: {'; '.join(report.reasons)}"
    if report.against is None or report.held_out is None:
        return "the gate lets it pass: there was none to compare it with"
    lists = report.held_out.lists
    over = (report.held_out if lists is None else lists).systems[IN_SERVICE].relative_over
    what = f"{report.held_out.questions} questions" if lists is None else f"{lists.lists} lists as they were shown"
    gained = "-" if over is None else f"{over.value:+.1%} [{over.low:+.1%}, {over.high:+.1%}]"
    return f"the gate lets it pass: {report.metric} {gained} over {report.against} on {what}"


class BundleLine(Struct, frozen=True, kw_only=True):
    """A bundle in a list. ``rollback``: a way back leads to it. ``gate``: "passed", "refused", "forced" or ``None`` (not asked)."""

    version: str
    current: bool
    rollback: bool
    plan: str | None
    ranker: str | None
    sources: tuple[str, ...]
    trained_until: str | None
    bytes: int
    gate: str | None
    problem: str | None


def bundle_lines(registry: Registry) -> list[BundleLine]:
    """Every bundle, newest first.

    Raises:
        BundleError: a report of the gate cannot be read.
    """
    lines = []
    histories: dict[str, list[str]] = {}
    for listed in registry.list():
        manifest = listed.manifest
        plan = None if manifest is None else manifest.plan_hash
        if plan is not None and plan not in histories:
            histories[plan] = registry.history(plan)
        report = gate_report(registry, listed.version)
        said = None if report is None else "passed" if report.passed else "forced" if report.forced else "refused"
        until = None if manifest is None else datetime.fromtimestamp(manifest.data.last_ms / 1_000, UTC)
        lines.append(
            BundleLine(
                version=listed.version, current=listed.current, rollback=listed.version in histories.get(plan or "", []),
                plan=plan, ranker=None if manifest is None else manifest.ranker,
                sources=() if manifest is None else manifest.sources,
                trained_until=None if until is None else f"{until:%Y-%m-%dT%H:%M:%SZ}",
                bytes=0 if manifest is None else sum(entry.size for entry in manifest.files.values()), gate=said,
                problem=listed.problem,
            )
        )  # fmt: skip
    return lines


def gate_report(registry: Registry, version: str) -> GateReport | None:
    """What the gate said last of a bundle; ``None``: it was not asked.

    Raises:
        BundleError: it cannot be read.
    """
    data = registry.report(version) if VERSION_PATTERN.fullmatch(version) else None
    if data is None:
        return None
    try:
        return msgspec.json.decode(data, type=GateReport)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"The gate's report on {version} cannot be read: {error}. Promote it again.") from error


def card_alone(registry: Registry, manifest: Manifest) -> ModelCard | None:
    """The card of a bundle without the rest of it, which may be large; ``None`` when it was published without one.

    Raises:
        BundleError: the card is damaged, or of a later release.
    """
    data = file_alone(registry.path / "bundles", manifest, CARD_FILE, "The card")
    if data is None:
        return None
    try:
        return msgspec.json.decode(data, type=ModelCard)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"The card of {manifest.version} cannot be read: {error}") from error


def resolved_version(registry: Registry, plan: str, version: str) -> str:
    """The whole version that a person means: "current", or how it begins.

    Raises:
        ConfigurationError: none or several begin like that.
    """
    if version == "current":
        current = registry.current(plan)
        if current is None:
            raise ConfigurationError(
                f"no bundle of plan {plan} is in service; `headwater models list` shows what there is"
            )
        return current
    found = [listed.version for listed in registry.list() if listed.version.startswith(version)]
    if len(found) != 1:
        what = "no bundle begins" if not found else f"{len(found)} bundles begin"
        raise ConfigurationError(f"{what} with {version!r}; `headwater models list` shows what there is")
    return found[0]
