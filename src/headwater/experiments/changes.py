"""What variants change: which keys of the configuration they may set, the configuration that comes of it, and where it is felt."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from headwater.experiments.definitions import Experiment, ExperimentError, Variant
from headwater.schema.config import Config
from headwater.schema.errors import ConfigurationError
from headwater.schema.strict import nearest, walk_keys

_STATE = "it decides what the state holds, and all users share one state"
_STORED = "what is stored, and where, is the same for all users"
_PROCESS = "it belongs to the whole process, whoever it answers"
_TRAINED = (
    "it is about training, which is over when a request comes; train a bundle with it and give the variant `bundle`"
)

# Keys, or beginnings of keys, that a variant cannot set, and why; `*` is any name. All others it can.
REFUSED: Mapping[str, str] = {
    "data_dir": _STORED, "log": _STORED, "retention": _STORED, "state": _STORED, "clock": _PROCESS,
    "events": _STATE, "segments": _STATE, "features": _STATE, "tables": _STATE,
    "fatigue.window": _STATE, "fatigue.types": _STATE, "fatigue.size": _STATE,
    "serving": _PROCESS, "overload": _PROCESS, "limits": _PROCESS, "cors": _PROCESS, "cache": _PROCESS, "ladder": _PROCESS,
    "console": _PROCESS, "monitoring": _PROCESS, "alerts": _PROCESS,
    "ranker.remote": _PROCESS,
    "models": _TRAINED, "gate": _TRAINED, "learn": _TRAINED, "training": _TRAINED,
    "ranker.trees": _TRAINED, "ranker.leaves": _TRAINED, "ranker.learning_rate": _TRAINED,
    "ranker.column_share": _TRAINED, "ranker.max_rows": _TRAINED, "ranker.negatives": _TRAINED, "ranker.seed": _TRAINED, "ranker.learn_from": _TRAINED,
    "surfaces.*.name": "it is what requests ask for", "rules.*.name": "metrics and explanations know the rule by it",
    "surfaces.*.k": "how long a list is, is settled by the request before anybody knows who is in an experiment",
}  # fmt: skip

_NAMED = ("surfaces", "rules")  # lists whose entries are addressed by their name


def changed(config: Config, variants: Iterable[Variant]) -> Config:
    """``config`` with what ``variants`` change.

    Raises:
        ExperimentError: a key is unknown, cannot be changed, or is given a value that it cannot have.
    """
    raw: dict[str, Any] = msgspec.to_builtins(config)
    for variant in variants:
        for key, value in variant.changes.items():
            check_key(key, config)
            _put(raw, key, value)
        raw["rules"] = [*raw["rules"], *msgspec.to_builtins(variant.rules)]
    try:
        return msgspec.convert(raw, Config)
    except (ConfigurationError, msgspec.ValidationError) as error:
        names = ", ".join(f'"{variant.name}"' for variant in variants)
        raise ExperimentError(f"variant {names}: {error}") from error


def check_key(key: str, config: Config) -> None:
    """Whether a variant may set the dotted ``key`` of ``config``.

    Raises:
        ExperimentError: it may not, and why; of an unknown key the nearest known one.
    """
    pattern = _pattern(key, config)
    parts = pattern.split(".")
    for length in range(1, len(parts) + 1):
        if (why := REFUSED.get(".".join(parts[:length]))) is not None:
            raise ExperimentError(f"`{key}` cannot differ between variants: {why}")
    known = [name.replace("[]", ".*") for name, _ in walk_keys(Config)]
    if pattern in known or any(pattern.startswith(f"{name}.") for name in known):  # a key of a table of numbers
        return
    if any(name.startswith(f"{pattern}.") for name in known):
        raise ExperimentError(f"`{key}` is a table: say which of its keys")
    could = [name for name in known if not any(_begins(name, refused) for refused in REFUSED)]
    close = difflib.get_close_matches(pattern, could, n=1, cutoff=0.6)
    meant = f"; did you mean `{_unpatterned(close[0], key)}`?" if close else ""
    raise ExperimentError(f"There is no configuration key `{key}`{meant}")


def surfaces_of(variant: Variant, config: Config) -> frozenset[str] | None:
    """The surfaces on which ``variant`` can change a list; None: all."""
    if variant.bundle:
        return None
    found: set[str] = set()
    for key in variant.changes:
        table, _, rest = key.partition(".")
        if table == "surfaces":
            found.add(_entry(rest, [surface.name for surface in config.surfaces], key)[0])
        elif table == "rules":
            name = _entry(rest, [rule.name for rule in config.rules], key)[0]
            own = next(rule for rule in config.rules if rule.name == name).surfaces
            if own is None or key == f"rules.{name}.surfaces":
                return None
            found.update(own)
        else:
            return None
    for rule in variant.rules:
        if rule.surfaces is None:
            return None
        found.update(rule.surfaces)
    return frozenset(found)


def where_it_parts(experiment: Experiment, config: Config) -> frozenset[str] | None:
    """The surfaces on which variants of ``experiment`` can differ, so where it acts and is exposed; None: all.

    Raises:
        ExperimentError: it names a surface that ``config`` does not have, or its variants change none that it names.
    """
    known = [surface.name for surface in config.surfaces]
    for name in experiment.surfaces or ():
        if name not in known:
            raise ExperimentError(
                f'experiment "{experiment.name}": surfaces: There is no surface "{name}"{nearest(name, known)}'
            )
    found: frozenset[str] | None = frozenset()
    for variant in experiment.variants[1:]:
        own = surfaces_of(variant, config)
        found = None if own is None or found is None else found | own
    if experiment.surfaces is None:
        return found
    both = frozenset(experiment.surfaces) if found is None else found & frozenset(experiment.surfaces)
    if not both:
        raise ExperimentError(
            f'experiment "{experiment.name}": surfaces: The variants change nothing on {", ".join(experiment.surfaces)}'
        )
    return both


def check_changes(experiment: Experiment, config: Config) -> None:
    """Whether ``config`` can be changed as the variants say.

    Raises:
        ExperimentError: it cannot; the message names experiment, variant and key.
    """
    for variant in experiment.variants[1:]:
        try:
            changed(config, [variant])
        except ExperimentError as error:
            raise ExperimentError(f'experiment "{experiment.name}": {error}') from error
    where_it_parts(experiment, config)


def clash(one: Experiment, other: Experiment) -> str | None:
    """What variants of both change, so that they cannot overlap; None: nothing."""
    if one.shadow or other.shadow:  # nobody gets those
        return None
    mine = {key for variant in one.variants for key in variant.changes}
    theirs = {key for variant in other.variants for key in variant.changes}
    for key in sorted(mine):
        for second in sorted(theirs):
            if _begins(key, second) or _begins(second, key):
                return f"`{key}`"
    if any(variant.bundle for variant in one.variants) and any(variant.bundle for variant in other.variants):
        return "the bundle"
    return None


def _begins(key: str, prefix: str) -> bool:
    return key == prefix or key.startswith(f"{prefix}.")


def _pattern(key: str, config: Config) -> str:
    """``key`` with ``*`` in place of the name of a surface or a rule."""
    table, _, rest = key.partition(".")
    if table not in _NAMED or not rest:
        return key
    _, inside = _entry(rest, [entry.name for entry in getattr(config, table)], key)
    return f"{table}.*.{inside}" if inside else f"{table}.*"


def _unpatterned(pattern: str, key: str) -> str:
    return pattern.replace("*", key.split(".")[1]) if "*" in pattern else pattern


def _entry(rest: str, names: Sequence[str], key: str) -> tuple[str, str]:
    """The name that ``rest`` begins with and what follows it; names may hold dots, so the longest counts."""
    found = [name for name in names if _begins(rest, name)]
    if not found:
        what = key.partition(".")[0].removesuffix("s")
        wanted = rest.split(".")[0]
        raise ExperimentError(f'`{key}`: There is no {what} "{wanted}"{nearest(wanted, names)}')
    name = max(found, key=len)
    return name, rest[len(name) + 1 :]


def _put(raw: dict[str, Any], key: str, value: Any) -> None:
    table, _, rest = key.partition(".")
    at = raw
    if table in _NAMED:
        name, rest = _entry(rest, [entry["name"] for entry in raw[table]], key)
        at = next(entry for entry in raw[table] if entry["name"] == name)
    else:
        rest = key
    *parents, last = rest.split(".")
    for parent in parents:
        if at.get(parent) is None:  # a rule that has no such action yet; what it becomes is checked as a whole
            at[parent] = {}
        at = at[parent]
        if not isinstance(at, dict):
            raise ExperimentError(f"There is no configuration key `{key}`: `{parent}` holds a value and no keys")
    at[last] = value
