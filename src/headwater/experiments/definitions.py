"""An experiment as it is written down: one TOML file, strict, complete in itself.

What a file says of itself is checked here; what several say of one layer in :mod:`headwater.experiments.layers`; what its variants
change, against a configuration, in :mod:`headwater.experiments.changes`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from headwater.schema.errors import ConfigurationError
from headwater.schema.events import Name
from headwater.schema.experiments import INTERLEAVED
from headwater.schema.rules import Rule, encoded
from headwater.schema.strict import key_and_reason, read_toml, suggestion, unknown_keys

BUCKETS = 10_000
"""So finely a layer is divided."""

Status = Literal["draft", "running", "stopped"]
_Share = Annotated[float, Meta(ge=0.0, le=1.0)]
_Hash = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}$")]
_Version = Annotated[str, Meta(max_length=64, pattern=r"^([0-9]{8}T[0-9]{9}Z-[0-9a-f]{12})?$")]
_Text = Annotated[str, Meta(max_length=4_096)]


class ExperimentError(ConfigurationError):
    """A definition is wrong, or cannot go with the others; the message says what and where."""


class Variant(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"set_": "set"}):
    """What a part of the users gets. ``set`` are dotted keys of the configuration and their values, ``rules`` stand behind its
    own rules, ``bundle`` is ranked with in place of the promoted one ("": that one). ``weight``: its share is this of the sum of all.
    """

    name: Name
    weight: Annotated[float, Meta(gt=0.0, le=1e6)] = 1.0
    set_: dict[str, Any] = {}
    rules: tuple[Rule, ...] = ()
    bundle: _Version = ""

    @property
    def changes(self) -> dict[str, Any]:
        """``set`` with each key whole: tables in it are keys of what they hold."""
        return dict(_flat(self.set_, ""))

    @property
    def is_plain(self) -> bool:
        """Whether it is the configuration as it is."""
        return not (self.set_ or self.rules or self.bundle)


class Guardrail(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What must not become worse: the relative change of ``metric`` against the control in the harmful ``direction`` stays below ``bound``."""

    metric: Name
    direction: Literal["decrease", "increase"] = "decrease"
    bound: Annotated[float, Meta(ge=0.0, le=100.0)] = 0.0


