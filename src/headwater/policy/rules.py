"""Rules of the configuration, compiled: expressions are typed trees, times are numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headwater.policy.contradiction import never_holds
from headwater.policy.expression import Among, Node, Not
from headwater.policy.fields import Field, Fields, Kind, UnknownFieldError
from headwater.policy.syntax import parse
from headwater.schema.errors import ConfigurationError
from headwater.schema.rules import Rule, in_hours

ID = "id"


@dataclass(frozen=True, slots=True)
class CompiledRule:
    """``where`` is what the action asks of items (of a cap: None), ``by`` the field of a cap."""

    rule: Rule
    when: Node | None
    where: Node | None
    by: Field | None
    from_ms: int
    until_ms: int | None
    minutes: tuple[int, int] | None

    @property
    def name(self) -> str:
        return self.rule.name

    def acts_at(self, surface: str, now_ms: int, local_ms: int) -> bool:
        """Whether surface and time are those of the rule: ``now_ms``, which is ``local_ms`` by the user's clock."""
        if not self.rule.acts_on(surface) or now_ms < self.from_ms:
            return False
        if self.until_ms is not None and now_ms >= self.until_ms:
            return False
        return self.minutes is None or in_hours(self.minutes, local_ms)

    def meets(self, other: CompiledRule) -> bool:
        """Whether both may act on one request, as far as surfaces and times say."""
        mine, theirs = self.rule.surfaces, other.rule.surfaces
        if mine is not None and theirs is not None and not set(mine) & set(theirs):
            return False
        if self.minutes is not None and other.minutes is not None:
            # of two parts of the day that meet, one holds the first minute of the other
            begins = (60_000 * self.minutes[0], 60_000 * other.minutes[0])
            if not (in_hours(self.minutes, begins[1]) or in_hours(other.minutes, begins[0])):
                return False
        return (self.until_ms is None or other.from_ms < self.until_ms) and (
            other.until_ms is None or self.from_ms < other.until_ms
        )

    def covers(self, other: CompiledRule) -> bool:
        """Whether it is certain that it acts wherever ``other`` does."""
        mine, theirs = self.rule.surfaces, other.rule.surfaces
        if mine is not None and (theirs is None or not set(theirs) <= set(mine)):
            return False
        if self.minutes is not None and self.minutes != other.minutes:
            return False
        if self.from_ms > other.from_ms:
            return False
        if self.until_ms is not None and (other.until_ms is None or other.until_ms > self.until_ms):
            return False
        if self.when is None:
            return True
        return never_holds(Not(self.when), *(() if other.when is None else (other.when,)))


def compile_rule(rule: Rule, fields: Fields) -> CompiledRule:
    """``rule`` over ``fields``.

    Raises:
        ConfigurationError: an expression cannot be compiled; the message names rule, key and column.
    """
    key, text = expression_of(rule)
    where: Node | None = None
    by: Field | None = None
    try:
        when = None if rule.when is None else _parsed("when", rule.when, fields, of_request=True)
        if text is not None:
            where = _parsed(key, text, fields)
        elif rule.pin is not None and rule.pin.item is not None:
            where = Among(fields.find(ID), (rule.pin.item,))
        elif rule.cap is not None:
            by = _capped(rule.cap.by, fields)
    except ConfigurationError as error:
        raise ConfigurationError(f'rule "{rule.name}": {error}') from error
    return CompiledRule(rule, when, where, by, rule.from_ms, rule.until_ms, rule.minutes)


def compile_rules(rules: Sequence[Rule], fields: Fields) -> tuple[CompiledRule, ...]:
    """All rules, in the order of the file.

    Raises:
        ConfigurationError: some cannot be compiled; the message has a paragraph for each.
    """
    compiled: list[CompiledRule] = []
    wrong: list[str] = []
    for rule in rules:
        try:
            compiled.append(compile_rule(rule, fields))
        except ConfigurationError as error:
            wrong.append(f"  {error}")
    if wrong:
        raise ConfigurationError("\n".join(["rules: not all of them can be compiled", *wrong]))
    return tuple(compiled)


def expression_of(rule: Rule) -> tuple[str, str | None]:
    """The key and the text of what the action asks of items; no text for caps and pins of one item."""
    if rule.filter is not None:
        return "filter", rule.filter
    for action in (rule.boost, rule.bury, rule.quota, rule.pin):
        if action is not None:
            return f"{rule.action}.where", action.where
    return "", None


def _parsed(key: str, text: str, fields: Fields, *, of_request: bool = False) -> Node:
    try:
        return parse(text, fields, of_request=of_request)
    except ConfigurationError as error:
        raise ConfigurationError(f"{key}: {error}") from error


def _capped(name: str, fields: Fields) -> Field:
    try:
        field = fields.find(name)
    except UnknownFieldError as error:
        raise ConfigurationError(f"cap.by: {error}") from error
    if not field.per_item or field.kind is not Kind.TEXT:
        what = f"a {field.kind}" if field.per_item else "a fact of the request"
        raise ConfigurationError(f"cap.by: {name} is {what}; a cap counts the texts of a field of items")
    return field
