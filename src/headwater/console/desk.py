"""What every page of the console is given, and how it is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from jinja2 import Environment, PackageLoader, StrictUndefined
from litestar import Request, Response
from litestar.datastructures import State
from litestar.exceptions import HTTPException

from headwater import __version__
from headwater.console.apart import Apart
from headwater.console.covers import cover
from headwater.console.guard import VISITOR
from headwater.console.looks import Looks
from headwater.console.planes import Planes
from headwater.console.seeing import Past, Play
from headwater.console.seeing import Planes as Pulses
from headwater.console.sessions import Keys, Sessions, Visitor
from headwater.console.words import FILTERS
from headwater.schema.config import Config

Call = Request[Any, Any, State]
HTML = "text/html"


class Live(Protocol):
    """What the console asks of the running server; ``online`` has it."""

    @property
    def play(self) -> Play:
        """Lists on demand."""
        ...

    @property
    def past(self) -> Past:
        """Lists of the log."""
        ...

    @property
    def planes(self) -> Pulses:
        """How the planes are."""
        ...

    def health(self) -> Mapping[str, Any]:
        """What ``/healthz`` says."""
        ...

    async def why_not_ready(self) -> list[str]:
        """What ``/readyz`` says: reasons, none when all is well."""
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """A page in the navigation: its path below ``/console``, its title, and the group that it stands in."""

    path: str
    title: str
    group: str


@dataclass(frozen=True, slots=True)
class Desk:
    """The console of one worker. ``clock`` is the log's, in Unix ms; ``wall`` the wall's, by which sessions end."""

    data: Path
    config: Config
    clock: Callable[[], int]
    wall: Callable[[], int]
    keys: Keys
    sessions: Sessions
    live: Live
    planes: Planes
    entries: tuple[Entry, ...] = ()
    templates: Environment = field(default_factory=lambda: _templates())
    apart: Apart = field(default_factory=Apart)

    @property
    def looks(self) -> Looks:
        """Users, items and features as the server sees them."""
        return self.planes.looks

    def page(self, request: Call, template: str, *, status: int = 200, **values: Any) -> Response[str]:
        """A whole page, or for htmx what stands in its frame."""
        return Response(self.text(request, template, **values), status_code=status, media_type=HTML)

    def text(self, request: Call, template: str, **values: Any) -> str:
        """What ``template`` makes of ``values``."""
        return self.templates.get_template(template).render(
            values, visitor=visitor_of(request), entries=self.entries, here=request.scope["path"], version=__version__
        )


def visitor_of(request: Call) -> Visitor | None:
    """Who asks; None on the page where one logs in."""
    found: Visitor | None = request.scope["state"].get(VISITOR)
    return found


def changer_of(request: Call) -> str:
    """How the audit log names whoever changes something here."""
    visitor = visitor_of(request)
    assert visitor is not None, "the guard lets nobody through without a session"  # noqa: S101
    return visitor.by


class NotFoundError(HTTPException):
    """A page about something that is not there; ``detail`` says what, and what to do."""

    status_code = 404


def _templates() -> Environment:
    made = Environment(
        loader=PackageLoader("headwater.console", "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters.update(FILTERS, cover=cover)
    return made
