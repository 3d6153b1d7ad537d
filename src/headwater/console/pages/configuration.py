"""The configuration that is in force: what differs from the defaults, and the path of a request under it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
from litestar import Response, get
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct

from headwater.console.desk import Call, Desk, Entry
from headwater.console.guard import ROOT
from headwater.schema.config import Config

CONFIGURATION = f"{ROOT}/configuration"
ENTRIES: tuple[Entry, ...] = (Entry(CONFIGURATION, "Configuration", "Manage"),)
HIDDEN = "•••"
_SECRET = re.compile(r"password|secret|token|api_key|credential", re.IGNORECASE)
_WHOLE_URLS = ("monitoring.webhooks",)  # what stands in the path of a webhook is its key


class Line(Struct, frozen=True):
    """A key with its value, and what it is without a configuration ("" where there is no such entry)."""

    key: str
    value: str
    default: str

    @property
    def differs(self) -> bool:
        """Whether somebody set it to something else."""
        return self.value != self.default


def routes(desk: Desk) -> list[HTTPRouteHandler]:
    """The page."""

    @get(CONFIGURATION)
    async def configuration(request: Call) -> Response[str]:
        config = desk.planes.config()
        sections: dict[str, list[Line]] = {}
        for line in lines_of(config):
            sections.setdefault(re.split(r"[.\[]", line.key)[0], []).append(line)
        return desk.page(
            request, "admin/configuration.html", sections=sections, pipeline=desk.planes.pipeline(), plan=desk.planes.plan,
            file=shown_path(desk.planes.config_path), data=shown_path(desk.data),
            differing=sum(line.differs for lines in sections.values() for line in lines),
        )  # fmt: skip

    return [configuration]


def lines_of(config: Config) -> list[Line]:
    """Every key of ``config`` in order, secrets masked."""
    plain = dict(_flat(msgspec.to_builtins(Config()), ""))
    return [
        Line(key, _shown(key, value), _shown(key, plain[key]) if key in plain else "")
        for key, value in _flat(msgspec.to_builtins(config), "")
    ]


def shown_path(path: Path | None) -> str:
    """A path as seen from where the server runs; of one elsewhere its last two parts: where a machine keeps things is nobody's business."""
    if path is None:
        return ""
    whole = path.resolve()
    try:
        return str(whole.relative_to(Path.cwd()))
    except ValueError:
        return str(Path("…", *whole.parts[-2:]))


def _flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple) and any(isinstance(inner, dict) for inner in value):
        for at, inner in enumerate(value):
            said = inner.get("name", at) if isinstance(inner, dict) else at
            yield from _flat(inner, f"{key}[{said}]")
    else:
        yield key, value


def _shown(key: str, value: Any) -> str:
    if value is None:
        return "(not set)"
    if value and _SECRET.search(key.rpartition(".")[2]) and not isinstance(value, int | float):
        return HIDDEN
    if isinstance(value, list | tuple):
        return ", ".join(_shown(key, inner) for inner in value) or "(none)"
    if isinstance(value, dict):
        return "(none)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and "://" in value:
        return _masked(value, whole=key.startswith(_WHOLE_URLS))
    if isinstance(value, str) and value.startswith("/"):
        return shown_path(Path(value))
    return str(value) if value != "" else '""'


def _masked(url: str, *, whole: bool) -> str:
    """``url`` without what opens it: user and password, and of a ``whole`` secret all behind the host."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        place = f"[{host}]" if ":" in host else host
        if parts.port:
            place = f"{place}:{parts.port}"
    except ValueError:
        return HIDDEN
    user = f"{HIDDEN}@" if "@" in parts.netloc else ""
    if whole:
        return f"{parts.scheme}://{user}{place}/{HIDDEN}"
    return f"{parts.scheme}://{user}{place}{parts.path}{f'?{HIDDEN}' if parts.query else ''}"
