"""What a change of the rules would do, and what was done: between the console and what brings rules into service."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from headwater.schema.events import Millis

ItemAction = Literal["hide", "boost", "bury", "pin"]


class RuleFinding(Struct, frozen=True):
    """What is wrong in a text of rules. ``line``: where the rule begins that it is about (0: all of it)."""

    level: Literal["error", "warning"]
    rules: tuple[str, ...]
    message: str
    line: int = 0


class CheckedRules(Struct, frozen=True):
    """A text of rules after the linter: how many rules it has, the version that they would be, and what was found."""

    rules: int
    version: str
    findings: tuple[RuleFinding, ...]

    @property
    def errors(self) -> tuple[RuleFinding, ...]:
        """What keeps them from service."""
        return tuple(finding for finding in self.findings if finding.level == "error")


class RulesText(Struct, frozen=True):
    """The rules of the configuration file. ``file`` is its name; ``version`` what they would be called in service, ``in_service`` what
    is. ``locked`` says why they cannot be published from here ("": they can).
    """

    text: str
    version: str
    in_service: str
    file: str
    locked: str = ""


class ChangedList(Struct, frozen=True):
    """A list as it would be made now with the rules in service and with the others: item ids in order. The request is a recent one."""

    request_id: str
    surface: str
    before: tuple[str, ...]
    after: tuple[str, ...]


class RulesPreview(Struct, frozen=True):
    """What other rules would change. ``lists`` requests were asked again, of those at hand, until ``at_ms``; ``changed`` of them get
    another list, ``shortened`` a shorter one, ``emptied`` none at all. ``examples`` are the first that change.
    ``unasked`` says why nothing could be asked ("": it was).
    """

    at_ms: Millis
    lists: int = 0
    changed: int = 0
    shortened: int = 0
    emptied: int = 0
    examples: tuple[ChangedList, ...] = ()
    bundle: str = ""
    unasked: str = ""


class Publication(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rules that were brought into service from the console, or that stood in the file before (``by``: "file")."""

    time_ms: Millis
    by: Annotated[str, Meta(min_length=1, max_length=200)]
    reason: Annotated[str, Meta(max_length=2_000)]
    version: Annotated[str, Meta(max_length=64)]
    rules: int
    text: str
