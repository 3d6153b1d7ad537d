"""``[[rules]]``: what the business wants shown, whatever the ranker thinks."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from headwater.schema.errors import ConfigurationError
from headwater.schema.events import Id, Name
from headwater.schema.surfaces import Shaping

ACTIONS = ("filter", "boost", "bury", "pin", "cap", "quota")

Expression = Annotated[str, Meta(min_length=1, max_length=2_000)]
_Count = Annotated[int, Meta(ge=1, le=200)]
_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


class Boost(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Items for which ``where`` holds rank as if their score were ``factor`` times as high."""

    where: Expression
    factor: Annotated[float, Meta(gt=1.0, le=1_000.0)] = 1.5


class Bury(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Items for which ``where`` holds rank as if their score were that ``factor`` of it."""

    where: Expression
    factor: Annotated[float, Meta(ge=0.001, lt=1.0)] = 0.1


class Pin(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The item ``item``, or else the best ranked candidate for which ``where`` holds, stands at ``position`` (from 1)."""

    item: Id | None = None
    where: Expression | None = None
    position: _Count = 1


class Cap(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """At most ``at_most`` items of a list share a value of the item field ``by``; items without one are not counted."""

    by: Annotated[str, Meta(min_length=1, max_length=128)]
    at_most: _Count


class Quota(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Among the first ``within`` items ``where`` holds for at least ``at_least``, if there are so many candidates."""

    where: Expression
    at_least: _Count
    within: _Count


class Rule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"from_": "from"}):
    """One rule: where and when it acts, and exactly one of the actions.

    ``surfaces`` absent: all. ``when`` asks about the request, ``from`` (inclusive) and ``until`` (exclusive) are times (ISO 8601,
    UTC unless they say otherwise), ``hours`` a part of the user's day such as "18:00-23:30", which may pass midnight.
    ``filter`` keeps only the items for which it holds.
    """

    name: Name
    surfaces: Annotated[tuple[Name, ...], Meta(min_length=1)] | None = None
    when: Expression | None = None
    from_: str | None = None
    until: str | None = None
    hours: str | None = None
    filter: Expression | None = None
    boost: Boost | None = None
    bury: Bury | None = None
    pin: Pin | None = None
    cap: Cap | None = None
    quota: Quota | None = None

    def __post_init__(self) -> None:
        try:
            self._check()
        except ConfigurationError as error:
            raise ConfigurationError(f'rules: rule "{self.name}": {error}') from error

    @property
    def action(self) -> str:
        """Which of :data:`ACTIONS` it takes."""
        return next(action for action in ACTIONS if getattr(self, action) is not None)

    @property
    def from_ms(self) -> int:
        """Unix ms from which on it acts; 0: since ever."""
        return 0 if self.from_ is None else moment_ms(self.from_)

    @property
    def until_ms(self) -> int | None:
        """Unix ms from which on it acts no more; None: never."""
        return None if self.until is None else moment_ms(self.until)

    @property
    def minutes(self) -> tuple[int, int] | None:
        """The part of the day, in minutes since midnight; None: the whole day."""
        if self.hours is None:
            return None
        found = _HOURS.fullmatch(self.hours)
        if found is None or found[0][:5] == found[0][6:]:
            raise ConfigurationError(
                f'Expected `hours` such as "18:00-23:30" (from two different times), got "{self.hours}"'
            )
        a, b, c, d = map(int, found.groups())
        return 60 * a + b, 60 * c + d

    def acts_on(self, surface: str) -> bool:
        """Whether it acts on lists of ``surface``."""
        return self.surfaces is None or surface in self.surfaces

    def _check(self) -> None:
        actions = [action for action in ACTIONS if getattr(self, action) is not None]
        if len(actions) != 1:
            found = f"got {' and '.join(actions)}" if actions else "got none"
            raise ConfigurationError(f"Expected exactly one action of {', '.join(ACTIONS)}, {found}")
        if self.pin is not None and (self.pin.item is None) == (self.pin.where is None):
            raise ConfigurationError("Expected a pin with either `item` or `where`")
        if self.quota is not None and self.quota.at_least > self.quota.within:
            raise ConfigurationError(
                f"A quota of {self.quota.at_least} items does not fit into the first {self.quota.within}; raise `within`"
            )
        from_ms, until_ms, _ = self.from_ms, self.until_ms, self.minutes  # asking is what fails
        if until_ms is not None and until_ms <= from_ms:
            raise ConfigurationError(f"Expected `until` after `from`, got {self.until} and {self.from_}")


def rules_version(rules: Sequence[Rule], shaping: Mapping[str, Shaping]) -> str:
    """What names ``rules`` in their order and the ``shaping`` of surfaces: the first 16 hexadecimal digits of the SHA-256 of
    their canonical JSON; the empty text for none.
    """
    if not rules and not shaping:
        return ""
    said = msgspec.json.encode(([encoded(rule) for rule in rules], dict(shaping)), order="sorted")
    return hashlib.sha256(said).hexdigest()[:16]


def in_hours(minutes: tuple[int, int], local_ms: int) -> bool:
    """Whether a local time lies in a part of the day: from its first minute on, before its last one, past midnight too."""
    begins, ends = minutes
    minute = local_ms // 60_000 % 1_440
    return begins <= minute < ends if begins < ends else minute >= begins or minute < ends


def moment_ms(text: str) -> int:
    """Unix ms of an ISO 8601 time or date, UTC unless it says otherwise.

    Raises:
        ConfigurationError: ``text`` is no time.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(
            f'Expected a time such as "2026-11-27" or "2026-11-27T06:00:00Z", got "{text}"'
        ) from None
    millis = round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1_000)
    if millis < 0:
        raise ConfigurationError(f'Expected a time since 1970, got "{text}"')
    return millis


def encoded(rule: Rule) -> dict[str, object]:
    """A rule as it stands in the file: only what was said."""
    said: dict[str, object] = msgspec.to_builtins(rule)
    return {
        key: {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value
        for key, value in said.items()
        if value is not None
    }
