"""Experiments: what runs, what it shows so far, and starting and stopping. Judging reads the log, so it happens in a process of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple

from litestar import Response, get, post
from litestar.handlers import HTTPRouteHandler

from headwater.console.changes import RefusedError, done, form_of, refusing
from headwater.console.desk import Call, Desk, Entry, NotFoundError, changer_of
from headwater.console.guard import ROOT
from headwater.console.intervals import Chart, Interval, closing_in, forest
from headwater.experiments import store
from headwater.experiments.changes import check_changes
from headwater.experiments.definitions import Experiment, ExperimentError, parse_experiment
from headwater.monitoring.actions import Actions
from headwater.registry.audit import record
from headwater.registry.registry import Registry
from headwater.schema.errors import HeadwaterError

EXPERIMENTS = f"{ROOT}/experiments"
ENTRIES: tuple[Entry, ...] = (Entry(EXPERIMENTS, "Experiments", "Run"),)
WINDOWS = ("1m", "10m", "1h", "6h", "1d", "3d", "7d")
JUDGED_MS, COUNTED_MS = 300_000, 60_000
JUDGE_S, COUNT_S = 180.0, 60.0
KEPT = 64
DRAFT = """name = "wide"
layer = "main"
hypothesis = "twice as many candidates find better items"
share = 0.1
metrics = ["clicks_per_user"]

[[variants]]
name = "control"

[[variants]]
name = "wide"
set = {"ranker.candidates" = 400}

[[guardrails]]
metric = "clicks_per_user"
direction = "decrease"
bound = 0.05
"""


class Judged(NamedTuple):
    """A report as it was at ``at_ms``; ``problem`` says why there is none."""

    at_ms: int
    report: dict[str, Any] | None
    problem: str


class Kept:
    """Answers of commands, for a while: one that is asked for twice at the same time is asked once."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._found: dict[tuple[str, ...], Judged] = {}
        self._asked: dict[tuple[str, ...], asyncio.Task[Judged]] = {}

    async def get(
        self, key: tuple[str, ...], fresh_ms: int, ask: Callable[[], Coroutine[Any, Any, Judged]], *, again: bool = False
    ) -> Judged:  # fmt: skip
        """What was answered to ``key`` in the last ``fresh_ms``, else what ``ask`` says; ``again``: in any case."""
        known = self._found.get(key)
        if known is not None and not again and self._clock() - known.at_ms < fresh_ms:
            return known
        if (task := self._asked.get(key)) is None:
            task = self._asked[key] = asyncio.create_task(ask())
            task.add_done_callback(lambda _: self._asked.pop(key, None))
        found = await asyncio.shield(task)
        self._found.pop(key, None)
        self._found[key] = found
        while len(self._found) > KEPT:
            del self._found[next(iter(self._found))]
        return found

    def latest(self, key: tuple[str, ...]) -> Judged | None:
        """What was answered last, however long ago."""
        return self._found.get(key)


