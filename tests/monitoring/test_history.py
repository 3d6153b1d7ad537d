"""History: what goes in comes out, thins with age, stays bounded, and a damaged file stops nobody."""

from __future__ import annotations

from pathlib import Path

import pytest

from headwater.monitoring.history import HOUR_MS, History, HistoryError, Series, rates
from headwater.monitoring.samples import sample


def test_what_was_appended_is_read_by_others_while_the_writer_writes(tmp_path: Path) -> None:
    path = tmp_path / "monitoring" / "history.sqlite"
    with pytest.raises(HistoryError, match="no history yet"):
        History(path, readonly=True)
    writer = History(path)
    writer.append(1_000, [sample("a", 1.0, x="1", b="2"), sample("a", 2.0, x="2", b="2"), sample("b", 5.0)])
    reader = History(path, readonly=True)
    writer.append(2_000, [sample("a", 3.0, b="2", x="1"), sample("b", float("nan"))])
    assert reader.names() == ["a", "b"]
    assert reader.latest("a") == [({"b": "2", "x": "1"}, 2_000, 3.0)]
    assert reader.latest("b") == [({}, 1_000, 5.0)]
    assert reader.latest("c") == []
    found = {series.labels["x"]: series for series in reader.series("a", since_ms=0, until_ms=5_000)}
    assert found["1"].times_ms == [1_000, 2_000]
    assert found["1"].values == [1.0, 3.0]
    assert found["2"].times_ms == [1_000]
    assert reader.series("a", since_ms=0, until_ms=5_000, labels={"x": "2"}) == [found["2"]]
    assert reader.series("a", since_ms=0, until_ms=5_000, labels={"x": "3"}) == []
    assert reader.series("a", since_ms=3_000, until_ms=5_000) == []
    writer.close()
    again = History(path)
    again.append(3_000, [sample("a", 4.0, x="1", b="2")])
    assert [series.values for series in reader.series("a", since_ms=2_000, until_ms=3_000)] == [[3.0, 4.0]]
    again.close()
    reader.close()


def test_rates_are_of_what_was_gained_and_a_counter_that_fell_began_anew() -> None:
    assert rates(Series({}, [0, 2_000, 4_000], [10.0, 14.0, 3.0])) == Series({}, [2_000, 4_000], [2.0, 1.5])


def test_what_is_older_is_kept_at_fewer_moments_and_then_not_at_all(tmp_path: Path) -> None:
    history = History(tmp_path / "history.sqlite")
    now = 31 * 24 * HOUR_MS
    for age_ms in (*range(0, 2 * HOUR_MS, 5_000), 26 * HOUR_MS, 26 * HOUR_MS - 60_000, 30 * 24 * HOUR_MS + 60_000):
        history.append(now - age_ms, [sample("a", float(now - age_ms))])
    history.prune(now)
    (series,) = history.series("a", since_ms=0, until_ms=now)
    ages = [now - time_ms for time_ms in series.times_ms]
    assert max(ages) == 26 * HOUR_MS - 60_000  # the last of its ten minutes; what is older than a month is gone
    assert sum(age < HOUR_MS for age in ages) == 720
    assert sum(HOUR_MS < age <= 2 * HOUR_MS for age in ages) == 60
    assert series.values == [float(time_ms) for time_ms in series.times_ms]
    kept = series.times_ms
    history.prune(now)
    assert history.series("a", since_ms=0, until_ms=now)[0].times_ms == kept
    history.close()


def test_the_file_stays_bounded_and_the_newest_stays(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    history = History(path, max_bytes=200_000)
    for i in range(60):
        history.append(i, [sample("a", float(i), series=str(j)) for j in range(1_000)])
        history.prune(i)
    (last, time_ms, value), *_ = history.latest("a")
    assert (last, time_ms, value) == ({"series": "0"}, 59, 59.0)
    assert len(history.series("a", since_ms=0, until_ms=59)[0].values) < 20
    history.close()
    assert path.stat().st_size < 400_000


def test_a_damaged_file_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    path.write_bytes(b"no database" * 1_000)
    history = History(path)
    history.append(1, [sample("a", 1.0)])
    assert history.latest("a") == [({}, 1, 1.0)]
    assert path.with_name("history.sqlite.damaged").exists()
    history.close()
