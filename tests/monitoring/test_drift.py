"""The watch over data, on logs whose truth is known: nothing is said while nothing changes, and each fault is told apart."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from headwater.log.record import Kind
from headwater.monitoring import drift
from headwater.monitoring.behind import BEHIND, CAUGHT_UP_S
from headwater.monitoring.dead import Alive, DeadState
from headwater.monitoring.drift import DriftWatch
from headwater.monitoring.hours import read_hours
from headwater.monitoring.outcomes import Outcomes
from headwater.monitoring.samples import Sample
from headwater.registry.reference import BundleReference, ReferenceColumn
from headwater.registry.registry import Registry
from headwater.schema.drift import Drift
from headwater.schema.requests import ServedList
from tests.monitoring.logs import CLICK, COLUMNS, HOUR_MS, PLAN, START_MS, Traffic, publish

Rows = npt.NDArray[np.float32]
SETTINGS = Drift(reference="12h", window="2h", min_rows=1_000, outcome_window="10m")


class Site:
    """A log, its registry, and a watch over both that is looked at after each stretch."""

    def __init__(self, folder: Path, traffic: Traffic | None = None, *, live: bool = True) -> None:
        self.folder = folder
        self.traffic = traffic or Traffic(publish(folder / "models", START_MS))
        self.live = live
        self.watch = self.opened()
        self.now_ms = START_MS + self.traffic.hour * HOUR_MS

    def opened(self) -> DriftWatch:
        """Another watch over the same data, as after a restart."""
        return DriftWatch(
            self.traffic.log, Registry(self.folder / "models"), self.folder, SETTINGS, ("click",), live=self.live
        )

    def after(self, hours: int, **how: object) -> dict[tuple[str, str], float]:
        """Run on and look: each sample by its name and the value of its label ("": it has none)."""
        self.now_ms = self.traffic.run(hours, **how)  # type: ignore[arg-type]
        return self.look()

    def look(self) -> dict[tuple[str, str], float]:
        """What the watch says."""
        samples = list(self.watch.look(self.now_ms))
        while self.watch.behind:
            samples = list(self.watch.look(self.now_ms))
        made = {named(sample): sample.value for sample in samples}
        assert len(made) == len(samples)
        return made


def named(sample: Sample) -> tuple[str, str]:
    return sample.name, " ".join(text for _, text in sample.labels)


def drifted(said: dict[tuple[str, str], float]) -> set[str]:
    """Everything that a yes/no sample says yes to."""
    return {
        label or name
        for (name, label), value in said.items()
        if value
        and name.endswith(("_drifted", "_off", "_dead", "_silent", "_changed"))
        and name not in ("headwater_features_drifted", "headwater_features_dead")
    }


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Twelve hours of reference and two days on which nothing changed."""
    site = Site(tmp_path_factory.mktemp("quiet"))
    assert site.after(12)["headwater_drift_reference_filled", "features"] < 1.0
    for _ in range(4):
        said = site.after(12)
        assert drifted(said) == set()
    assert said["headwater_drift_windows", ""] >= 10
    assert said["headwater_features_drifted", ""] == 0
    assert {label for name, label in said if name == "headwater_feature_psi"} == set(COLUMNS)
    site.watch.save()
    return site


@pytest.fixture
def calm(quiet: Site, tmp_path: Path) -> Site:
    """The same again, with a watch that goes on from what the first one wrote down."""
    shutil.copytree(quiet.folder, tmp_path / "site")
    return Site(tmp_path / "site", quiet.traffic.copied())


def moved(rows: Rows) -> Rows:
    return rows + np.array([1.0, 0, 0, 0], np.float32)


def constant(rows: Rows) -> Rows:
    return np.where(np.arange(4) == 1, np.float32(0.25), rows)


def missing(rows: Rows) -> Rows:
    return np.where(np.arange(4) == 2, np.float32(np.nan), rows)


def beyond(rows: Rows) -> Rows:
    return rows + np.array([0, 0, 100, 0], np.float32)


def test_piece_by_piece_it_says_only_how_far_it_is_until_it_knows_the_same(
    quiet: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "READ_RECORDS", 512)

    def fresh(piece_s: float) -> DriftWatch:
        return DriftWatch(
            quiet.traffic.log,
            Registry(quiet.folder / "models"),
            tmp_path,
            SETTINGS,
            ("click",),
            keep=False,
            after=quiet.traffic.log.last_offset - 8_000,
            piece_s=piece_s,
        )

    whole, pieces = fresh(60.0), fresh(0.0)
    behind, looks = list[float](), 0
    while (said := list(pieces.look(quiet.now_ms))) and said[0].value > CAUGHT_UP_S:
        assert [one.name for one in said] == [BEHIND, "headwater_drift_lag_records"]
        behind.append(said[0].value)
    assert len(behind) > 10
    assert behind == sorted(behind, reverse=True)
    while pieces.behind:
        said, looks = list(pieces.look(quiet.now_ms)), looks + 1
        assert looks < 10
    expected = list(whole.look(quiet.now_ms))
    assert not whole.behind
    assert [one for one in said if one.name != BEHIND] == [one for one in expected if one.name != BEHIND]
    assert len(said) > 10


