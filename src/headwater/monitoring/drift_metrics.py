"""The figures of the watch over data, as their page says them (``docs/drift.md``)."""

from __future__ import annotations

from headwater.prometheus import Described

_FEATURE, _TYPE, _SLICE, _SURFACE = ("feature",), ("type",), ("slice",), ("of", "surface")


def _gauge(name: str, labels: tuple[str, ...], says: str) -> Described:
    return Described(f"headwater_{name}", "gauge", labels, says)


METRICS = (
    _gauge("drift_lag_records", (), "Records that the watch over data is behind the log"),
    _gauge("drift_reference_filled", ("of",), "How much of the reference of features and of scores is there, 0 to 1"),
    _gauge("drift_windows", (), "Windows of the reference that were judged"),
    _gauge("drift_window_rows", (), "Rows of the last window that was judged"),
    _gauge(
        "drift_training_lists",
        (),
        "Lists that the reference of the bundle in service holds: as it would have served before",
    ),
    _gauge(
        "features_dead",
        (),
        "Columns that were one value in all of the last window, and were not in the reference of the bundle",
    ),
    _gauge("feature_dead", _FEATURE, "1: that column is one of them"),
    _gauge("features_drifted", (), "Features that drifted in the last window"),
    _gauge("feature_drifted", _FEATURE, "1: PSI is above what chance allows and above the floor"),
    _gauge("feature_psi", _FEATURE, "PSI of the last window against the reference"),
    _gauge("feature_psi_null", _FEATURE, "PSI that chance and the hours of the day allow"),
    _gauge("feature_js", _FEATURE, "Jensen-Shannon divergence, in nats"),
    _gauge("feature_missing", _FEATURE, "Share of cells that are NaN or infinite"),
    _gauge("feature_out_of_range", _FEATURE, "Share of cells outside of what training met"),
    _gauge("score_drifted", (), "1: the scores of the bundle in service drifted"),
    _gauge("score_psi", (), "PSI of the scores of the last window against the first of the bundle"),
    _gauge("score_psi_null", (), "PSI that chance and the hours of the day allow"),
    _gauge("score_js", (), "Jensen-Shannon divergence of the scores, in nats"),
    _gauge("calibration_observed", (), "Share of places that was clicked, in the last window whose outcomes are in"),
    _gauge("calibration_expected", (), "The share that their scores led to at first"),
    _gauge(
        "calibration_off", (), "1: the two differ by more than chance and the hours of the day allow, and by a fifth"
    ),
    _gauge("label_delay_seconds", ("quantile",), "From a list to a positive event on it"),
    _gauge("label_maturity_seconds", (), "Age from which on a list is judged"),
    _gauge("label_rate", _TYPE, "Positive events of a type for each place, of lists whose outcomes are in"),
    _gauge(
        "label_observed",
        _TYPE,
        "Share of places that led to an event of a type, in the last window whose outcomes are in",
    ),
    _gauge("label_expected", _TYPE, "That share in the first stretch of the bundle"),
    _gauge("label_off", _TYPE, "1: the two differ by more than chance and the hours of the day allow, and by a fifth"),
    _gauge("head_observed", _TYPE, "The same as label_observed, where there is more than one positive type"),
    _gauge("head_expected", _TYPE, "The share that scores like those of the window led to at first"),
    _gauge("head_off", _TYPE, "1: the two differ by more than chance and the hours of the day allow, and by a fifth"),
    _gauge("list_click_rate", (), "Share of lists with a positive event, as long as it has not changed (ADWIN)"),
    _gauge("list_click_rate_changed", (), "1: it changed within the last hour"),
    _gauge(
        "surface_mean",
        _SURFACE,
        "Mean over the lists of a surface as long as it has not changed (ADWIN): click and conversion (share of lists with one), length (of what was asked for), full_path (share of tier 0)",
    ),
    _gauge("surface_changed", _SURFACE, "1: it changed within the last hour"),
    _gauge("event_volume", _TYPE, "Events of a type in the last whole hour"),
    _gauge("event_volume_expected", _TYPE, "What the same hour of other days brought"),
    _gauge("event_volume_off", _TYPE, "1: beyond what days differ by, and half or twice as many"),
    _gauge("event_silence_seconds", _TYPE, "Since the last event of a type"),
    _gauge("event_silent", _TYPE, "1: chance does not explain the silence"),
    _gauge("skew_checked_requests", (), "Requests that the last features verify compared"),
    _gauge("skew_mismatched_bytes", (), "Bytes of served features that replay did not give"),
    _gauge("feature_skew_bytes", _FEATURE, "Those bytes of a feature, where there are any"),
    _gauge("slice_lists", _SLICE, "Lists of 24 hours: random (drawn evenly from all candidates), policy (the others)"),
    _gauge("slice_click_rate", _SLICE, "Share of their places that was clicked"),
    _gauge("slice_top_share", _SLICE, "Share of their places that the hundred most shown items had"),
    _gauge(
        "slice_lead",
        (),
        "Click rate of the policy over that of the random slice, less 1, in the last day that was judged",
    ),
    _gauge("slice_lead_chance", (), "By how much chance moves it"),
    _gauge(
        "slice_crowding",
        (),
        "How many times fewer different items the policy shows than at first, beside the random slice, less 1",
    ),
    _gauge("slice_crowding_chance", (), "What chance allows of it"),
    _gauge("slice_off", ("of",), "1: the lead is lost, by a fifth, or crowding is above 0.75; and beyond chance"),
)
