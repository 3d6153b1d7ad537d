"""``headwater.toml`` as a typed, frozen tree. Every key has a default; ``Config()`` is a working system.

A key that nobody knows is an error that names the file, the key and the nearest known one, because a
misspelt key that is silently ignored is a setting that its writer believes in.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta, Struct

from headwater.schema.alerts import Alert, alerts_in_force
from headwater.schema.caches import Cache
from headwater.schema.console import Console
from headwater.schema.cors import Cors
from headwater.schema.default_alerts import DEFAULT_ALERTS
from headwater.schema.durations import PATTERN, Delay, Duration, parse_delay, parse_duration
from headwater.schema.errors import ConfigurationError
from headwater.schema.events import Name
from headwater.schema.limits import Limits, Overload
from headwater.schema.models import Gate, Learn, Limit, Models
from headwater.schema.monitoring import Monitoring, check_webhooks
from headwater.schema.new_items import NewItems, check_new_items
from headwater.schema.rules import Rule
from headwater.schema.segments import Segments
from headwater.schema.stores import Log, Retention, State
from headwater.schema.strict import key_and_reason, nearest, read_toml, suggestion, unknown_keys, walk_keys
from headwater.schema.surfaces import Fatigue, Surface, check_fatigue
from headwater.schema.tables import TableSource
from headwater.schema.urls import REMOTE, check_host, check_url

MAX_EVENT_TYPES = 15
MAX_SEGMENT_KEYS = 2
FITTED_NAMES = ("sequence", "item_knn", "ease", "als")
SOURCE_NAMES = ("popular", "trending", "covisit", "content", "fresh", *FITTED_NAMES)

_Width = Annotated[int, Meta(ge=1, le=5_000)]
_Share = Annotated[float, Meta(ge=0.0, le=1.0)]


class EventType(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A type of interaction. ``seen`` and ``sequence`` follow ``positive`` where they are not given
    (they are ``bool`` once the object exists).
    """

    name: Name
    positive: bool = False
    weight: Annotated[float, Meta(ge=-100.0, le=100.0)] = 0.0
    seen: bool | None = None
    sequence: bool | None = None

    def __post_init__(self) -> None:
        if self.seen is None:
            msgspec.structs.force_setattr(self, "seen", self.positive)
        if self.sequence is None:
            msgspec.structs.force_setattr(self, "sequence", self.positive)


class CoVisits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Decayed item-to-item counts: each positive event pairs with the ``depth`` ones before it within ``window``."""

    neighbours: Annotated[int, Meta(ge=1, le=512)] = 48
    depth: Annotated[int, Meta(ge=1, le=64)] = 8
    window: Duration = "12h"
    half_life: Duration = "2d"
    fast_half_life: Duration = "3h"


class Factors(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Online factors (``features.factors``): vectors that the fold learns from every positive event. ``size`` 0: none are kept.

    ``hidden``: units of a layer that mixes the vectors of a context; 0: their sum alone counts. ``negatives``: latest items of everybody that each event is
    held against. ``regularisation`` pulls vectors that take a step towards 0.
    """

    size: Annotated[int, Meta(ge=0, le=128)] = 0
    hidden: Annotated[int, Meta(ge=0, le=256)] = 0
    negatives: Annotated[int, Meta(ge=1, le=64)] = 20
    learning_rate: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.1
    regularisation: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.03

    def __post_init__(self) -> None:
        if self.hidden and not self.size:
            raise ConfigurationError(
                "features.factors.hidden: Expected features.factors.size, such as 24, beside it: what the units mix are its vectors"
            )


