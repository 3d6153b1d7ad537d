"""The bundles: which one serves and why, what each was seen to do, what differs between two, and the way back."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from litestar import Response, get, post
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct

from headwater.console.changes import RefusedError, done, form_of, refusing
from headwater.console.desk import Call, Desk, Entry, NotFoundError, changer_of
from headwater.console.guard import ROOT
from headwater.console.intervals import Chart, Interval, forest
from headwater.console.planes import Commands, Said
from headwater.monitoring.actions import Actions
from headwater.registry.audit import Author, record
from headwater.registry.bundle import BundleError, Manifest
from headwater.registry.card import CANDIDATE, IN_SERVICE, Estimate, HeldOut, ModelCard
from headwater.registry.controls import read_controls
from headwater.registry.difference import Change, difference
from headwater.registry.listing import BundleLine, GateReport, bundle_lines, card_alone, gate_report, resolved_version
from headwater.registry.reference import reference_alone
from headwater.registry.registry import Registry
from headwater.schema.errors import HeadwaterError

MODELS = f"{ROOT}/models"
ENTRIES: tuple[Entry, ...] = (Entry(MODELS, "Models", "Run"),)
SHOWN = 20
GATE_S = 900.0
NDCG = "ndcg@10"


class Measured(Struct, frozen=True):
    """A bundle in the list with what the gate, or else training, measured last."""

    line: BundleLine
    ndcg: Estimate | None
    over: Estimate | None


def routes(desk: Desk) -> list[HTTPRouteHandler]:
    """The list, a card, two side by side, and what changes which one serves."""
    registry = Registry(desk.data / "models")
    asking: set[str] = set()

    @get(MODELS)
    async def models(request: Call) -> Response[str]:
        page, plan = _page_number(request), desk.planes.plan
        lines, shown = await asyncio.to_thread(_measured, registry, plan, page)
        controls = await asyncio.to_thread(read_controls, desk.data)
        return desk.page(
            request, "admin/models.html", lines=shown, total=len(lines), page=page, pages=-(-len(lines) // SHOWN),
            versions=[line.version for line in lines], plan=plan, frozen=controls.promotion_frozen,
            way_back=await asyncio.to_thread(_way_back, registry, plan),
            serves=next((line.version for line in lines if line.current and line.plan == plan), ""),
            gate=desk.config.gate.enabled,
        )  # fmt: skip

    @get(MODELS + "/compare")
    async def compare(request: Call) -> Response[str]:
        asked = [request.query_params.get(side, "current") for side in ("first", "second")]
        with refusing():
            versions, changes = await asyncio.to_thread(_compared, registry, desk.planes.plan, asked)
        return desk.page(request, "admin/compare.html", versions=versions, groups=_grouped(changes))

    @get(MODELS + "/card/{version:str}")
    async def card(request: Call) -> Response[str]:
        version: str = request.path_params["version"]
        try:
            found = await asyncio.to_thread(_card, registry, desk.planes.plan, version)
        except HeadwaterError as error:
            raise NotFoundError(str(error)) from error
        return desk.page(request, "admin/card.html", **found)

    @get(MODELS + "/card/{version:str}/segments")
    async def segments(request: Call) -> Chart:
        version: str = request.path_params["version"]
        try:
            found = await asyncio.to_thread(_card, registry, desk.planes.plan, version)
        except HeadwaterError as error:
            raise NotFoundError(str(error)) from error
        held = found["held"]
        parts = (
            [] if held is None else [Interval(p.segment, p.ndcg.value, p.ndcg.low, p.ndcg.high) for p in held.segments]
        )
        return forest(parts)

    @post(MODELS + "/promote")
    async def promote(request: Call) -> Response[str]:
        form = await form_of(request)
        reason, by = form.reason, changer_of(request)
        with refusing():
            version = await asyncio.to_thread(resolved_version, registry, desk.planes.plan, form.get("version"))
            frozen = (await asyncio.to_thread(read_controls, desk.data)).promotion_frozen
            if frozen:
                raise RefusedError(f"Promotion is frozen ({frozen}); lift that under Alerts and actions first")
            if form.get("gate") != "skip" and desk.config.gate.enabled:
                if version in asking:
                    raise RefusedError(f"The gate is being asked about {version} already")
                asking.add(version)
                try:
                    return await _through_the_gate(desk, registry, version, by, reason)
                finally:
                    asking.discard(version)
            await asyncio.to_thread(_promote, desk, registry, version, by, reason)
        return done(f"{version} serves")

    @post(MODELS + "/rollback")
    async def rollback(request: Call) -> Response[str]:
        form = await form_of(request)
        reason, by = form.reason, changer_of(request)
        actions = Actions(desk.data, desk.config, lambda: desk.planes.plan)
        with refusing():
            entry = await asyncio.to_thread(
                actions.roll_back, by=by, reason=reason, now_ms=desk.wall(), of=form.get("of")
            )
        serves = entry.undo.after["version"] if entry.undo is not None else "the one before"
        return done(f"{serves} serves again, in the place of {entry.subject}")

    @post(MODELS + "/prune")
    async def prune(request: Call) -> Response[str]:
        form = await form_of(request)
        reason, by = form.reason, changer_of(request)
        try:
            keep = int(form.get("keep", "3"))
        except ValueError as error:
            raise RefusedError("Expected how many bundles are kept, a number") from error
        if keep < 0:
            raise RefusedError("Expected how many bundles are kept, 0 or more")

        def pruned() -> list[str]:
            record(desk.data, time_ms=desk.wall(), by=by, action="bundle.prune", subject=f"keep {keep}", reason=reason)
            return registry.prune(keep)

        with refusing():
            removed = await asyncio.to_thread(pruned)
        return done(f"{len(removed)} bundles were removed" if removed else "There was nothing to remove")

    return [models, compare, card, segments, promote, rollback, prune]


async def _through_the_gate(desk: Desk, registry: Registry, version: str, by: str, reason: str) -> Response[str]:
    """Have the gate asked, and the bundle promoted if it lets it pass: what ``headwater models promote`` does."""
    said: Said = await _commands(desk).run(
        "models", "promote", version, f"--reason={reason}", f"--by={by}", most_s=GATE_S
    )
    if said.code == 0:
        return done(f"{version} passed the gate and serves")
    report = await asyncio.to_thread(gate_report, registry, version)
    if said.code == 1 and report is not None:
        raise RefusedError(f"The gate refused {version}: {'; '.join(report.reasons)}")
    raise RefusedError(said.problem or f"headwater models promote ended with code {said.code}")


def _commands(desk: Desk) -> Commands:
    return desk.planes.commands


def _promote(desk: Desk, registry: Registry, version: str, by: str, reason: str) -> None:
    registry.promote(version, plan_hash=desk.planes.plan, author=Author(by, desk.wall, reason))


def _measured(registry: Registry, plan: str, page: int) -> tuple[list[BundleLine], list[Measured]]:
    """All bundles, those of the plan in service first, and those of the ``page`` (from 0) with their figures."""
    lines = sorted(bundle_lines(registry), key=lambda line: line.plan != plan)
    manifests = {listed.version: listed.manifest for listed in registry.list()}
    shown = lines[page * SHOWN : (page + 1) * SHOWN]
    return lines, [Measured(line, *_figures(registry, manifests.get(line.version))) for line in shown]


def _figures(registry: Registry, manifest: Manifest | None) -> tuple[Estimate | None, Estimate | None]:
    """(NDCG@10, what it gains over the bundle that was in service), of the gate's last word or else of the card."""
    if manifest is None:
        return None, None
    try:
        report, card = gate_report(registry, manifest.version), card_alone(registry, manifest)
    except BundleError:  # the page of the bundle says what is wrong
        return None, None
    held = _held_out(report, card)
    if held is None or CANDIDATE not in held.systems:
        return None, None
    other = held.systems.get(IN_SERVICE)
    return held.systems[CANDIDATE].metrics.get(NDCG), None if other is None else other.relative_over


