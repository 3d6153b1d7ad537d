"""Sequences cut into windows, and windows of like length packed into batches without rows of padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headwater.learning.sequences import Sequences
from headwater.retrieval.sequence_inputs import age_moment, gap_slots, idle_slots

Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Events in the order in which a user row has them: by second, then by place in the log.

    ``starts`` int64[u + 1]; ``rows`` int64[n] vocabulary rows; ``types`` int64[n] type slots; ``times_s`` int64[n];
    ``target`` bool[n]: whether training asks for this event.
    """

    starts: Int64
    rows: Int64
    types: Int64
    times_s: Int64
    target: Bool


class Batch(NamedTuple):
    """Windows of a step, (B, L) each, padded behind their end. ``asked`` bool: places whose ``targets`` (rows) are learned, whose ages are
    those of ``moment_s``.
    """

    rows: Int64
    types: Int64
    gaps: Int64
    idle: Int64
    targets: Int64
    asked: Bool
    moment_s: Int64

    @property
    def tokens(self) -> int:
        return self.rows.size


def tokens_of(sequences: Sequences, row_of: Int64, min_events: int) -> Tokens:
    """The events of users with at least ``min_events``; ``row_of`` int64[items] gives the vocabulary row of an item."""
    lengths = np.diff(sequences.starts)
    keep = sequences.where(np.repeat(lengths >= min_events, lengths))
    times_s = keep.time_ms // 1000
    order = np.lexsort((keep.offset, times_s, keep.owner))
    return Tokens(
        keep.starts, row_of[keep.items[order]], keep.types[order].astype(np.int64), times_s[order], keep.positive[order]
    )


def windows(tokens: Tokens, length: int, random: np.random.Generator) -> tuple[Int64, Int64]:
    """(first event, how many) of windows that hold every event but a user's last once.

    Long sequences are cut at places that differ from epoch to epoch, so that every event is met with much and with
    little before it; windows that ask for nothing are left out.
    """
    inputs = np.diff(tokens.starts) - 1
    phase = np.where(inputs > length, random.integers(0, length, len(inputs)), 0)
    count = np.maximum(0, -(-(inputs - phase) // length)) + (phase > 0)
    user = np.repeat(np.arange(len(inputs)), count)
    place = np.arange(len(user)) - np.repeat(np.cumsum(count) - count, count)
    cut = phase[user]
    first = np.where(cut > 0, np.maximum(0, cut + (place - 1) * length), place * length)
    last = np.minimum(np.where(cut > 0, cut + place * length, (place + 1) * length), inputs[user])
    start = tokens.starts[user] + first
    before = np.concatenate([[0], np.cumsum(tokens.target)])
    asked = before[start + (last - first) + 1] - before[start + 1] > 0
    return start[asked], (last - first)[asked]


def epoch(tokens: Tokens, length: int, batch_tokens: int, random: np.random.Generator) -> list[tuple[Int64, Int64]]:
    """All windows (first event, how many) of an epoch as batches in random order, windows of about the same length together."""
    start, size = windows(tokens, length, random)
    order = np.argsort(size * random.uniform(0.95, 1.0, len(size)), kind="stable")
    made: list[tuple[Int64, Int64]] = []
    first, widest = 0, 0
    for at, wide in enumerate(size[order].tolist()):
        widest = max(widest, wide)
        if at > first and (at + 1 - first) * widest > batch_tokens:
            made.append((start[order[first:at]], size[order[first:at]]))
            first, widest = at, wide
    if len(order):
        made.append((start[order[first:]], size[order[first:]]))
    return [made[k] for k in random.permutation(len(made)).tolist()]


def batch_of(tokens: Tokens, start: Int64, size: Int64) -> Batch:
    """The windows ``start … start + size - 1`` and what comes after each of their events."""
    step = np.arange(int(size.max()))
    inside = step < size[:, None]
    at = start[:, None] + np.where(inside, step, 0)
    after = np.minimum(at + 1, len(tokens.rows) - 1)
    times_s = np.where(inside, tokens.times_s[at], 0)
    return Batch(
        tokens.rows[at], tokens.types[at], gap_slots(times_s), idle_slots(tokens.times_s[after] - times_s),
        tokens.rows[after], inside & tokens.target[after], age_moment(tokens.times_s[after]),
    )  # fmt: skip
