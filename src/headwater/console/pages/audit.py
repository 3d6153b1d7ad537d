"""The audit log: who changed what of the running system, when and why."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from litestar import Response, get
from litestar.handlers import HTTPRouteHandler

from headwater.console.desk import Call, Desk, Entry
from headwater.console.guard import ROOT
from headwater.monitoring.actions import UNDOABLE
from headwater.registry.audit import AuditEntry, read_audit

AUDIT = f"{ROOT}/audit"
ENTRIES: tuple[Entry, ...] = (Entry(AUDIT, "Audit", "Manage"),)
SHOWN, AUDIT_REACH = 100, 2_000


def routes(desk: Desk) -> list[HTTPRouteHandler]:
    """The page."""

    @get(AUDIT)
    async def audit(request: Call) -> Response[str]:
        wanted = request.query_params.get("what", "").strip()
        entries = await asyncio.to_thread(read_audit, desk.data, AUDIT_REACH)
        found = [each for each in entries if _is_about(each, wanted)]
        return desk.page(
            request, "admin/audit.html", changes=found[:SHOWN], undone=undone(entries), undoable=UNDOABLE, what=wanted,
            total=len(found), reach=AUDIT_REACH, whole=len(entries) < AUDIT_REACH, shown=SHOWN,
        )  # fmt: skip

    return [audit]


def undone(entries: Sequence[AuditEntry]) -> dict[str, AuditEntry]:
    """By the id of an entry the one that took it back."""
    return {entry.undoes: entry for entry in entries if entry.undoes}


def _is_about(entry: AuditEntry, wanted: str) -> bool:
    said = (entry.by, entry.action, entry.subject, entry.reason, entry.id)
    return not wanted or any(wanted.lower() in text.lower() for text in said)
