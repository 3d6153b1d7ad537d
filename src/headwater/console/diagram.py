"""The data flow as a picture: the three planes with the figures of the moment, drawn from what the request path says of itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

from headwater.console.verdicts import FULL_BAD, FULL_GOOD, LAG_BAD, LAG_WARN
from headwater.console.watching import Watching
from headwater.console.words import age, number
from headwater.schema.seen import Pulse

WIDTH, HEIGHT = 1120, 442
_STAGE_TOP, _STAGE_LEFT, _STAGE_WIDTH, _PITCH = 214, 170, 72, 80
_STAGE_HEIGHT = 66
_WORDS = {
    "hydrate": "user row", "fetch": "candidates", "eligibility": "eligible", "assemble": "features", "light_rank": "light rank",
    "deep_rank": "ranker", "value": "order", "policy": "policy", "respond": "reasons", "log": "record",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Box:
    """A part of the system: what it is called, its figure, and a line about it. ``title`` is said on hover and by screen readers."""

    x: float
    y: float
    width: float
    height: float
    name: str
    value: str
    note: str = ""
    tone: str = ""
    title: str = ""
    small: bool = False


@dataclass(frozen=True, slots=True)
class Flow:
    """What goes from one part to another: its way, and how lively (0: nothing goes, 3: much)."""

    way: str
    speed: int
    label: str = ""
    x: float = 0.0
    y: float = 0.0


@dataclass(frozen=True, slots=True)
class Diagram:
    """All of it, and the lanes that it stands in: (y, height, name)."""

    lanes: list[tuple[float, float, str]]
    boxes: list[Box]
    flows: list[Flow]
    said: str


def diagram(
    pulse: Pulse, *, wall_ms: int, writer_away: bool, fold_away: bool, bundles: int, watching: Watching
) -> Diagram:
    """The picture of ``pulse``; ``wall_ms`` is the time by which bundles are made."""
    model_age = None if pulse.model_ms is None else max(0, wall_ms - pulse.model_ms)
    lag = "bad" if fold_away or pulse.lag > LAG_BAD else "warn" if pulse.lag > LAG_WARN else "good"
    top, middle, bottom = _STAGE_TOP, _STAGE_TOP + _STAGE_HEIGHT // 2, _STAGE_TOP + _STAGE_HEIGHT
    boxes = [
        Box(20, 40, 168, 92, "Events, items, users", _rate(pulse.events_s), _sent(pulse), "warn" if pulse.rejected_s else ""),
        Box(288, 40, 190, 92, "Event log", f"{pulse.log_offset:,}", "the writer is away" if writer_away else "records, each durable",
            "bad" if writer_away else "good"),
        Box(578, 40, 190, 92, "Fold", "away" if fold_away else f"{pulse.lag:,} behind", f"items moved {age(1e3 * pulse.epoch_age_s)} ago", lag),
        Box(868, 40, 232, 92, "State", f"{pulse.items:,} items", "user rows and item columns"),
        Box(20, top, 118, _STAGE_HEIGHT, "Requests", _rate(pulse.answers_s), tone="bad" if pulse.shed_s else "", small=True,
            title=f"{_rate(pulse.shed_s)} are turned away"),
        *_stages(pulse),
        Box(984, top, 118, _STAGE_HEIGHT, "Full path", _full(pulse), tone=_tone_of(pulse), small=True, title=_tiers(pulse)),
        Box(288, 330, 190, 92, "Replay, train, evaluate", f"{bundles} bundle{'' if bundles == 1 else 's'}", "as the log knew it then"),
        Box(578, 330, 190, 92, "Bundle in service", "none" if not pulse.model else "?" if model_age is None else f"{age(model_age)} old",
            pulse.model.rpartition("-")[2] if pulse.model else "the order of the sources", "" if pulse.model else "warn"),
        _monitor(watching),
    ]  # fmt: skip
    last = _stage_x(len(pulse.stages) - 1)
    ranker = next((at for at, stage in enumerate(pulse.stages) if stage[0] == "deep_rank"), len(pulse.stages) // 2)
    between = _stage_x(2) - (_PITCH - _STAGE_WIDTH) / 2
    loaded = 1 if pulse.model else 0
    flows = [
        Flow("M188 86 H288", _speed(pulse.events_s), _rate(pulse.events_s), 236, 78),
        Flow("M478 86 H578", _speed(_sum(pulse.events_s, pulse.served_s)), "each commit", 526, 78),
        Flow("M768 86 H868", _speed(pulse.events_s), "rows", 816, 78),
        Flow(f"M984 132 V172 H{_stage_x(0) + 36} V{top}", _speed(pulse.answers_s)),
        Flow(f"M138 {middle} H{_STAGE_LEFT}", _speed(pulse.answers_s)),
        Flow(f"M{last + _STAGE_WIDTH} {middle} H984", _speed(pulse.answers_s)),
        Flow(
            f"M{last + 36} {top} V192 H440 V132",
            _speed(pulse.served_s),
            f"served lists {_rate(pulse.served_s)}",
            660,
            187,
        ),
        Flow(f"M{between} 132 V330", loaded),
        Flow("M478 376 H578", loaded, "gate", 526, 368),
        Flow(f"M673 330 V300 H{_stage_x(ranker) + 36} V{bottom}", loaded),
        Flow(f"M1010 {bottom} V330", 1 if watching.looks else 0),
    ]
    said = (
        f"Events come in at {_rate(pulse.events_s)}, the fold is {pulse.lag} records behind, answers go out at {_rate(pulse.answers_s)}; "
        f"{_tiers(pulse)}. {watching.catching_up}"
    ).rstrip()
    lanes = [(10.0, 134.0, "Nearline"), (150.0, 150.0, "Online"), (308.0, 126.0, "Offline")]
    return Diagram(lanes, boxes, flows, said)


def _monitor(watching: Watching) -> Box:
    firing = watching.firing or []
    value, note, tone = "looks", "nothing is firing", "good"
    if watching.firing is None:
        value, note, tone = "off", "nobody watches", ""
    elif watching.late:
        value, note, tone = "stopped", "nobody watches", "bad"
    elif watching.behind:
        value, tone = f"{age(1e3 * max(watching.behind.values()))} behind", "warn"
        note = "some alerts wait for it"
    if watching.looks and firing:
        note = f"{len(firing)} {'alert fires' if len(firing) == 1 else 'alerts fire'}"
        tone = "bad" if firing[0].severity == "critical" else "warn"
    return Box(868, 330, 232, 92, "Monitor", value, note, tone, watching.catching_up)


def _stages(pulse: Pulse) -> list[Box]:
    slowest = max((ms for _, _, ms in pulse.stages if ms is not None), default=0.0)
    return [
        Box(
            _stage_x(at), _STAGE_TOP, _STAGE_WIDTH, _STAGE_HEIGHT, _WORDS.get(name, name), "–" if ms is None else f"{ms:.2f} ms" if ms < 10.0 else f"{ms:.1f} ms",
            tone="hot" if ms and ms == slowest else "", title=does, small=True,
        )
        for at, (name, does, ms) in enumerate(pulse.stages)
    ]  # fmt: skip


def _stage_x(at: int) -> float:
    return _STAGE_LEFT + at * _PITCH


def _rate(per_s: float | None) -> str:
    return "–" if per_s is None else f"{number(per_s)}/s"


def _speed(per_s: float | None) -> int:
    return 0 if not per_s else 1 if per_s < 5 else 2 if per_s < 100 else 3


def _sum(*rates: float | None) -> float:
    return math.fsum(rate or 0.0 for rate in rates)


def _sent(pulse: Pulse) -> str:
    if pulse.rejected_s:
        return f"{_rate(pulse.rejected_s)} refused"
    return f"items and users {_rate(pulse.other_s)}"


def _full(pulse: Pulse) -> str:
    return f"{100 * pulse.tiers[0]:.3g}%" if sum(pulse.tiers) else "–"


def _tiers(pulse: Pulse) -> str:
    return f"{100 * pulse.tiers[0]:.3g}% of the full path" if sum(pulse.tiers) else "no answer lately"


def _tone_of(pulse: Pulse) -> str:
    if not sum(pulse.tiers):
        return ""
    return "good" if pulse.tiers[0] >= FULL_GOOD else "warn" if pulse.tiers[0] >= FULL_BAD else "bad"
