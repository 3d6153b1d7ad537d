"""Small worlds whose right answers are known: a log, its fold, and what the sources see of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headwater.features.assemble import stranger
from headwater.features.fold import Fold
from headwater.features.plan import Plan, compile_plan
from headwater.features.rows import User
from headwater.retrieval.index import Ranked
from headwater.retrieval.sources import Asked
from headwater.schema.config import Config
from headwater.schema.events import Event
from headwater.serving.view import FoldView
from headwater.testing.events import START_MS, Step, Written

MINUTE_MS = 60_000
HOUR_MS = 3_600_000


@dataclass(slots=True)
class World:
    """A log that is folded as it is written."""

    log: Written
    plan: Plan
    fold: Fold
    view: FoldView

    @property
    def now_ms(self) -> int:
        return self.log.now_ms

    def add(self, *steps: Step) -> World:
        """Append, fold, and let the view take it over."""
        self.log.add(steps)
        while (block := self.log.log.read(self.fold.offset)) is not None:
            self.fold.apply(block)
        self.view.refresh()
        return self

    def user(self, name: str) -> User:
        """A copy of a user's row; a stranger's for a name that is not known."""
        row = stranger(self.plan)
        self.view.read_user(self.log.user(name), row)
        return row

    def asked(self, user: str = "", segments: tuple[int, int] = (0, 0), *, later_ms: int = 0) -> Asked:
        return Asked(self.user(user), segments, self.now_ms + later_ms)

    def names(self, ranked: Ranked) -> list[str]:
        return self.log.names(ranked.items.tolist())


def world(*steps: Step, config: Config | None = None) -> World:
    """The world after ``steps``."""
    config = config or Config()
    plan = compile_plan(config)
    fold = Fold(plan)
    return World(Written(config), plan, fold, FoldView(plan, fold)).add(*steps)


def clicks(
    *pairs: tuple[str, str], at_ms: int = START_MS, kind: str = "click", attributes: dict[str, str] | None = None
) -> Step:
    """(user, item) pairs, all at ``at_ms``."""
    events = [
        Event(user=user, item=item, type=kind, attributes=dict(attributes) if attributes else None)
        for user, item in pairs
    ]
    return Step(at_ms, events)


def many(item: str, count: int, prefix: str = "x") -> Sequence[tuple[str, str]]:
    """``count`` different people and the same item."""
    return [(f"{prefix}{n}", item) for n in range(count)]
