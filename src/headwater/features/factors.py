"""Online factors: vectors of items, segments and users that the fold learns from, one event after the other.

A positive event of a user on item ``y`` is a pair of what was known before it, the context ``c``, and ``y``. Beside it stand ``negatives`` items ``n``
drawn from the latest positive events of everybody. The fold takes one step of stochastic gradient on logistic loss (skip-gram with negative
sampling, Mikolov et al. 2013, whose factorisation Levy and Goldberg 2014 give):

    s(c, i) = u . v_i,  u = sum of the vectors in the context,  p = 1 / (1 + exp(-(s - log(negatives))))

(with a hidden layer, below, something is added to ``u``), so that ``s`` tends to ``log(P(i | c) / P(i))``: how much likelier the context makes the item than it is for everybody *at the moment*, because that
is where the negatives come from. Popularity itself is in other columns. Steps are scaled by the squared gradients of each vector (Adagrad,
Duchi et al. 2011, one number a vector), those of the last some thousand steps.

The context has three parts: the latest ``DEPTH`` distinct positive items of the visit (``co_visits.window``), each with a vector of its own for its
place; the segments of the request; the user.

A sum cannot say that a region's readers go on from *this* item elsewhere. A hidden layer (``hidden`` units; 0: none) can, in the manner of the deep
candidate generator of Covington et al. 2016, learnt event by event with everything else:

    u = sum of the vectors + sum_j h_j o_j,  h_j = silu(sum_q x_q w_qj),  silu(a) = a / (1 + exp(-a))

where ``x`` is a 1, the vectors of the context one behind the other, and how long ago its items were; ``w_q`` (one number a unit) and
``o_j`` (as long as a vector) are learnt as vectors are, by ``HIDDEN_RATE`` of their rate and without the pull towards 0.

Where it lies. An item row has a block for each of its roles, as candidate, as latest, second and third recent item; and, because segments have no rows,
row ``r`` also holds the blocks of segment number ``r`` of either key, entry ``r - 1`` of the ring of latest items, ``w`` of input ``r - 1`` and ``o`` of unit ``r - 1``. Segments,
ring, inputs and units use rows up to the highest item of a positive event only, so that the rows do not depend on how the log was cut. A block is its vector, then the sum of squared
gradients.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headwater.features.co_visits import mix
from headwater.features.decay import power
from headwater.features.layout import ITEM_BITS, MAX_ITEMS, U_RECENT_LENGTH, Layout
from headwater.features.rowset import Rows
from headwater.jit import ahead, inline

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
UInt32 = npt.NDArray[np.uint32]
UInt8 = npt.NDArray[np.uint8]

DEPTH = 3  # recent items in a context
# Blocks of an item row: as candidate, as k-th recent item, and of the segment of key k that has the row's number.
CANDIDATE, RECENT, SEGMENT = 0, 1, 1 + DEPTH
BLOCKS = SEGMENT + 2
CELLS = 2  # u4 cells of an item row: the ring's entry; of row 0: how many entries there ever were, and the highest item among them
RING = 1024  # latest positive events that negatives are drawn from
PARTS = 3  # of a context: recent items, segments, user
CONTEXTS = PARTS + 3  # rows of working memory: the parts, all of them, the gradient of that, and of one vector
UNITS = 4  # rows of working memory of the hidden layer: inputs, what units give, how steeply, and the gradient of the inputs

ALONE = 0.3  # what the first event of a visit counts
FADE = 1.0 - 2.0**-11  # of the squares with every step: a vector that has made millions goes on learning
FIRST_SQUARES = 0.01  # what a vector's squared gradients begin with
HIDDEN_RATE = 0.2  # of the rate of vectors
SPREAD = 0.1  # a candidate's vector begins with numbers drawn evenly from [-SPREAD, SPREAD)
_PER_E = 1.0 / math.log(2.0)
_STEEPEST = 30.0
_PER_OCTAVE = 1.0 / 12.0  # 12 octaves of seconds are an hour and a bit


class FactorProgram(NamedTuple):
    """What the kernels need to know; ``size`` 0: none are kept."""

    size: int
    hidden: int  # units
    inputs: int  # of each of them
    negatives: int
    item_f4: int  # first block of an item row
    item_u4: int  # first of its ``CELLS``
    user_f4: int  # the user's block
    rate: float  # of learning
    decay: float  # of the vectors that take part in a step
    even: float  # log(negatives)
    positive: UInt8  # (types + 1,) whether events of a type slot are learnt from


def inputs(size: int) -> int:
    """How many a unit has: a 1, the vectors of a context, the ages of its items."""
    return 1 + (DEPTH + 2 + 1) * size + DEPTH


def item_numbers(size: int, hidden: int) -> int:
    """``f4`` cells of an item row."""
    return (BLOCKS * (size + 1) if size else 0) + ((hidden + 1) + (size + 1) if size and hidden else 0)


def new_units(program: FactorProgram) -> Float64:
    """Working memory of the hidden layer, ``float64[UNITS, max(inputs, hidden)]``."""
    return np.zeros((UNITS, max(program.inputs, program.hidden)), np.float64)


@inline
def _block(program: FactorProgram, block: int) -> int:
    return program.item_f4 + block * (program.size + 1)


@inline
def _weights(program: FactorProgram) -> int:
    return _block(program, BLOCKS)


@inline
def _output(program: FactorProgram) -> int:
    return _block(program, BLOCKS) + program.hidden + 1


@inline
def recent_positives(u4: UInt32, item: int, time_s: int, layout: Layout, positive: UInt8, out: Int64) -> int:
    """The latest distinct positive items of a user row inside the visit, latest first, and how many seconds ago, into ``out`` int64[2, DEPTH].

    Returns how many, or -1 when ``item`` is one of them (0: asks about none). An entry without a time (a row that was anchored) is of this moment.
    """
    found = 0
    for k in range(np.int64(u4[U_RECENT_LENGTH]) - 1, -1, -1):
        if found == DEPTH:
            break
        then = np.int64(u4[layout.recent_times + k])
        if then > time_s:
            continue
        if then > 0 and time_s - then > layout.co_window_s:
            break
        key = int(u4[layout.recent_keys + k])
        other, kind = key & MAX_ITEMS, key >> ITEM_BITS
        if positive[kind] == 0:
            continue
        if other == item:
            return -1
        known = False
        for j in range(found):
            known |= out[0, j] == other
        if not known:
            out[0, found], out[1, found] = other, time_s - then if then > 0 else 0
            found += 1
    return found


@inline
def _logistic(score: float) -> float:
    """``1 / (1 + exp(-score))`` of a score that is held within ``_STEEPEST``."""
    return 1.0 / (1.0 + power(-min(max(score, -_STEEPEST), _STEEPEST) * _PER_E))


@inline
def _octaves(seconds: int) -> float:
    """About ``log2(1 + seconds)``: exact at whole powers, straight in between."""
    whole, rest = 0, seconds + 1
    while rest > 1:
        rest >>= 1
        whole += 1
    return whole + (seconds + 1) / (1 << whole) - 1.0


@inline
def _add(f4: Float32, at: int, size: int, inputs: Float64, place: int, out: Float64, part: int) -> None:
    first = 1 + place * size
    for q in range(size):
        value = np.float64(f4[at + q])
        out[part, q] += value
        inputs[first + q] = value


@inline
def context(
    user_f4: Float32, items: Rows, recent: Int64, found: int, segment_0: int, segment_1: int, program: FactorProgram,
    units: Float64, out: Float64,
) -> None:  # fmt: skip
    """What is known: the sums of the vectors of each part into the first rows of ``out`` float64[CONTEXTS, size], of all into row ``PARTS``, and what
    units look at into the first row of ``units`` float64[UNITS, max(inputs, hidden)].
    """
    out[: PARTS + 1] = 0.0
    size, x = program.size, units[0]
    x[:] = 0.0
    x[0] = 1.0
    for k in range(found):
        _add(items.f4[recent[0, k]], _block(program, RECENT + k), size, x, k, out, 0)
    top = int(items.u4[0, program.item_u4 + 1])
    for k, segment in enumerate((segment_0, segment_1)):
        if segment > 0 and segment <= top:
            _add(items.f4[segment], _block(program, SEGMENT + k), size, x, DEPTH + k, out, 1)
    _add(user_f4, program.user_f4, size, x, DEPTH + 2, out, 2)
    for q in range(size):
        out[PARTS, q] = out[0, q] + out[1, q] + out[2, q]
    at = 1 + (DEPTH + 3) * size
    for k in range(found):
        x[at + k] = _PER_OCTAVE * _octaves(recent[1, k])


@inline
def add_hidden(items: Rows, program: FactorProgram, units: Float64, whole: Float64) -> None:
    """What the units give to the sum of a context."""
    x, given, slope = units[0], units[1], units[2]
    top = int(items.u4[0, program.item_u4 + 1])
    given[:] = 0.0
    at = _weights(program)
    for q in range(min(program.inputs, top)):
        if x[q] != 0.0:
            f4 = items.f4[q + 1]
            for j in range(program.hidden):
                given[j] += x[q] * np.float64(f4[at + j])
    at = _output(program)
    for j in range(program.hidden):
        a = given[j]
        gate = _logistic(a)
        given[j], slope[j] = a * gate, gate * (1.0 + a * (1.0 - gate))
    for j in range(min(program.hidden, top)):
        f4 = items.f4[j + 1]
        for q in range(program.size):
            whole[q] += given[j] * np.float64(f4[at + q])


@inline
def score_all(
    items: Rows, candidates: Int64, part: int, program: FactorProgram, contexts: Float64, out: Float64, term: int
) -> None:  # fmt: skip
    """``u . v_i`` of one part of the context for every candidate, into ``out[term]``; all parts together: ``part`` is ``PARTS``."""
    size, at = program.size, _block(program, CANDIDATE)
    for r in range(len(candidates)):
        for q in range(0, size, 16):  # as many lie in a line of memory
            ahead(items.f4, candidates, r, at + q)
        total = 0.0
        for q in range(size):
            total += contexts[part, q] * np.float64(items.f4[candidates[r], at + q])
        out[term, r] = total


@inline
def _step(
    f4: Float32, at: int, size: int, gradient: Float64, strength: float, pull: float, learning_rate: float
) -> None:
    """One step of a vector of ``size`` against ``strength * gradient`` and the pull towards 0."""
    squares = 0.0
    for q in range(size):
        g = strength * gradient[q] + pull * np.float64(f4[at + q])
        squares += g * g
    f4[at + size] = np.float32(FADE * f4[at + size] + squares / size)
    rate = learning_rate / np.sqrt(FIRST_SQUARES + np.float64(f4[at + size]))
    for q in range(size):
        value = np.float64(f4[at + q])
        f4[at + q] = np.float32(value - rate * (strength * gradient[q] + pull * value))


@inline
def _pair(
    items: Rows, item: int, taken: float, weight: float, program: FactorProgram, whole: Float64, gradient: Float64
) -> None:
    """Learn that ``item`` was taken (1) in the context ``whole``, or was not (0); adds to the context's ``gradient``."""
    f4, at = items.f4[item], _block(program, CANDIDATE)
    score = 0.0
    for q in range(program.size):
        score += whole[q] * np.float64(f4[at + q])
    strength = weight * (_logistic(score - program.even) - taken)
    for q in range(program.size):
        gradient[q] += strength * np.float64(f4[at + q])
    _step(f4, at, program.size, whole, strength, program.decay * abs(strength), program.rate)


