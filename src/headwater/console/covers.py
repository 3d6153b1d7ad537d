"""Covers of items that have no picture: drawn from id, title and first category, the same ones each time."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from urllib.parse import urlencode
from xml.sax.saxutils import escape

from headwater.console.guard import ROOT
from headwater.schema.seen import Card

PATH = f"{ROOT}/cover.svg"
SIZE = 96
_GOLDEN = 137.508  # degrees: neighbouring numbers get hues far apart


class _Dice:
    """Numbers from a text, always the same ones."""

    def __init__(self, text: str) -> None:
        self._bytes = iter(hashlib.shake_128(text.encode()).digest(96))

    def __call__(self, low: float, high: float) -> float:
        return low + (high - low) * next(self._bytes) / 255.0

    def one_of(self, count: int) -> int:
        return next(self._bytes) % count


def cover(card: Card) -> str:
    """The address of the picture of ``card``; it holds all that the picture is made of, so that a browser may keep it."""
    return (
        f"{PATH}?{urlencode({'id': card.id, 'title': card.title, 'of': card.categories[0] if card.categories else ''})}"
    )


def drawn(item: str, title: str, theme: str) -> str:
    """The picture as SVG. Items of a ``theme`` share a colour, the figure and the letters are the item's own."""
    hue = _GOLDEN * int.from_bytes(hashlib.blake2b((theme or item).encode(), digest_size=2).digest()) % 360.0
    dice = _Dice(item)
    near = hue + dice(-18, 18)
    figure = (_circles, _waves, _peaks, _tiles)[dice.one_of(4)](dice, near)
    letters = escape(_letters(title))
    size = 34 if len(letters) < 3 else 26
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {SIZE} {SIZE}'>"
        f"<defs><linearGradient id='g' x1='0' y1='0' x2='1' y2='1'><stop offset='0' stop-color='{_colour(near, 52, 40)}'/>"
        f"<stop offset='1' stop-color='{_colour(near + 40, 58, 24)}'/></linearGradient></defs>"
        f"<rect width='{SIZE}' height='{SIZE}' fill='url(#g)'/>{''.join(figure)}"
        f"<text x='9' y='{SIZE - 11}' font-family='system-ui,sans-serif' font-size='{size}' font-weight='700' fill='#fff' "
        f"fill-opacity='.94'>{letters}</text></svg>"
    )


def _letters(title: str) -> str:
    words = [word for word in title.replace("-", " ").split() if word[0].isalnum()]
    if words and words[-1].isdigit():
        return words[-1][-4:]
    return "".join(word[0] for word in words[:2]).upper() or "?"


def _colour(hue: float, saturation: float, lightness: float) -> str:
    return f"hsl({hue % 360:.0f} {saturation:.0f}% {lightness:.0f}%)"


def _circles(dice: _Dice, hue: float) -> Iterator[str]:
    x, y = dice(40, 90), dice(8, 48)
    for ring in range(5, 0, -1):
        yield (
            f"<circle cx='{x:.0f}' cy='{y:.0f}' r='{9 * ring}' fill='{_colour(hue + 24 * ring, 62, 34 + 7 * ring)}' "
            "fill-opacity='.55'/>"
        )


def _waves(dice: _Dice, hue: float) -> Iterator[str]:
    height = dice(6, 15)
    for band in range(4):
        base = 22 + 15 * band
        points = " ".join(
            f"{x},{base + height * math.sin(x / dice_width + 1.7 * band):.1f}"
            for dice_width in (dice(9, 20),)
            for x in range(0, SIZE + 1, 6)
        )
        yield (
            f"<polygon points='0,{SIZE} {points} {SIZE},{SIZE}' fill='{_colour(hue + 22 * band, 60, 52 - 8 * band)}' fill-opacity='.6'/>"
        )


def _peaks(dice: _Dice, hue: float) -> Iterator[str]:
    yield f"<circle cx='{dice(20, 76):.0f}' cy='{dice(14, 34):.0f}' r='{dice(7, 12):.0f}' fill='{_colour(hue + 150, 75, 78)}'/>"
    for peak in range(3):
        middle, top = dice(6, 90), dice(24, 52) + 8 * peak
        wide = dice(34, 62)
        yield (
            f"<polygon points='{middle - wide:.0f},{SIZE} {middle:.0f},{top:.0f} {middle + wide:.0f},{SIZE}' "
            f"fill='{_colour(hue + 18 * peak, 50, 46 - 9 * peak)}' fill-opacity='.75'/>"
        )


def _tiles(dice: _Dice, hue: float) -> Iterator[str]:
    for row in range(4):
        for column in range(4):
            if dice.one_of(3):
                yield (
                    f"<rect x='{24 * column + 2}' y='{24 * row + 2}' width='20' height='20' rx='{10 * dice.one_of(2) + 2}' "
                    f"fill='{_colour(hue + 10 * (row + column), 58, dice(34, 62))}' fill-opacity='.6'/>"
                )
