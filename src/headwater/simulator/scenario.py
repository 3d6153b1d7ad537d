"""Scenarios: TOML files that say what happens to a world, and when.

Built-in ones stand in the folder ``scenarios`` and are known by name; any other file is known by its path.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import fields, replace

from headwater.schema.durations import PATTERN, Delay, Duration, format_duration, parse_delay, parse_duration
from headwater.schema.errors import ConfigurationError
from headwater.schema.strict import key_and_reason, nearest, read_toml
from headwater.simulator.words import CATEGORIES

_Share = Annotated[float, Meta(gt=0.0, le=1.0)]
_Count = Annotated[int, Meta(ge=1, le=100_000)]

CATEGORY_NAMES = tuple(category.name for category in CATEGORIES)


class _Change(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """``at``: how long after the world goes on."""

    at: Delay

    @property
    def at_ms(self) -> int:
        """``at`` in milliseconds."""
        return parse_delay(self.at)


class TasteDrift(_Change, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="taste-drift"):
    """A ``share`` of the people give a part ``strength`` of their taste to another category: to ``toward``, or each to one of their own."""

    share: _Share
    strength: _Share
    toward: str = ""


class ViralItem(_Change, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="viral-item"):
    """``items`` that are there become far more attractive to everybody, which fades with ``half_life``."""

    items: _Count = 1
    strength: Annotated[float, Meta(gt=0.0, le=1e6)] = 50.0
    half_life: Duration = "12h"


class NewItemFlood(_Change, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="new-item-flood"):
    """One creator brings ``items`` within ``lasts``; ``skill`` 0 is an average creator, -1 a poor one."""

    items: _Count
    lasts: Duration
    skill: Annotated[float, Meta(ge=-5.0, le=5.0)] = 0.0


class BotAttack(_Change, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="bot-attack"):
    """``bots`` click on the ``items`` that people like least, each ``clicks_per_hour`` times an hour."""

    lasts: Duration
    bots: _Count
    clicks_per_hour: Annotated[float, Meta(gt=0.0, le=1e6)]
    items: _Count = 3


class Outage(_Change, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="outage"):
    """``serving``: nobody gets a list; ``events``: what people do reaches the log only afterwards."""

    lasts: Duration
    part: Literal["serving", "events"]


Change = TasteDrift | ViralItem | NewItemFlood | BotAttack | Outage
_KINDS = {kind.__struct_config__.tag: kind for kind in get_args(Change)}


class Scenario(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What happens to a world, in any order."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    description: str
    changes: Annotated[tuple[Union[Change], ...], Meta(min_length=1)]  # noqa: UP007  (msgspec takes the alias as it is)

    def faster(self, factor: float) -> Scenario:
        """The same ``factor`` times as fast: for worlds whose clock is that of the wall."""
        return replace(self, changes=tuple(_faster(change, factor) for change in self.changes))


def _faster(change: Change, factor: float) -> Change:
    scaled = {
        field.name: format_duration(max(1, round(parse_delay(getattr(change, field.name)) / factor)))
        for field in fields(change)
        if field.name in {"at", "lasts", "half_life"}
    }
    if isinstance(change, BotAttack):
        return replace(change, clicks_per_hour=change.clicks_per_hour * factor, **scaled)
    return replace(change, **scaled)


def builtin_scenarios() -> list[str]:
    """The names of the scenarios that come with the package."""
    folder = resources.files("headwater.simulator") / "scenarios"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_scenario(name: str) -> Scenario:
    """The built-in scenario of that name, or the one in the file at that path.

    Raises:
        ConfigurationError: there is none, or it is wrong; the message says where and what was expected.
    """
    known = builtin_scenarios()
    path = Path(name)
    if name in known:
        text = (resources.files("headwater.simulator") / "scenarios" / f"{name}.toml").read_text(encoding="utf-8")
    elif path.suffix == ".toml":
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{path}: Cannot read the scenario: {error}") from error
    else:
        raise ConfigurationError(
            f'There is no scenario "{name}"{nearest(name, known)}. A file of your own is named with its .toml'
        )
    return parse_scenario(text, name)


def parse_scenario(text: str, source: str) -> Scenario:
    """A scenario from TOML text; ``source`` is what error messages call it.

    Raises:
        ConfigurationError: it is wrong.
    """
    raw = read_toml(text, source)
    _check_keys(raw, source)
    try:
        scenario = msgspec.convert(raw, Scenario)
        for place, change in enumerate(scenario.changes):
            _check_change(change, f"changes[{place}]")
    except ConfigurationError as error:
        raise ConfigurationError(f"{source}: {error}") from error
    except msgspec.ValidationError as error:
        key, reason = key_and_reason(error)
        if repr(PATTERN) in reason:
            reason = 'Expected a duration such as "30m", "6h" or "3d"'
        raise ConfigurationError(f"{source}: {key + ': ' if key else ''}{reason}") from error
    return scenario


def _check_keys(raw: dict[str, Any], source: str) -> None:
    """Name unknown keys and kinds with the nearest known ones."""
    _check_table(raw, Scenario, source, "")
    changes = raw.get("changes")
    for place, change in enumerate(changes if isinstance(changes, list) else ()):
        if not isinstance(change, dict):
            continue
        kind = change.get("kind")
        if kind not in _KINDS:
            said = f'There is no kind "{kind}"{nearest(str(kind), list(map(str, _KINDS)))}' if kind else "Say a `kind`"
            raise ConfigurationError(f"{source}: changes[{place}].kind: {said}")
        _check_table({k: v for k, v in change.items() if k != "kind"}, _KINDS[kind], source, f"changes[{place}].")


def _check_table(table: dict[str, Any], kind: type[Struct], source: str, prefix: str) -> None:
    known = [field.encode_name for field in fields(kind)]
    for key in table:
        if key not in known:
            raise ConfigurationError(f"{source}: Unknown key `{prefix}{key}`{nearest(key, known)}")


def _check_change(change: Change, where: str) -> None:
    if isinstance(change, TasteDrift) and change.toward and change.toward not in CATEGORY_NAMES:
        near = nearest(change.toward, CATEGORY_NAMES)
        raise ConfigurationError(f'{where}.toward: There is no category "{change.toward}"{near}')
    for field in fields(change):
        if field.name in {"at", "lasts", "half_life"}:
            parse = parse_delay if field.name == "at" else parse_duration
            try:
                parse(getattr(change, field.name))
            except ConfigurationError as error:
                raise ConfigurationError(f"{where}.{field.name}: {error}") from error
