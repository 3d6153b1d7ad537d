"""Rules from the console: read from the configuration file, checked, tried on recent requests, and brought into service.

The configuration file stays the one place where rules stand. Publishing writes them there and then does what SIGHUP does; what a server does
not take up is taken out of the file again. Every publication is kept below ``rules`` in the data directory, so that it can be
gone back to.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import structlog

from headwater.features.plan import Plan
from headwater.online.jobs import JobFailedError, ask
from headwater.online.rules import MAX_FILE, publish, read_again, taken
from headwater.online.rules_preview import Job
from headwater.policy.lint import lint
from headwater.registry.audit import record
from headwater.registry.files import read_regular, replace_file, writers_lock
from headwater.schema.config import Config, parse_config
from headwater.schema.errors import ConfigurationError, UnavailableError
from headwater.schema.rule_changes import (
    CheckedRules,
    ItemAction,
    Publication,
    RuleFinding,
    RulesPreview,
    RulesText,
)
from headwater.schema.rules import Rule, encoded
from headwater.schema.rules_text import ParsedRule, line_of, parse_rules, rules_in, with_rules
from headwater.serving.rule_fields import rule_fields
from headwater.serving.targeting import compile_target

log = structlog.get_logger()

FOLDER = "rules"  # in the data directory
KEPT = 100
PREVIEW_S = 60.0  # the process starts in 2 s where there is nothing else to do
PUBLISH_S = 30.0
BY_FILE = "file"
_NO_FILE = "this server has no configuration file; start it with --config, and its rules can be changed here"
_decode = msgspec.json.Decoder(Publication).decode


class ConsoleRules:
    """The rules of a server. ``in_force`` gives the configuration that is served, ``clock`` the log's time in Unix ms."""

    def __init__(
        self, data: Path, path: Path | None, plan: Plan, in_force: Callable[[], Config], clock: Callable[[], int],
        wall: Callable[[], int],
    ) -> None:  # fmt: skip
        self._data, self._plan = data, plan
        self._path = None if path is None else path.resolve()  # a link stays one
        self._in_force, self._clock, self._wall = in_force, clock, wall

    # -- looking ---------------------------------------------------------------------------------------

    def text(self) -> RulesText:
        """The rules as they stand in the file; without a file, those in service."""
        served = self._in_force()
        version = taken(served).version
        if self._path is None:
            return RulesText(rules_text(served.rules), version, version, "", _NO_FILE)
        try:
            whole = self._path.read_text(encoding="utf-8")
            own = rules_in(whole)
            return RulesText(own, taken(parse_config(whole)).version, version, self._path.name)
        except (OSError, UnicodeDecodeError, ConfigurationError) as error:
            return RulesText(rules_text(served.rules), "", version, self._path.name, str(error))

    def fields(self) -> list[tuple[str, str, str]]:
        """(name, kind, what it is) of every field that an expression may ask about."""
        return [
            (field.name, f"{field.kind}{'s' if field.many else ''} of the {'item' if field.per_item else 'request'}", field.about)
            for field in rule_fields(self._in_force(), self._plan)
        ]  # fmt: skip

    def check(self, text: str) -> CheckedRules:
        """What the linter finds in ``text``."""
        return self._checked(text)[0]

    def check_target(self, when: str) -> Sequence[str]:
        """What is probably not meant in ``when`` of an experiment. Raises ConfigurationError: the place of what is wrong."""
        return compile_target(when, self._in_force(), self._plan).notes

    def publications(self) -> list[Publication]:
        """What was published from here, newest first, ``KEPT`` at most."""
        found = []
        for path in sorted((self._data / FOLDER).glob("*.json"), reverse=True)[:KEPT]:
            try:
                found.append(_decode(read_regular(path, MAX_FILE)))
            except (OSError, msgspec.DecodeError) as error:
                log.warning("publication_unreadable", file=path.name, reason=str(error))
        return found

    async def preview(self, text: str, lists: int) -> RulesPreview:
        """What the newest ``lists`` requests would get now with the rules in service and with those of ``text``; asked in a process
        of its own, so that the worker goes on answering.

        Raises:
            ConfigurationError: ``text`` has errors.
        """
        checked, changed = await asyncio.to_thread(self._checked, text)
        _raise_errors(checked)
        job = Job(self._in_force(), changed, str(self._data), lists, self._clock())
        try:
            said = await ask("headwater.online.rules_preview", job, PREVIEW_S)
        except TimeoutError:
            return RulesPreview(self._clock(), unasked=f"the answer was not there in {PREVIEW_S:g} s")
        except JobFailedError:
            return RulesPreview(self._clock(), unasked="it failed; the reason is in the server's log")
        return msgspec.json.decode(said, type=RulesPreview)

    # -- changing --------------------------------------------------------------------------------------

    def publish(self, text: str, *, by: str, reason: str, expect: str | None = None) -> str:
        """Bring the rules of ``text`` into service, audited; returns their version. ``expect``: the version that must stand in the file now.

        Raises:
            ConfigurationError: they have errors, somebody changed the file meanwhile, or the server did not take them up: then
                those from before serve on.
            UnavailableError: the server is starting.
        """
        with self._locked() as path:
            return self._publish(path, text, by, reason, expect)

    def rules_about(self, item: str) -> list[Rule]:
        """The rules in service that were made for ``item`` alone."""
        return [rule for rule in self._in_force().rules if _item_of(rule) == item]

    def act_on_item(
        self, item: str, action: ItemAction, *, by: str, reason: str, until_ms: int | None = None,
        factor: float | None = None, position: int = 1, surfaces: Sequence[str] = (),
    ) -> str:  # fmt: skip
        """Hide, boost, bury or pin ``item`` by a rule, until ``until_ms`` (None: until it is withdrawn); returns the rule's name.

        A rule for the same item, action and surfaces takes the place of an earlier one. ``factor`` is for boost and bury, ``position`` (from 1) for pin.

        Raises:
            ConfigurationError: the rule is wrong, or was not taken up.
            UnavailableError: the server is starting.
        """
        rule = item_rule(item, action, until_ms=until_ms, factor=factor, position=position, surfaces=surfaces)
        with self._locked() as path:
            kept = _without(self._file_rules(path), str(rule["name"]))
            text = f"{kept.rstrip()}\n\n{_table(rule)}".lstrip("\n")
            self._publish(path, text, by, reason, None)
        return str(rule["name"])

    def withdraw(self, name: str, *, by: str, reason: str) -> None:
        """Take the rule called ``name`` out of service.

        Raises:
            ConfigurationError: the file has no such rule, or the server did not follow.
            UnavailableError: the server is starting.
        """
        with self._locked() as path:
            text = self._file_rules(path)
            left = _without(text, name)
            if left == text:
                raise ConfigurationError(f'rules: There is no rule "{name}" in {path.name}')
            self._publish(path, left, by, reason, None)

    # -- inside ----------------------------------------------------------------------------------------

    def _checked(self, text: str) -> tuple[CheckedRules, Config]:
        """What the linter says, and the configuration with the rules that are sound by themselves."""
        config = self._in_force()
        try:
            parsed = parse_rules(text)
        except ConfigurationError as error:
            return CheckedRules(0, "", (RuleFinding("error", (), str(error), line_of(error)),)), config
        found = [RuleFinding("error", (each.name,), each.problem, each.line) for each in parsed if each.problem]
        rules = tuple(each.rule for each in parsed if each.rule is not None)
        lines = {each.name: each.line for each in parsed}
        try:
            changed = msgspec.structs.replace(config, rules=rules)
        except ConfigurationError as error:
            return CheckedRules(len(parsed), "", (*found, RuleFinding("error", (), str(error)))), config
        surfaces = {surface.name: surface.k for surface in config.surfaces}
        _, findings = lint(rules, rule_fields(changed, self._plan), surfaces, self._clock())
        found += [
            RuleFinding(each.level, each.rules, each.message, lines.get(each.rules[0], 0) if each.rules else 0)
            for each in findings
        ]
        return CheckedRules(len(parsed), taken(changed).version, tuple(found)), changed

    def _locked(self) -> _Locked:
        if self._path is None:
            raise ConfigurationError(f"rules: {_NO_FILE}")
        return _Locked(self._data, self._path)

    def _file_rules(self, path: Path) -> str:
        return rules_in(path.read_text(encoding="utf-8"))

    def _publish(self, path: Path, text: str, by: str, reason: str, expect: str | None) -> str:
        checked, _ = self._checked(text)
        _raise_errors(checked)
        whole = path.read_text(encoding="utf-8")
        wanted = with_rules(whole, text)
        before, after = taken(parse_config(whole, path.name)), taken(parse_config(wanted, path.name))
        if expect is not None and expect != before.version:
            raise ConfigurationError("rules: The file was changed since this page was loaded; load it again")
        now_ms = self._wall()
        stood = Publication(
            time_ms=max(now_ms - 1, 0), by=BY_FILE, reason="what stood in the file before", version=before.version,
            rules=len(before.rules), text=rules_in(whole),
        )  # fmt: skip
        record(
            self._data, time_ms=now_ms, by=by, action="rules.publish", subject=path.name, reason=reason,
            before={"version": before.version}, after={"version": after.version},
        )  # fmt: skip
        self._write(path, wanted)
        try:
            refused = publish(self._data, after.version, PUBLISH_S)
        except UnavailableError:
            self._write(path, whole)
            raise
        if refused:
            self._write(path, whole)
            read_again(self._data)  # had it only been slow, it would serve what the file does not say
            raise ConfigurationError(f"rules: They were not taken up, and the file is as it was: {refused}")
        self._keep(stood)
        made = Publication(
            time_ms=now_ms, by=by, reason=reason, version=after.version, rules=len(after.rules), text=text
        )
        self._keep(made)
        return after.version

    def _write(self, path: Path, text: str) -> None:
        try:
            replace_file(path, text.encode(), mode=path.stat().st_mode & 0o777)
        except OSError as error:
            raise ConfigurationError(
                f"{path.name}: The rules cannot be written there: {error.strerror}; change them where the file comes from"
            ) from error

    def _keep(self, made: Publication) -> None:
        folder = self._data / FOLDER
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        kept = self.publications()
        if made.by == BY_FILE and kept and kept[0].version == made.version:
            return
        content = msgspec.json.format(msgspec.json.encode(made), indent=2) + b"\n"
        replace_file(folder / f"{made.time_ms:013d}.json", content, mode=0o600)
        for old in sorted(folder.glob("*.json"), reverse=True)[KEPT:]:
            old.unlink()


