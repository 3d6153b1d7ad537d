"""The business rules: edited, checked as they are typed, tried on recent requests, and brought into service."""

from __future__ import annotations

import asyncio

from litestar import Response, get, post
from litestar.handlers import HTTPRouteHandler

from headwater.console.changes import RefusedError, done, form_of, refusing
from headwater.console.desk import Call, Desk, Entry, NotFoundError, changer_of
from headwater.console.guard import ROOT
from headwater.schema.rule_changes import Publication

RULES = f"{ROOT}/rules"
ENTRIES: tuple[Entry, ...] = (Entry(RULES, "Rules", "Run"),)
LISTS = (50, 200, 500)


def routes(desk: Desk) -> list[HTTPRouteHandler]:
    """The editor and what it asks, publishing, and what was published before."""
    rules = desk.planes.rules
    trying = asyncio.Semaphore(1)  # each preview is a process of its own

    @get(RULES)
    async def editor(request: Call) -> Response[str]:
        stands, past = await asyncio.gather(asyncio.to_thread(rules.text), asyncio.to_thread(rules.publications))
        text, restored = stands.text, None
        if "restore" in request.query_params:
            restored = _published(past, request.query_params["restore"])
            text = restored.text
        checked = await asyncio.to_thread(rules.check, text)
        return desk.page(
            request, "admin/rules.html", stands=stands, text=text, checked=checked, restored=restored, past=past[:20],
            fields=await asyncio.to_thread(rules.fields), lists=LISTS,
        )  # fmt: skip

    # a text of rules is too long for a query, so checking it is a POST although it changes nothing
    @post(RULES + "/check", status_code=200)
    async def check(request: Call) -> Response[str]:
        checked = await asyncio.to_thread(rules.check, (await form_of(request)).text("rules"))
        return desk.page(request, "admin/rules_findings.html", checked=checked)

    @post(RULES + "/preview", status_code=200)
    async def preview(request: Call) -> Response[str]:
        form = await form_of(request)
        asked = form.get("lists")
        lists = int(asked) if asked in map(str, LISTS) else LISTS[0]
        if trying.locked():
            raise RefusedError("Another preview is running in this server; try again when it is done")
        async with trying:
            with refusing():
                found = await rules.preview(form.text("rules"), lists)
        return desk.page(request, "admin/rules_preview.html", found=found)

    @post(RULES + "/publish", status_code=200)
    async def publish(request: Call) -> Response[str]:
        form = await form_of(request)
        reason, by = form.reason, changer_of(request)

        def published() -> str:
            return rules.publish(form.text("rules"), by=by, reason=reason, expect=form.get("expect"))

        with refusing():
            version = await asyncio.to_thread(published)
        return done(f"Rules {version or '(none)'} are in service")

    @get(RULES + "/version/{moment:str}")
    async def version(request: Call) -> Response[str]:
        moment: str = request.path_params["moment"]
        found = _published(await asyncio.to_thread(rules.publications), moment)
        return desk.page(request, "admin/rules_version.html", found=found)

    return [editor, check, preview, publish, version]


def _published(past: list[Publication], moment: str) -> Publication:
    for one in past:
        if str(one.time_ms) == moment:
            return one
    raise NotFoundError("There is no such publication; the page of rules lists them")
