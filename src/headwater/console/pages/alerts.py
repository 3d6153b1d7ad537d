"""Alerts and actions: how the rules stand, what fired, the controls that people and alerts move, and the last changes."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from litestar import Response, get, post
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct

from headwater.console.changes import RefusedError, done, form_of, refusing
from headwater.console.desk import Call, Desk, Entry, changer_of
from headwater.console.guard import ROOT
from headwater.console.pages.audit import AUDIT_REACH, undone
from headwater.console.watching import watching
from headwater.monitoring.actions import UNDOABLE, Actions
from headwater.monitoring.alerts import AlertState
from headwater.monitoring.history import HISTORY_FILE, History, HistoryError, Series
from headwater.monitoring.standing import Ack, acknowledge, read_ack, read_standing
from headwater.registry.audit import read_audit
from headwater.registry.controls import change_controls, read_controls
from headwater.schema.alerts import AlertRule, alerts_in_force
from headwater.schema.config import Config
from headwater.schema.controls import LOWEST_TIER
from headwater.schema.default_alerts import DEFAULT_ALERTS
from headwater.schema.durations import parse_duration

ALERTS = f"{ROOT}/alerts"
ENTRIES: tuple[Entry, ...] = (Entry(ALERTS, "Alerts and actions", "Run"),)
FIRING = "headwater_alert_firing"
PAST_MS = 7 * 86_400_000
CHANGES_SHOWN, FIRINGS_SHOWN = 20, 50
_ORDER = ("firing", "pending", "missing", "ok", "unknown", "off")


class Row(Struct, frozen=True):
    """A rule, or one of its groups, with how it stands (None: there is nothing to judge). ``looked``: the monitor looks at it."""

    rule: AlertRule
    state: AlertState | None
    ack: Ack | None
    looked: bool

    @property
    def standing(self) -> str:
        """In one word."""
        if not self.rule.enabled:
            return "off"
        if self.state is not None:
            return self.state.state
        return "ok" if self.looked else "unknown"


class Firing(Struct, frozen=True):
    """A stretch in which an alert fired, as the history has it: ``until_ms`` None: it still does."""

    alert: str
    group: str
    severity: str
    since_ms: int
    until_ms: int | None


def routes(desk: Desk) -> list[HTTPRouteHandler]:
    """The page, its parts, and what it changes."""
    actions = Actions(desk.data, desk.config, lambda: desk.planes.plan, desk.clock)

    @get(ALERTS)
    async def alerts(request: Call) -> Response[str]:
        found = await asyncio.to_thread(_all, desk)
        return desk.page(request, "admin/alerts.html", **found)

    @get(ALERTS + "/firings")
    async def firings(request: Call) -> Response[str]:
        problem, found = "", list[Firing]()
        try:
            found = await asyncio.to_thread(_firings, desk.data, desk.wall())
        except HistoryError as error:
            problem = str(error)
        return desk.page(request, "admin/firings.html", firings=found, problem=problem, now_ms=desk.wall())

    @post(ALERTS + "/controls", status_code=200)
    async def controls(request: Call) -> Response[str]:
        form = await form_of(request)
        reason, by = form.reason, changer_of(request)
        changes: dict[str, Any] = {}
        if floor := form.get("tier_floor"):
            changes["tier_floor"] = _number(floor, "tier floor", int)
        if factor := form.get("exploration"):
            changes["exploration"] = _number(factor, "exploration factor", float)
        if frozen := form.get("promotion"):
            changes["promotion_frozen"] = reason if frozen == "freeze" else ""
        if form.get("retrain"):
            changes["retrain_asked_ms"] = desk.wall()
        if not changes:
            raise RefusedError("Nothing was said that could be changed")

        def changed() -> None:
            change_controls(desk.data, by=by, reason=reason, time_ms=desk.wall(), **changes)

        with refusing():
            await asyncio.to_thread(changed)
        return done("The learner starts a round" if "retrain_asked_ms" in changes else "The controls are changed")

    @post(ALERTS + "/notice", status_code=200)
    async def notice(request: Call) -> Response[str]:
        form = await form_of(request)
        alert, reason, by = form.get("alert"), form.reason, changer_of(request)
        with refusing():
            await asyncio.to_thread(acknowledge, desk.data, alert, by=by, reason=reason, now_ms=desk.wall())
        return done(f"{alert}: nobody is told of it again until it is over")

    @post(ALERTS + "/undo", status_code=200)
    async def undo(request: Call) -> Response[str]:
        form = await form_of(request)
        reason, by = form.reason, changer_of(request)
        with refusing():
            entry = await asyncio.to_thread(actions.undo, form.get("entry"), by=by, reason=reason, now_ms=desk.wall())
        return done(f"{entry.subject} is as it was before")

    return [alerts, firings, controls, notice, undo]


def _all(desk: Desk) -> dict[str, Any]:
    """What the page shows."""
    standing, entries = read_standing(desk.data), read_audit(desk.data, AUDIT_REACH)
    now_ms, monitoring = desk.wall(), desk.config.monitoring
    seen = watching(desk.data, standing, parse_duration(monitoring.every), now_ms)
    looked = monitoring.enabled and not seen.late
    rows = _rows(desk.data, rules_of(desk.config), standing.states, looked)
    counts = {word: sum(row.standing == word for row in rows) for word in _ORDER}
    return {
        "rows": rows, "counts": counts, "controls": read_controls(desk.data), "changes": entries[:CHANGES_SHOWN],
        "undone": undone(entries), "undoable": UNDOABLE, "now_ms": now_ms, "standing_ms": standing.time_ms,
        "monitor": "off" if not monitoring.enabled else "away" if seen.late else "on", "catching_up": seen.catching_up, "tiers": range(LOWEST_TIER + 1),
        "tier_names": [tier["name"] for tier in desk.planes.pipeline()["tiers"]],
    }  # fmt: skip


def rules_of(config: Config) -> tuple[AlertRule, ...]:
    """The alert rules of ``config``, those that are switched off too."""
    return alerts_in_force(config.alerts, DEFAULT_ALERTS if config.monitoring.default_alerts else ())


def _rows(data: Path, rules: Sequence[AlertRule], states: Sequence[AlertState], looked: bool) -> list[Row]:
    by_rule: defaultdict[str, list[AlertState]] = defaultdict(list)
    for state in states:
        by_rule[state.alert].append(state)
    rows = []
    for rule in rules:
        found = by_rule[rule.name] if rule.enabled else []
        rows += [Row(rule, state, _notice(data, state), looked) for state in found] or [Row(rule, None, None, looked)]
    return sorted(rows, key=lambda row: _ORDER.index(row.standing))


def _notice(data: Path, state: AlertState) -> Ack | None:
    return read_ack(data, state.incident) if state.state == "firing" else None


def _firings(data: Path, now_ms: int) -> list[Firing]:
    """The stretches in which alerts fired in the last week, newest first."""
    if not (data / HISTORY_FILE).exists():
        raise HistoryError("There is no history yet: a server with [monitoring] enabled writes it")
    history = History(data / HISTORY_FILE, readonly=True)
    try:
        series = history.series(FIRING, since_ms=now_ms - PAST_MS, until_ms=now_ms)
    finally:
        history.close()
    found = [firing for each in series for firing in _stretches(each)]
    return sorted(found, key=lambda firing: -firing.since_ms)[:FIRINGS_SHOWN]


def _stretches(series: Series) -> list[Firing]:
    found, since = list[tuple[int, int | None]](), None
    for time_ms, value in zip(series.times_ms, series.values, strict=True):
        if value > 0.0 and since is None:
            since = time_ms
        elif value <= 0.0 and since is not None:
            found.append((since, time_ms))
            since = None
    if since is not None:
        found.append((since, None))
    said = series.labels
    return [Firing(said["alert"], said.get("group", ""), said.get("severity", ""), *stretch) for stretch in found]


def _number(text: str, what: str, kind: type[int | float]) -> int | float:
    try:
        return kind(text)
    except ValueError as error:
        raise RefusedError(f"Expected a number for the {what}, got {text!r}") from error