def test_what_a_calm_log_says(quiet: Site) -> None:
    said = quiet.look()
    assert said["headwater_label_delay_seconds", "0.5"] == pytest.approx(60 * np.log(2), rel=0.2)
    assert 60 < said["headwater_label_maturity_seconds", ""] <= 600
    assert said["headwater_label_rate", "click"] == pytest.approx(0.1, rel=0.15)
    assert said["headwater_calibration_observed", ""] == pytest.approx(
        said["headwater_calibration_expected", ""], rel=0.2
    )
    assert said["headwater_slice_click_rate", "random"] == pytest.approx(
        said["headwater_slice_click_rate", "policy"], rel=0.5
    )
    assert said["headwater_slice_lists", "random"] * 30 < said["headwater_slice_lists", "policy"]
    assert said["headwater_event_volume", "view"] == pytest.approx(200, rel=0.3)
    assert said["headwater_event_volume_expected", "view"] == pytest.approx(200, rel=0.1)
    assert all(said["headwater_feature_missing", name] == 0 for name in COLUMNS)
    hours = read_hours(quiet.folder / "monitoring" / "sketches", START_MS // HOUR_MS, START_MS // HOUR_MS + 48)
    assert hours.quantiles("heavy", [0.5])[0] == pytest.approx(0.0, abs=0.05)
    assert hours.distinct("users") == pytest.approx(399, rel=0.08)


def test_each_fault_names_what_it_hit_and_nothing_else(calm: Site) -> None:
    calm.after(3, shift=moved)  # the window that was open when it began
    assert drifted(calm.after(3, shift=moved)) == {"normal"}
    calm.after(3)
    assert drifted(calm.after(3)) == set()
    for shift, hit in ((constant, "heavy"), (missing, "counts"), (beyond, "counts")):
        calm.after(3, shift=shift)
        said = calm.after(3, shift=shift)
        assert drifted(said) == {hit}
        assert said["headwater_feature_missing", "counts"] == float(shift is missing)
        assert said["headwater_feature_out_of_range", "counts"] == float(shift is beyond)


def test_clicks_that_stop_coming(calm: Site) -> None:
    calm.after(12)
    said = calm.after(1, click_rate=0.001)
    assert drifted(said) == {  # before a window is over; the type came less, too
        "headwater_list_click_rate_changed", "click home", "conversion home", "click",
    }  # fmt: skip
    assert said["headwater_surface_mean", "full_path home"] == 1.0
    said = calm.after(5, click_rate=0.01)
    assert "headwater_calibration_off" in drifted(said)
    assert said["headwater_calibration_observed", ""] < 0.7 * said["headwater_calibration_expected", ""]


def test_a_type_of_event_that_falls_silent(calm: Site) -> None:
    said = calm.after(2, views=1)
    assert drifted(said) == {"view"}
    assert said["headwater_event_volume", "view"] <= 1
    assert said["headwater_event_volume_off", "view"]
    calm.now_ms += 50 * 60_000  # nothing at all comes: known long before the hour is over
    said = calm.look()
    assert said["headwater_event_silent", "click"]
    assert said["headwater_event_silence_seconds", "click"] > 2_400


def test_a_restart_goes_on_with_the_same_reference(quiet: Site, calm: Site) -> None:
    assert calm.watch.behind == 0
    before, after = quiet.look(), calm.look()
    for name in COLUMNS:
        assert after["headwater_feature_psi", name] == before["headwater_feature_psi", name]


def test_a_state_that_cannot_be_read_is_made_anew(calm: Site) -> None:
    (calm.folder / "monitoring" / "drift.msgpack").write_bytes(b"\x81")
    calm.watch = calm.opened()
    assert calm.watch.behind == calm.traffic.log.last_offset
    assert drifted(calm.look()) == set()


def test_another_bundle_has_its_own_reference_and_a_warm_started_one_goes_on(calm: Site) -> None:
    first = calm.traffic.bundle
    calm.traffic.bundle = publish(calm.folder / "models", START_MS + 1, lineage=first)
    said = calm.after(3)
    assert said["headwater_drift_reference_filled", "features"] == 1.0
    assert said["headwater_drift_reference_filled", "scores"] < 1.0
    calm.traffic.bundle = publish(calm.folder / "models", START_MS + 2)
    said = calm.after(3, shift=moved)  # it may choose other items
    assert said["headwater_drift_reference_filled", "features"] < 1.0
    assert drifted(said) == set()


def test_a_feature_that_is_dead_from_the_first_hour_of_a_bundle_is_found(tmp_path: Path) -> None:
    site = Site(tmp_path)
    said = site.after(3, shift=constant)
    assert said["headwater_drift_training_lists", ""] == 400
    assert said["headwater_drift_reference_filled", "features"] < 1.0
    assert drifted(said) == {"heavy"}
    assert said["headwater_features_dead", ""] == 1
    site.watch.save()
    site.watch = site.opened()
    assert site.look()["headwater_features_dead", ""] == 1  # until the next window
    site.after(3)
    assert drifted(site.after(3)) == set()


def test_a_rollback_goes_on_with_the_reference_of_the_bundle_that_comes_back(calm: Site) -> None:
    first = calm.traffic.bundle
    registry = Registry(calm.folder / "models")
    calm.traffic.bundle = publish(calm.folder / "models", START_MS + 1)
    assert calm.after(3)["headwater_drift_reference_filled", "features"] < 1.0
    calm.watch.save()
    calm.watch = calm.opened()  # what was left is in files, not in the process
    registry.put_in_service(first, plan_hash=PLAN)
    calm.traffic.bundle = first
    said = calm.after(3)
    for of in ("features", "scores"):
        assert said["headwater_drift_reference_filled", of] == 1.0
    assert drifted(said) == set()
    calm.after(3, shift=moved)
    assert drifted(calm.after(3, shift=moved)) == {"normal"}


def test_a_column_may_be_one_value_by_chance() -> None:
    columns = [
        ReferenceColumn(name=name, missing=0.0, quantiles=(), hours=hours)
        for name, hours in (("often", ((400, 380),)), ("half", ((400, 200),)), ("at_night", ((400, 0), (30, 30))), ("never", ((400, 0),)), ("score", ((400, 0),)))
    ]  # fmt: skip
    alive = Alive(DeadState(key=""), BundleReference(learnt_from="lists", lists=400, columns=tuple(columns)), SETTINGS)
    # a few people say nothing; people who were not asked about may be alike more often; the same ones again are no more evidence
    for first, users, dead in ((0, 3, set()), (0, 30, {"never"}), (0, 30, {"never"}), (30, 100, {"half", "never"})):
        for each in range(100):
            alive.add(
                np.ones((10, 4), np.float32), np.arange(10, dtype=np.float32), first + each % users, START_MS + each
            )
        assert set(alive.close(START_MS + 2 * HOUR_MS)) == dead
    for each in range(100):  # and one list that differs ends it
        alive.add(
            np.full((10, 4), float(each == 50), np.float32), np.arange(10, dtype=np.float32), each, START_MS + each
        )
    assert alive.close(START_MS + 2 * HOUR_MS) == ()


def test_on_the_clock_of_the_log_silence_means_nothing(tmp_path: Path) -> None:
    site = Site(tmp_path, live=False)
    site.traffic.run(4)
    site.now_ms = START_MS + 1_000 * HOUR_MS
    assert drifted(site.look()) == set()


def test_skew_is_what_the_last_check_found(tmp_path: Path) -> None:
    site = Site(tmp_path)
    (tmp_path / "verify").mkdir()
    report = '{"requests": 50, "mismatched_bytes": 8, "by_feature": {"normal": 0, "heavy": 8}}'
    (tmp_path / "verify" / f"{PLAN}.json").write_text(report)
    said = site.after(1)
    assert said["headwater_skew_mismatched_bytes", ""] == 8
    assert said["headwater_feature_skew_bytes", "heavy"] == 8
    assert ("headwater_feature_skew_bytes", "normal") not in said


def test_more_lists_than_fit_are_followed_as_an_even_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater.monitoring.outcomes.MOST_WAITING", 40)
    site = Site(tmp_path)
    said = site.after(6, lists=1_000, views=10)
    assert said["headwater_label_rate", "click"] == pytest.approx(0.1, rel=0.25)


def test_an_event_may_stand_in_the_log_before_the_list_that_it_names() -> None:
    traffic = Traffic("b")
    end_ms = traffic.run(1, views=0, click_rate=0.3)
    block = traffic.log.read(1)
    assert block is not None
    lists = [
        (msgspec.msgpack.decode(block.payload(row), type=ServedList), block.records[row])
        for row in np.flatnonzero(block.records["kind"] == Kind.SERVED).tolist()
    ]

    def became(late_ms: int) -> list[dict[int, set[int]]]:
        outcomes, clicks = Outcomes(2 * HOUR_MS), np.array([CLICK], np.int64)
        if late_ms:
            outcomes.events(block, clicks)
        for served, record in lists:
            outcomes.serve(served, int(record["user"]), int(record["received_ms"]) + late_ms)
        if not late_ms:
            outcomes.events(block, clicks)
        return [waiting.clicked for waiting in outcomes.matured(end_ms + 3 * HOUR_MS)]

    assert sum(map(bool, became(0))) > len(lists) / 2
    assert became(500) == became(0)