@inline
def _begin(items: Rows, program: FactorProgram, units: Float64) -> None:
    """Weights of inputs that never took a step, drawn evenly and so that units have a variance of about that of an input."""
    at, most = _weights(program), math.sqrt(3.0 / program.inputs)
    for q in range(min(program.inputs, int(items.u4[0, program.item_u4 + 1]))):
        f4 = items.f4[q + 1]
        if units[0, q] != 0.0 and f4[at + program.hidden] == 0.0:
            for j in range(program.hidden):
                f4[at + j] = np.float32(most * (2.0 * mix(q, j, 2) - 1.0))


@inline
def _learn_hidden(items: Rows, program: FactorProgram, units: Float64, gradient: Float64, dirty_items: UInt8) -> None:
    """Steps of the hidden layer against the ``gradient`` of a whole context; that of each input goes to the last row of ``units``."""
    x, given, slope, passed = units[0], units[1], units[2], units[3]
    size, hidden, rate = program.size, program.hidden, HIDDEN_RATE * program.rate
    top = int(items.u4[0, program.item_u4 + 1])
    at = _output(program)
    for j in range(hidden):
        if j >= top:
            slope[j] = 0.0
            continue
        f4, back = items.f4[j + 1], 0.0
        for q in range(size):
            back += np.float64(f4[at + q]) * gradient[q]
        slope[j] *= back
        _step(f4, at, size, gradient, given[j], 0.0, rate)
        dirty_items[j + 1] = 1
    at = _weights(program)
    passed[:] = 0.0
    for q in range(min(program.inputs, top)):
        f4, back = items.f4[q + 1], 0.0
        for j in range(hidden):
            back += np.float64(f4[at + j]) * slope[j]
        passed[q] = back
        if x[q] != 0.0:
            _step(f4, at, hidden, slope, x[q], 0.0, rate)
            dirty_items[q + 1] = 1


