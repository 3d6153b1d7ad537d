"""From a request id to its explanation: finds the list in the log, the state at its address, and the bundle.

It reads a data directory and writes nothing, beside a server or without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import msgspec

from headwater.features.paths import snapshot_file, state_dir
from headwater.features.plan import Plan, compile_plan
from headwater.features.profiles import Profiles
from headwater.features.snapshot import open_snapshot
from headwater.features.state import LmdbState, open_store
from headwater.features.store import State
from headwater.log.archived import open_log
from headwater.log.protocol import EventLog, TrimmedError
from headwater.log.record import Namespace
from headwater.registry.errors import BundleError
from headwater.registry.registry import Registry
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.schema.explanation import Explanation, Placed, ShadowShown
from headwater.serving.explain import Explainer, Question, Stand
from headwater.serving.model import Model, open_model
from headwater.serving.request import NO_MODEL
from headwater.serving.served import Served, find_served, find_shadows
from headwater.serving.standing import Patience, Progress, TooFarError, stand_at
from headwater.serving.view import LiveView, View

Changing = Callable[[Config, Mapping[str, str]], tuple[Config, tuple[str, ...]]]


class OtherBundleError(HeadwaterError):
    """The bundle that was asked for cannot be used."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How long to look for the list and to replay to its address, in seconds; None: as long as it takes.

    A replay that would take longer is not begun: the present state stands in.
    """

    find_s: float | None = None
    replay_s: float | None = None


def explain_logged(
    config: Config, data: Path, request_id: str, question: Question, *, after: int | None = None,
    backup: Path | None = None, limits: Limits | None = None, progress: Progress | None = None, arms: Changing | None = None,
) -> Explanation:  # fmt: skip
    """Explain the served list of ``request_id`` in the data directory ``data``.

    ``after``: it was recorded behind this offset. ``backup``: replay from the state in this backup on. ``progress(offset, last)`` tells of the replay; with a limit it is not called.
    ``arms``: what the experiments that had a say in the list make of ``config``, with notes on what they said then and nobody knows now.

    Raises:
        UnknownRequestError: no list of that id was found.
        OtherBundleError: ``question.bundle`` does not exist, or was trained on another plan.
        UnavailableError: neither the log could be replayed nor is there a state.
        HeadwaterError: ``backup`` holds no state of the plan, or one from after the list.
    """
    limits = limits or Limits()
    plan = compile_plan(config)
    with ExitStack() as opened:
        event_log = opened.enter_context(closing(open_log(data)))
        served = find_served(event_log, request_id, after=after, limit_s=limits.find_s)
        changed: tuple[str, ...] = ()
        if arms is not None and served.answer.experiments:
            config, changed = arms(config, served.answer.experiments)
        registry = Registry(data / "models")
        other = None
        if question.bundle is not None:  # before the replay: a wrong name is to be known at once
            other = _opened(opened, registry, question.bundle, config, plan)
        model, missing = _model_of(opened, registry, served, config, plan)
        if limits.replay_s is not None:
            progress = Patience(limits.replay_s)
        start = None if backup is None else opened.enter_context(_state_in(backup, plan, event_log.log_id))
        stand = opened.enter_context(_stand(config, data, plan, event_log, served, start, progress))
        stand = Stand(stand.view, stand.state, stand.now_ms, (*stand.notes, *changed, *missing))
        for each in (model, other):
            for source in () if each is None else each.sources:
                source.prepare(stand.view.index)
        explanation = Explainer(config, plan, event_log.vocabulary()).explain(served, stand, model, question, other)
        return msgspec.structs.replace(explanation, shadows=_shadows(event_log, served, limits.find_s))


def _shadows(event_log: EventLog, served: Served, limit_s: float | None) -> list[ShadowShown]:
    """What shadows would have given to the same request."""
    text, given = event_log.vocabulary().text, set(served.answer.items)
    return [
        ShadowShown(
            experiment=one.experiment, variant=one.variant, bundle=one.answer.address.bundle, tier=one.answer.tier,
            items=[Placed(text(Namespace.ITEM, item) or "", score) for item, score in zip(one.answer.items, one.answer.scores, strict=True)],
            shared=len(given.intersection(one.answer.items)),
        )
        for one in find_shadows(event_log, served, limit_s=limit_s)
    ]  # fmt: skip


@contextmanager
def _stand(
    config: Config, data: Path, plan: Plan, event_log: EventLog, served: Served, start: State | None,
    progress: Progress | None,
) -> Iterator[Stand]:  # fmt: skip
    """The state at the address of ``served``; the present one when the log cannot be replayed so far."""
    address = served.answer.address
    erased: list[str] = []
    with closing(Profiles(data)) as profiles:

        def unseal(user: int, payload: bytes) -> bytes | None:
            plain = profiles(user, payload)
            if plain is None and user == served.user:
                erased[:] = ["the user was erased since: what their profile said is not known any more"]
            return plain

        try:
            view: View = stand_at(
                event_log, plan, served.user, address, start=start, unseal=unseal, progress=progress
            )  # fmt: skip
        except (TrimmedError, TooFarError) as error:
            why = str(error)
        else:
            yield Stand(view, "as-of", address.now_ms, tuple(erased))
            return
    path = state_dir(data, plan.hash)
    with closing(open_store(config, path, plan, writable=False, log_id=event_log.log_id, hurried=False)) as state:
        live = LiveView(plan, state)
        meta = state.meta()
        yield Stand(
            live, "present", max(meta.received_ms, address.now_ms),
            (f"{why}. The state of offset {meta.offset} stands in: values are those of now, `headwater explain` replays",),
        )  # fmt: skip


@contextmanager
def _state_in(backup: Path, plan: Plan, log_id: str) -> Iterator[State]:
    """The state of ``plan`` that a backup holds, which stays as it is."""
    snapshot, folder = snapshot_file(backup, plan.hash), state_dir(backup, plan.hash)
    if snapshot.is_file():
        yield open_snapshot(snapshot, plan, log_id=log_id)
        return
    if not (folder / "data.mdb").is_file():
        raise HeadwaterError(f"{backup} holds no state of plan {plan.hash}; `headwater backup --state` takes it along")
    lock = folder / "lock.mdb"  # made by opening; a backup has none
    with closing(LmdbState(folder, plan, writable=False, log_id=log_id)) as state:
        yield state
    lock.unlink(missing_ok=True)


def _model_of(
    opened: ExitStack, registry: Registry, served: Served, config: Config, plan: Plan
) -> tuple[Model | None, tuple[str, ...]]:
    """The bundle that the list was served with, and a note when it is another one."""
    version = served.answer.address.bundle
    if version == NO_MODEL:
        return None, ()
    try:
        return _opened(opened, registry, version, config, plan), ()
    except OtherBundleError as error:
        current = registry.current(plan.hash)
        model = None if current is None else _opened(opened, registry, current, config, plan)
        return model, (str(error),)


def _opened(opened: ExitStack, registry: Registry, version: str, config: Config, plan: Plan) -> Model:
    try:
        bundle = registry.load(version, plan_hash=plan.hash)
    except (BundleError, OSError) as error:
        raise OtherBundleError(f"bundle {version} cannot be used: {error}") from error
    return opened.enter_context(closing(open_model(bundle, config, plan)))
