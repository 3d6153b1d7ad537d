"""Pages about users, items and features while the state or the writer is away: they say so, and show what there is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from headwater.console.looks import Looks
from headwater.log.identity import UserKey
from headwater.log.memory import MemoryLog
from headwater.registry.audit import read_audit
from headwater.schema.errors import UnavailableError
from headwater.schema.keys import Scope
from tests.console.inside import Console

WHY = "the state is on holiday"
USER = UserKey(7, 0xABCDEF)


class Away:
    """A server whose state cannot be reached: it knows who somebody is and what is called what, and nothing else."""

    sorts = ("item_click_6h",)
    columns = ()
    plan = "0123456789abcdef"

    def with_surrogate(self, surrogate: int) -> UserKey | None:
        return USER if surrogate == USER.surrogate else None

    def find(self, external: str) -> UserKey | None:
        return USER if external == "somebody" else None

    def number(self, item: str) -> int:
        return 1 if item == "an item" else 0

    def categories(self) -> list[str]:
        return ["topic"]

    def kinds(self) -> list[str]:
        return ["content"]

    def state(self, *_: object) -> Any:
        raise UnavailableError(WHY)

    item = cards = state

    async def page(self, *_: object) -> Any:
        raise UnavailableError(WHY)

    draw = sample = neighbours = set_available = delete = page

    async def erase(self, _: str) -> Mapping[str, Any]:
        raise UnavailableError("the writer is on holiday")


@pytest.fixture
def console(tmp_path: Path) -> Console:
    away: Any = Away()
    return Console(tmp_path, looks=Looks(MemoryLog(), away, away, away, away, away.erase))


@pytest.mark.parametrize(
    "path",
    [
        f"users/{USER.surrogate:016x}",
        "items",
        "items/an%20item",
        "map",
        "parts/items/neighbours?item=an%20item",
        "parts/features/spread",
    ],
)
def test_the_page_says_that_the_state_is_away(console: Console, path: str) -> None:
    cookie = console.log_in(console.key("looker", Scope.READ))
    answer = console.ask("GET", f"/console/{path}", cookie=cookie)
    assert answer.status_code == 200
    assert WHY in answer.text


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("users", "Find somebody"),
        ("parts/users/active", "Nobody has done anything yet"),
        (f"parts/users/{USER.surrogate:016x}/past", "All of the log was looked at"),
        ("parts/items/past?item=an%20item", "All of the log was looked at"),
    ],
)
def test_what_needs_the_log_alone_is_there_all_the_same(console: Console, path: str, shown: str) -> None:
    cookie = console.log_in(console.key("looker", Scope.READ))
    answer = console.ask("GET", f"/console/{path}", cookie=cookie)
    assert answer.status_code == 200
    assert shown in answer.text


def test_a_change_that_could_not_be_made_says_why_and_stands_in_the_audit_log(console: Console) -> None:
    cookie = console.log_in(console.key("boss", Scope.READ, Scope.ADMIN))
    token = {"x-csrf-token": console.token(cookie), "origin": "https://console.test"}
    change = {"item": "an item", "action": "hide", "reason": "for a test"}
    answer = console.ask("POST", "/console/parts/items/change", form=change, headers=token, cookie=cookie)
    assert (answer.status_code, answer.text) == (503, WHY)
    gone = {"id": "somebody", "reason": "for a test"}
    path = f"/console/users/{USER.surrogate:016x}/erase"
    answer = console.ask("POST", path, form=gone, headers=token, cookie=cookie)
    assert (answer.status_code, answer.text) == (503, "the writer is on holiday")
    assert [(entry.action, entry.subject) for entry in read_audit(console.data)] == [
        ("user.erase", "a user"),
        ("item.hide", "an item"),
    ]
    for wrong, status in (
        ({**change, "action": "explode"}, 400),
        ({**change, "reason": ""}, 400),
        ({**change, "item": "x"}, 404),
    ):
        assert (
            console.ask("POST", "/console/parts/items/change", form=wrong, headers=token, cookie=cookie).status_code
            == status
        )
    assert len(read_audit(console.data)) == 2


def test_who_may_only_look_changes_nothing(console: Console) -> None:
    cookie = console.log_in(console.key("looker", Scope.READ))
    token = {"x-csrf-token": console.token(cookie), "origin": "https://console.test"}
    for path in (
        "parts/items/change",
        f"users/{USER.surrogate:016x}/erase",
        "parts/item-rules",
        "parts/item-rules/withdraw",
    ):
        answer = console.ask("POST", f"/console/{path}", form={"item": "an item"}, headers=token, cookie=cookie)
        assert answer.status_code == 403
    assert read_audit(console.data) == []
