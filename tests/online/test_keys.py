"""The file of API keys, the limits of callers and users, and the commands."""

from __future__ import annotations

import json
import os
import stat
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from headwater.cli.main import build_app
from headwater.cli.serve import _check_reach
from headwater.online.keys import add_key, digest_of, id_of_key, read_keys, revoke_key
from headwater.online.limits import HOUR_S, Bucket, EventCaps, Rate, capped
from headwater.schema.config import parse_config
from headwater.schema.errors import ConfigurationError
from headwater.schema.events import Event
from headwater.schema.keys import KEYS_FILE, Scope

# -- the file ----------------------------------------------------------------------------------------------


def test_a_key_is_kept_as_a_hash_in_a_file_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        text, key = add_key(tmp_path, "shop", [Scope.INGEST, Scope.READ, Scope.INGEST], now_ms=5)
    finally:
        os.umask(before)
    path = tmp_path / KEYS_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_keys(tmp_path) == (key,)
    assert key.scopes == (Scope.INGEST, Scope.READ)
    assert digest_of(text.encode()).hex() == key.sha256
    assert id_of_key(text.encode()) == key.id
    stored = path.read_text()
    assert text not in stored
    assert text.split("_", 2)[2] not in stored


def test_keys_have_256_random_bits_of_their_own(tmp_path: Path) -> None:
    asked: list[int] = []

    def entropy(count: int) -> bytes:
        asked.append(count)
        return os.urandom(count)

    texts = {add_key(tmp_path, f"k{i}", [Scope.READ], now_ms=0, entropy=entropy)[0] for i in range(50)}
    assert len({text.split("_", 2)[2] for text in texts}) == 50
    assert asked == [8, 32] * 50


def test_the_text_of_a_key_depends_on_nothing_but_the_entropy(tmp_path: Path) -> None:
    text, key = add_key(tmp_path, "k", [Scope.READ], now_ms=0, entropy=lambda count: b"\xff" * count)
    assert text == "hw_ffffffffffffffff_" + "_" * 42 + "8"
    assert id_of_key(text.encode()) == key.id


def test_a_name_has_one_good_key(tmp_path: Path) -> None:
    add_key(tmp_path, "shop", [Scope.READ], now_ms=0, expires_ms=100)
    with pytest.raises(ConfigurationError, match='"shop" has a key'):
        add_key(tmp_path, "shop", [Scope.READ], now_ms=99)
    _, second = add_key(tmp_path, "shop", [Scope.READ], now_ms=100)
    assert revoke_key(tmp_path, "shop", now_ms=101).id == second.id
    keys = read_keys(tmp_path) or ()
    assert [key.why_invalid(101) for key in keys] == ["has expired", "was revoked"]
    with pytest.raises(ConfigurationError, match='did you mean "shop"'):
        revoke_key(tmp_path, "shp", now_ms=102)
    with pytest.raises(ConfigurationError, match="name"):
        add_key(tmp_path, "two words", [Scope.READ], now_ms=0)
    with pytest.raises(ConfigurationError, match="scopes"):
        add_key(tmp_path, "idle", [], now_ms=0)


def test_a_public_key_has_the_scopes_of_a_page_at_most(tmp_path: Path) -> None:
    _, key = add_key(tmp_path, "page", [Scope.INGEST], now_ms=0, public=True)
    assert read_keys(tmp_path) == (key,)
    assert key.public
    with pytest.raises(ConfigurationError, match="ingest and recommend at most, not read"):
        add_key(tmp_path, "other", [Scope.INGEST, Scope.READ], now_ms=0, public=True)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"format": 2, "keys": []}',
        b'{"keys": [{"id": "0"}]}',
        b'{"keys": [], "more": 1}',
    ],
)
def test_a_broken_file_is_an_error_and_not_the_absence_of_keys(tmp_path: Path, content: bytes) -> None:
    (tmp_path / KEYS_FILE).write_bytes(content)
    with pytest.raises(ConfigurationError, match=KEYS_FILE):
        read_keys(tmp_path)


def test_one_id_stands_once_and_links_are_not_followed(tmp_path: Path) -> None:
    add_key(tmp_path, "k", [Scope.READ], now_ms=0)
    path = tmp_path / KEYS_FILE
    entry = json.loads(path.read_text())["keys"][0]
    path.write_text(json.dumps({"format": 1, "keys": [entry, entry]}))
    with pytest.raises(ConfigurationError, match="same id"):
        read_keys(tmp_path)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="Cannot read"):
        read_keys(tmp_path)


@given(st.binary(max_size=40))
def test_any_text_has_an_id_or_none(text: bytes) -> None:
    assert isinstance(id_of_key(text), str)
    assert id_of_key(b"hw_" + text.replace(b"_", b"") + b"_x") == text.replace(b"_", b"").decode("latin-1")


def test_who_can_be_reached_needs_keys(tmp_path: Path) -> None:
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        _check_reach(host, tmp_path)
    for host in ("0.0.0.0", "::", "192.168.0.7", "example.org"):  # noqa: S104
        with pytest.raises(ConfigurationError, match="headwater keys add"):
            _check_reach(host, tmp_path)
    add_key(tmp_path, "k", [Scope.READ], now_ms=0)
    _check_reach("0.0.0.0", tmp_path)  # noqa: S104
    (tmp_path / KEYS_FILE).write_text("{")
    for host in ("0.0.0.0", "127.0.0.1"):  # noqa: S104
        with pytest.raises(ConfigurationError, match="Cannot read"):
            _check_reach(host, tmp_path)


# -- the commands ------------------------------------------------------------------------------------------