class Experiment(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One experiment. The first of ``variants`` is the control: the configuration as it is.

    ``layer``: experiments of one layer never share a user, those of different layers overlap as if each were alone. ``share`` is the
    part of the layer's users that take part, ``buckets`` which they are (``[first, end)`` of 10,000, given when it is started),
    ``holdout`` the part of the layer that is in none of its experiments. ``salt`` mixes users among the variants ("": the name).
    ``shadow``: nobody gets a variant; they are asked a copy of this share of all requests, and what they say is measured, and ``shadow_logged`` of it kept in the log.
    ``interleave``: nobody is split; all who take part get the lists of the two variants in one, drafted in turns, and their clicks say
    which they prefer. ``surfaces`` absent: wherever a variant changes something. ``when``: only who this condition holds for, in the language
    of rules ("": everybody). ``overrides``: hashes of testers' ids (:func:`hashed_id`) and the variant that they get; they are not counted.
    Times are Unix ms, 0: not yet.
    """

    name: Name
    layer: Name = "main"
    status: Status = "draft"
    hypothesis: _Text = ""
    salt: Annotated[str, Meta(max_length=64)] = ""
    share: _Share = 1.0
    buckets: tuple[tuple[int, int], ...] = ()
    holdout: Annotated[float, Meta(ge=0.0, le=0.9)] = 0.0
    shadow: _Share = 0.0
    shadow_logged: _Share = 1.0
    interleave: bool = False
    surfaces: Annotated[tuple[Name, ...], Meta(min_length=1)] | None = None
    when: _Text = ""
    metrics: tuple[Name, ...] = ()
    guardrails: tuple[Guardrail, ...] = ()
    variants: Annotated[tuple[Variant, ...], Meta(min_length=2, max_length=16)]
    overrides: dict[_Hash, Name] = {}
    started_ms: Annotated[int, Meta(ge=0)] = 0
    stopped_ms: Annotated[int, Meta(ge=0)] = 0
    stopped_why: _Text = ""

    def __post_init__(self) -> None:
        try:
            self._check()
        except ExperimentError as error:
            raise ExperimentError(f'experiment "{self.name}": {error}') from error

    @property
    def control(self) -> str:
        """The name of the first variant."""
        return self.variants[0].name

    @property
    def variant_names(self) -> tuple[str, ...]:
        """In the order that numbers them."""
        return tuple(variant.name for variant in self.variants)

    @property
    def exposed_names(self) -> tuple[str, ...]:
        """What exposures call what users get: the variants; of an interleaved experiment that it is one."""
        return (INTERLEAVED,) if self.interleave else self.variant_names

    @property
    def is_running(self) -> bool:
        """Whether users take part."""
        return self.status == "running"

    @property
    def version(self) -> str:
        """What names the variants and how users come to them: 16 hexadecimal digits of a SHA-256; share and targeting have no part
        in it, for more users may come in without any that is in being moved.
        """
        said: list[object] = [self.name, self.layer, self.salt, [_said(variant) for variant in self.variants]]
        if self.interleave:  # the others keep the versions that they had before there were such
            said.append(INTERLEAVED)
        return hashlib.sha256(msgspec.json.encode(said, order="sorted")).hexdigest()[:16]

    def variant(self, name: str) -> Variant:
        """The variant ``name``, which must be one."""
        return next(variant for variant in self.variants if variant.name == name)

    def _check(self) -> None:
        names = self.variant_names
        if len(set(names)) < len(names):
            raise ExperimentError(f"variants: Expected different names, got {', '.join(names)}")
        if not self.variants[0].is_plain:
            raise ExperimentError(
                f'variants[0]: The first variant, "{self.control}", is the control: the configuration as it is. Put what it changes into '
                "another variant, or into the configuration"
            )
        for number, variant in enumerate(self.variants[1:], 1):
            if variant.is_plain:
                raise ExperimentError(
                    f'variants[{number}]: "{variant.name}" changes nothing; give it `set`, `rules` or `bundle`'
                )
        if INTERLEAVED in names:
            raise ExperimentError(
                f'variants: "{INTERLEAVED}" is what records call users of interleaved experiments; choose another name'
            )
        if self.shadow_logged < 1.0 and not self.shadow:
            raise ExperimentError(
                "shadow_logged: There is no `shadow` whose lists could be logged; leave it out, or say `shadow`"
            )
        if self.interleave:
            self._check_interleaved()
        for name in self.overrides.values():
            if name not in names:
                raise ExperimentError(f'overrides: There is no variant "{name}" (there are {", ".join(names)})')
        end = 0
        for first, last in sorted(self.buckets):
            if not end <= first < last <= BUCKETS:
                raise ExperimentError(
                    f"buckets: Expected ranges [first, end) of 0 to {BUCKETS} that do not overlap, got [{first}, {last}]"
                )
            end = last
        if self.status == "running" and self.bucket_count != self.wanted_buckets:
            raise ExperimentError(
                f"buckets: A share of {self.share:g} is {self.wanted_buckets} of {BUCKETS} buckets, and it has {self.bucket_count}; "
                f"`headwater experiments start {self.name} --share {self.share:g}` gives them out"
            )

    def _check_interleaved(self) -> None:
        if len(self.variants) != 2:
            raise ExperimentError(
                f"interleave: Two variants can be interleaved, the control and another one; there are {len(self.variants)}"
            )
        if self.shadow:
            raise ExperimentError(
                "interleave: A shadow's lists are shown to nobody; leave out `shadow` or `interleave`"
            )
        for key in ("metrics", "guardrails"):
            if getattr(self, key):
                raise ExperimentError(
                    f"{key}: All users of an interleaved experiment get the same, so nothing can be compared between them but whose items they "
                    "click; leave it out"
                )

    @property
    def bucket_count(self) -> int:
        """How many buckets it has."""
        return sum(last - first for first, last in self.buckets)

    @property
    def wanted_buckets(self) -> int:
        """How many make up its share."""
        return 0 if self.shadow else round(self.share * BUCKETS)


def hashed_id(experiment: Experiment, user: str) -> str:
    """What ``overrides`` keep of the external id ``user``: 16 bytes of BLAKE2b, keyed with the experiment's name, in hex."""
    return hashlib.blake2b(
        user.encode(errors="surrogatepass"), digest_size=16, key=experiment.name.encode()[:64]
    ).hexdigest()


def parse_experiment(text: str, source: str) -> Experiment:
    """An experiment from TOML ``text``; ``source`` is what error messages call the file.

    Raises:
        ExperimentError: it is wrong; the message names file and key, of an unknown key the nearest known one.
    """
    raw = read_toml(text, source, ExperimentError)
    for key, owner in unknown_keys(raw, Experiment):
        raise ExperimentError(f"{source}: Unknown key `{key}`{suggestion(key, owner, Experiment)}")
    if isinstance(raw.get("when"), dict):
        raise ExperimentError(f"{source}: when: It is an expression, as in rules: {_as_expression(raw['when'])}")
    try:
        return msgspec.convert(raw, Experiment)
    except ConfigurationError as error:
        raise ExperimentError(f"{source}: {error}") from error
    except msgspec.ValidationError as error:
        key, reason = key_and_reason(error)
        raise ExperimentError(f"{source}: {key + ': ' if key else ''}{reason}") from error


def _as_expression(table: Mapping[str, Any]) -> str:
    """How to say what a table of keys and the values that they may have said once."""
    asked = [f"context.{key} in {json.dumps(values)}" for key, values in table.items()]
    return f"when = '{' and '.join(asked)}'"


def _flat(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _said(variant: Variant) -> dict[str, Any]:
    return {
        "name": variant.name, "weight": variant.weight, "set": variant.changes, "bundle": variant.bundle,
        "rules": [encoded(rule) for rule in variant.rules],
    }  # fmt: skip
