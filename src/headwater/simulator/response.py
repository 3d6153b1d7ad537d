"""How people respond to what they see: the one model behind histories, live visits and judgements.

The chance of a click is a logistic function of what the person likes, what the item is, and what has happened before;
it falls with the place in the list. What a click is worth to the person, its *utility*, is another function: a lure
makes people click and disappoints them, so that a policy can win clicks and lose its users.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headwater.simulator.catalogue import HOUR_MS, Catalogue
from headwater.simulator.history import CLICK, EVENT_TYPES, LIKE, PURCHASE, SKIP, VIEW
from headwater.simulator.people import People

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

POSITION_DECAY = 0.92  # of the click probability, a place

# The chance of a click, on the logit scale.
_BIAS = -4.1
_TASTE = 5.2  # times the square root of the affinity
_QUALITY = 0.45
_LURE = 0.5
_STYLE = 0.9
_NEW = 0.5  # times exp(-age / 1 day)
_TREND = 0.5  # times log(1 + burst)
_ABOUT = 1.0  # the item's topic is what the visit is about
_TIRED = 0.35  # for each time that it was seen and not clicked, up to _MOST_TIRED
_MOST_TIRED = 8
_CONSUMED = 3.0  # it was clicked before
CONSUMED = 255  # in place of a number of times seen

# The utility of a click, on the logit scale.
_WORTH_BIAS = -1.5
_WORTH_TASTE = 3.0
_WORTH_QUALITY = 0.9
_WORTH_LURE = -0.6
_WORTH_STYLE = 0.5

_FOLLOWS = np.array([0.55, 0.14, 0.07])  # a click is followed by a view, a like, a purchase
_SKIP = 0.05


def logistic(x: Floats) -> Floats:
    """``1 / (1 + exp(-x))``."""
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


def draw(catalogue: Catalogue, burst: Floats, at_ms: int) -> Floats:
    """What makes each item clicked whoever sees it, float64[items], at ``at_ms``: quality, lure, newness, trend."""
    age_days = np.maximum(at_ms - catalogue.born_ms, 0) / (24 * HOUR_MS)
    pull = _QUALITY * catalogue.quality + _LURE * catalogue.lure + _NEW * np.exp(-age_days) + _TREND * np.log1p(burst)
    return np.asarray(pull)


@dataclass(frozen=True)
class Pairs:
    """People and items face to face: ``users`` and ``items`` are positions, of one shape or of shapes that broadcast to one.

    ``liking`` is the square root of the affinity, ``suits`` whether the item has the look that the person prefers.
    """

    items: Ints
    liking: Floats
    suits: Bools

    @classmethod
    def of(cls, catalogue: Catalogue, people: People, users: Ints, items: Ints) -> Pairs:
        """The pairs of ``users`` and ``items``."""
        liking = np.sqrt(catalogue.affinity(people.tastes, users, items))
        return cls(items, liking, catalogue.style[items] == people.style[users])


def click_chance(
    pairs: Pairs, catalogue: Catalogue, pull: Floats, about: Ints | None, seen: npt.NDArray[np.uint8] | None
) -> Floats:  # fmt: skip
    """The chance of a click of each pair, in (0, 1), if the item stood first in a list.

    ``pull`` is that of :func:`draw`, ``about`` the topics of the visits. ``seen``: how often the person saw it without a click,
    ``CONSUMED``: they clicked it before.
    """
    items = pairs.items
    logit = _TASTE * pairs.liking + (pull[items] + _BIAS)
    logit += _STYLE * pairs.suits
    if about is not None:
        logit += _ABOUT * (catalogue.topic[items] == about)
    if seen is not None:
        logit -= np.where(seen == CONSUMED, _CONSUMED, _TIRED * np.minimum(seen, _MOST_TIRED))
    return logistic(logit)


def utility(pairs: Pairs, catalogue: Catalogue) -> Floats:
    """What a click of each pair is worth to the person, in (0, 1)."""
    of_item = _WORTH_BIAS + _WORTH_QUALITY * catalogue.quality + _WORTH_LURE * catalogue.lure
    return logistic(_WORTH_TASTE * pairs.liking + of_item[pairs.items] + _WORTH_STYLE * pairs.suits)


def respond(rng: np.random.Generator, chance: Floats, shown: Bools | None = None) -> dict[int, Bools]:
    """What follows impressions with these click chances: a mask of the same shape for each event type."""
    clicked = rng.random(chance.shape) < chance
    follows = rng.random((len(_FOLLOWS), *chance.shape))
    skipped = ~clicked & (rng.random(chance.shape) < _SKIP)
    return {
        CLICK: clicked,
        VIEW: clicked & (follows[0] < _FOLLOWS[0]),
        LIKE: clicked & (follows[1] < _FOLLOWS[1]),
        PURCHASE: clicked & (follows[2] < _FOLLOWS[2]),
        SKIP: skipped if shown is None else skipped & shown,
    }


def delays(rng: np.random.Generator, count: int) -> Ints:
    """Milliseconds from the list to a response, (event types, count): a view follows its click, and so on."""
    click = 1_500 + rng.exponential(4_000, count)
    out = np.zeros((len(EVENT_TYPES), count))
    out[CLICK], out[SKIP] = click, click
    out[VIEW] = click + 5_000
    out[LIKE] = click + 8_000
    out[PURCHASE] = click + 15_000
    return out.astype(np.int64)


def drawn_topics(rng: np.random.Generator, cumulative: Floats) -> Ints:
    """One column index a row, drawn from rows of cumulative chances (n, c)."""
    drawn = rng.random((len(cumulative), 1)) * cumulative[:, -1:]
    return np.asarray(np.minimum((cumulative <= drawn).sum(axis=1), cumulative.shape[1] - 1))


class Seen:
    """How often each user has seen each item without clicking it, in a table of ``2**bits`` bytes.

    Two pairs rarely share a place; where they do, a user is tired of an item a little early.
    """

    def __init__(self, bits: int = 24) -> None:
        self._mask = (1 << bits) - 1
        self._times = np.zeros(1 << bits, np.uint8)

    def keys(self, users: Ints, items: Ints) -> Ints:
        """Places in the table."""
        return ((users * 2_654_435_761 + items * 40_503_011) >> 7) & self._mask

    def times(self, keys: Ints) -> npt.NDArray[np.uint8]:
        """How often; ``CONSUMED``: clicked."""
        return self._times[keys]

    def note(self, keys: Ints, clicked: Bools) -> None:
        """Each of ``keys`` was seen once more, and some clicked; both of one shape."""
        times = self._times[keys]
        self._times[keys] = np.where(clicked, CONSUMED, np.where(times >= CONSUMED - 1, times, times + 1))
