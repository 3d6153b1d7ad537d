"""How active the users of a news site are, and a log of as many users as wanted who act like that.

``QUANTILES`` is a statistic of the Globo clicks (2017-10-01 to 2017-10-12: 2,409,924 clicks of 292,438 users, 8.24 a user,
2.86 a session): which share of the users has at most so many clicks. Everything else is drawn: sessions begin at any
moment of twelve days, hold two clicks and a geometric number more, and lead to articles by a power law. Articles are
drawn independently of each other, so a user's affinities spread over more categories than those of a real reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from headwater.log.batch import ItemRecord
from headwater.log.record import RECORD, Kind, Namespace, RecordBlock
from headwater.schema.errors import HeadwaterError
from headwater.schema.items import Item

DAY_MS = 86_400_000
START_MS = 1_772_409_600_000
DAYS = 12
ITEMS = 46_000
CATEGORIES = 300
SESSION = 2.857  # clicks, of which two at least
GAP_S = 120.0
SEGMENTS = 24  # terms of each segment key that occur

# (clicks, share of the users that have so many or fewer)
QUANTILES: tuple[tuple[int, float], ...] = (
    (1, 0.000109), (2, 0.329058), (3, 0.405871), (4, 0.526676), (5, 0.586117), (6, 0.648736),
    (7, 0.691285), (8, 0.730637), (9, 0.760602), (10, 0.787121), (11, 0.808934), (12, 0.828066),
    (13, 0.844240), (14, 0.858589), (15, 0.871104), (16, 0.881907), (17, 0.891854), (18, 0.900919),
    (19, 0.908651), (20, 0.915558), (25, 0.942049), (30, 0.958675), (40, 0.977185), (50, 0.986380),
    (60, 0.991691), (80, 0.996115), (100, 0.998047), (150, 0.999408), (200, 0.999747), (300, 0.999918),
    (500, 0.999979), (961, 1.0),
)  # fmt: skip


class ActivityError(HeadwaterError):
    """The clicks that the activity is to be taken from cannot be read."""


@dataclass(frozen=True, slots=True)
class Activity:
    """Events in the order of time; ``user`` counts from 1 in the order of first events, as a real log numbers users."""

    users: int
    items: int
    time_ms: npt.NDArray[np.int64]
    user: npt.NDArray[np.uint32]
    item: npt.NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.time_ms)


def clicks_per_user(path: Path) -> npt.NDArray[np.int64]:
    """Clicks of each user of a file of clicks (Parquet with ``user_id``).

    Raises:
        ActivityError: it is not there or has no such column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        column = pq.read_table(path, columns=["user_id"])["user_id"]
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise ActivityError(f"{path} cannot be read as clicks: {error}; leave --globo out to use the table") from error
    counts: npt.NDArray[np.int64] = np.unique(column.to_numpy(), return_counts=True)[1].astype(np.int64)
    return counts


def drawn_counts(users: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Events of ``users`` users by ``QUANTILES``; between two of its points counts are spread geometrically."""
    clicks = np.array([0, *(count for count, _ in QUANTILES)], np.float64)
    shares = np.array([0.0, *(share for _, share in QUANTILES)])
    drawn = rng.random(users)
    above = np.minimum(np.searchsorted(shares, drawn, side="right"), len(shares) - 1)
    low, high = clicks[above - 1] + 1, clicks[above]
    inside = (drawn - shares[above - 1]) / (shares[above] - shares[above - 1])
    counts: npt.NDArray[np.int64] = np.floor(low * ((high + 1) / low) ** inside).astype(np.int64)
    return np.minimum(counts, high.astype(np.int64))


def activity(counts: npt.NDArray[np.int64], seed: int, *, items: int = ITEMS) -> Activity:
    """Events of users who have ``counts`` of them each. About 60 bytes of memory an event at the peak."""
    rng = np.random.default_rng([seed, 4])
    person = np.repeat(np.arange(len(counts), dtype=np.uint32), counts)
    # sessions run through the events of all users; one also begins where a user begins
    total = len(person)
    lengths = 1 + rng.geometric(1 / (SESSION - 1), int(total / SESSION * 1.1) + 16)
    begins = np.zeros(total + 1, np.bool_)
    ends = np.cumsum(lengths)
    begins[ends[ends < total]] = True
    begins[np.concatenate([[0], np.cumsum(counts)])] = True
    begins = begins[:total]
    session = np.cumsum(begins) - 1
    first = np.flatnonzero(begins)
    steps = np.cumsum(rng.exponential(GAP_S * 1_000, total))
    steps -= steps[first][session]
    time_ms = START_MS + (rng.random(len(first)) * DAYS * DAY_MS)[session] + steps
    del steps, session
    order = np.argsort(time_ms, kind="stable")
    person, times = person[order], time_ms[order].astype(np.int64)
    del order
    number = np.zeros(len(counts), np.uint32)
    seen, at = np.unique(person, return_index=True)
    number[seen[np.argsort(at)]] = np.arange(1, len(seen) + 1)
    weights = np.cumsum(1.0 / np.arange(1, items + 1))
    drawn = np.searchsorted(weights, rng.random(total) * weights[-1])
    article = rng.permutation(items)[np.minimum(drawn, items - 1)].astype(np.uint32) + np.uint32(1)
    return Activity(len(seen), items, times, number[person], article)


def blocks(made: Activity, types: Mapping[str, float], seed: int, size: int) -> Iterator[RecordBlock]:
    """The log, ``size`` records a block: terms and items first, then the events. ``types``: each with its share."""
    rng = np.random.default_rng([seed, 5])
    categories = 1 + np.floor(CATEGORIES * rng.random(made.items) ** 2).astype(np.int64)  # a few are large
    encode = msgspec.msgpack.Encoder().encode
    heads: list[tuple[int, int, int, bytes]] = [
        (Kind.TERM, Namespace.EVENT_TYPE, number, name.encode()) for number, name in enumerate(types, 1)
    ]
    heads += [
        (Kind.ITEM, 0, number, encode(ItemRecord(Item(id=f"article-{number}"), [category], [])))
        for number, category in enumerate(categories.tolist(), 1)
    ]
    for start in range(0, len(heads), size):
        some = heads[start : start + size]
        records = np.zeros(len(some), RECORD)
        records["offset"] = np.arange(start, start + len(some)) + 1
        records["kind"], records["type"] = [head[0] for head in some], [head[1] for head in some]
        records["item"], records["payload_size"] = [head[2] for head in some], [len(head[3]) for head in some]
        records["payload_at"] = np.concatenate([[0], np.cumsum(records["payload_size"])[:-1]])
        records["received_ms"] = records["time_ms"] = START_MS
        yield RecordBlock(records, np.frombuffer(b"".join(head[3] for head in some), np.uint8))
    shares = np.array(list(types.values())) / sum(types.values())
    places = 1 + rng.integers(0, SEGMENTS, (made.users + 1, 2), np.uint16)
    for start in range(0, len(made), size):
        stop = min(start + size, len(made))
        part, count = slice(start, stop), stop - start
        records = np.zeros(count, RECORD)
        records["offset"] = np.arange(start, stop) + len(heads) + 1
        records["kind"] = Kind.EVENT
        records["type"] = 1 + rng.choice(len(types), count, p=shares)
        records["received_ms"] = records["time_ms"] = made.time_ms[part]
        records["user"], records["item"] = made.user[part], made.item[part]
        records["segments"] = places[made.user[part]]
        records["value"] = np.nan
        yield RecordBlock(records, np.zeros(0, np.uint8))
