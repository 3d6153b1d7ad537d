"""Features of examples/news-full.toml: the region and the way into the visit as codes, so that the ranker can read other columns by them."""

from headwater.features.declare import context, recent

features = [
    context("region", "segment", key=0, description="region of the visitor"),
    context("way_in", "segment", key=1, description="system and referrer of the visit"),
    recent("recent_age", 2, "age", description="hours since the latest clicks"),
]
