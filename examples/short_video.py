"""KuaiRand's impressions as files that `headwater import` takes: one row with several outcomes becomes several events.

    python examples/short_video.py kuairand short-video

docs/evaluation.md has the commands that follow.

An outcome is known when the play ends, so that is when its event comes: whoever is shown the video meanwhile is shown it without
knowing. Columns that only the future knows (play time of this impression) appear in events behind it, never beside it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl

OUTCOMES = {"is_click": "click", "long_view": "long_view", "is_like": "like"}
HISTORY_STEP_MS = 60_000  # of histories only the order is known: a watch a minute before the last one


def convert(source: Path, out: Path) -> None:
    """Write ``items.parquet``, ``events.parquet`` and ``people.parquet`` to ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    shown = pl.read_parquet(source / "exposures.parquet").sort("time_ms", maintain_order=True).with_row_index("row")
    start_ms = int(shown["time_ms"].min())  # type: ignore[arg-type]
    _items(source, shown).write_parquet(out / "items.parquet")
    _events(source, shown).write_parquet(out / "events.parquet")
    _people(source, start_ms).write_parquet(out / "people.parquet")


def _items(source: Path, shown: pl.DataFrame) -> pl.DataFrame:
    seconds = shown.group_by("video_id").agg((pl.col("duration_ms").max() / 1000).alias("attributes.duration_s"))
    return (
        pl.read_parquet(source / "videos.parquet")
        .join(seconds, on="video_id", how="left")
        .select(
            pl.col("video_id").cast(pl.String).alias("id"),
            pl.col("tag").fill_null("").str.replace_all(",", "|").alias("categories"),
            pl.col("upload_dt").str.to_datetime().dt.epoch("ms").alias("published"),
            pl.col("author_id").cast(pl.String).alias("attributes.author"),
            pl.col("music_id").cast(pl.String).alias("attributes.music"),
            pl.col("video_type").alias("attributes.video_type"),
            pl.col("upload_type").alias("attributes.upload_type"),
            pl.col("music_type").cast(pl.String).alias("attributes.music_type"),
            "attributes.duration_s",
        )
    )


def _events(source: Path, shown: pl.DataFrame) -> pl.DataFrame:
    common = (
        pl.col("user_id").cast(pl.String).alias("user"),
        pl.col("video_id").cast(pl.String).alias("item"),
        pl.format("row-{}", "row").alias("request_id"),
        pl.format("tab{}", "tab").alias("surface"),
        pl.col("tab").cast(pl.String).alias("attributes.tab"),
    )
    end = pl.col("time_ms") + pl.col("play_time_ms")

    def of(kind: str, order: int, time: pl.Expr, value: pl.Expr, rows: pl.DataFrame) -> pl.DataFrame:
        return rows.select(
            time.alias("time"), pl.lit(order).alias("order"), pl.lit(kind).alias("type"), value.alias("value"), *common
        )

    nothing = pl.lit(None, pl.Float64)
    share = (pl.col("play_time_ms") / pl.col("duration_ms").clip(1)).clip(0.0, 2.0)
    parts = [
        of("impression", 1, pl.col("time_ms"), nothing, shown),
        of("watch", 2, end, share, shown),
        *(
            of(kind, 3 + k, end, nothing, shown.filter(pl.col(column) == 1))
            for k, (column, kind) in enumerate(OUTCOMES.items())
        ),
        _histories(source),
    ]
    return pl.concat(parts).sort("time", "order", maintain_order=True).drop("order")


def _histories(source: Path) -> pl.DataFrame:
    """Earlier watches, the long ones and the liked ones among them, up to the last moment that is known of each person."""
    people = pl.read_parquet(source / "histories.parquet")
    parts = []
    for column, kind in (("watch_seq", "view"), ("long_watch_seq", "earlier_long_view"), ("like_seq", "earlier_like")):
        rows = people.select("user_id", "last_time_ms", pl.col(column).alias("video_id")).explode("video_id")
        back = pl.col("video_id").cum_count(reverse=True).over("user_id") - 1
        parts.append(
            rows.drop_nulls("video_id").select(
                (pl.col("last_time_ms") - back * HISTORY_STEP_MS).alias("time"),
                pl.lit(0).alias("order"),
                pl.lit(kind).alias("type"),
                pl.lit(None, pl.Float64).alias("value"),
                pl.col("user_id").cast(pl.String).alias("user"),
                pl.col("video_id").cast(pl.String).alias("item"),
                pl.lit(None, pl.String).alias("request_id"),
                pl.lit(None, pl.String).alias("surface"),
                pl.lit(None, pl.String).alias("attributes.tab"),
            )
        )
    return pl.concat(parts)


def _people(source: Path, start_ms: int) -> pl.DataFrame:
    """What is known of people before the first impression, as numbers: a table of users."""
    people = pl.read_parquet(source / "users.parquet")
    degree = pl.col("user_active_degree").cast(pl.Categorical).to_physical().cast(pl.Float64).alias("active_degree")
    numbers = [
        name
        for name in people.columns
        if name.startswith(("onehot_feat", "is_")) or name.endswith(("_user_num", "register_days"))
    ]
    return people.select(
        pl.col("user_id").cast(pl.String),
        pl.lit(start_ms - 40 * 86_400_000).alias("valid_from"),
        degree,
        *(pl.col(name).cast(pl.Float64) for name in numbers),
    )


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
