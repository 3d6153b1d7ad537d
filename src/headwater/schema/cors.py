"""``[cors]``: which pages may call the server from a browser."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from msgspec import Meta, Struct

from headwater.schema.errors import ConfigurationError

_DEFAULT_PORTS = {"http": 80, "https": 443}


class Cors(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Pages of ``origins`` may call the server from a browser; no others, and by default there are none.

    Each is exact, as browsers send it in ``Origin``: scheme, host, and the port when it is not the scheme's own.
    """

    origins: Annotated[tuple[str, ...], Meta(max_length=64)] = ()

    def __post_init__(self) -> None:
        for index, origin in enumerate(self.origins):
            if (hint := _why_no_origin(origin)) is not None:
                raise ConfigurationError(
                    f'cors.origins[{index}]: Expected an origin such as "https://shop.example.org", got "{origin}": {hint}'
                )


def _why_no_origin(text: str) -> str | None:
    """What is wrong with ``text`` as an origin; None: nothing."""
    if "*" in text:
        return "name each origin, there are no patterns"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return "its port is no number, or its host no address"
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        return "it has to begin with http:// or https:// and a host"
    if text != f"{parts.scheme}://{parts.netloc}" or "@" in parts.netloc:
        return "leave out path, user and the slash at the end"
    if text != text.lower() or not text.isascii():
        return "browsers send it in lower case, and hosts of other alphabets as xn--"
    if port == _DEFAULT_PORTS[parts.scheme] or parts.netloc.endswith(":"):
        return "leave out the port of the scheme"
    return None