class Features(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes and half-lives of the state. Any change changes the plan's hash, so the state is rebuilt from the log."""

    recent: Annotated[int, Meta(ge=1, le=1_024)] = 64
    seen: Annotated[int, Meta(ge=1, le=8_192)] = 512
    affinity: Annotated[int, Meta(ge=1, le=64)] = 12
    item_half_lives: Annotated[tuple[Duration, ...], Meta(min_length=1, max_length=4)] = ("30m", "6h", "3d")
    user_half_lives: Annotated[tuple[Duration, ...], Meta(min_length=1, max_length=4)] = ("1d", "14d")
    affinity_half_life: Duration = "14d"
    segment_half_life: Duration = "6h"
    segment_slots: Annotated[int, Meta(ge=1, le=4_096)] = 64
    co_visits: CoVisits = CoVisits()
    factors: Factors = Factors()
    content_size: Annotated[int, Meta(ge=8, le=1_024)] = 64
    rate_prior: Annotated[float, Meta(gt=0.0, le=1e6)] = 20.0
    idle_after: Limit = "400d"
    defaults: bool = True
    without: tuple[str, ...] = ()
    module: Annotated[str, Meta(max_length=4_096)] = ""


class SourceConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A candidate source: whether it runs, and the most candidates that it offers."""

    enabled: bool = True
    width: _Width = 200


class FittedConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A candidate source that is trained and comes with the bundle."""

    enabled: bool = False
    width: _Width = 200


class FreshConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """New items: those known for less than ``max_age``, the newest first, or by lot (``retrieval.young``)."""

    enabled: bool = True
    width: _Width = 200
    max_age: Duration = "3d"
    order: Literal["newest", "thompson"] = "newest"


class Sources(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The candidate sources."""

    popular: SourceConfig = SourceConfig()
    trending: SourceConfig = SourceConfig()
    covisit: SourceConfig = SourceConfig()
    content: SourceConfig = SourceConfig()
    fresh: FreshConfig = FreshConfig()
    sequence: FittedConfig = FittedConfig()
    item_knn: FittedConfig = FittedConfig()
    ease: FittedConfig = FittedConfig()
    als: FittedConfig = FittedConfig()


class Ranker(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How candidates are ordered and how the ranker is trained. ``none``: the merged order of the sources.

    ``light_keep``: how many candidates come through to the deep ranker (0: all), chosen by the light one of its bundle, or
    by the merged order of the sources (``keep_by``).
    ``remote``: the model of an Open Inference Protocol server that scores the candidates in this one's place; "": none.
    ``learn_from``: "lists" as they were shown, what was taken against what was not; "questions" about positive events, each against
    ``negatives`` other candidates; "auto": lists once there are enough.
    ``position_bias``: beside the ranker, what the place alone explains is learnt from lists, and left out when it serves.
    ``column_share``: the share of columns, drawn anew for each tree of LightGBM, that may split it.
    """

    kind: Literal["lightgbm", "deep", "none"] = "lightgbm"
    learn_from: Literal["auto", "lists", "questions"] = "auto"
    position_bias: bool = False
    candidates: Annotated[int, Meta(ge=1, le=2_000)] = 200
    light_keep: Annotated[int, Meta(ge=0, le=2_000)] = 0
    keep_by: Literal["light", "merged"] = "light"
    remote: Annotated[str, Meta(max_length=4_096, pattern=REMOTE)] = ""
    trees: Annotated[int, Meta(ge=1, le=5_000)] = 200
    leaves: Annotated[int, Meta(ge=2, le=64)] = 31
    learning_rate: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.08
    column_share: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    max_rows: Annotated[int, Meta(ge=1_000, le=100_000_000)] = 1_000_000
    negatives: Annotated[int, Meta(ge=1, le=1_000)] = 40
    seed: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 7

    def __post_init__(self) -> None:
        if self.remote:
            check_url("ranker.remote", self.remote, ("http://", "https://"))

    @property
    def max_groups(self) -> int:
        """How many questions, each with its negatives, ``max_rows`` has room for."""
        return max(self.max_rows // (self.negatives + 1), 1)


class Ladder(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When serving steps down: the deadline of a request, and how long it may wait for its own token. ``walk``: the share of
    requests that walk each lower tier on purpose.
    """

    deadline_ms: Annotated[float, Meta(ge=1.0, le=10_000.0)] = 50.0
    token_wait_ms: Annotated[float, Meta(ge=0.0, le=60_000.0)] = 1_000.0
    walk: Annotated[float, Meta(ge=0.0, le=0.1)] = 0.001


class Serving(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The HTTP server, and what it logs about its own answers."""

    host: Annotated[str, Meta(min_length=1, max_length=255)] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8080
    workers: Annotated[int, Meta(ge=1, le=256)] = 1
    allowed_hosts: tuple[Annotated[str, Meta(pattern=r"^[a-z0-9.\-]{1,255}$")], ...] = ()
    log_served: bool = True
    feature_sample: _Share = 0.01


class Label(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An outcome that training rows are labelled with: an event of ``types`` at most ``window`` after the exposure.
    ``types`` absent: the event type of the label's name.
    """

    name: Name
    types: tuple[Name, ...] = ()
    window: Duration = "30m"

    def __post_init__(self) -> None:
        if not self.types:
            msgspec.structs.force_setattr(self, "types", (self.name,))


class Training(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Labels of training rows. ``watermark``: how late an event may reach the log and still count.

    ``labels`` absent: one for each positive event type (they are there once the configuration exists).
    """

    watermark: Duration = "5m"
    labels: tuple[Label, ...] = ()


DEFAULT_EVENTS = (
    EventType(name="impression"),
    EventType(name="view", weight=0.2, seen=True, sequence=True),
    EventType(name="click", positive=True, weight=1.0),
    EventType(name="like", positive=True, weight=2.0),
    EventType(name="purchase", positive=True, weight=4.0),
    EventType(name="skip", weight=-0.5),
    EventType(name="hide", weight=-1.0, seen=True),
)

_LIKE = ("covisit", "content", "popular")
DEFAULT_SURFACES = (
    Surface(name="home"),
    Surface(name="similar", sources=_LIKE),
    Surface(name="because", sources=_LIKE, about="latest"),
    Surface(name="cart", sources=_LIKE),
    Surface(name="trending", sources=("trending", "popular")),
)


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration.

    Raises:
        ConfigurationError: two parts contradict each other; the message starts with the dotted key.
    """

    data_dir: Annotated[str, Meta(min_length=1, max_length=4_096)] = "data"
    clock: Literal["wall", "log"] = "wall"
    events: tuple[EventType, ...] = DEFAULT_EVENTS
    segments: Segments = Segments()
    surfaces: tuple[Surface, ...] = DEFAULT_SURFACES
    fatigue: Fatigue = Fatigue()
    new_items: NewItems = NewItems()
    features: Features = Features()
    sources: Sources = Sources()
    ranker: Ranker = Ranker()
    models: Models = Models()
    gate: Gate = Gate()
    learn: Learn = Learn()
    training: Training = Training()
    ladder: Ladder = Ladder()
    overload: Overload = Overload()
    serving: Serving = Serving()
    limits: Limits = Limits()
    cache: Cache = Cache()
    cors: Cors = Cors()
    console: Console = Console()
    log: Log = Log()
    retention: Retention = Retention()
    state: State = State()
    tables: tuple[TableSource, ...] = ()
    rules: tuple[Rule, ...] = ()
    monitoring: Monitoring = Monitoring()
    alerts: tuple[Alert, ...] = ()

    def __post_init__(self) -> None:
        _check_events(self.events)
        _check_names("surfaces", [surface.name for surface in self.surfaces])
        if len(self.segments.keys) > MAX_SEGMENT_KEYS:
            raise ConfigurationError(
                f"segments.keys: Expected at most {MAX_SEGMENT_KEYS} keys, got {len(self.segments.keys)}"
            )
        _check_names("segments.keys", list(self.segments.keys))
        if not self.serving.log_served and any(
            surface.exploration.share + surface.exploration.uniform for surface in self.surfaces
        ):
            raise ConfigurationError(
                "serving.log_served: Expected true where a surface explores: propensities that are not logged are lost"
            )
        if self.gate.off_policy and not any(surface.exploration.share for surface in self.surfaces):
            raise ConfigurationError(
                "gate.off_policy: Expected a surface with exploration: only lists that are drawn by lot can be asked"
            )
        for index, surface in enumerate(self.surfaces):
            if surface.objective and self.ranker.kind != "deep":
                raise ConfigurationError(
                    f'surfaces[{index}].objective: Expected ranker.kind = "deep": "{self.ranker.kind}" has no heads to weigh'
                )
            for source in surface.sources or ():
                if source not in SOURCE_NAMES:
                    raise ConfigurationError(
                        f'surfaces[{index}].sources: There is no source "{source}"{nearest(source, SOURCE_NAMES)}'
                    )
        for key, url in (
            ("state.url", self.state.url), ("ranker.remote", self.ranker.remote),
            ("monitoring.traces.endpoint", self.monitoring.traces.endpoint),
        ):  # fmt: skip
            check_host(key, url, self.limits.hosts)
        check_webhooks(self.monitoring.webhooks, self.limits.hosts)
        alerts_in_force(self.alerts, DEFAULT_ALERTS if self.monitoring.default_alerts else ())
        _check_durations(self, "")
        _check_names("tables", [table.name for table in self.tables])
        for index, table in enumerate(self.tables):
            _check_durations(table, f"tables[{index}].")
        _check_names("rules", [rule.name for rule in self.rules])
        surfaces = [surface.name for surface in self.surfaces]
        for index, rule in enumerate(self.rules):
            for name in rule.surfaces or ():
                if name not in surfaces:
                    raise ConfigurationError(
                        f'rules[{index}].surfaces: There is no surface "{name}"{nearest(name, surfaces)}'
                    )
        if not self.training.labels:
            labels = tuple(Label(name=t.name) for t in self.events if t.positive)
            msgspec.structs.force_setattr(self, "training", msgspec.structs.replace(self.training, labels=labels))
        names = [t.name for t in self.events]
        _check_labels(self.training.labels, names)
        check_fatigue(self.fatigue, self.surfaces, names)
        check_new_items(
            self.new_items,
            surfaces,
            names,
            drawn=self.sources.fresh.order == "thompson",
            log_served=self.serving.log_served,
        )
        if (dwell := self.monitoring.online.dwell) and dwell not in names:
            raise ConfigurationError(
                f'monitoring.online.dwell: There is no event type "{dwell}"{nearest(dwell, names)}'
            )
        for name in self.limits.user_events_per_hour:
            if name not in names:
                raise ConfigurationError(
                    f'limits.user_events_per_hour: There is no event type "{name}"{nearest(name, names)}'
                )


def load_config(path: Path | None) -> Config:
    """Read ``path``; ``None`` gives the defaults.

    Raises:
        ConfigurationError: the file cannot be read or is wrong; the message names file and key.
    """
    if path is None:
        return Config()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: Cannot read the configuration: {error}") from error
    config = parse_config(text, str(path))
    # paths are relative to the file, wherever the command runs
    module = config.features.module
    if module and not Path(module).is_absolute():
        features = msgspec.structs.replace(config.features, module=str((path.parent / module).resolve()))
        config = msgspec.structs.replace(config, features=features)
    folder = path.parent.resolve()
    tables = tuple(msgspec.structs.replace(t, path=str(folder / t.path)) for t in config.tables)
    return msgspec.structs.replace(config, tables=tables)


def parse_config(text: str, source: str = "headwater.toml") -> Config:
    """A configuration from TOML text; ``source`` is what error messages call the file."""
    raw = read_toml(text, source)
    for key, owner in unknown_keys(raw, Config):
        raise ConfigurationError(f"{source}: Unknown key `{key}`{suggestion(key, owner, Config)}")
    try:
        return msgspec.convert(raw, Config)
    except ConfigurationError as error:
        raise ConfigurationError(f"{source}: {error}") from error
    except msgspec.ValidationError as error:
        key, reason = key_and_reason(error)
        if REMOTE in reason or repr(REMOTE) in reason:
            reason = 'Expected the URL of a model, such as "http://127.0.0.1:8081/v2/models/headwater"'
        elif PATTERN in reason or repr(PATTERN) in reason:
            reason = 'Expected a duration such as "500ms", "30m", "6h" or "3d"'
        raise ConfigurationError(f"{source}: {key + ': ' if key else ''}{reason}") from error


def known_keys(kind: type = Config) -> list[str]:
    """Every dotted key that a file may hold, in order: ``features.co_visits.depth``, ``events[].name``, ..."""
    return [key for key, _ in walk_keys(kind)]


def resolve_data_dir(config: Config, config_path: Path | None) -> Path:
    """The data directory: ``data_dir``, taken from the folder of the configuration file (else the current one)."""
    base = config_path.parent if config_path is not None else Path()
    return base / config.data_dir


def _check_events(events: Sequence[EventType]) -> None:
    if not 1 <= len(events) <= MAX_EVENT_TYPES:
        raise ConfigurationError(f"events: Expected 1 to {MAX_EVENT_TYPES} event types, got {len(events)}")
    _check_names("events", [event.name for event in events])
    if not any(event.positive for event in events):
        raise ConfigurationError(
            "events: Expected at least one event type with `positive = true`: it is what is learnt"
        )


def _check_labels(labels: Sequence[Label], types: Sequence[str]) -> None:
    _check_names("training.labels", [label.name for label in labels])
    for index, label in enumerate(labels):
        _check_durations(label, f"training.labels[{index}].")
        for name in label.types:
            if name not in types:
                raise ConfigurationError(
                    f'training.labels[{index}].types: There is no event type "{name}"{nearest(name, types)}'
                )


def _check_names(key: str, names: Sequence[str]) -> None:
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ConfigurationError(f'{key}[{index}]: "{name}" stands there twice')


def _check_durations(node: Struct, prefix: str) -> None:
    """Parse every duration of the tree, so that a wrong one is found at load and not in the middle of a run."""
    for field in msgspec.structs.fields(node):
        value, key = getattr(node, field.name), f"{prefix}{field.encode_name}"
        if isinstance(value, Struct):
            _check_durations(value, f"{key}.")
        elif _is_duration(field.type):
            for text in (value,) if isinstance(value, str) else value:
                if text == "never":
                    continue
                try:
                    (parse_delay if field.type is Delay else parse_duration)(text)
                except ConfigurationError as error:
                    raise ConfigurationError(f"{key}: {error}") from error


def _is_duration(annotation: Any) -> bool:
    """Whether a field holds a duration or a tuple of them."""
    return annotation in (Duration, Limit, Delay) or any(_is_duration(part) for part in get_args(annotation))