def routes(desk: Desk) -> list[HTTPRouteHandler]:
    """The list, one experiment, and what changes them."""
    kept = Kept(desk.wall)
    actions = Actions(desk.data, desk.config, lambda: desk.planes.plan, desk.clock)

    async def judge(name: str, window: str, again: bool = False) -> Judged:
        async def ask() -> Judged:
            said = await desk.planes.commands.run("experiments", "report", name, "--window", window, most_s=JUDGE_S)
            return _judged(desk.wall(), said.code, said.line, said.problem)

        return await kept.get(("report", name, window), JUDGED_MS, ask, again=again)

    @get(EXPERIMENTS)
    async def experiments(request: Call) -> Response[str]:
        try:
            found = await asyncio.to_thread(_listed, desk)
        except ExperimentError as error:
            found = {"lines": [], "off": False, "folder": str(error)}
        return desk.page(request, "admin/experiments.html", draft=DRAFT, **found)

    @get(EXPERIMENTS + "/exposed")
    async def exposed(request: Call) -> Response[str]:
        async def ask() -> Judged:
            said = await desk.planes.commands.run("experiments", "status", most_s=COUNT_S)
            return _judged(desk.wall(), said.code, said.line, said.problem)

        found = await kept.get(("status",), COUNTED_MS, ask)
        return desk.page(request, "admin/exposed.html", found=found)

    @get(EXPERIMENTS + "/run/{name:str}")
    async def experiment(request: Call) -> Response[str]:
        name: str = request.path_params["name"]
        try:
            found, text = await asyncio.to_thread(_one, desk, name)
        except ExperimentError as error:
            raise NotFoundError(str(error)) from error
        off = await asyncio.to_thread(store.is_off, desk.data)
        window = _window(request, found)
        return desk.page(
            request, "admin/experiment.html", experiment=found, text=text, off=off, window=window, windows=WINDOWS,
            now_ms=desk.clock(),
        )  # fmt: skip

    @get(EXPERIMENTS + "/run/{name:str}/report")
    async def report(request: Call) -> Response[str]:
        name: str = request.path_params["name"]
        try:
            found = await asyncio.to_thread(store.read_experiment, desk.data, name)
        except ExperimentError as error:
            raise NotFoundError(str(error)) from error
        window = _window(request, found)
        judged = await judge(name, window, "again" in request.query_params)
        template = "admin/preference.html" if found.interleave else "admin/report.html"
        if found.shadow:
            template = "admin/shadow.html"
        return desk.page(request, template, judged=judged, experiment=found, window=window)

    @get(EXPERIMENTS + "/run/{name:str}/chart")
    async def chart(request: Call) -> Chart:
        name: str = request.path_params["name"]
        window, metric = request.query_params.get("window", ""), request.query_params.get("metric", "")
        judged = kept.latest(("report", name, window))
        if judged is None or judged.report is None:
            return {"empty": "Judge the experiment first"}
        chosen = judged.report["comparisons"]
        if not metric:
            return forest(_intervals(chosen), percent=True)
        variant = request.query_params.get("variant", "")
        path: list[dict[str, Any]] = next(
            (one["path"] for one in chosen if (one["metric"], one["variant"]) == (metric, variant)), []
        )
        return closing_in(path, unit="users of both variants")

    @post(EXPERIMENTS + "/check", status_code=200)
    async def check(request: Call) -> Response[str]:
        text, problem, made = (await form_of(request)).text("text"), "", None
        notes: Sequence[str] = ()
        try:
            made = await asyncio.to_thread(_checked, desk, text)
            notes = _target_notes(desk, made)
        except HeadwaterError as error:
            problem = str(error)
        return desk.page(request, "admin/experiment_check.html", made=made, problem=problem, notes=notes)

    @post(EXPERIMENTS, status_code=200)
    async def create(request: Call) -> Response[str]:
        form = await form_of(request)
        text, reason, by = form.text("text"), form.reason, changer_of(request)

        def created() -> Experiment:
            checked = _checked(desk, text)
            _target_notes(desk, checked)
            _audit(desk, by, "experiment.create", checked.name, reason)
            return store.create(desk.data, text)

        with refusing():
            made = await asyncio.to_thread(created)
        return done(f"{made.name} is a draft: start it, and users come in")

    @post(EXPERIMENTS + "/run/{name:str}/start", status_code=200)
    async def start(request: Call) -> Response[str]:
        name: str = request.path_params["name"]
        form = await form_of(request)
        reason, by, said = form.reason, changer_of(request), form.get("share")
        try:
            share = float(said) / 100.0 if said else None
        except ValueError as error:
            raise RefusedError(f"Expected a share in percent, got {said!r}") from error
        if share is not None and not 0.0 <= share <= 1.0:
            raise RefusedError(f"Expected a share from 0 to 100 percent, got {said}")

        def started() -> Experiment:
            found = store.read_experiment(desk.data, name)
            _target_notes(desk, found)
            registry = Registry(desk.data / "models")
            for version in sorted({variant.bundle for variant in found.variants if variant.bundle}):
                registry.load(version, plan_hash=desk.planes.plan)  # whether servers could load it
            share_said = f" with {share:.2%}" if share is not None else ""
            _audit(desk, by, "experiment.start", f"{name}{share_said}", reason)
            return store.start(desk.data, name, desk.config, now_ms=desk.clock(), share=share)

        with refusing():
            found = await asyncio.to_thread(started)
        what = f"{found.shadow:.2%} of the requests" if found.shadow else f"{found.share:.2%} of layer {found.layer}"
        return done(f"{name} runs with {what}")

    @post(EXPERIMENTS + "/run/{name:str}/stop", status_code=200)
    async def stop(request: Call) -> Response[str]:
        name: str = request.path_params["name"]
        form = await form_of(request)
        reason, by = form.reason, changer_of(request)
        with refusing():
            entry = await asyncio.to_thread(actions.stop_experiment, name, by=by, reason=reason, now_ms=desk.wall())
        return done(
            f"{name} is stopped: everybody has the control again" if entry is not None else f"{name} does not run"
        )

    @post(EXPERIMENTS + "/switch", status_code=200)
    async def switch(request: Call) -> Response[str]:
        form = await form_of(request)
        reason, by, on = form.reason, changer_of(request), form.get("on") == "yes"

        def switched() -> None:
            _audit(desk, by, "experiments.on" if on else "experiments.off", "all", reason)
            store.switch(desk.data, on=on)

        with refusing():
            await asyncio.to_thread(switched)
        return done("Experiments are switched on" if on else "All experiments are off: everybody has the control")

    return [experiments, exposed, experiment, report, chart, check, create, start, stop, switch]


