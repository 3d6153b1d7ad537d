"""Feast: the point-in-time join of its offline store, over rows that say what held after each event.

Feast does not compute features of events; it joins rows that something else made. So the state of the entity after each
of its events is written to Parquet beforehand (``precompute_s``, not part of the run), and what is timed is
``get_historical_features`` and the arithmetic that needs the question's moment. Windows cannot be had this way: they
change with time, not with events.

Both local stores join every earlier row of an entity and keep the latest, so the time grows with questions times events of
an entity. On a million events the DuckDB store answered 160 questions a second and the file store (dask) 24; the
latter also keeps one row for each user and moment only, and loses questions about somebody without a row.

Feast and what it brings (pandas, dask, ibis and some 40 packages more) live in an environment of their own.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import feast
import ibis
import numpy as np
import pandas as pd
from feast.types import Float64, Int64

if TYPE_CHECKING:
    from headwater.cli.bench.peers.child import Column, Spec, Wanted

FORMULATION = (
    "rows of state after each positive event, precomputed into Parquet, one feature view for users and one for items; "
    "get_historical_features of the local DuckDB store joins both to the questions; positions serve as timestamps, so "
    "that events at one moment keep their order; ages and decay are computed from what was joined"
)
_KINDS = ("count", "since_s", "last_item", "min", "max", "decayed")
_EPOCH = np.datetime64("2020-01-01", "us")


class Feast:
    """Answers with Feast's local engine in a temporary repository."""

    version = feast.__version__
    formulation = FORMULATION

    def __init__(self, events: dict[str, Column], questions: dict[str, Column], spec: Spec) -> None:
        ibis.set_backend(ibis.duckdb.connect(threads=spec["threads"]))  # what Feast's store runs on
        self._wanted = [
            f for f in spec["features"] if f["kind"] in _KINDS and (f["kind"] == "decayed" or not f["span_ms"])
        ]
        self.features = tuple(feature["name"] for feature in self._wanted)
        self._middle_ms = spec["middle_ms"]
        self._folder = tempfile.TemporaryDirectory(prefix="feast-")
        self._now_ms = questions["now_ms"]
        # the row of an event holds from its position on; a question at a position is to see what came before
        self._questions = pd.DataFrame(
            {
                "user": questions["user"],
                "item": questions["item"],
                "question": np.arange(len(questions["user"])),
                "event_timestamp": _timestamps(questions["position"] - 1),
            }
        )
        start = time.perf_counter()
        kept = np.isin(events["type"], spec["positive"])
        log = pd.DataFrame({name: column[kept] for name, column in events.items()})
        log["event_timestamp"] = _timestamps(np.flatnonzero(kept))
        views = [self._view(entity, int(events[entity].max()) + 1, log) for entity in ("user", "item")]
        self.notes = {"precompute_s": time.perf_counter() - start}
        self._store = feast.FeatureStore(
            config=feast.RepoConfig(
                project="peers",
                provider="local",
                registry=str(Path(self._folder.name) / "registry.db"),
                entity_key_serialization_version=3,
                offline_store={"type": "duckdb"},
            )
        )
        self._store.apply([entity for view in views for entity in view[1]] + [view[0] for view in views])
        self._service = [f"{view.name}:{field.name}" for view, _ in views for field in view.features]

    def run(self) -> dict[str, Column]:
        """The features by name, in the order of the questions."""
        joined = self._store.get_historical_features(self._questions, self._service).to_df().sort_values("question")
        return {feature["name"]: self._value(feature, joined) for feature in self._wanted}

    def columns(self, answer: dict[str, Column]) -> dict[str, Column]:
        """The answer as it is."""
        return answer

    def _view(self, entity: str, people: int, log: pd.DataFrame) -> tuple[feast.FeatureView, list[feast.Entity]]:
        """Write the states of one entity after each of its events, and describe them."""
        rows = log[[entity, "event_timestamp"]].copy()
        value = log["value"].astype(np.float64).groupby(log[entity])
        rows[f"{entity}_count"] = value.cumcount() + 1
        rows[f"{entity}_since_s"] = log["time_ms"]
        rows[f"{entity}_min"], rows[f"{entity}_max"] = value.cummin(), value.cummax()
        if entity == "user":
            rows["user_last_item"] = log["item"]
        for feature in self._wanted:
            if feature["kind"] == "decayed" and feature["entity"] == entity:
                part = np.exp2((log["time_ms"] - self._middle_ms) / feature["span_ms"])
                rows[feature["name"]] = part.groupby(log[entity]).cumsum()
        # everybody starts with a row of nothing: whole numbers stay whole, and no question goes without one
        start = pd.DataFrame({entity: np.arange(people), "event_timestamp": _timestamps(np.full(people, -1))})
        for name in rows.columns[2:]:
            start[name] = np.full(people, -1 if name == "user_last_item" else 0, rows[name].dtype)
        rows = pd.concat([start, rows], ignore_index=True)
        path = str(Path(self._folder.name) / f"{entity}.parquet")
        rows.to_parquet(path, index=False)
        who = feast.Entity(name=entity, join_keys=[entity], value_type=feast.ValueType.INT64)
        source = feast.FileSource(name=f"{entity}_states", path=path, timestamp_field="event_timestamp")
        fields = [
            feast.Field(name=name, dtype=Int64 if rows[name].dtype == np.int64 else Float64)
            for name in rows.columns[2:]
        ]
        # no limit to the age of a row
        return feast.FeatureView(name=f"{entity}_view", entities=[who], schema=fields, source=source), [who]

    def _value(self, feature: Wanted, joined: pd.DataFrame) -> Column:
        found: Column = joined[feature["name"]].to_numpy(np.float64)
        if feature["kind"] == "since_s":
            return np.where(found == 0, -1.0, (self._now_ms - found) / 1000)
        if feature["kind"] == "decayed":
            found = found * np.exp2((self._middle_ms - self._now_ms) / feature["span_ms"])
        return found


def _timestamps(positions: Column) -> pd.DatetimeIndex:
    """A moment for each position, one microsecond apart."""
    return pd.DatetimeIndex(_EPOCH + positions.astype("timedelta64[us]"), tz="UTC")


make = Feast
