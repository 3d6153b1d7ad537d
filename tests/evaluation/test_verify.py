"""The verifier against lists that are known to be right, and against ones that are known to be wrong somewhere."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
from structlog.testing import capture_logs

import headwater
from headwater.evaluation.verify import Verification, verify
from headwater.features.plan import compile_plan
from headwater.log.commands import AppendServed, ServedEntry
from headwater.log.protocol import CorruptLogError
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.schema.requests import Address, ServedList
from headwater.testing.events import START_MS, Written, configurations, script
from tests.evaluation.served import entry, rows_of

CONFIGS = configurations()
DAY_MS = 86_400_000


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


class Served:
    """A busy log with right lists in it, about known and unknown users, at addresses in any order."""

    def __init__(self, config: Config, *, seed: int, lists: int) -> None:
        self.plan = compile_plan(config)
        self.written = Written(config)
        self.log = self.written.log
        self.rng = np.random.default_rng(seed)
        # the script has served lists of its own, with contents that only the log cares about
        steps = [step for step in script(seed, 5 * lists) if not isinstance(step.command, AppendServed)]
        for n in range(lists):
            self.written.add(steps[4 * n : 4 * n + 4])
            self.serve()

    def address(self, **changes: object) -> Address:
        """Anywhere in the log so far: users behind items, or items behind users."""
        offsets = self.rng.integers(max(0, self.log.last_offset - 40), self.log.last_offset + 1, 2)
        now_ms = self.written.now_ms + int(self.rng.integers(0, 1_000))
        found = Address(int(offsets[0]), int(offsets[1]), now_ms, self.plan.hash, "none")
        return msgspec.structs.replace(found, **changes)

    def serve(
        self, *, address: Address | None = None, said: Address | None = None, wrong: tuple[int, int, int] | None = None
    ) -> Address:
        """Log a list assembled at ``address`` that claims ``said``; ``wrong`` is (row, column, bit) to flip."""
        address = address or self.address()
        items = self.rng.choice(np.arange(1, 40), int(self.rng.integers(2, 9)), replace=False).tolist()
        user = int(self.rng.integers(0, 16))
        zone_ms = int(self.rng.choice([0, 3_600_000, -34_200_000]))
        context = [int(self.rng.integers(0, 3)), 0, int(self.rng.choice([0, 0, 3])), zone_ms]
        rows = rows_of(self.log, self.plan, user, items, address, context)
        self.latest = user, items, context
        if wrong is not None:
            rows.view(np.uint32)[wrong[0], wrong[1]] ^= np.uint32(1) << np.uint32(wrong[2])
        self.written.writer.append_served([entry(user, items, said or address, context, rows.tobytes())])
        return address

    def verify(self, **options: int) -> Verification:
        return verify(self.log, self.plan, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CONFIGS)
def test_right_lists_are_right_whatever_their_addresses(name: str) -> None:
    served = Served(CONFIGS[name], seed=5, lists=60)
    report = served.verify()
    assert (report.requests, report.mismatched_bytes, report.mismatched_requests) == (60, 0, 0)
    assert report.failed == ()
    assert report.rows > 120
    assert (report.last_offset, report.log_id) == (served.log.last_offset, served.log.log_id)
    assert report.checked_ms == served.log.last_received_ms
    assert report.build == headwater.__version__
    assert report.machine


def test_flipped_bits_are_counted_under_their_columns_and_no_others() -> None:
    served = Served(Config(), seed=6, lists=10)
    planted = np.zeros(len(served.plan.columns), np.int64)
    for _ in range(25):
        column = int(served.rng.integers(0, len(planted)))
        served.serve(wrong=(int(served.rng.integers(0, 2)), column, int(served.rng.integers(0, 32))))
        planted[column] += 1
        served.serve()
    report = served.verify()
    assert list(report.by_feature.values()) == planted.tolist()
    assert (report.requests, report.mismatched_requests, report.mismatched_bytes) == (60, 25, 25)
    assert report.failed == tuple(served.plan.columns[c] for c in np.flatnonzero(planted))


def test_rows_of_another_moment_differ_in_what_depends_on_the_moment() -> None:
    served = Served(Config(), seed=7, lists=10)
    true = served.address()
    served.serve(address=true, said=msgspec.structs.replace(true, now_ms=true.now_ms + 7_200_000))
    report = served.verify()
    assert report.mismatched_requests == 1
    user, items, context = served.latest
    said = msgspec.structs.replace(true, now_ms=true.now_ms + 7_200_000)
    pair = [rows_of(served.log, served.plan, user, items, address, context).view(np.uint32) for address in (true, said)]
    differ = np.flatnonzero((pair[0] != pair[1]).any(axis=0))
    assert report.failed == tuple(served.plan.columns[c] for c in differ)
    assert "hour" in report.failed
    assert not {"user_count", "item_count", "user_length"} & set(report.failed)


def test_an_idle_user_is_a_stranger_here_too() -> None:
    served = Served(Config(), seed=8, lists=5)
    later = served.address(now_ms=START_MS + 1_000 * DAY_MS, user_offset=served.log.last_offset)
    for _ in range(10):
        served.serve(address=later)
    assert served.verify().mismatched_bytes == 0


def test_since_and_limit_say_which_lists() -> None:
    served = Served(Config(), seed=9, lists=10)
    served.serve(wrong=(0, 0, 3))
    bad = served.log.last_offset
    for _ in range(5):
        served.serve()
    whole = served.verify()
    assert (whole.requests, whole.mismatched_bytes) == (16, 1)
    assert whole.first_offset < bad < whole.last_offset
    assert served.verify(since=bad).mismatched_bytes == 1
    fresh = served.verify(since=bad + 1)
    assert (fresh.requests, fresh.mismatched_bytes, fresh.first_offset) == (5, 0, bad + 1)
    assert (served.verify(limit=6).requests, served.verify(limit=6).mismatched_bytes) == (6, 1)
    assert served.verify(limit=5).mismatched_bytes == 0
    assert served.verify(since=bad, limit=2).requests == 2
    none = served.verify(since=served.log.last_offset + 10)
    assert (none.requests, none.first_offset, none.last_offset) == (0, 0, 0)


def test_rows_of_another_width_are_wrong_in_every_byte() -> None:
    served = Served(Config(), seed=10, lists=3)
    served.written.writer.append_served([entry(1, [1, 2], served.address(), [0, 0, 0, 0], bytes(12))])
    report = served.verify()
    assert set(report.by_feature.values()) == {8}
    assert report.mismatched_requests == 1


def test_a_list_of_a_longer_log_is_no_list_of_this_one() -> None:
    served = Served(Config(), seed=11, lists=3)
    ahead = served.address(item_offset=served.log.last_offset + 50)
    served.written.writer.append_served([entry(1, [1], ahead, [0, 0, 0, 0], bytes(4 * len(served.plan.columns)))])
    with pytest.raises(HeadwaterError, match=r"names offset .* but the log ends at"):
        served.verify()


def test_a_list_that_cannot_be_read_is_named_by_its_offset() -> None:
    served = Served(Config(), seed=11, lists=3)
    served.written.writer.append_served([ServedEntry(1, 1, b"no list")])
    with pytest.raises(CorruptLogError, match=f"offset {served.log.last_offset}: a served list"):
        served.verify()


def test_progress_is_told() -> None:
    served = Served(Config(), seed=12, lists=3)
    address = served.address()
    rows = rows_of(served.log, served.plan, 1, [1], address, [0, 0, 0, 0]).tobytes()
    served.written.writer.append_served([entry(1, [1], address, [0, 0, 0, 0], rows)] * 2_000)
    told: list[tuple[int, int]] = []
    report = verify(served.log, served.plan, progress=lambda done, total: told.append((done, total)))
    assert report.mismatched_bytes == 0
    assert told == [(1_000, 2_003), (2_000, 2_003)]


def test_the_report_keeps_its_shape() -> None:
    report = Served(Config(), seed=13, lists=2).verify()
    assert msgspec.json.decode(msgspec.json.encode(report), type=Verification) == report
    behind = (
        "features", "modelled", "walked", "query", "log_propensity", "explored", "experiments", "promised", "teams",
    )  # fmt: skip
    assert ServedList.__struct_fields__[-9:] == behind, "what is behind them is no part of the check"
