"""DuckDB: running totals by window functions and ``ASOF JOIN``."""

# Only names and numbers of our own go into these texts.
# ruff: noqa: S608

from __future__ import annotations

from typing import TYPE_CHECKING

import duckdb
import numpy as np

if TYPE_CHECKING:
    from headwater.cli.bench.peers.child import Column, Spec, Wanted

FORMULATION = (
    "per entity: positive events of asked entities and distinct questions (entity, position) in one ordered table; "
    "streaming window functions number the stretch of events after each question and keep running totals of all "
    "entities; one GROUP BY sums up the stretches, window functions over these few rows (partition by entity) give now; "
    "one ASOF LEFT JOIN a window gives the totals at its start, and a window is the difference of two totals"
)
# Of several events at one time ASOF takes any, so time and position make one key: 32 bits of ms, 31 of position.
_PLACES = 1 << 31


class DuckDb:
    """Answers with SQL in one connection, in memory.

    What was tried, on a million events and 200,000 questions (processor seconds for the items): window functions over
    every event, partitioned by item, and an ASOF join for now, 3.1; the same after sorting into a table of its own,
    2.9; stretches between questions, 1.4, because eight partitioned aggregates over a million rows are what costs.
    For the starts of the windows, one ASOF join each with equality on the entity, 0.5, beats one on a composite key,
    0.7, and frames by range over the tiles of events and questions together, 0.8 for one window. A range join with
    GROUP BY would touch thousands of events a question.
    """

    version = duckdb.__version__
    formulation = FORMULATION

    def __init__(self, events: dict[str, Column], questions: dict[str, Column], spec: Spec) -> None:
        self.features = tuple(wanted["name"] for wanted in spec["features"])
        self.notes: dict[str, float] = {"threads": spec["threads"]}
        self._spec = spec
        self._first_ms = int(events["time_ms"][0])
        self._connection = duckdb.connect()
        self._connection.execute(f"SET threads = {int(spec['threads'])}")
        for name, number, table in (("events", "position", events), ("questions", "question", questions)):
            rows = {number: np.arange(len(table["time_ms" if name == "events" else "position"])), **table}
            self._connection.register("given", rows)
            self._connection.execute(f"CREATE TABLE {name} AS FROM given")
            self._connection.unregister("given")

    def run(self) -> str:
        """The name of the table with the answer."""
        joins = ""
        for entity in ("user", "item"):
            wanted = [feature for feature in self._spec["features"] if feature["entity"] == entity]
            if wanted:
                for statement in self._side(entity, wanted):
                    self._connection.execute(statement)
                joins += f' JOIN {entity}_answers ON {entity}_answers.owner = q."{entity}" AND {entity}_answers.moment = q.position'
        names = ", ".join(self.features)
        self._connection.execute(
            f"CREATE OR REPLACE TEMP TABLE answers AS SELECT question, {names} FROM questions q {joins}"
        )
        return "answers"

    def columns(self, answer: str) -> dict[str, Column]:
        """The answer as arrays, in the order of the questions."""
        found = self._connection.execute(f"FROM {answer} ORDER BY question").fetchnumpy()
        return {name: np.asarray(found[name]) for name in self.features}

    def _side(self, entity: str, wanted: list[Wanted]) -> list[str]:
        """Statements that make ``{entity}_answers``: the features of one entity at its distinct moments."""
        types, middle, first = ", ".join(map(str, self._spec["positive"])), self._spec["middle_ms"], self._first_ms
        decays = {feature["name"]: float(feature["span_ms"]) for feature in wanted if feature["kind"] == "decayed"}
        powers = "".join(f", pow(2.0, (time_ms - {middle}) / {h}) AS {name}" for name, h in decays.items())
        nothing = ", NULL" * len(decays)
        within = "".join(f", sum({name}) AS {name}" for name in decays)
        before = "".join(f", sum({name}) OVER earlier AS {name}" for name in decays)
        last = last_within = ""
        if any(feature["kind"] == "last_item" for feature in wanted):
            last = ", arg_max(item, latest) OVER earlier AS last_item"
            last_within = """, max(position) FILTER (asks = 0) AS latest,
                    arg_max(item, position) FILTER (asks = 0) AS item"""
        spans = sorted({(feature["span_ms"], feature["tiles"]) for feature in wanted if feature["tiles"]})
        joins = ""
        for span, tiles in spans:
            tile = span // tiles
            joins += f"""
                ASOF LEFT JOIN {entity}_totals r{span}
                ON r{span}.owner = r.owner AND r{span}.place < ((r.now_ms // {tile} - {tiles - 1}) * {tile} - {first}) * {_PLACES}"""
        values = ", ".join(f"{self._value(feature)} AS {feature['name']}" for feature in wanted)
        return [
            f"""CREATE OR REPLACE TEMP TABLE {entity}_points AS
                SELECT DISTINCT "{entity}" AS owner, position, now_ms FROM questions""",
            # a question stands before the event at its position: that event is not to count
            f"""CREATE OR REPLACE TEMP TABLE {entity}_rows AS
                SELECT "{entity}" AS owner, position, 0 AS asks, time_ms, value::DOUBLE AS value, item {powers}
                FROM events WHERE type IN ({types}) AND "{entity}" IN (SELECT owner FROM {entity}_points)
                UNION ALL SELECT owner, position, 1, now_ms, NULL, NULL {nothing} FROM {entity}_points
                ORDER BY owner, position, asks DESC""",
            # windows without partitions stream over the table in its order
            f"""CREATE OR REPLACE TEMP TABLE {entity}_stretches AS
                SELECT *, sum(asks) OVER (ROWS UNBOUNDED PRECEDING)::BIGINT AS stretch,
                    sum(1 - asks) OVER (ROWS UNBOUNDED PRECEDING)::BIGINT AS total,
                    coalesce(sum(value) OVER (ROWS UNBOUNDED PRECEDING), 0) AS sum FROM {entity}_rows""",
            f"""CREATE OR REPLACE TEMP VIEW {entity}_totals AS
                SELECT owner, (time_ms - {first}) * {_PLACES} + position AS place, total, sum
                FROM {entity}_stretches WHERE asks = 0""",
            f"""CREATE OR REPLACE TEMP TABLE {entity}_now AS
                SELECT owner, moment, now_ms, total, sum, sum(events) OVER earlier AS ever, sum(part) OVER earlier AS ever_sum,
                    max(latest_ms) OVER earlier AS latest_ms {last},
                    min(lowest) OVER earlier AS lowest, max(highest) OVER earlier AS highest {before}
                FROM (SELECT owner, stretch, max(position) FILTER (asks = 1) AS moment,
                    max(time_ms) FILTER (asks = 1) AS now_ms, max(total) FILTER (asks = 1) AS total,
                    max(sum) FILTER (asks = 1) AS sum, sum(1 - asks) AS events, sum(value) AS part,
                    max(time_ms) FILTER (asks = 0) AS latest_ms {last_within}, min(value) AS lowest, max(value) AS highest {within}
                    FROM {entity}_stretches GROUP BY owner, stretch)
                WINDOW earlier AS (PARTITION BY owner ORDER BY stretch ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
                QUALIFY moment IS NOT NULL""",
            f"""CREATE OR REPLACE TEMP TABLE {entity}_answers AS
                SELECT r.owner, r.moment, {values} FROM {entity}_now r {joins}""",
        ]

    def _value(self, feature: Wanted) -> str:
        kind, span = feature["kind"], feature["span_ms"]
        # without an event before it, the window holds everything that the entity ever did
        count = f"(CASE WHEN r{span}.owner IS NULL THEN coalesce(r.ever, 0) ELSE r.total - r{span}.total END)"
        total = f"CASE WHEN {count} = 0 THEN 0 WHEN r{span}.owner IS NULL THEN r.ever_sum ELSE r.sum - r{span}.sum END"
        return {
            "count": count if span else "coalesce(r.ever, 0)",
            "sum": total,
            "mean": f"({total}) / greatest({count}, 1)",
            "since_s": "coalesce((r.now_ms - r.latest_ms) / 1000.0, -1.0)",
            "last_item": "coalesce(r.last_item, -1)",
            "decayed": f"coalesce(r.{feature['name']} * pow(2.0, ({self._spec['middle_ms']} - r.now_ms) / {float(span or 1)}), 0)",
            "min": "coalesce(r.lowest, 0)",
            "max": "coalesce(r.highest, 0)",
        }[kind]


make = DuckDb
