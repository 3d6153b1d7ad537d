"""What every change from a page has in common: its form, what refuses it, and what is said when it is done."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs

from litestar import Response
from litestar.exceptions import HTTPException

from headwater.console.desk import HTML, Call
from headwater.schema.errors import HeadwaterError

MAX_REASON = 500


class RefusedError(HTTPException):
    """A change that is not made; ``detail`` says why."""

    status_code = 409


class Form:
    """The fields of a form that was sent, as text; of one that came several times the first."""

    def __init__(self, fields: dict[str, list[str]]) -> None:
        self._fields = fields

    def get(self, name: str, otherwise: str = "") -> str:
        """The field without blanks around it."""
        return self._fields.get(name, [otherwise])[0].strip()

    def text(self, name: str) -> str:
        """A field of several lines, as it was typed, with the line ends of this system."""
        return self._fields.get(name, [""])[0].replace("\r\n", "\n")

    def all(self, name: str) -> list[str]:
        """Every value of a field that may be given several times."""
        return self._fields.get(name, [])

    @property
    def reason(self) -> str:
        """Why, in the words of whoever changes something.

        Raises:
            RefusedError: nothing was said, or a novel.
        """
        said = self.get("reason")
        if not said:
            raise RefusedError("Say why: the reason goes into the audit log")
        if len(said) > MAX_REASON:
            raise RefusedError(f"Say it in {MAX_REASON} characters")
        return said


async def form_of(request: Call) -> Form:
    """What was sent with ``request``."""
    return Form(parse_qs((await request.body()).decode("utf-8", "replace"), keep_blank_values=True))


@contextmanager
def refusing() -> Iterator[None]:
    """What cannot be done is told to whoever asked, and is no failure of the page."""
    try:
        yield
    except HeadwaterError as error:
        raise RefusedError(str(error)) from error


def done(said: str, body: str = "", *, headers: dict[str, str] | None = None) -> Response[str]:
    """The answer to a change: a message, and the parts of the page that show what was changed load again."""
    event = json.dumps({"headwater:done": said, "headwater:changed": ""})
    return Response(body, status_code=200, media_type=HTML, headers={"hx-trigger": event, **(headers or {})})
