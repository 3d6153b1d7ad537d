"""Polars: running totals and ``join_asof``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from headwater.cli.bench.peers.child import Column, Spec, Wanted

FORMULATION = (
    "per entity: positive events of asked entities sorted by entity << 32 | position, running totals over all of them "
    "(cum_sum) and running minima, maxima and forward-decayed sums inside an entity (over); distinct (entity, position) "
    "sorted the same way; join_asof on that one key for now and, on entity << 32 | time, for the start of each "
    "window; a window is the difference of two running totals; joins back to the questions by entity and position"
)


class Polars:
    """Answers with Polars data frames; ``POLARS_MAX_THREADS`` has to be in the environment of the process.

    What was tried, on a million events and 200,000 questions: ``join_asof(by=entity)`` takes ten times as long as one
    on a sorted composite key; ``cum_count().over`` and ``cum_sum().over`` for the windows twice as long as totals
    over everything, whose differences are the same; ``search_sorted`` with a gather is as fast as ``join_asof``.
    ``rolling`` gives windows that slide, at events only, so that it would still need the join.
    """

    version = pl.__version__
    formulation = FORMULATION

    def __init__(self, events: dict[str, Column], questions: dict[str, Column], spec: Spec) -> None:
        self.features = tuple(wanted["name"] for wanted in spec["features"])
        self.notes: dict[str, float] = {"threads": pl.thread_pool_size()}
        self._spec = spec
        self._first_ms = int(events["time_ms"][0])
        self._events = pl.DataFrame(events).with_row_index("position").with_columns(pl.col("position").cast(pl.Int64))
        self._questions = pl.DataFrame(questions)

    def run(self) -> pl.DataFrame:
        """One column a feature, in the order of the questions."""
        answer = self._questions
        for entity in ("user", "item"):
            wanted = [feature for feature in self._spec["features"] if feature["entity"] == entity]
            if wanted:
                key = [entity, "position"]
                answer = answer.join(self._side(entity, wanted), on=key, how="left", maintain_order="left")
        return answer.select(self.features)

    def columns(self, answer: pl.DataFrame) -> dict[str, Column]:
        """The answer as arrays."""
        return {name: answer[name].to_numpy() for name in answer.columns}

    def _side(self, entity: str, wanted: list[Wanted]) -> pl.DataFrame:
        """The features of one entity at its distinct moments."""
        who, first, middle = pl.col(entity), self._first_ms, self._spec["middle_ms"]
        key = (who * (1 << 32) + pl.col("position")).alias("key")
        points = (
            self._questions.select(entity, "position", "now_ms", key)
            .sort("key")
            .filter(pl.col("key").ne_missing(pl.col("key").shift(1)))
        )
        decays = {feature["name"]: feature["span_ms"] for feature in wanted if feature["kind"] == "decayed"}
        carried = ["item"] if entity == "user" else []
        events = (
            self._events.filter(pl.col("type").is_in(self._spec["positive"]))
            .join(points.select(entity).unique(), on=entity, how="semi")
            .select(
                key,
                who.alias("owner"),
                "time_ms",
                "value",
                *(pl.col(name).alias("last_item") for name in carried),
            )
            .sort("key")
            .with_columns(
                (pl.col("owner") * (1 << 32) + (pl.col("time_ms") - first)).alias("moment"),
                *(((pl.col("time_ms") - middle) * (math.log(2) / h)).exp().alias(name) for name, h in decays.items()),
            )
        )
        within = [pl.col("value").cum_min().alias("lowest"), pl.col("value").cum_max().alias("highest")]
        within += [pl.col(name).cum_sum() for name in decays]
        running = (
            events.with_row_index("total")
            .with_columns(
                pl.col("total").cast(pl.Int64) + 1,
                pl.col("value").cast(pl.Float64).cum_sum().alias("sum"),
                *(column.over("owner") for column in within),
            )
            .with_columns(pl.col("key").set_sorted(), pl.col("moment").set_sorted())
        )
        totals = running.select("moment", "total", "sum")
        before = points.with_columns((who * (1 << 32)).alias("key").set_sorted()).select("key")
        start = before.join_asof(running.select("key", "total"), on="key", allow_exact_matches=False)
        now = points.join_asof(running.drop("moment"), on="key", allow_exact_matches=False).with_columns(
            pl.col("total", "sum").fill_null(0), start["total"].fill_null(0).alias("start")
        )
        spans = sorted({(feature["span_ms"], feature["tiles"]) for feature in wanted if feature["tiles"]})
        for span, tiles in spans:
            tile = span // tiles
            cut = pl.max_horizontal((pl.col("now_ms") // tile - (tiles - 1)) * tile - first, 0)
            edges = points.select((who * (1 << 32) + cut).alias("moment").set_sorted())
            old = edges.join_asof(totals, on="moment", allow_exact_matches=False)
            now = now.with_columns(
                old["total"].fill_null(0).alias(f"total_{span}"), old["sum"].fill_null(0.0).alias(f"sum_{span}")
            )
        return now.select(entity, "position", *(self._value(feature).alias(feature["name"]) for feature in wanted))

    def _value(self, feature: Wanted) -> pl.Expr:
        kind, span = feature["kind"], feature["span_ms"]
        found = pl.col("owner") == pl.col(feature["entity"])
        if kind in ("count", "sum", "mean"):
            count = pl.col("total") - pl.col(f"total_{span}" if span else "start")
            if kind == "count":
                return count
            total = pl.when(count > 0).then(pl.col("sum") - pl.col(f"sum_{span}")).otherwise(0.0)
            return total if kind == "sum" else total / pl.max_horizontal(count, 1)
        if kind == "since_s":
            return pl.when(found).then((pl.col("now_ms") - pl.col("time_ms")) / 1000.0).otherwise(-1.0)
        if kind == "last_item":
            return pl.when(found).then(pl.col("last_item")).otherwise(-1)
        if kind == "decayed":
            faded = ((self._spec["middle_ms"] - pl.col("now_ms")) * (math.log(2) / span)).exp()
            return pl.when(found).then(pl.col(feature["name"]) * faded).otherwise(0.0)
        extreme = "lowest" if kind == "min" else "highest"
        return pl.when(found).then(pl.col(extreme)).otherwise(0.0)


make = Polars
