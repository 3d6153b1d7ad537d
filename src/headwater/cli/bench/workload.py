"""The system that a benchmark measures, and the requests that it sends."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import typer
from msgspec import Struct

from headwater.cli.bench.population import ASKERS, fold_site, write_askers, write_everybody
from headwater.cli.bench.schedule import Arrival, drawn, http_request, poisson_times
from headwater.cli.local import Site, TomlTable, make_site, train_site, write_world
from headwater.schema.errors import ConfigurationError
from headwater.schema.events import Event
from headwater.schema.requests import RecommendRequest
from headwater.simulator import EVENT_TYPES, World
from headwater.simulator.people import COUNTRIES, DEVICES, user_id

START_MS = 1_772_409_600_000
HOURS = 72
_EVENTS_OF_A_VISIT = 12
_TYPE_SHARES = (0.66, 0.09, 0.16, 0.02, 0.01, 0.06)  # as in the world's history
_STRANGERS = 0.05
_READY = "workload.json"


class Size(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How large the measured system is. ``events`` is roughly what the world's history holds.

    With ``recent`` everybody has clicked before, as often as the readers of a news site, and those who ask have clicked
    on so many items lately (:mod:`headwater.cli.bench.population`).
    """

    seed: int
    users: int
    items: int
    events: int
    recent: int = 0

    def world(self) -> World:
        visits_per_day = self.events / _EVENTS_OF_A_VISIT / self.users / (HOURS / 24)
        return World(
            self.seed,
            start_ms=START_MS,
            users=self.users,
            items=self.items,
            hours=HOURS,
            visits_per_day=visits_per_day,
        )


@dataclass(frozen=True)
class Prepared:
    """A site that is ready to serve, the world in its log, and how many events it holds."""

    site: Site
    world: World
    events: int


class _Note(Struct, frozen=True, forbid_unknown_fields=True):
    """Says that a kept folder is complete, and what it holds."""

    size: Size
    events: int
    tables: dict[str, TomlTable] = {}


@contextlib.contextmanager
def prepared(size: Size, keep: Path | None, tables: dict[str, TomlTable] | None = None) -> Iterator[Prepared]:
    """A world in a log, and a ranker trained on it.

    ``tables`` of the configuration differ from the defaults. ``keep`` names a folder to prepare once and use again: a later
    run with the same size and tables finds it ready.

    Raises:
        ConfigurationError: ``keep`` holds something else.
    """
    world, tables = size.world(), {"ranker": {"max_rows": 300_000}} | (tables or {})
    with contextlib.ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headwater-bench-")))
        note = folder / _READY
        if keep is not None and note.exists():
            found = msgspec.json.decode(note.read_bytes(), type=_Note)
            if found.size != size or found.tables != tables:
                raise ConfigurationError(
                    f"{folder} holds another workload ({found.size}, {found.tables}); name another folder"
                )
            yield Prepared(Site(folder / "headwater.toml", folder / "data"), world, found.events)
            return
        site = make_site(folder, tables)
        typer.echo(f"Preparing {size.items:,} items, {size.users:,} users, about {size.events:,} events", err=True)
        before = write_everybody(site, world, size.seed) if size.recent else 0
        events, _ = write_world(site, world, lambda _: None)
        events += before
        if size.recent:
            events += write_askers(site, world, size.recent, size.seed)
            fold_site(site)
        if tables["ranker"].get("kind") != "none":
            typer.echo("Training", err=True)
            train_site(site)
        note.write_bytes(msgspec.json.encode(_Note(size, events, tables)))
        yield Prepared(site, world, events)


class Requests:
    """Makes arrivals for a world: users come by their activity, some are strangers. With ``askers`` only these come."""

    def __init__(self, world: World, seed: int, tag: str, *, askers: bool = False) -> None:
        self._world = world
        self._rng = np.random.default_rng([seed, 11])
        self._tag = tag  # makes event ids of this run differ from those of other runs on a kept log
        coming = world.people.activity[: ASKERS if askers else None]
        self._chances = np.cumsum(coming) / coming.sum()
        alive = np.flatnonzero(world.catalogue.alive(world.end_ms))
        self._weights = np.cumsum(world.catalogue.popularity[alive]) / world.catalogue.popularity[alive].sum()
        self._items = [world.catalogue.items[int(i)].id for i in alive]
        self._made = 0

    def times(self, per_s: float, start_s: float, duration_s: float) -> list[float]:
        """Poisson arrivals."""
        return poisson_times(self._rng, per_s, start_s, duration_s)

    def recommend(self, times: list[float], stream: str = "recommend") -> list[Arrival]:
        """Requests for the home list."""
        users = self._people(len(times))
        strangers = self._rng.random(len(times)) < _STRANGERS
        return [
            Arrival(at, stream, http_request("POST", "/v1/recommend", self._question(who, strange)))
            for at, who, strange in zip(times, users, strangers, strict=True)
        ]

    def _question(self, who: int, strange: bool) -> bytes:
        people = self._world.people
        context: dict[str, str | int | float | bool] = {
            "country": COUNTRIES[people.country[who]],
            "device": DEVICES[people.device[who]],
        }
        user = f"stranger-{who}" if strange else user_id(who)
        return msgspec.json.encode(RecommendRequest(user=user, context=context))

    def events(self, count: int) -> list[Event]:
        """Events as they come, each with an id of its own."""
        people = self._world.people
        users = self._people(count)
        items = np.searchsorted(self._weights, self._rng.random(count))
        kinds = self._rng.choice(len(EVENT_TYPES), count, p=_TYPE_SHARES)
        first = self._made
        self._made += count
        return [
            Event(
                user=user_id(who),
                item=self._items[min(int(item), len(self._items) - 1)],
                type=EVENT_TYPES[kind],
                event_id=f"{self._tag}-{first + n}",
                surface="home",
                attributes={"country": COUNTRIES[people.country[who]], "device": DEVICES[people.device[who]]},
            )
            for n, (who, item, kind) in enumerate(zip(users, items, kinds, strict=True))
        ]

    def ingest(
        self, times: list[float], sizes: list[int], stream: str = "events"
    ) -> tuple[list[Arrival], list[list[str]]]:
        """Posts of so many events at these times, and the event ids of each post."""
        events = iter(self.events(sum(sizes)))
        arrivals, ids = [], []
        for at, size in zip(times, sizes, strict=True):
            batch = [next(events) for _ in range(size)]
            arrivals.append(Arrival(at, stream, http_request("POST", "/v1/events", msgspec.json.encode(batch))))
            ids.append([event.event_id or "" for event in batch])
        return arrivals, ids

    def sizes(self, count: int, most: int) -> list[int]:
        """Batch sizes, uniform from 1 to ``most``."""
        return [1 + at for at in drawn(self._rng, most, count)]

    def probes(self, times: list[float]) -> list[Arrival]:
        """Freshness probes, each by another user while there are enough of them."""
        order = self._rng.permutation(len(self._world.people))
        return [Arrival(at, "probe", probe_user=user_id(int(order[n % len(order)]))) for n, at in enumerate(times)]

    def _people(self, count: int) -> list[int]:
        found = np.searchsorted(self._chances, self._rng.random(count))
        return [min(int(who), len(self._chances) - 1) for who in found]
