"""Whom an experiment is for: conditions in the language of rules, over what is known of a request before its list is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from headwater.features.assemble import forget_idle, stranger
from headwater.features.layout import U_SEGMENT, U_ZONE
from headwater.features.plan import Plan
from headwater.features.zones import Zones, zone_offset_of
from headwater.log.protocol import Vocabulary
from headwater.policy.contradiction import always_holds, never_holds
from headwater.policy.expression import Node, fields_of, holds_for_request
from headwater.policy.fields import Field, Fields, Kind, UnknownFieldError
from headwater.policy.syntax import parse
from headwater.schema.config import Config
from headwater.schema.errors import ConfigurationError, HeadwaterError
from headwater.schema.events import Scalar
from headwater.serving.rule_fields import Codes, Columns, RequestValues, rule_fields
from headwater.serving.view import View

_CONTEXT = "context."
_SURFACE, _ZONE = "context.surface", "timezone"
_DERIVED = (_SURFACE, "context.hour", "context.weekday")  # of the moment, whatever a request's context calls so


class Asking(NamedTuple):
    """Who asks: the dense number of the user (0: a stranger), the surface, and what the request says of its context."""

    user: int
    surface: str
    context: Mapping[str, Scalar]


class Target(NamedTuple):
    """A condition, compiled. ``notes`` say what is probably not meant; ``knows_user``: it asks about more than the request says."""

    node: Node
    notes: tuple[str, ...]
    knows_user: bool


def compile_target(when: str, config: Config, plan: Plan) -> Target:
    """The condition ``when``: it may use the fields of rules that are facts of the request, and any key of its context as a text.

    Raises:
        ConfigurationError: it is not well formed, names what is not known at that moment, or can never hold; the message shows the place.
    """
    known = rule_fields(config, plan)
    try:
        node = parse(when, _TargetFields(known), of_request=True)
    except ConfigurationError as error:
        raise ConfigurationError(f"when: {error}") from error
    if never_holds(node):
        raise ConfigurationError(f"when: It can never hold, so nobody would take part\n    {when}")
    asked = {field.name for field in fields_of(node)}
    unkept = asked - {field.name for field in known}
    notes = ["when: It always holds, so it is for everybody"] if always_holds(node) else []
    notes += [
        f"when: {name} is none of segments.keys ({', '.join(plan.segment_keys) or 'there are none'}), so only requests that say it have it"
        for name in sorted(unkept)
    ]
    return Target(node, tuple(notes), bool(asked - unkept - {_SURFACE}))


class _TargetFields(Fields):
    """Those of rules; the parser says of one of items that a condition is not about them."""

    def __init__(self, known: Fields) -> None:
        super().__init__(known, {})
        self._rules = known

    def find(self, name: str) -> Field:
        try:
            return self._rules.find(name)
        except UnknownFieldError:
            if name.startswith(_CONTEXT):
                return Field(name, Kind.TEXT, False, "of the request")
            raise


class Targets:
    """The conditions of the experiments that run, by name. One that has none is for everybody. Belongs to one worker: rows are read into one place."""

    def __init__(self, targets: Mapping[str, Target], plan: Plan, vocabulary: Vocabulary, zones: Zones | None) -> None:
        self._targets = dict(targets)
        self._facts = _Facts(plan, vocabulary, zones)

    def __call__(self, experiment: str, asking: Asking, view: View, now_ms: int) -> bool:
        """Whether ``experiment`` is for who asks. Where the user's state cannot be read, it is for nobody: the pipeline, which reads it
        next, says why.
        """
        target = self._targets.get(experiment)
        if target is None:
            return True
        try:
            self._facts.begin(asking, view, now_ms, read=target.knows_user)
        except HeadwaterError:
            return False
        return holds_for_request(target.node, self._facts)


class _Facts:
    """A ``Scope``: what is known of the request at hand."""

    def __init__(self, plan: Plan, vocabulary: Vocabulary, zones: Zones | None) -> None:
        self._plan, self._zones = plan, zones
        self._user = stranger(plan)
        self._values, self._codes = RequestValues(plan, vocabulary), Codes(vocabulary)
        self._kept = frozenset(f"{_CONTEXT}{key}" for key in plan.segment_keys)
        self._asking, self._now_ms = Asking(0, "", {}), 0

    def begin(self, asking: Asking, view: View, now_ms: int, *, read: bool) -> None:
        self._asking, self._now_ms = asking, now_ms
        if read:
            view.read_user(asking.user, self._user)
            forget_idle(self._user, now_ms, self._plan)

    def values(self, field: Field) -> Columns:
        name = field.name
        if name.startswith(_CONTEXT) and name not in _DERIVED:
            said = self._asking.context.get(name.removeprefix(_CONTEXT))
            if said is not None:
                return str(said), True
            if name not in self._kept:
                return "", False
        own = self._user.u4
        segments = int(own[U_SEGMENT]), int(own[U_SEGMENT + 1])
        return self._values.read(field, self._user, self._asking.surface, segments, self._now_ms + self._offset_ms())

    def code(self, field: Field, text: str) -> Any:
        return self._codes.code(field, text)

    def _offset_ms(self) -> int:
        """Local time less UTC: of the zone that the request names, else of the user's own."""
        zone = self._asking.context.get(_ZONE)
        if zone is not None:
            return zone_offset_of(str(zone), self._now_ms)
        return 0 if self._zones is None else self._zones.offset_ms(int(self._user.u4[U_ZONE]), self._now_ms)
