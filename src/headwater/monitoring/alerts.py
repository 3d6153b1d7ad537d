"""Alert rules as they stand: right, pending, firing, or without a figure; and what that calls for.

Nothing flaps: what fires has been wrong for ``for``, and is over when it has been right, by the margin of ``clear``, for ``clear_for``.
Each time it begins anew is an incident with an id of its own, and actions belong to incidents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from headwater.monitoring.figures import Figure
from headwater.monitoring.samples import Sample
from headwater.schema.alerts import Action, AlertRule, Severity
from headwater.schema.durations import parse_duration

Standing = Literal["ok", "pending", "firing", "missing"]
Change = Literal["fires", "resolves", "goes_missing", "again", "restores"]
_WRONG: tuple[Standing, ...] = ("pending", "firing")
MAX_DOUBLINGS = 6
MISSING_MS = 60_000  # a figure that is away for less is not worth a word
FORGET_MS = 86_400_000  # a group that is gone


class AlertState(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one group of a rule stands. ``since_ms``: since when; ``value``: its last figure (None: there was none).

    ``incident`` names the last incident, also once it is over. ``entries`` are the ids of its entries in the audit log, ``acted_ms`` is when its actions were
    last done, ``doublings`` how often it came back soon after what it did was taken back. ``right_ms``: since when a firing one has been right again; ``told``: that its figure
    is missing was said. ``wrong_ms``: when the condition began, and ``bundle`` the one that was in service then. ``due``: the actions that were
    called for at ``acted_ms`` and are not known to be done.
    """

    alert: str
    group: str = ""
    severity: Severity
    state: Standing = "ok"
    since_ms: int
    value: float | None = None
    incident: str = ""
    entries: tuple[str, ...] = ()
    acted_ms: int = 0
    doublings: int = 0
    right_ms: int = 0
    restored_ms: int = 0
    told: bool = False
    wrong_ms: int = 0
    bundle: str = ""
    due: tuple[Action, ...] = ()

    def intent(self, action: Action) -> str:
        """The name of an action that is due; no other incident, and no later step of this one, has the same."""
        return f"{self.incident}:{action}:{self.acted_ms}"


class Event(Struct, frozen=True, kw_only=True):
    """Something that happened to a rule in a round: ``change`` says what, ``state`` how it stands now."""

    rule: AlertRule
    change: Change
    state: AlertState


class Alerts:
    """The rules, and how each stands. ``before`` is how they stood when the last monitor ended."""

    def __init__(self, rules: Sequence[AlertRule], before: Iterable[AlertState] = ()) -> None:
        self._figures = [Figure(rule) for rule in rules if rule.enabled]
        known = {figure.rule.name for figure in self._figures}
        self._states = {(state.alert, state.group): state for state in before if state.alert in known}
        self.names = frozenset(name for figure in self._figures for name in figure.rule.names)

    @property
    def states(self) -> list[AlertState]:
        """How each rule and group stands, by name."""
        return [self._states[key] for key in sorted(self._states)]

    def note(self, state: AlertState) -> None:
        """Take up what an action did to ``state``."""
        self._states[state.alert, state.group] = state

    @property
    def due(self) -> list[Event]:
        """What was called for and is not known to be done, because the monitor died."""
        rules = {figure.rule.name: figure.rule for figure in self._figures}
        return [Event(rule=rules[state.alert], change="fires", state=state) for state in self.states if state.due]

    def judge(
        self,
        now_ms: int,
        samples: Iterable[Sample],
        in_service: Callable[[], str] = str,
        waiting: frozenset[str] = frozenset(),
    ) -> list[Event]:
        """Hold a round of samples against every rule; returns what happened. ``in_service`` says which bundle is ("": none); it is asked when
        a condition begins. Rules about metrics that are ``waiting`` for their watch to catch up stay as they stand: it is not that there is nothing to say.
        """
        by_name: dict[str, list[Sample]] = {name: [] for name in self.names}
        for sample in samples:
            if (kept := by_name.get(sample.name)) is not None:
                kept.append(sample)
        events: list[Event] = []
        for figure in self._figures:
            if not waiting.isdisjoint(figure.rule.names):
                continue
            events += self._judged(figure, now_ms, by_name, in_service)
        return events

    def _judged(
        self, figure: Figure, now_ms: int, samples: Mapping[str, list[Sample]], in_service: Callable[[], str]
    ) -> list[Event]:  # fmt: skip
        rule, events = figure.rule, list[Event]()
        values: dict[str, float | None] = {**figure.read(now_ms, samples)}
        if figure.filling:  # what fired when the last monitor ended is not over because this one has just begun
            if not rule.by and (rule.name, "") not in self._states:
                standing: Standing = "ok" if rule.missing == "ok" else "missing"
                self._states[rule.name, ""] = AlertState(
                    alert=rule.name, severity=rule.severity, since_ms=now_ms, state=standing
                )
            return events
        for name, group in self._states:
            if name == rule.name:
                values.setdefault(group, None)
        if not values and not rule.by:
            values[""] = None
        for group, value in values.items():
            state = self._states.get((rule.name, group))
            if state is None:
                state = AlertState(alert=rule.name, group=group, severity=rule.severity, since_ms=now_ms)
            before = state.state
            state, change = judged(rule, replace(state, severity=rule.severity), value, now_ms)
            if state.state in _WRONG and before not in _WRONG:
                bundle = in_service() if "rollback" in rule.actions else ""
                state = replace(state, wrong_ms=now_ms, bundle=bundle)
            self._states[rule.name, group] = state
            if change is not None:
                events.append(Event(rule=rule, change=change, state=state))
            elif (
                value is None
                and rule.by
                and state.state != "firing"
                and now_ms - state.since_ms > FORGET_MS
                and not state.entries
            ):
                del self._states[rule.name, group]
        return events