def _audit(desk: Desk, by: str, action: str, subject: str, reason: str) -> None:
    record(desk.data, time_ms=desk.wall(), by=by, action=action, subject=subject, reason=reason)


def _listed(desk: Desk) -> dict[str, Any]:
    read, wrong = store.read_experiments(desk.data)
    files = store.ExperimentFiles(desk.data)
    files.read(desk.config)
    order = {"running": 0, "draft": 1, "stopped": 2}
    found = sorted(read.values(), key=lambda each: (order[each.status], -each.started_ms, each.name))
    lines = [(each, files.problems.get(each.name, "")) for each in found]
    return {"lines": lines, "wrong": wrong, "off": store.is_off(desk.data), "folder": ""}


def _one(desk: Desk, name: str) -> tuple[Experiment, str]:
    found = store.read_experiment(desk.data, name)
    return found, (store.folder_of(desk.data) / f"{found.name}.toml").read_text(encoding="utf-8")


def _checked(desk: Desk, text: str) -> Experiment:
    made = parse_experiment(text, "the new experiment")
    check_changes(made, desk.config)
    return made


def _target_notes(desk: Desk, experiment: Experiment) -> Sequence[str]:
    """What is probably not meant in its ``when``. Raises ``ConfigurationError``: what is wrong with it, and where."""
    return desk.planes.rules.check_target(experiment.when) if experiment.when else ()


def _window(request: Call, experiment: Experiment) -> str:
    asked = request.query_params.get("window", "")
    return asked if asked in WINDOWS else ("1h" if experiment.interleave or experiment.shadow else "7d")


def _judged(at_ms: int, code: int, line: bytes, problem: str) -> Judged:
    if code:
        return Judged(at_ms, None, problem or f"the command ended with code {code}")
    try:
        found = json.loads(line)
    except json.JSONDecodeError:
        return Judged(at_ms, None, "the command said nothing that could be read")
    return Judged(at_ms, found, "")


def _intervals(comparisons: list[dict[str, Any]]) -> list[Interval]:
    return [
        Interval(f"{one['metric']} · {one['variant']}", one["relative"], *one["relative_sequence"])
        for one in comparisons[::-1][:40][::-1]
        if one["relative"] is not None
    ]
