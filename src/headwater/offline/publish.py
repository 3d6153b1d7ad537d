"""The end of a training: judge the candidate, publish it with its card, and promote it when it passes the gate."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import structlog
from msgspec import Struct

from headwater.evaluation.checks import MismatchError, mismatches
from headwater.evaluation.gate import forced, verdict
from headwater.evaluation.heldout import Stretch, Trial, behind, held_out_stretch, try_out
from headwater.evaluation.off_policy.objections import objections
from headwater.evaluation.seen import Seen
from headwater.evaluation.walk import Before
from headwater.features.fold import Unseal
from headwater.features.plan import Plan
from headwater.learning.trainingset import LISTS, QUESTIONS
from headwater.log.protocol import EventLog
from headwater.registry.audit import Author
from headwater.registry.bundle import Bundle, ManifestFields, unwritten
from headwater.registry.card import HeldOut, ModelCard, encode_card
from headwater.registry.listing import GateReport, in_words
from headwater.registry.reference import REFERENCE_FILE, BundleReference, encode_reference
from headwater.registry.registry import Registry
from headwater.retrieval.vectors.choice import IndexChoice
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.serving.model import Model, open_model
from headwater.serving.view import FoldView

log = structlog.get_logger()

Progress = Callable[[int, int], None]

_LIBRARIES = {"lightgbm": ("lightgbm",), "deep": ("torch", "onnxruntime"), "none": ()}


class Publication(Struct, frozen=True, kw_only=True):
    """A bundle that was published. ``gate`` is ``None`` when nobody was asked to judge it. ``frozen``: it was not promoted because promotion is
    frozen, and why that is.
    """

    bundle: str
    promoted: bool
    gate: GateReport | None
    frozen: str = ""


def publish_and_promote(
    config: Config, plan: Plan, event_log: EventLog, registry: Registry, fields: ManifestFields, files: Mapping[str, bytes],
    *, stretch: Stretch | None, promote: Author | None, force: bool = False, seed: int, indexes: Mapping[str, IndexChoice] | None = None,
    reference: BundleReference | None = None, unseal: Unseal | None = None, view: FoldView | None = None, before: Before | None = None,
    progress: Progress | None = None,
) -> Publication:  # fmt: skip
    """Publish ``files`` as a bundle with its card; with a ``stretch`` that was held out, judge it there first.

    It is promoted by ``promote`` (None: by nobody) when the gate lets it pass, or ``force`` says so whatever the gate says; and not while promotion is frozen. The
    report of the gate is kept in the registry beside the bundle, and logged. ``reference`` goes into the bundle, with what the gate saw. ``view`` and ``before`` as in
    :func:`headwater.evaluation.walk.walk`: judging goes on from a state that stands at the split.

    Raises:
        BundleError: files that no bundle may hold; nothing was published.
    """
    candidate = unwritten(fields, files)
    report, seen = None, None
    if stretch is not None:
        report, seen = _judge(
            config, plan, event_log, registry, candidate, stretch, seed=seed, judged_ms=fields.created_ms, unseal=unseal,
            view=view, before=before, progress=progress,
        )  # fmt: skip
    card = _card(config, fields, files, indexes or {}, None if report is None else report.held_out)
    files = {**files, **encode_card(card)}
    if reference is not None:
        files[REFERENCE_FILE] = encode_reference(reference if seen is None else seen.into(reference))
    bundle = registry.publish(fields, files)
    if report is not None:
        report = msgspec.structs.replace(report, version=bundle.version)
        report = forced(report) if force else report
        _keep(registry, report)
    if promote is None:
        return Publication(bundle=bundle.version, promoted=False, gate=report)
    wanted = report is None or report.passed or force
    return _promoted(registry, plan, bundle.version, report, promote, wanted=wanted)


def promote_published(
    config: Config, plan: Plan, event_log: EventLog, registry: Registry, version: str, *, checks: Path, now_ms: int,
    seed: int, author: Author, force: bool = False, despite_freeze: bool = False,
    unseal: Unseal | None = None, progress: Progress | None = None,
) -> Publication:  # fmt: skip
    """Judge a bundle of the registry on what lies behind its own training and that of the one in service, and promote it, unless promotion
    is frozen (``despite_freeze``: also then). ``author`` promotes it.

    Raises:
        BundleError: the bundle is damaged, or of another plan.
    """
    bundle = registry.load(version, plan_hash=plan.hash)
    last_ms, until = event_log.last_received_ms, event_log.last_offset
    stretch = held_out_stretch(event_log, config, until=until, until_ms=last_ms)
    if bundle.manifest.data.last_offset > stretch.split:
        stretch = behind(event_log, config, bundle.manifest.data.last_offset, until)
    problems: tuple[str, ...] = ()
    if "allow_mismatch" not in bundle.manifest.training:
        try:
            mismatches(checks, plan.hash, plan.columns)
        except MismatchError as error:
            problems = (str(error),)
    report, _ = _judge(
        config, plan, event_log, registry, bundle, stretch, seed=seed, judged_ms=now_ms, unseal=unseal,
        progress=progress, problems=problems,
    )  # fmt: skip
    report = forced(report) if force else report
    _keep(registry, report)
    wanted = report.passed or force
    return _promoted(registry, plan, version, report, author, wanted=wanted, despite_freeze=despite_freeze)


def _promoted(
    registry: Registry,
    plan: Plan,
    version: str,
    report: GateReport | None,
    author: Author,
    *,
    wanted: bool,
    despite_freeze: bool = False,
) -> Publication:
    """What became of the bundle: in service if it is ``wanted`` and promotion is not frozen."""
    frozen = registry.frozen if wanted and not despite_freeze else ""
    if frozen:
        log.warning("promotion_frozen", version=version, reason=frozen)
    elif wanted:
        registry.promote(version, plan_hash=plan.hash, author=author, verdict=in_words(report))
    return Publication(bundle=version, promoted=wanted and not frozen, gate=report, frozen=frozen)


def _judge(
    config: Config, plan: Plan, event_log: EventLog, registry: Registry, candidate: Bundle, stretch: Stretch, *, seed: int,
    judged_ms: int, unseal: Unseal | None, view: FoldView | None = None, before: Before | None = None,
    progress: Progress | None, problems: tuple[str, ...] = (),
) -> tuple[GateReport, Seen | None]:  # fmt: skip
    """Open both, ask both, judge; and what the candidate's lists looked like. What keeps the candidate from being asked is a reason; the bundle in service is a note."""
    found, notes = list(problems), list[str]()
    against, in_service, reached, theirs = _in_service(registry, config, plan, notes)
    if "allow_mismatch" in candidate.manifest.training:
        notes.append(f"trained although serving disagrees on {candidate.manifest.training['allow_mismatch']}")
    if reached > stretch.split:
        stretch = behind(event_log, config, min(reached, stretch.until), stretch.until)
    trial: Trial | None = None
    ours = learnt_from(candidate.manifest)
    try:
        model = open_model(candidate, config, plan)
    except HeadwaterError as error:
        found.append(f"it cannot be opened: {error}")
    else:
        try:
            trial = try_out(
                event_log, plan, config, model, in_service, stretch, seed=seed, unseal=unseal, view=view, before=before,
                on_lists=LISTS in (ours, theirs), progress=progress,
            )  # fmt: skip
            if config.gate.off_policy and in_service is not None:
                reasons, said = objections(
                    event_log, plan, config, registry, model, since=candidate.manifest.data.last_offset + 1, unseal=unseal
                )  # fmt: skip
                found += reasons
                notes += said
        finally:
            model.close()
    if in_service is not None:
        in_service.close()
    report = verdict(
        config.gate, trial, version=candidate.version, against=against, judged_ms=judged_ms, problems=tuple(found),
        notes=tuple(notes), alike=against is None or ours == theirs,
    )  # fmt: skip
    return report, None if trial is None else trial.seen


