"""What can be started alone, and which processes that takes."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path


class Role(StrEnum):
    """What ``headwater serve`` does: everything that serves, or one part of it, beside the other parts."""

    ALL = "all"
    INGEST = "ingest"
    FOLD = "fold"
    RECOMMEND = "recommend"
    LEARN = "learn"
    MONITOR = "monitor"


class Part(StrEnum):
    """What one process below a supervisor does."""

    WRITER = "writer"
    FOLD = "fold"
    API = "api"
    TABLES = "tables"
    LEARNER = "learner"
    MONITOR = "monitor"


PARTS: dict[Role, tuple[Part, ...]] = {
    Role.ALL: (Part.WRITER, Part.FOLD, Part.API, Part.TABLES, Part.MONITOR),
    Role.INGEST: (Part.WRITER, Part.API, Part.TABLES),
    Role.FOLD: (Part.FOLD,),
    Role.RECOMMEND: (Part.API,),
    Role.LEARN: (Part.LEARNER,),
    Role.MONITOR: (Part.MONITOR,),
}
"""``tables`` runs only where the configuration names tables, ``monitor`` beside others only where ``[monitoring]`` is enabled."""

TOGETHER = (Role.INGEST, Role.FOLD, Role.RECOMMEND, Role.MONITOR)
"""The roles that ``all`` takes the place of. It does not learn: training wants cores of its own."""


def home(data: Path, role: Role) -> Path:
    """Where the supervisor of ``role`` keeps what is its own: lock, address, metrics and configuration."""
    return data / "run" if role is Role.ALL else data / "run" / role.value