def _held_out(report: GateReport | None, card: ModelCard | None) -> HeldOut | None:
    if report is not None and report.held_out is not None:
        return report.held_out
    return None if card is None else card.held_out


def _card(registry: Registry, plan: str, version: str) -> dict[str, Any]:
    whole = resolved_version(registry, plan, version)
    lines = {listed.version: listed for listed in registry.list()}
    listed = lines[whole]
    if listed.manifest is None:
        raise BundleError(f"{whole} cannot be used: {listed.problem}")
    card, report = card_alone(registry, listed.manifest), gate_report(registry, whole)
    current = registry.current(plan)
    return {
        "bundle": whole, "manifest": listed.manifest, "card": card, "report": report, "held": _held_out(report, card),
        "serves": whole == current, "current": current, "fits": listed.manifest.plan_hash == plan, "plan": plan,
        "reference": reference_alone(registry.path / "bundles", listed.manifest),
        "bytes": sum(entry.size for entry in listed.manifest.files.values()),
    }  # fmt: skip


def _way_back(registry: Registry, plan: str) -> str:
    """The version that a rollback leads to; "": there is no way back."""
    try:
        return next(reversed(registry.history(plan)), "")
    except BundleError:  # the pointer is damaged; a promotion mends it
        return ""


def _compared(registry: Registry, plan: str, asked: list[str]) -> tuple[list[str], list[Change]]:
    versions = [resolved_version(registry, plan, each) for each in asked]
    return versions, difference(*(registry.load(version, plan_hash=None) for version in versions))


def _grouped(changes: list[Change]) -> list[tuple[str, list[Change]]]:
    """By the first word of the key, in their order."""
    groups: dict[str, list[Change]] = {}
    for change in changes:
        key = change.key.removeprefix("card.")
        first = key.replace("[", ".").partition(".")[0]
        groups.setdefault(first.replace("_", " "), []).append(msgspec.structs.replace(change, key=key))
    return list(groups.items())


def _page_number(request: Call) -> int:
    said = request.query_params.get("page", "0")
    return int(said) if said.isdecimal() and len(said) < 6 else 0