@inline
def _move(
    f4: Float32, at: int, program: FactorProgram, contexts: Float64, units: Float64, place: int, pull: float
) -> None:  # fmt: skip
    """A step of the vector that has this ``place`` among those of the context."""
    gradient, own, first = contexts[PARTS + 1], contexts[PARTS + 2], 1 + place * program.size
    for q in range(program.size):
        own[q] = gradient[q] + units[3, first + q] if program.hidden > 0 else gradient[q]
    _step(f4, at, program.size, own, 1.0, pull, program.rate)


@inline
def learn(
    user_u4: UInt32, user_f4: Float32, items: Rows, item: int, time_ms: int, segment_0: int, segment_1: int, layout: Layout,
    program: FactorProgram, contexts: Float64, units: Float64, recent: Int64, dirty_items: UInt8,
) -> None:  # fmt: skip
    """One positive event, before it stands in the row of its user. ``contexts`` and ``units`` (as of :func:`context`) and ``recent`` int64[2, DEPTH] are working
    memory.

    An item that the visit holds already teaches nothing, for it would not have been offered. A visit's first event counts ``ALONE``: most visits begin
    elsewhere than with a list.
    """
    u4, at, size = items.u4, program.item_u4, program.size
    count, top = int(u4[0, at]), int(u4[0, at + 1])
    found = recent_positives(user_u4, item, time_ms // 1000, layout, program.positive, recent)
    if found >= 0 and top > 0:
        weight = 1.0 if found > 0 else ALONE
        latest = int(recent[0, 0]) if found > 0 else 0
        context(user_f4, items, recent, found, segment_0, segment_1, program, units, contexts)
        if program.hidden > 0:
            _begin(items, program, units)
            add_hidden(items, program, units, contexts[PARTS])
        whole, gradient = contexts[PARTS], contexts[PARTS + 1]
        gradient[:] = 0.0
        own = _block(program, CANDIDATE)
        if items.f4[item, own + size] == 0.0:  # never took a step
            for q in range(size):
                items.f4[item, own + q] = np.float32(SPREAD * (2.0 * mix(item, q, 0) - 1.0))
        _pair(items, item, 1.0, weight, program, whole, gradient)
        entries = min(top, RING)
        for k in range(program.negatives):
            drawn = int(u4[1 + int(mix(count, k, 1) * entries), at])
            if drawn != 0 and drawn != latest:
                _pair(items, drawn, 0.0, weight, program, whole, gradient)
                dirty_items[drawn] = 1
        if program.hidden > 0:
            _learn_hidden(items, program, units, gradient, dirty_items)
        pull = weight * program.decay
        for k in range(found):
            _move(items.f4[recent[0, k]], _block(program, RECENT + k), program, contexts, units, k, pull)
            dirty_items[recent[0, k]] = 1
        for k, segment in enumerate((segment_0, segment_1)):
            if segment > 0 and segment <= top:
                _move(items.f4[segment], _block(program, SEGMENT + k), program, contexts, units, DEPTH + k, pull)
                dirty_items[segment] = 1
        _move(user_f4, program.user_f4, program, contexts, units, DEPTH + 2, pull)
    top = max(top, item)
    entry = 1 + count % min(top, RING)
    u4[entry, at] = np.uint32(item)
    dirty_items[entry] = 1
    u4[0, at], u4[0, at + 1] = np.uint32(count + 1), np.uint32(top)
    dirty_items[0] = 1
