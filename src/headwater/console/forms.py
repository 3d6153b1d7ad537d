"""What a form or a query says, read strictly enough for a page."""

from __future__ import annotations

from urllib.parse import parse_qs, unquote

from headwater.console.desk import Call, NotFoundError


async def form_of(request: Call) -> dict[str, str]:
    """The fields of a posted form; of one that comes twice the last."""
    told = parse_qs((await request.body()).decode("utf-8", "replace"), keep_blank_values=True)
    return {name: values[-1].strip() for name, values in told.items()}


def asked(request: Call, name: str, default: str = "") -> str:
    """A field of the query string."""
    told: str = request.query_params.get(name, default)
    return told.strip()


def number(text: str, default: int) -> int:
    """``text`` as a whole number from 0 on; ``default`` where it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else default


def id_behind(request: Call, prefix: str) -> str:
    """The id at the end of the path, decoded once, so that it may hold a slash. Raises :class:`NotFoundError`: the path is written otherwise."""
    raw: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    path = raw.decode("latin-1").partition("?")[0]
    if prefix not in path:  # somebody quoted letters that need none
        raise NotFoundError("There is no such page")
    return unquote(path[path.index(prefix) + len(prefix) :])
