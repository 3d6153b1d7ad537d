"""What is wrong with rules before anybody has seen a list of theirs: mistakes, contradictions, what can change nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Literal

from msgspec import Struct

from headwater.policy.contradiction import always_holds, never_holds, values_implied
from headwater.policy.expression import Node
from headwater.policy.fields import Fields
from headwater.policy.rules import CompiledRule, compile_rule
from headwater.schema.errors import ConfigurationError
from headwater.schema.rules import Rule


class Finding(Struct, frozen=True):
    """One thing that is wrong (``error``) or probably not meant (``warning``), with the rules that it is about."""

    level: Literal["error", "warning"]
    rules: tuple[str, ...]
    message: str


def lint(
    rules: Sequence[Rule], fields: Fields, surfaces: Mapping[str, int], now_ms: int
) -> tuple[tuple[CompiledRule, ...], list[Finding]]:
    """The rules that compile, and the findings, errors first. ``surfaces``: how long the lists of each are."""
    compiled: list[CompiledRule] = []
    findings: list[Finding] = []
    for rule in rules:
        try:
            compiled.append(compile_rule(rule, fields))
        except ConfigurationError as error:
            findings.append(Finding("error", (rule.name,), str(error)))
    for one in compiled:
        findings += _alone(one, surfaces, now_ms)
    sound = [one for one in compiled if not _never(one)]
    for one, other in combinations(sound, 2):
        if one.meets(other) and not _never_meet(one, other):
            findings += _together(one, other)
    return tuple(compiled), sorted(findings, key=lambda found: found.level)


def _alone(one: CompiledRule, surfaces: Mapping[str, int], now_ms: int) -> Iterator[Finding]:
    names = (one.name,)
    if one.when is not None and never_holds(one.when):
        yield Finding("error", names, f'rule "{one.name}": `when` can never hold, so it never acts')
    if one.where is not None and never_holds(one.where):
        yield Finding("error", names, f'rule "{one.name}": {_asks(one)} can never hold{_so(one)}')
    elif one.where is not None and one.rule.action in ("filter", "boost", "bury", "quota") and always_holds(one.where):
        yield Finding("warning", names, f'rule "{one.name}": {_asks(one)} always holds, so it changes nothing')
    if one.until_ms is not None and one.until_ms <= now_ms:
        yield Finding("warning", names, f'rule "{one.name}" is over since {one.rule.until}; take it out')
    lengths = {name: k for name, k in surfaces.items() if one.rule.acts_on(name)}
    wanted = _reach(one)
    short = {name: k for name, k in lengths.items() if k < wanted}
    if short:
        listed = ", ".join(f"{name} ({k} items)" for name, k in short.items())
        level: Literal["error", "warning"] = "error" if len(short) == len(lengths) else "warning"
        what = "its position" if one.rule.pin is not None else "so many items"
        yield Finding(
            level, names, f'rule "{one.name}": {what}, {wanted}, lies behind the end of the lists of {listed}; a request with its own `k` may be longer'
        )  # fmt: skip


def _reach(one: CompiledRule) -> int:
    """How long a list has to be for the rule to be kept."""
    if one.rule.pin is not None:
        return one.rule.pin.position
    return one.rule.quota.at_least if one.rule.quota is not None else 0


def _together(one: CompiledRule, other: CompiledRule) -> Iterator[Finding]:
    names = (one.name, other.name)
    if one.rule.filter is not None and other.rule.filter is not None:
        if _clash(one, other):
            yield Finding(
                "error", names, f'rules "{one.name}" and "{other.name}" exclude each other: no item passes both filters'
            )
        return
    for kept, wanting in ((one, other), (other, one)):
        if kept.rule.filter is not None and wanting.where is not None and _clash(kept, wanting):
            whenever = kept.covers(wanting)
            level: Literal["error", "warning"] = (
                "error" if whenever and wanting.rule.action in ("pin", "quota") else "warning"
            )
            where = "" if whenever else ", where both act"
            yield Finding(
                level,
                names,
                f'rule "{kept.name}" removes every item that the {wanting.rule.action} "{wanting.name}" is about{where}',
            )
        yield from _cap_below_quota(kept, wanting)
    pins = (one.rule.pin, other.rule.pin)
    if pins[0] is not None and pins[1] is not None and pins[0].position == pins[1].position:
        yield Finding(
            "warning", names,
            f'rules "{one.name}" and "{other.name}" pin to the same position, {pins[0].position}: where both act, the second stands behind the first',
        )  # fmt: skip


def _cap_below_quota(capping: CompiledRule, wanting: CompiledRule) -> Iterator[Finding]:
    cap, quota = capping.rule.cap, wanting.rule.quota
    if cap is None or quota is None or capping.by is None or wanting.where is None:
        return
    values = values_implied(wanting.where, capping.by)
    if values is not None and len(values) * cap.at_most < quota.at_least:
        yield Finding(
            "error", (capping.name, wanting.name),
            f'the quota "{wanting.name}" wants {quota.at_least} items that the cap "{capping.name}" never lets in: at most '
            f"{cap.at_most} of each {cap.by}, {', '.join(sorted(map(str, values)))}",
        )  # fmt: skip


def _never(one: CompiledRule) -> bool:
    return any(node is not None and never_holds(node) for node in (one.when, one.where))


def _conditions(*rules: CompiledRule) -> list[Node]:
    return [rule.when for rule in rules if rule.when is not None]


def _never_meet(one: CompiledRule, other: CompiledRule) -> bool:
    """Whether the conditions of two rules exclude each other, so that they never act on the same request."""
    return never_holds(*_conditions(one, other))


def _clash(one: CompiledRule, other: CompiledRule) -> bool:
    """Whether no item can be what both rules ask for in a request that both act on."""
    asked = [rule.where for rule in (one, other) if rule.where is not None]
    return never_holds(*_conditions(one, other), *asked)


def _asks(one: CompiledRule) -> str:
    return "`filter`" if one.rule.filter is not None else f"`{one.rule.action}.where`"


def _so(one: CompiledRule) -> str:
    return ", so it removes everything" if one.rule.filter is not None else ", so it changes nothing"