def judged(rule: AlertRule, state: AlertState, value: float | None, now_ms: int) -> tuple[AlertState, Change | None]:
    """``state`` after a round with ``value`` (None: there is no figure), and what that calls for. Pure."""
    if value is None and rule.missing == "ok":
        wrong, right = False, True
    elif value is None:
        if rule.missing == "fire":
            wrong, right = True, False
        elif state.state == "firing":  # whether it is over nobody can say
            return state, _due(rule, state, now_ms)
        elif state.state != "missing":
            return replace(state, state="missing", since_ms=now_ms, value=None), None
        elif state.told or now_ms - state.since_ms < max(rule.for_ms, MISSING_MS):
            return state, None
        else:
            return replace(state, told=True), "goes_missing"
    else:
        wrong, right = _wrong(rule, value), _right(rule, value)
    state = replace(state, value=value, told=False)
    if state.state == "firing":
        if not right:
            return replace(state, right_ms=0), _due(rule, state, now_ms)
        right_ms = state.right_ms or now_ms
        if now_ms - right_ms < rule.clear_for_ms:
            return replace(state, right_ms=right_ms), None
        return replace(state, state="ok", since_ms=now_ms, right_ms=0), "resolves"
    if not wrong:
        if state.state != "ok":
            state = replace(state, state="ok", since_ms=now_ms)
        return state, "restores" if _restores(rule, state, now_ms) else None
    if state.state != "pending":
        state = replace(state, state="pending", since_ms=now_ms)
    if now_ms - state.since_ms < rule.for_ms:
        return state, None
    soon = state.restored_ms and now_ms - state.restored_ms < _restore_ms(rule, state.doublings)
    doublings = min(state.doublings + 1, MAX_DOUBLINGS) if soon else 0
    incident = f"{rule.name}{f'/{state.group}' if state.group else ''}@{now_ms}"
    return replace(
        state, state="firing", since_ms=now_ms, incident=incident, right_ms=0, restored_ms=0, doublings=doublings,
    ), "fires"  # fmt: skip


def _wrong(rule: AlertRule, value: float) -> bool:
    return value > rule.above if rule.above is not None else rule.below is not None and value < rule.below


def _right(rule: AlertRule, value: float) -> bool:
    if rule.clear is None:
        return not _wrong(rule, value)
    return value <= rule.clear if rule.above is not None else value >= rule.clear


def _due(rule: AlertRule, state: AlertState, now_ms: int) -> Change | None:
    """One that goes on takes the ladder one more step down after each cooldown."""
    if "walk_down" not in rule.actions or not state.acted_ms:
        return None
    return "again" if now_ms - state.acted_ms >= rule.cooldown_ms else None


def _restores(rule: AlertRule, state: AlertState, now_ms: int) -> bool:
    if rule.restore_after == "never" or not state.entries:
        return False
    return now_ms - state.since_ms >= _restore_ms(rule, state.doublings)


def _restore_ms(rule: AlertRule, doublings: int) -> int:
    """How long an incident must be over before what it did is taken back: twice as long each time that it came back at once."""
    return 0 if rule.restore_after == "never" else parse_duration(rule.restore_after) << doublings
