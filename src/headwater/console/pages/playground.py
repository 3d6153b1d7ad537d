"""The playground: be somebody, see their list, do something, see what it changes; and the same list by another way.

A visitor who is made up here is real to the system: their lists are recorded, their events go the way of all events, and they can be
forgotten again. Who looks at somebody else's list leaves no trace: it is neither recorded nor counted. To act in their name takes a click more.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import msgspec
from litestar import Response, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.response import Redirect

from headwater.console.desk import Call, Desk, Entry, NotFoundError, changer_of, visitor_of
from headwater.console.forms import form_of, number
from headwater.console.guard import ROOT
from headwater.console.sessions import Visitor
from headwater.registry.audit import record
from headwater.registry.registry import Registry
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.schema.events import Event
from headwater.schema.requests import MAX_K, RecommendRequest
from headwater.schema.seen import Person, ShownList, Step, Whom

PATH = f"{ROOT}/playground"
ENTRIES: tuple[Entry, ...] = (Entry(PATH, "Playground", "See"),)
MADE_UP = "playground-"
"""How the ids of visitors begin that are made up here."""
WAYS = ("no rules", "no exploration", "no diversity")
RECENT, PEOPLE, BUNDLES, BUTTONS = 12, 12, 20, 4
LONGEST_ID = 128


@dataclass(frozen=True, slots=True)
class Scene:
    """Who is looked at, on which surface; ``act``: in their name. ``handle`` stands for both in addresses: an id may be in none."""

    handle: str
    user: str
    number: int
    surface: str
    k: int
    about: str
    act: bool

    @property
    def whom(self) -> Whom:
        """The user of the list."""
        return Whom(self.user, self.number)

    @property
    def made_up(self) -> bool:
        """Whether it is a visitor of the playground."""
        return self.user.startswith(MADE_UP)

    @property
    def link(self) -> str:
        """The address of the page."""
        fields = {"as": self.handle, "number": self.number, "surface": self.surface, "k": self.k, "about": self.about}
        return f"{PATH}?{urlencode({name: value for name, value in fields.items() if value})}"


def routes(desk: Desk) -> list[HTTPRouteHandler]:
    """The page and its parts. Lists that are recorded, and all that a visitor does, are changes."""
    buttons = buttons_of(desk.config)

    @get(PATH)
    async def playground(request: Call) -> Response[str] | Redirect:
        told = dict(request.query_params)
        if not told.get("as") and not told.get("number"):
            # a page of elsewhere may lead here, but not have a list recorded
            acts = request.headers.get("sec-fetch-site", "none") in ("none", "same-origin")
            return Redirect(
                _scene(desk, request, told | {"as": _new_visitor(desk, request, acts)}).link, status_code=303
            )
        scene = _scene(desk, request, told)
        listed = await desk.apart.run(Registry(desk.data / "models").list)
        bundles = [(one.version, one.current) for one in listed if one.problem is None][:BUNDLES]
        return desk.page(
            request, "playground.html", scene=scene, surfaces=desk.config.surfaces, bundles=bundles, ways=WAYS, most=MAX_K,
            recorded=desk.config.serving.log_served,
        )  # fmt: skip

    @post(PATH, status_code=200)
    async def be(request: Call) -> Response[str]:
        told = await form_of(request)
        before = _scene(desk, request, told) if told.get("as") else None
        if "user" not in told and before is not None:  # the same as before: to act, or only to look
            handle = _handle(desk, request, before.user, told.get("act") == "1")
        elif user := told.get("user", "")[:LONGEST_ID]:
            handle = _handle(desk, request, user, before is not None and before.act and before.user == user)
        else:
            handle = "" if told.get("number") else _new_visitor(desk, request, True)
        scene = _scene(desk, request, told | {"as": handle})
        return Response("", headers={"hx-redirect": scene.link})

    @get(f"{PATH}/people")
    async def people(request: Call) -> Response[str]:
        try:
            lists = await desk.live.past.newest(5 * PEOPLE, "", -1)
        except HeadwaterError:
            lists = []  # the log is away, which the page says where the list would stand
        numbers = list(dict.fromkeys(one.user for one in lists if one.user))[:PEOPLE]
        return desk.page(request, "playground_people.html", numbers=numbers, link=f"{PATH}?number=")

    @get(f"{PATH}/list")
    async def look(request: Call) -> Response[str]:
        scene = _scene(desk, request, dict(request.query_params))
        try:
            shown = desk.live.play.look(_asked(scene), scene.whom)
            return _stage(request, scene, shown)
        except HeadwaterError as error:
            return _sorry(request, error)

    @post(f"{PATH}/list", status_code=200)
    async def ask(request: Call) -> Response[str]:
        scene = _scene(desk, request, await form_of(request))
        try:
            return _stage(request, scene, await desk.live.play.ask(_asked(scene)))
        except HeadwaterError as error:
            return _sorry(request, error)

    @post(f"{PATH}/event", status_code=200)
    async def act(request: Call) -> Response[str]:
        form = await form_of(request)
        scene, before = _scene(desk, request, form), _before(form.get("shown", ""))
        if not scene.act:
            return _sorry(request, HeadwaterError("You only look at this user; act as them first"), beside=True)
        try:
            event = msgspec.convert(
                {"user": scene.user, "item": form.get("item"), "type": form.get("kind"), "surface": scene.surface,
                 "request_id": form.get("list") or None, "position": number(form.get("position", ""), 0)}, Event,
            )  # fmt: skip
            await _note(request, "playground.event", f"{event.type} on {event.item}", scene)
            step = await desk.live.play.act(event, _asked(scene), before)
        except msgspec.ValidationError as error:
            return _sorry(request, HeadwaterError(f"The event is wrong: {error}"), beside=True)
        except HeadwaterError as error:
            return _sorry(request, error, beside=True)
        return _stage(request, scene, step.shown, before, step, event)

    @post(f"{PATH}/forget", status_code=200)
    async def forget(request: Call) -> Response[str]:
        scene = _scene(desk, request, await form_of(request))
        if not scene.made_up:
            return _sorry(
                request, HeadwaterError("Only visitors that were made up here are forgotten here"), beside=True
            )
        await _note(request, "playground.forget", "a visitor that was made up in the playground", scene)
        try:
            await desk.live.play.forget(scene.user)
        except HeadwaterError as error:
            return _sorry(request, error, beside=True)
        return Response("", headers={"hx-redirect": PATH})

    @get(f"{PATH}/compare")
    async def compare(request: Call) -> Response[str]:
        told = dict(request.query_params)
        scene, way = _scene(desk, request, told), told.get("way", "")
        try:
            ours, theirs = await desk.live.play.compare(_asked(scene), scene.whom, way)
        except HeadwaterError as error:
            return _sorry(request, error)
        here = [item.card.id for item in ours.items]
        there = [item.card.id for item in theirs.items]
        return desk.page(
            request, "playground_compare.html", way=way.removeprefix("bundle:"), lists=(ours, theirs),
            moves=(moves_of(here, there), moves_of(there, here)), same=here == there,
        )  # fmt: skip

    def _stage(
        request: Call, scene: Scene, shown: ShownList, before: Sequence[str] = (), step: Step | None = None, event: Event | None = None
    ) -> Response[str]:  # fmt: skip
        try:
            person = desk.live.play.person(scene.whom)
        except HeadwaterError:  # the list says so too: it is one of a lower tier
            person = Person(False, [])
        ids = [item.card.id for item in shown.items]
        values: dict[str, Any] = {
            "scene": scene,
            "shown": shown,
            "ids": ids,
            "step": step,
            "event": event,
            "buttons": buttons,
        }
        moves = moves_of(ids, before) if before else {}
        gone = [item for item in before if item not in ids]
        return desk.page(
            request, "playground_stage.html", moves=moves, gone=len(gone), person=person, recent=person.recent[:RECENT],
            now_ms=desk.clock(), because=because(shown, person), **values,
        )  # fmt: skip

    def _sorry(request: Call, error: HeadwaterError, *, beside: bool = False) -> Response[str]:
        """What went wrong, where the answer would stand; ``beside``: above it, so that what is there stays."""
        answer = desk.page(request, "trouble.html", reason=str(error))
        if beside:
            answer.headers["hx-retarget"] = "#trouble"
        return answer

    async def _note(request: Call, action: str, reason: str, scene: Scene) -> None:
        subject = "a visitor of the playground" if scene.made_up else "a user"
        await asyncio.to_thread(
            record,
            desk.data,
            time_ms=desk.wall(),
            by=changer_of(request),
            action=action,
            subject=subject,
            reason=reason,
        )

    return [playground, be, people, look, ask, act, forget, compare]


def moves_of(now: Sequence[str], before: Sequence[str]) -> dict[str, int | None]:
    """By how many places each item of ``now`` stands higher than in ``before`` (lower: negative); None: it was not there."""
    places = {item: place for place, item in enumerate(before)}
    return {item: places[item] - place if item in places else None for place, item in enumerate(now)}


def because(shown: ShownList, person: Person) -> dict[str, str]:
    """The reason of each item, with titles in place of the ids of what this user did."""
    titles = {past.card.id: past.card.title for past in person.recent}
    told = {}
    for item in shown.items:
        cause = next((known for known in titles if item.reason.endswith(f" {known}")), None)
        told[item.card.id] = item.reason if cause is None else item.reason.removesuffix(cause) + titles[cause]
    return told


def buttons_of(config: Config) -> list[str]:
    """The event types that there are buttons for: those that say whether somebody liked something."""
    telling = [kind.name for kind in config.events if kind.positive or kind.weight < 0.0]
    return (telling or [kind.name for kind in config.events])[:BUTTONS]


def _handle(desk: Desk, request: Call, user: str, act: bool) -> str:
    """What stands for ``user`` in addresses of this session, and says whether one acts in their name."""
    return desk.sessions.seal(_whoever(request), f"{int(act)}{user}")


def _new_visitor(desk: Desk, request: Call, act: bool) -> str:
    return _handle(desk, request, MADE_UP + secrets.token_hex(4), act)


def _scene(desk: Desk, request: Call, told: dict[str, str]) -> Scene:
    """What the fields of an address or a form ask for. Raises :class:`NotFoundError`: the handle is of another session."""
    names = [surface.name for surface in desk.config.surfaces]
    surface, handle, visitor = told.get("surface", ""), told.get("as", ""), _whoever(request)
    said = desk.sessions.unseal(visitor, handle) if handle else "0"
    if said is None:
        raise NotFoundError(
            "This address belongs to a session that has ended, or to somebody else's: open the playground and name the user again"
        )
    user = said[1:]
    return Scene(
        handle=handle,
        user=user,
        number=0 if user else number(told.get("number", ""), 0),
        surface=surface if surface in names else names[0],
        k=min(max(number(told.get("k", ""), 10), 1), MAX_K),
        about=told.get("about", "").strip()[:LONGEST_ID],
        act=visitor.may_change and bool(user) and said[0] == "1",
    )


def _whoever(request: Call) -> Visitor:
    visitor = visitor_of(request)
    assert visitor is not None, "the guard lets nobody through without a session"  # noqa: S101
    return visitor


def _asked(scene: Scene) -> RecommendRequest:
    about = [scene.about] if scene.about else []
    return RecommendRequest(user=scene.user or None, surface=scene.surface, k=scene.k, about=about, trace=True)


def _before(said: str) -> list[str]:
    """The items that the page showed, as it tells them."""
    try:
        items = json.loads(said)
    except ValueError:
        return []
    return [item for item in items if isinstance(item, str)][:MAX_K] if isinstance(items, list) else []
