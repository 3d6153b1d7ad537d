"""What pages ask of the planes and have them do; ``online`` and ``cli`` have it, the program that serves brings both together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from headwater.console.looks import Looks
from headwater.schema.config import Config
from headwater.schema.keys import ApiKey, Scope
from headwater.schema.rule_changes import CheckedRules, ItemAction, Publication, RulesPreview, RulesText
from headwater.schema.rules import Rule


class RulesDesk(Protocol):
    """The business rules. What reads files or waits for the server blocks, but for ``preview``: call it in a thread."""

    def text(self) -> RulesText:
        """The rules as they stand in the configuration file."""
        ...

    def fields(self) -> list[tuple[str, str, str]]:
        """(name, kind, what it is) of every field that an expression may ask about."""
        ...

    def check(self, text: str) -> CheckedRules:
        """What the linter finds in ``text``."""
        ...

    def check_target(self, when: str) -> Sequence[str]:
        """What is probably not meant in the condition of an experiment, in the same language. Raises ``ConfigurationError``: the place of what is wrong."""
        ...

    def publications(self) -> list[Publication]:
        """What was published from the console, newest first."""
        ...

    async def preview(self, text: str, lists: int) -> RulesPreview:
        """What the newest ``lists`` requests would get with the rules of ``text``. Raises ``ConfigurationError``: it has errors."""
        ...

    def publish(self, text: str, *, by: str, reason: str, expect: str | None = None) -> str:
        """Bring ``text`` into service, audited; returns its version. ``expect``: what must stand in the file now.

        Raises:
            ConfigurationError: it has errors, the file was changed meanwhile, or the server did not take it up.
            UnavailableError: the server is starting.
        """
        ...

    def rules_about(self, item: str) -> list[Rule]:
        """The rules in service that were made for ``item`` alone."""
        ...

    def act_on_item(
        self, item: str, action: ItemAction, *, by: str, reason: str, until_ms: int | None = None,
        factor: float | None = None, position: int = 1, surfaces: Sequence[str] = (),
    ) -> str:  # fmt: skip
        """Hide, boost, bury or pin ``item`` by a rule until ``until_ms`` of the log's clock (None: until it is withdrawn), audited.

        Returns the rule's name. ``factor`` is for boost and bury, ``position`` (from 1) for pin. Raises as :meth:`publish` does.
        """
        ...

    def withdraw(self, name: str, *, by: str, reason: str) -> None:
        """Take the rule called ``name`` out of service, audited. Raises as :meth:`publish` does, and when there is none."""
        ...


class KeyRing(Protocol):
    """The API keys, to be managed; both changes are audited by the page."""

    def keys(self) -> Sequence[ApiKey]:
        """All that were ever made, revoked ones too. Raises ``ConfigurationError``: they cannot be read."""
        ...

    def add(self, name: str, scopes: Sequence[Scope], *, expires_ms: int | None, public: bool) -> tuple[str, ApiKey]:
        """Make one, in force in this worker at once; returns its text, which is kept nowhere. Raises ``ConfigurationError``."""
        ...

    def revoke(self, number: str) -> ApiKey:
        """End the key of that id, in this worker at once. Raises ``ConfigurationError``: there is none in use."""
        ...


class Said(NamedTuple):
    """What a command said: its exit code, the last line of its output, and what it complained of."""

    code: int
    line: bytes
    problem: str


class Commands(Protocol):
    """The command line on this data directory, for what takes seconds: in a process of its own, politely, a few at a time."""

    async def run(self, *words: str, most_s: float) -> Said:
        """Run ``headwater WORDS``. One that takes longer than ``most_s`` is ended: code 124. A caller that goes away ends it too."""
        ...


@dataclass(frozen=True, slots=True)
class Planes:
    """What a page may use beside the files of the data directory.

    ``plan`` is the hash of the plan in service, ``pipeline`` what ``headwater pipeline show --json`` says, ``config`` the configuration with
    the rules that are in force, ``looks`` users, items and features as the worker sees them. ``config_path`` None: the server runs on the defaults.
    """

    rules: RulesDesk
    keys: KeyRing
    commands: Commands
    plan: str
    pipeline: Callable[[], Mapping[str, Any]]
    config: Callable[[], Config]
    looks: Looks
    config_path: Path | None = None
