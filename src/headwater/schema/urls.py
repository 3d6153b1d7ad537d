"""URLs of the configuration: of a known scheme, and leading to this machine or a host that is allowed by name."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Sequence
from urllib.parse import parse_qs, urlsplit

from headwater.schema.errors import ConfigurationError

STATE_SCHEMES = ("redis://", "rediss://", "unix://")
REMOTE = r"^(https?://[^/?#@\\]+(/[^?#@]*)?/v2/models/[A-Za-z0-9_.\-]+)?$"
"""The URL of a model behind the Open Inference Protocol, or nothing."""


def check_url(key: str, url: str, schemes: Sequence[str]) -> None:
    """Raises :class:`ConfigurationError`: another scheme, or no host and port. What stands there may hold a password, so it
    is not repeated.
    """
    if not url.startswith(tuple(schemes)):
        raise ConfigurationError(f"{key}: Expected a URL that starts with {', '.join(schemes)}")
    try:
        urlsplit(url).port  # noqa: B018  (asking is what fails)
    except ValueError:
        hint = "write / : @ # ? in a password as %2F %3A %40 %23 %3F"
        raise ConfigurationError(f"{key}: Expected a host and a port that is a number; {hint}") from None


def check_host(key: str, url: str, hosts: Sequence[str]) -> None:
    """Raises :class:`ConfigurationError`: ``url`` leads to neither this machine nor one of ``hosts``."""
    parts = urlsplit(url)
    named = [parts.hostname] if parts.hostname else parse_qs(parts.query).get("host", [])  # as Redis's client does
    for host in named:
        if host not in hosts and not is_local(host):
            raise ConfigurationError(
                f'{key}: "{host}" is not an allowed host; name it in limits.hosts if this server shall connect to it'
            )


def name_in(host: str) -> str:
    """The name or address in a ``Host`` header, without the port and in lower case; empty where there is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # a bracket without its other half
        return ""


def is_known_host(host: str, names: Collection[str]) -> bool:
    """Whether a ``Host`` header names this machine, or one of ``names``."""
    name = name_in(host)
    return is_local(name) or name in names


def is_local(name: str) -> bool:
    """Whether a host's name or address always is this machine."""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:  # a name
        return False
