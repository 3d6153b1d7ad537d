"""Features for short videos: what people do with a video, what this person does, and what the two have in common."""

from headwater.features.declare import affinity, attribute, context, count, mean, rate, read, segment, since, table

PRIORS = {"click": 0.45, "long_view": 0.31, "like": 0.017}
EARLIER = {"long_view": ("earlier_long_view", 0.35), "like": ("earlier_like", 0.03)}
PEOPLE = (
    "active_degree", "is_live_streamer", "is_video_author", "follow_user_num", "fans_user_num", "friend_user_num",
    "register_days", *(f"onehot_feat{k}" for k in range(18)),
)  # fmt: skip

_item = [
    *(
        rate(f"item_{kind}_rate{'' if half_life is None else '_' + half_life}", "item", [kind], ["impression"], prior=prior,
             strength=10.0, half_life=half_life, unit="rate", description=f"{kind} an impression")
        for kind, prior in PRIORS.items()
        for half_life in (None, "1d")
    ),
    *(
        rate(f"item_{kind}_rate", "item", [kind], ["view"], prior=prior, strength=10.0, unit="rate",
             description=f"{kind} a watch, from before impressions were logged")
        for kind, prior in EARLIER.values()
    ),
    mean("item_watched", "item", ["watch"], unit="share", description="share of the video that is played"),
    mean("item_watched_1d", "item", ["watch"], half_life="1d", unit="share", description="share that is played, lately"),
    *(count(f"item_{kind}", "item", [kind], description=f"{kind} events ever") for kind in ("impression", "view", "like")),
    count("item_impression_6h", "item", ["impression"], half_life="6h", description="impressions, half-life 6 h"),
    count("item_view_1d", "item", ["view"], half_life="1d", description="earlier watches, half-life 1 d"),
    attribute("duration", "item", "duration_s", unit="s", description="length of the video"),
    *(
        attribute(key, "item", key, kind="category", buckets=256, unit="code", description=f"{key} of the video")
        for key in ("video_type", "upload_type", "music_type")
    ),
    read("item_age", "age", description="since the upload"),
]  # fmt: skip

_user = [
    *(
        rate(f"user_{kind}_rate", "user", [kind], ["impression"], prior=prior, strength=3.0, unit="rate",
             description=f"{kind} an impression")
        for kind, prior in PRIORS.items()
    ),
    *(
        rate(f"user_{kind}_rate", "user", [kind], ["view"], prior=prior, strength=5.0, unit="rate",
             description=f"{kind} a watch, from before impressions were logged")
        for kind, prior in EARLIER.values()
    ),
    mean("user_watched", "user", ["watch"], default=-1.0, unit="share", description="share of videos that is played"),
    count("user_impressions", "user", ["impression"], description="impressions ever"),
    count("user_views", "user", ["view"], description="earlier watches"),
    since("user_since", "user", ["impression", "view"], description="since the latest impression or watch"),
    *(table(f"person_{name}", "user", "people", name, default=-1.0, description=f"{name} of the profile") for name in PEOPLE),
]  # fmt: skip

_TASTE = {"view": 0.3, "earlier_long_view": 0.7, "earlier_like": 2.0, "click": 0.3, "long_view": 0.7, "like": 2.0}

_both = [
    affinity("tag_affinity", _TASTE, description="share of the user's taste that is in the video's tags"),
    affinity("tag_shown", {"impression": 1.0}, description="share of the user's impressions that had the video's tags"),
    affinity("author_affinity", _TASTE, key="author", read="weight", slots=32, unit="weight", description="taste for the author"),
    affinity("music_affinity", _TASTE, key="music", read="weight", slots=16, unit="weight", description="taste for the music"),
    affinity("upload_affinity", _TASTE, key="upload_type", description="taste for the way it was uploaded"),
    *(read(name, name) for name in ("same_category", "co_last", "co_sum", "co_count", "content_last", "content_mean")),
    segment("tab_share", 0, "share", description="share of the positive events of the tab"),
    segment("tab_lift", 0, "lift", description="share in the tab over the share everywhere"),
]  # fmt: skip

_request = [
    context("tab", "segment", key=0, description="the tab that shows it"),
    context("hour", "hour", description="hour of the day (UTC)"),
    *(
        rate(f"all_{kind}_rate", "everybody", [kind], ["impression"], prior=prior, half_life="6h", unit="rate",
             description=f"{kind} an impression, everybody's, lately")
        for kind, prior in PRIORS.items()
    ),
]  # fmt: skip

features = [*_item, *_user, *_both, *_request]