class _Locked:
    """The file of rules, for one writer at a time on this machine."""

    def __init__(self, data: Path, path: Path) -> None:
        (data / "run").mkdir(parents=True, exist_ok=True, mode=0o700)
        self._held, self._path = writers_lock(data / "run" / "rules.lock"), path

    def __enter__(self) -> Path:
        self._held.__enter__()
        return self._path

    def __exit__(self, *raised: object) -> None:
        self._held.__exit__(None, None, None)


def item_rule(
    item: str, action: ItemAction, *, until_ms: int | None = None, factor: float | None = None, position: int = 1,
    surfaces: Sequence[str] = (),
) -> dict[str, object]:  # fmt: skip
    """The rule, as it stands in a file, that does ``action`` to ``item`` alone.

    Raises:
        ConfigurationError: an expression cannot name the item: its id holds both kinds of quotes or ends a line.
    """
    where = f"id {'!=' if action == 'hide' else '=='} {_quoted(item)}"
    mark = hashlib.sha256("\0".join([item, *surfaces]).encode()).hexdigest()[:10]
    rule: dict[str, object] = {"name": f"{action}-{mark}"}
    if surfaces:
        rule["surfaces"] = list(surfaces)
    if until_ms is not None:
        rule["until"] = datetime.fromtimestamp(until_ms / 1_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if action == "hide":
        rule["filter"] = where
    elif action == "pin":
        rule["pin"] = {"item": item, "position": position}
    else:
        rule[action] = {"where": where} if factor is None else {"where": where, "factor": factor}
    return rule


def rules_text(rules: Sequence[Rule]) -> str:
    """``rules`` as TOML tables."""
    return "\n".join(_table(encoded(rule)) for rule in rules)


def _table(rule: dict[str, object]) -> str:
    return "".join(["[[rules]]\n", *(f"{key} = {_value(value)}\n" for key, value in rule.items())])


def _value(value: object) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {_value(inner)}' for key, inner in value.items())}}}"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _quoted(text: str) -> str:
    quote = "'" if "'" not in text else '"'
    if quote in text or "\n" in text:
        raise ConfigurationError(f"rules: An expression cannot name the item {text!r}; hide it with POST /v1/items")
    return f"{quote}{text}{quote}"


def _item_of(rule: Rule) -> str | None:
    """The one item that a rule made here is about; None for others."""
    if rule.pin is not None:
        return rule.pin.item
    where = rule.filter if rule.filter is not None else next((a.where for a in (rule.boost, rule.bury) if a), "")
    for start in ("id == ", "id != "):
        said = where.removeprefix(start)
        if said != where and len(said) > 2 and said[0] == said[-1] and said[0] in "'\"" and said[0] not in said[1:-1]:
            return said[1:-1]
    return None


def _without(text: str, name: str) -> str:
    """``text`` less the rule called ``name``, with the comments that stand right above it kept where they are."""
    parsed = parse_rules(text)
    lines = text.splitlines(keepends=True)
    ends = [*(other.line for other in parsed[1:]), len(lines) + 1]
    for each, behind in zip(parsed, ends[: len(parsed)], strict=True):
        if each.name == name and _alone(parsed, each):
            end = behind - 1
            while end > each.line and lines[end - 1].lstrip().startswith("#"):  # a comment above the next one
                end -= 1
            return "".join(lines[: each.line - 1] + lines[end:])
    return text


def _alone(parsed: Sequence[ParsedRule], one: ParsedRule) -> bool:
    """Whether rules stand one behind the other, each from a line of its own on."""
    return sum(other.line == one.line for other in parsed) == 1


def _raise_errors(checked: CheckedRules) -> None:
    if errors := checked.errors:
        raise ConfigurationError("; ".join(error.message for error in errors))
