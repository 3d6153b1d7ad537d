"""Where URLs of the configuration may lead: to this machine, or to a host that is named."""

from __future__ import annotations

import pytest

from headwater.schema.config import parse_config
from headwater.schema.errors import ConfigurationError


@pytest.mark.parametrize(
    ("key", "url"),
    [
        ("state.url", "redis://localhost:6379/0"),
        ("state.url", "rediss://:secret@127.0.0.9/0"),
        ("state.url", "redis://[::1]:6379"),
        ("state.url", "unix:///run/redis.sock"),
        ("state.url", "redis:///0"),
        ("ranker.remote", ""),
        ("ranker.remote", "http://127.0.0.1:8081/v2/models/headwater"),
        ("ranker.remote", "https://localhost/ranking/v2/models/a-b.c_d"),
    ],
)
def test_this_machine_needs_no_permission(key: str, url: str) -> None:
    table, name = key.split(".")
    assert getattr(getattr(parse_config(f'[{table}]\n{name} = "{url}"'), table), name) == url


@pytest.mark.parametrize(
    ("key", "url", "host"),
    [
        ("state.url", "redis://me:secret@cache.internal:6379/0", "cache.internal"),
        ("state.url", "rediss://10.0.0.1", "10.0.0.1"),
        ("state.url", "redis:///0?host=cache.internal", "cache.internal"),
        ("state.url", "redis://127.0.0.1.nip.io/0", "127.0.0.1.nip.io"),
        ("state.url", "redis://2130706433/0", "2130706433"),
        ("ranker.remote", "http://ranker:8081/v2/models/headwater", "ranker"),
        ("ranker.remote", "http://169.254.169.254/v2/models/headwater", "169.254.169.254"),
    ],
)
def test_other_hosts_have_to_be_named(key: str, url: str, host: str) -> None:
    table, name = key.split(".")
    text = f'[{table}]\n{name} = "{url}"\n'
    with pytest.raises(ConfigurationError, match=rf'my\.toml: {key}: "{host}" is not an allowed host') as caught:
        parse_config(text, "my.toml")
    assert "secret" not in str(caught.value)
    assert parse_config(f'{text}[limits]\nhosts = ["{host}"]').limits.hosts == (host,)
    with pytest.raises(ConfigurationError, match="not an allowed host"):
        parse_config(f'{text}[limits]\nhosts = ["other"]')


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1/v2/models/a", "http:///v2/models/a", "http://127.0.0.1:8081", "http://127.0.0.1/v2/models/",
        "http://me:secret@127.0.0.1/v2/models/a", "http://127.0.0.1/v2/models/a?x=1", "http://127.0.0.1/v2/models/a/../b",
        "file:///etc/passwd", "http://127.0.0.1\\\\@evil/v2/models/a",
    ],
)  # fmt: skip
def test_a_remote_ranker_is_the_url_of_a_model(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"my\.toml: ranker\.remote: Expected the URL of a model"):
        parse_config(f'[ranker]\nremote = "{url}"', "my.toml")


def test_a_port_has_to_be_one() -> None:
    with pytest.raises(ConfigurationError, match=r"ranker\.remote: Expected a host and a port that is a number"):
        parse_config('[ranker]\nremote = "http://127.0.0.1:http/v2/models/a"')