def test_the_commands(tmp_path: Path) -> None:
    runner = CliRunner()
    data = ["--data", str(tmp_path / "data")]

    def run(*arguments: str) -> str:
        result = runner.invoke(build_app(), ["keys", *arguments, *data])
        assert result.exit_code == 0, result.output
        return result.stdout

    assert "no API keys" in run("list")
    text = run("add", "shop", "--scope", "ingest", "--scope", "recommend").strip()
    assert id_of_key(text.encode())
    made = json.loads(run("add", "ops", "--scope", "admin", "--expires", "90d", "--json"))
    assert made["key"].startswith(f"hw_{made['id']}_")
    assert made["expires"] > made["created"]
    shown = run("list")
    assert "shop" in shown
    assert text not in shown
    listed = json.loads(run("list", "--json"))["keys"]
    assert [(key["name"], key["state"]) for key in listed] == [("shop", "good"), ("ops", "good")]
    assert "key" not in listed[0]
    assert "; 1 left" in run("revoke", "shop")
    assert json.loads(run("revoke", made["id"], "--json"))["state"] == "revoked"
    assert [key["state"] for key in json.loads(run("list", "--json"))["keys"]] == ["revoked", "revoked"]
    assert runner.invoke(build_app(), ["keys", "add", "x", "--scope", "everything", *data]).exit_code == 2
    assert runner.invoke(build_app(), ["keys", "add", "x", *data]).exit_code == 2


# -- limits ------------------------------------------------------------------------------------------------


class SlowBucket:
    """A token bucket as the textbook has it, in exact numbers."""

    def __init__(self, per_s: int, burst: int) -> None:
        self.per_s, self.burst = per_s, burst
        self.tokens, self.at_s = Fraction(burst), Fraction(0)

    def take(self, now_s: Fraction, tokens: int) -> Fraction:
        self.tokens = min(Fraction(self.burst), self.tokens + (now_s - self.at_s) * self.per_s)
        self.at_s = now_s
        if self.tokens >= tokens:
            self.tokens -= tokens
            return Fraction(0)
        return (tokens - self.tokens) / self.per_s


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 50),
    st.integers(1, 20),
    st.lists(st.tuples(st.integers(0, 3_000), st.integers(1, 20)), max_size=200),
)
def test_the_rate_is_that_of_a_token_bucket(per_s: int, burst: int, asked: list[tuple[int, int]]) -> None:
    rate, bucket, slow = Rate(per_s, burst), Bucket(), SlowBucket(per_s, burst)
    now_ms = 0
    for gap_ms, tokens in asked:
        now_ms += gap_ms
        tokens = min(tokens, burst)
        wait = slow.take(Fraction(now_ms, 1_000), tokens)
        assert rate.take(bucket, now_ms / 1_000, tokens) == pytest.approx(float(wait), abs=1e-6)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["click", "view"]), st.integers(1, 3)),
    st.lists(st.tuples(st.sampled_from(["click", "view"]), st.sampled_from("abc"), st.integers(0, 2_000)), max_size=60),
)
def test_caps_count_each_user_and_type_by_the_hour(caps: dict[str, int], sent: list[tuple[str, str, int]]) -> None:
    now_s = 0.0
    counted = EventCaps(caps, timer=lambda: now_s)
    taken: dict[tuple[str, str, int], int] = {}
    for kind, user, gap_s in sent:
        now_s += gap_s
        wrong = counted.take(Event(user=user, item="i", type=kind))
        key = (kind, user, int(now_s) // HOUR_S)
        within = kind not in caps or taken.get(key, 0) < caps[kind]
        assert (wrong is None) == within
        taken[key] = taken.get(key, 0) + within
        if wrong is not None:
            assert wrong[0] == "user"
            assert str(caps[kind]) in wrong[1]


def test_the_memory_of_caps_is_bounded() -> None:
    counted = EventCaps({"click": 1}, timer=lambda: 0.0, most=10)
    for number in range(100):
        assert counted.take(Event(user=f"u{number}", item="i", type="click")) is None
    assert len(counted._counts) == 10
    assert counted.take(Event(user="u99", item="i", type="click")) is not None


def test_what_is_wrong_anyway_is_not_counted() -> None:
    refused: list[str] = []
    check = capped(
        lambda event: ("item", "no") if event.item == "bad" else None,
        EventCaps({"click": 1}, timer=lambda: 0.0),
        refused.append,
    )
    assert check(Event(user="u", item="bad", type="click")) == ("item", "no")
    assert check(Event(user="u", item="good", type="click")) is None
    assert check(Event(user="u", item="good", type="click")) is not None
    assert refused == ["click"]


def test_caps_name_configured_types() -> None:
    with pytest.raises(ConfigurationError, match=r'limits.user_events_per_hour.*did you mean "click"'):
        parse_config("[limits]\nuser_events_per_hour = { clik = 3 }")


def test_the_doctor_looks_at_the_keys(tmp_path: Path) -> None:
    def seen() -> tuple[str, str]:
        result = CliRunner().invoke(build_app(), ["doctor", "--json", "--data", str(tmp_path)])
        (check,) = [check for check in json.loads(result.stdout.splitlines()[-1])["checks"] if check["name"] == "keys"]
        return check["level"], check["detail"]

    assert seen() == ("ok", "no API keys: served on loopback only")
    add_key(tmp_path, "one", [Scope.READ], now_ms=1)
    assert seen() == ("ok", "1 of 1 API keys are good")
    (tmp_path / KEYS_FILE).chmod(0o640)
    assert seen()[0] == "warn"
    revoke_key(tmp_path, "one", now_ms=2)  # what is written anew is for its owner alone again
    assert seen() == ("warn", "no API key is good: nobody is let in")
    (tmp_path / KEYS_FILE).write_text("{")
    assert seen()[0] == "fail"
