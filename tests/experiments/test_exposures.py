"""Exposures from the writer to columns."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from headwater.experiments.exposures import first_exposures, read_exposures
from headwater.log.commands import ExposureEntry, ServedEntry
from headwater.log.identity import MemoryIdentity
from headwater.log.memory import MemoryLog
from headwater.log.protocol import RefusedError
from headwater.log.writer import LogWriter
from headwater.schema.experiments import ExposureRecord


class Written:
    """A log in memory whose time is ``now_ms``."""

    def __init__(self) -> None:
        self.log, self.identity, self.now_ms = MemoryLog(), MemoryIdentity(), 1_000
        self.writer = LogWriter(self.log, self.identity, clock=lambda: self.now_ms, dedup_window=9)

    def expose(self, user: str, variant: str, *, experiment: str = "width", version: str = "v1") -> None:
        payload = msgspec.msgpack.encode(ExposureRecord(experiment, variant, version, "r"))
        known = self.identity.lookup(user)
        entry = ExposureEntry(0, 0, user, payload) if known is None else ExposureEntry(*known, "", payload)
        self.writer.append_exposures([entry])


def test_who_nobody_knew_is_given_a_number_and_others_keep_theirs() -> None:
    at = Written()
    at.writer.login("session", "ann")
    ann = at.identity.lookup("ann")
    assert ann is not None
    at.expose("ann", "control")
    at.expose("new", "wide")
    at.expose("new", "wide")
    new = at.identity.lookup("new")
    assert new is not None
    found = read_exposures(at.log, "width", ["control", "wide"])
    assert found.user.tolist() == [ann.user, new.user, new.user]
    assert found.variant.tolist() == [0, 1, 1]
    block = at.log.read(at.log.last_offset - 1, 1)
    assert block is not None
    assert int(block.records["surrogate"][0]) == new.surrogate


def test_only_what_was_asked_for_is_read() -> None:
    at = Written()
    at.expose("a", "control")
    at.writer.append_served([ServedEntry(1, 1, b"list")])
    at.now_ms = 2_000
    at.expose("b", "wide")
    at.expose("c", "wide", experiment="width-2")
    at.expose("d", "gone")
    at.now_ms = 3_000
    at.expose("e", "wide", version="v2")
    of = ["control", "wide"]
    everything = read_exposures(at.log, "width", of)
    assert (everything.time_ms.tolist(), everything.unknown) == ([1_000, 2_000, 3_000], 1)
    assert read_exposures(at.log, "width", of, since_ms=2_000).time_ms.tolist() == [2_000, 3_000]
    assert read_exposures(at.log, "width", of, until_ms=2_000).time_ms.tolist() == [1_000]
    assert read_exposures(at.log, "width", of, version="v2").time_ms.tolist() == [3_000]
    assert len(read_exposures(at.log, "nothing", of)) == 0


def test_each_user_counts_once_and_those_of_two_variants_not_at_all() -> None:
    at = Written()
    for now_ms, user, variant in (
        (5, "a", "wide"),
        (6, "b", "control"),
        (7, "b", "wide"),
        (9, "a", "wide"),
        (9, "c", "control"),
    ):
        at.now_ms = now_ms
        at.expose(user, variant)
    arms = first_exposures(read_exposures(at.log, "width", ["control", "wide"]))
    numbers = [key.user for key in map(at.identity.lookup, ("a", "c")) if key is not None]
    assert arms.user.tolist() == numbers
    assert (arms.variant.tolist(), arms.first_ms.tolist(), arms.mixed) == ([1, 0], [5, 9], 1)
    nobody = first_exposures(read_exposures(at.log, "other", ["control"]))
    assert (len(nobody.user), nobody.mixed) == (0, 0)
    assert nobody.user.dtype == np.uint32


def test_an_exposure_of_nobody_is_refused() -> None:
    at = Written()
    with pytest.raises(RefusedError, match="must not be empty"):
        at.writer.append_exposures([ExposureEntry(0, 0, "", b"")])
    with pytest.raises(RefusedError, match="Exposure: an entry names no user that could exist"):
        at.writer.append_exposures([ExposureEntry(2**32, 1, "", b"")])
    assert at.log.last_offset == 0