def learnt_from(manifest: ManifestFields) -> str:
    """What the ranker of a bundle learnt from; bundles of earlier releases learnt from questions."""
    return str(manifest.training.get("learnt_from", QUESTIONS))


def _in_service(
    registry: Registry, config: Config, plan: Plan, notes: list[str]
) -> tuple[str | None, Model | None, int, str]:
    """(version, model, last offset that it was trained on, what it learnt from) of the bundle in service; a damaged one must not stop a good one."""
    try:
        version = registry.current(plan.hash)
        if version is None:
            return None, None, 0, ""
        bundle = registry.load(version, plan_hash=plan.hash)
        manifest = bundle.manifest
        return version, open_model(bundle, config, plan), manifest.data.last_offset, learnt_from(manifest)
    except HeadwaterError as error:
        notes.append(f"the bundle in service cannot be opened ({error}): the candidate was compared with none")
        return None, None, 0, ""


def _card(
    config: Config, fields: ManifestFields, files: Mapping[str, bytes], indexes: Mapping[str, IndexChoice],
    held: HeldOut | None,
) -> ModelCard:  # fmt: skip
    libraries = ("numpy", *_LIBRARIES.get(fields.ranker, ()), *(("onnxruntime",) if fields.sources else ()))
    scored = fields.training.get("history")
    return ModelCard(
        created_ms=fields.created_ms, plan_hash=fields.plan_hash, ranker=fields.ranker, sources=fields.sources,
        columns=len(fields.columns), data=fields.data, licence=config.models.licence, training=fields.training,
        versions={name: importlib.metadata.version(name) for name in ("headwater", *dict.fromkeys(libraries))},
        training_metrics=fields.metrics, sizes={name: len(data) for name, data in sorted(files.items())},
        history=str(scored) if scored else (
            "rows are scored only by bundles trained earlier" if fields.sources else "no row holds the score of a model"
        ),
        indexes={name: str(choice) for name, choice in indexes.items()},
        held_out=held,
    )  # fmt: skip


def _keep(registry: Registry, report: GateReport) -> None:
    registry.write_report(report.version, msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    said = {"version": report.version, "against": report.against, "reasons": report.reasons, "notes": report.notes}
    if report.passed:
        log.info("gate_passed", **said)
    else:
        log.warning("gate_refused", forced=report.forced, **said)
