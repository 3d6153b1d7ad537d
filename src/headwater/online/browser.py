"""The script that pages load, and what a call with a public key may hold (see ``docs/browser.md``)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from importlib import resources

from litestar import Request, Response, get
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler

from headwater.log.protocol import Vocabulary
from headwater.log.record import Namespace
from headwater.online.errors import RefusalError
from headwater.online.limits import Check
from headwater.schema.events import Event
from headwater.schema.users import ANONYMOUS, Joined

SCRIPT_MAX_AGE_S = 3_600
MAX_PUBLIC_BODY = 65_536
"""Bytes of a body with a public key: what browsers let a page send that is being left."""

_TEXTS = re.compile(r"('[^'\n]*'|`[^`]*`)")
_SPACED_SIGN = re.compile(r" ?([^\w\s$]) ?")
_anonymous = re.compile(ANONYMOUS)


def script() -> bytes:
    """``headwater.js`` as it is served: without the comments of its source, and without spaces where signs stand."""
    source = resources.files("headwater.online").joinpath("headwater.js").read_text(encoding="utf-8")
    lines = [line.strip() for line in source.splitlines()]
    code = _TEXTS.split("\n".join(line for line in lines if line and not line.startswith("//")))
    code[::2] = [_SPACED_SIGN.sub(r"\1", part) for part in code[::2]]
    return "".join([*code, "\n"]).encode()


def browser_routes() -> list[HTTPRouteHandler]:
    """The route of the script."""
    body = script()
    tag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
    headers = {
        "etag": tag,
        "cache-control": f"public, max-age={SCRIPT_MAX_AGE_S}",
        "cross-origin-resource-policy": "cross-origin",
        "x-content-type-options": "nosniff",
    }

    @get("/v1/headwater.js")
    async def headwater_js(request: Request[None, None, State]) -> Response[bytes]:
        if request.headers.get("if-none-match") == tag:
            return Response(b"", status_code=304, headers=headers)
        return Response(body, headers=headers, media_type="text/javascript")

    return [headwater_js]


def check_public_body(body: bytes) -> None:
    """Raises :class:`RefusalError` 413 for more bytes than a call with a public key may have."""
    if len(body) > MAX_PUBLIC_BODY:
        raise RefusalError(
            413, f"Expected at most {MAX_PUBLIC_BODY} bytes with a public key; send smaller batches", "$"
        )


def check_public_events(events: list[Event]) -> None:
    """Raises :class:`RefusalError` 400 for events of more than one user: a page has one visitor."""
    if any(event.user != events[0].user for event in events):
        raise RefusalError(400, "Expected events of one user with a public key", "user")


def check_public_login(joined: Joined) -> None:
    """Raises :class:`RefusalError` 400 for what may be another person's id: joining it would show and take their history."""
    if _anonymous.fullmatch(joined.anonymous) is None:
        raise RefusalError(
            400,
            'Expected an id such as the script makes with a public key: "anon-" and 32 hexadecimal digits',
            "anonymous",
        )


def public_check(vocabulary: Callable[[], Vocabulary]) -> Check:
    """Refuses what a stranger's event must not say: a time, a number that sums, a retraction, an item that nobody knows.

    An item that is not known would get a number and a row.
    """

    def why(event: Event) -> tuple[str, str] | None:
        for field, said in (("time", event.time), ("value", event.value), ("retract", event.retract or None)):
            if said is not None:
                return field, f"`{field}` takes a key that is not public"
        if vocabulary().index(Namespace.ITEM, event.item) == 0:
            return "item", "There is no item of that id"
        return None

    return why
