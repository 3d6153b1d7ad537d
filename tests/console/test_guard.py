"""Who may come in, who may change something, and what every answer of the console carries."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import pytest

from headwater.console.guard import next_page
from headwater.console.sessions import SESSION_MS, SIGNING_FILE, console_secret
from headwater.online.keys import revoke_key
from headwater.schema.config import Config, Serving
from headwater.schema.errors import ConfigurationError
from headwater.schema.keys import Scope
from headwater.schema.urls import name_in
from tests.console.inside import HOST, Console, Quiet, cookie_of, scripts_of

LOGOUT = "/console/logout"  # the change that every console has
PAGE, CHANGE = ("GET", "/console"), ("POST", "/console/nothing-here")


@pytest.fixture
def console(tmp_path: Path) -> Console:
    return Console(tmp_path)


def test_without_keys_this_machine_gets_a_session_and_nobody_else_does(console: Console) -> None:
    for host in ("localhost:8080", "127.0.0.1", "[::1]:8080"):
        answer = console.ask(*PAGE, host=host)
        assert answer.status_code == 200
        assert console.ask(*PAGE, host=host, cookie=cookie_of(answer)).status_code == 200
    named = Console(console.data / "named", config=Config(serving=Serving(allowed_hosts=("rec.test",))))
    assert [named.ask(*PAGE, host=host).status_code for host in ("rec.test:80", "localhost", "rec.test.evil")] == [
        200,
        200,
        421,
    ]
    for host in (HOST, "localhost.evil.test", "127.0.0.1.evil.test", "10.0.0.1"):
        answer = console.ask(*PAGE, host=host)
        assert (answer.status_code, answer.headers.get("set-cookie")) == (421, None)


def test_with_keys_a_visitor_is_sent_to_the_login_and_back(console: Console) -> None:
    key = console.key("ada", Scope.READ)
    sent = console.ask("GET", "/console/why?id=1&x=2")
    assert (sent.status_code, sent.headers["location"]) == (303, "/console/login?next=/console/why%3Fid%3D1%26x%3D2")
    form = console.ask("GET", sent.headers["location"]).text
    there = re.search(r'name="next" value="([^"]*)"', form)
    assert there is not None
    entered = console.ask("POST", "/console/login", form={"key": key, "next": there[1].replace("&amp;", "&")})
    assert (entered.status_code, entered.headers["location"]) == (303, "/console/why?id=1&x=2")
    assert console.ask(*PAGE, cookie=cookie_of(entered)).status_code == 200


def test_a_part_of_a_page_sends_the_whole_page_to_the_login(console: Console) -> None:
    console.key("ada", Scope.READ)
    answer = console.ask(*PAGE, headers={"hx-request": "true"})
    assert (answer.status_code, answer.headers["hx-redirect"]) == (401, "/console/login")


@pytest.mark.parametrize(
    "asked",
    ["https://evil.test/", "//evil.test", "/\\evil.test", "/console@evil.test", "/consoles", "/console/../v1/events/../x",
     "javascript:alert(1)", "", "console"],
)  # fmt: skip
def test_the_login_leads_to_pages_of_the_console_alone(console: Console, asked: str) -> None:
    key = console.key("ada", Scope.READ)
    answer = console.ask("POST", "/console/login", form={"key": key, "next": asked})
    there = answer.headers["location"]
    assert there == "/console" or there.startswith("/console/")
    assert "evil" not in there
    assert next_page(b"") == "/console"


@pytest.mark.parametrize(
    ("asked", "leads"),
    [("/console/items/caf\u00e9 \u65e5", "/console/items/caf%C3%A9%20%E6%97%A5"),
     ("/console/items/a%2Fb?x=1&y=%C3%A9", "/console/items/a%2Fb?x=1&y=%C3%A9"),
     ("/console/x\r\nset-cookie: a=b", "/console/x%0D%0Aset-cookie:%20a=b")],
)  # fmt: skip
def test_where_the_login_leads_is_quoted_as_headers_want_it(console: Console, asked: str, leads: str) -> None:
    key = console.key("ada", Scope.READ)
    answer = console.ask("POST", "/console/login", form={"key": key, "next": asked})
    assert (answer.status_code, answer.headers["location"]) == (303, leads)


def test_the_way_from_a_page_to_the_login_and_back_keeps_its_address(console: Console) -> None:
    key = console.key("ada", Scope.READ)
    sent = console.ask("GET", "/console/items/a%2Fb%3F%E6%97%A5?x=%C3%A9").headers["location"]
    there = re.search(r'name="next" value="([^"]*)"', console.ask("GET", sent).text)
    assert there is not None
    entered = console.ask("POST", "/console/login", form={"key": key, "next": there[1].replace("&amp;", "&")})
    assert entered.headers["location"] == "/console/items/a%2Fb%3F%E6%97%A5?x=%C3%A9"


def test_what_is_malformed_is_refused_and_no_failure(console: Console) -> None:
    assert [name_in(host) for host in ("[", "[::1", "a]b", "", "[::1]:80", "LocalHost:1")] == [
        "",
        "",
        "",
        "",
        "::1",
        "localhost",
    ]
    assert next_page(b"next=\xff&next") == "/console"
    me = cookie_of(console.ask(*PAGE, host="localhost"))
    for path in ("/console/%77hy/abc", "/console/item%73/abc", "/console/user%73/abc"):
        assert console.ask("GET", path, cookie=me, host="localhost").status_code == 404, path


def test_an_address_leads_no_part_of_its_page_elsewhere(console: Console) -> None:
    me = cookie_of(console.ask(*PAGE, host="localhost"))
    text = console.ask("GET", "/console/why/..%2F..%2Fv1%2Fitems%2Fx", cookie=me, host="localhost").text
    down, loaded = re.findall(r'hx-get="([^"?]*)', text)
    assert down == "/console/parts/down"
    assert loaded == "/console/why-explained/..%2F..%2Fv1%2Fitems%2Fx"


def test_a_file_that_cannot_be_read_is_named_and_what_to_do(console: Console) -> None:
    me = cookie_of(console.ask(*PAGE, host="localhost"))
    (console.data / "controls.json").write_text("{nope")
    (console.data / "monitoring").mkdir()
    (console.data / "monitoring" / "history.sqlite").write_bytes(b"no database" * 500)
    for path, says in (
        ("/console/models", "Cannot read the controls"), ("/console/alerts", "Cannot read the controls"),
        ("/console/figures/latency", "not a database"),
    ):  # fmt: skip
        answer = console.ask("GET", path, cookie=me, host="localhost")
        assert (answer.status_code, says in answer.text) == (503, True), path


def test_a_wrong_key_opens_nothing_and_is_not_repeated(console: Console) -> None:
    console.key("ada", Scope.READ)
    answer = console.ask("POST", "/console/login", form={"key": "hw_0123456789abcdef_wrong"})
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert "0123456789abcdef" not in answer.text


def test_a_session_ends_by_time_by_revocation_and_by_one_changed_letter(console: Console) -> None:
    cookie = console.log_in(console.key("ada", Scope.READ))
    swapped = cookie[:-1] + ("0" if cookie[-1] != "0" else "1")
    longer = cookie.replace(cookie.split(".")[1], str(int(cookie.split(".")[1]) + 1))
    for forged in (swapped, longer, "", "a.b.c", ".", "..."):
        assert console.ask(*PAGE, cookie=forged).status_code == 303
    assert console.ask(*PAGE, cookie=cookie).status_code == 200
    console.clock.now_ms += SESSION_MS
    assert console.ask(*PAGE, cookie=cookie).status_code == 303
    console.clock.now_ms -= SESSION_MS
    revoke_key(console.data, "ada", now_ms=console.clock())
    console.follow()
    assert console.ask(*PAGE, cookie=cookie).status_code == 303


def test_a_session_ends_with_its_key(console: Console) -> None:
    cookie = console.log_in(console.key("ada", Scope.READ, expires_ms=console.clock() + 1_000))
    assert console.ask(*PAGE, cookie=cookie).status_code == 200
    console.clock.now_ms += 1_000
    assert console.ask(*PAGE, cookie=cookie).status_code == 303


def test_a_session_without_keys_opens_nothing_once_there_are_keys(console: Console) -> None:
    cookie = cookie_of(console.ask(*PAGE, host="localhost"))
    console.key("ada", Scope.READ, Scope.ADMIN)
    assert console.ask(*PAGE, host="localhost", cookie=cookie).status_code == 303


def test_a_session_of_another_data_directory_is_none(console: Console, tmp_path: Path) -> None:
    cookie = console.log_in(console.key("ada", Scope.READ))
    other = Console(tmp_path / "other")
    other.key("ada", Scope.READ)
    assert other.ask(*PAGE, cookie=cookie).status_code == 303


def test_the_cookie_is_for_the_console_and_for_this_site_alone(console: Console) -> None:
    key = console.key("ada", Scope.READ)
    said = console.ask("POST", "/console/login", form={"key": key}).headers["set-cookie"]
    assert {"Path=/console", "HttpOnly", "SameSite=Strict", "Secure"} <= set(said.split("; "))
    assert (
        "Secure" not in console.ask("POST", "/console/login", form={"key": key}, host="localhost").headers["set-cookie"]
    )


@pytest.mark.parametrize(
    ("scopes", "looks", "changes"),
    [
        ((Scope.READ,), 200, 403),
        ((Scope.READ, Scope.ADMIN), 200, 404),  # let in: there is no such page
    ],
)
def test_looking_takes_read_and_changing_takes_admin(
    console: Console, scopes: tuple[Scope, ...], looks: int, changes: int
) -> None:
    cookie = console.log_in(console.key("ada", *scopes))
    assert console.ask(*PAGE, cookie=cookie).status_code == looks
    visitor = console.token(cookie)
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        answer = console.ask(method, CHANGE[1], cookie=cookie, headers={"x-csrf-token": visitor, "hx-request": "1"})
        assert answer.status_code == changes, method


@pytest.mark.parametrize("scopes", [(Scope.ADMIN,), (Scope.INGEST, Scope.RECOMMEND)])
def test_a_key_that_may_not_look_is_told_so_at_the_door(console: Console, scopes: tuple[Scope, ...]) -> None:
    key = console.key("ada", *scopes)
    answer = console.ask("POST", "/console/login", form={"key": key})
    assert answer.status_code == 403
    assert 'lacks the scope "read"' in re.sub("&#34;", '"', answer.text)
    assert all(scope in answer.text for scope in scopes)
    assert "set-cookie" not in answer.headers
    assert key not in answer.text
    granted = console.keys.by_text(key)
    assert granted is not None
    cookie = console.sessions.open(granted)  # of a session from before
    assert console.ask(*PAGE, cookie=cookie).status_code == 303, "a page that cannot be left is no page"
    for sent in (cookie, ""):
        gone = console.ask("POST", LOGOUT, cookie=sent)
        assert (gone.status_code, gone.headers["hx-redirect"]) == (200, "/console/login")
        assert console.ask(*CHANGE, cookie=sent).status_code == 303


def test_who_may_only_look_may_post_what_looks(console: Console) -> None:
    cookie = console.log_in(console.key("ada", Scope.READ))
    assert console.ask("POST", "/console/playground", form={"user": "eve"}, cookie=cookie).status_code == 403
    headers = {"x-csrf-token": console.token(cookie)}
    led = console.ask("POST", "/console/playground", form={"user": "eve", "act": "1"}, cookie=cookie, headers=headers)
    there = led.headers["hx-redirect"]
    assert "eve" not in there
    page = console.ask("GET", there, cookie=cookie).text
    assert ('value="eve"' in page, "you look" in page, "you act" in page) == (True, True, False)


def test_what_is_sealed_opens_in_its_session_alone(console: Console) -> None:
    key = console.key("ada", Scope.READ)
    one, other = (console.sessions.read(console.log_in(key)) for _ in range(2))
    assert one is not None
    assert other is not None
    handle = console.sessions.seal(one, "1caf\u00e9")
    assert console.sessions.unseal(one, handle) == "1caf\u00e9"
    assert handle != console.sessions.seal(one, "1caf\u00e9")
    changed = handle[:20] + ("A" if handle[20] != "A" else "B") + handle[21:]
    for visitor, wrong in ((other, handle), (one, changed), (one, ""), (one, "x"), (one, "\u00e9"), (one, handle[:10])):
        assert console.sessions.unseal(visitor, wrong) is None


def test_a_change_carries_the_token_of_its_session(console: Console) -> None:
    key = console.key("ada", Scope.READ, Scope.ADMIN)
    cookie, other = console.log_in(key), console.log_in(key)
    token = console.token(cookie)
    assert console.token(cookie) == token != console.token(other)
    for headers in ({}, {"x-csrf-token": ""}, {"x-csrf-token": "x"}, {"x-csrf-token": console.token(other)}):
        assert console.ask("POST", LOGOUT, cookie=cookie, headers=headers).status_code == 403
    gone = console.ask("POST", LOGOUT, cookie=cookie, headers={"x-csrf-token": token})
    assert (gone.status_code, gone.headers["hx-redirect"]) == (200, "/console/login")
    assert "Max-Age=0" in gone.headers["set-cookie"]


def test_a_page_of_another_origin_changes_nothing_not_even_the_session(console: Console) -> None:
    key = console.key("ada", Scope.READ, Scope.ADMIN)
    cookie = console.log_in(key)
    token = console.token(cookie)
    for origin in ("https://evil.test", "null", f"https://{HOST}.evil.test"):
        headers = {"origin": origin, "x-csrf-token": token}
        assert console.ask("POST", LOGOUT, cookie=cookie, headers=headers).status_code == 403
        assert console.ask("POST", "/console/login", form={"key": key}, headers=headers).status_code == 403
    assert console.ask(
        "POST", LOGOUT, cookie=cookie, headers={"origin": f"https://{HOST}", "x-csrf-token": token}
    ).is_success


def test_every_answer_carries_the_policy_and_nothing_of_it_stays_in_a_cache(tmp_path: Path) -> None:
    console = Console(tmp_path, live=(live := Quiet()))
    first = console.ask(*PAGE)
    console.key("ada", Scope.READ, Scope.ADMIN)
    cookie = console.log_in(console.key("eve", Scope.READ, Scope.ADMIN))
    answers = [first, *(console.ask(method, path, cookie=cookie) for method, path in (
        PAGE, CHANGE, ("GET", "/console/none"), ("GET", "/console/login"), ("POST", "/console"), ("TRACE", "/console"),
        ("GET", "/console/static/console.js"), ("GET", "/console/static/none.js"),
    ))]  # fmt: skip
    live.failure = ZeroDivisionError("secret-of-a-user")
    answers += [console.ask(*PAGE), console.ask(*PAGE, cookie=cookie)]
    assert {200, 303, 403, 404, 421, 500} <= {answer.status_code for answer in answers}
    for answer in answers:
        policy = dict(part.partition(" ")[::2] for part in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == "'self'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert "secret-of-a-user" not in answer.text
        asset = answer.url.path == "/console/static/console.js"
        assert answer.headers["cache-control"] == ("public, max-age=3600" if asset else "no-store")


def test_pages_hold_no_script_and_no_style_of_their_own(console: Console) -> None:
    console.key("ada", Scope.READ)
    cookie = console.log_in(console.key("eve", Scope.READ, Scope.ADMIN))
    for path in ("/console", "/console/login", "/console/none"):
        text = console.ask("GET", path, cookie=cookie).text
        assert not scripts_of(text)
        assert "<style" not in text
        assert not re.search(r"\s(style|on[a-z]+|hx-on[a-z:-]*)=", text)
        assert not re.search(r'(src|href)="(https?:)?//', text), "everything comes from this server"


def test_static_files_need_no_session_are_answered_once_and_stay_below_their_folder(console: Console) -> None:
    console.key("ada", Scope.READ)
    answer = console.ask("GET", "/console/static/console.js")
    assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (200, "text/javascript")
    again = console.ask("GET", "/console/static/console.js", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    for path in ("../app.py", "%2e%2e/app.py", "vendor/../../app.py", "vendor", ""):
        assert console.ask("GET", f"/console/static/{path}").status_code in (303, 404)


def test_what_others_wrote_comes_with_its_licence() -> None:
    vendor = resources.files("headwater.console") / "static" / "vendor"
    names = {found.name for found in vendor.iterdir()}
    for name in (each for each in names if each.endswith(".js")):
        licence = f"{name.partition('-')[0]}-LICENSE.txt"
        assert licence in names
        assert (vendor / licence).read_text().strip()


def test_the_secret_is_made_once_and_a_broken_one_is_refused(tmp_path: Path) -> None:
    first = console_secret(tmp_path)
    assert console_secret(tmp_path) == first
    assert (tmp_path / SIGNING_FILE).stat().st_mode & 0o077 == 0
    (tmp_path / SIGNING_FILE).write_bytes(b"short")
    with pytest.raises(ConfigurationError, match="delete it"):
        console_secret(tmp_path)
