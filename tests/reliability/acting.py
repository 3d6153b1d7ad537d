"""Seven faults are injected into a running server one after the other: each is noticed, something is done, and all is well again.

``python -m tests.reliability.acting`` prints one JSON object. Simulated people ask for lists and click on what is dear, twelve times as often
as on what is cheap; the ranker knows that. Windows of the default alerts are shortened to seconds, nothing else is changed in
them. A case ends when its fault is over for the people: their lists are full again, or as good as before, or what was frozen
has thawed. Exit code 1 when a case does not come to its end.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import httpx
import msgspec
import numpy as np
from msgspec import Struct
from onnxruntime import InferenceSession, SessionOptions

from headwater.cli.options import configure_logging
from headwater.experiments import store
from headwater.features.plan import compile_plan
from headwater.features.statistics import STATISTICS_FILE, Statistics
from headwater.learning.gbdt import GbdtParams, fit_gbdt
from headwater.monitoring.actions import Actions
from headwater.monitoring.history import HISTORY_FILE, History
from headwater.monitoring.standing import read_standing
from headwater.ranking.deep import DEEP_FILE
from headwater.ranking.gbdt import MODEL_FILE
from headwater.registry.audit import AuditEntry, read_audit
from headwater.registry.bundle import DataRange, ManifestFields
from headwater.registry.controls import change_controls, read_controls
from headwater.registry.registry import Registry
from tests.online.running import CONFIG, Running, catalogue
from tests.serving.endless import endless

ITEMS, USERS, K = 300, 1_500, 10
DEAR = 0.7  # from this price on people like it
LIKED, DISLIKED = 0.24, 0.02
DEADLINE_MS = 10_000.0  # so long that a slow ranker is not a stalled one, which the breaker takes care of
SLOW_MS, WELL_MS = 700.0, 400.0
PATIENCE_S, SETTLES_S, SETTLINGS = 180.0, 20.0, 6
CREATED_MS = 1_772_000_000_000  # of the first bundle
RAISED = (
    "ingest-stopped", "ingest-duplicates", "bundle-worse", "bundle-refused", "feature-drift", "experiment-harm", "slow-answers",
)  # fmt: skip
ALERTS = """
[monitoring]
enabled = true
every = "1s"
experiments_every = "2s"
experiments_window = "10s"
[monitoring.online]
window = "30s"
attribution = "2s"
[monitoring.drift]
reference = "15s"
window = "5s"
min_rows = 200

[[alerts]]
name = "slow-answers"   # what runs beside this makes answers slow, but not that slow
above = 0.5
window = "5s"
at_least = 3             # slow answers are few: who asks waits
for = "2s"
clear_for = "2s"
cooldown = "5s"
restore_after = "5s"
[[alerts]]
name = "bundle-refused"
window = "5s"
clear_for = "2s"
[[alerts]]
name = "bundle-worse"
at_least = 100
for = "0s"
clear_for = "2s"
[[alerts]]
name = "ingest-stopped"
window = "10s"
at_least = 50
clear_for = "2s"
restore_after = "5s"
[[alerts]]
name = "ingest-duplicates"
window = "5s"
at_least = 500
clear_for = "2s"
restore_after = "5s"
[[alerts]]
name = "feature-drift"   # this world has just begun, so its counts do drift; prices do not
metric = "headwater_feature_drifted"
labels = {feature = "item_price"}
clear_for = "2s"
actions = ["freeze_promotion"]
cooldown = "1s"          # the bad bundle showed drift, too
restore_after = "5s"
"""


class Case(Struct, frozen=True, kw_only=True):
    """A fault and what came of it, in seconds since it was injected. ``did`` are the actions, as the audit log has them."""

    fault: str
    alert: str
    fired_s: float
    acted_s: float
    recovered_s: float
    did: list[str]


class Outcome(Struct, frozen=True, kw_only=True):
    """All cases, faults that did not come to their end and why, requests that failed meanwhile, and what the monitor cost: its share of a core over the whole run."""

    cases: list[Case]
    problems: dict[str, str]
    faults: int
    requests: int
    failed: int
    monitor_share: float
    monitor_mb: float

    @property
    def good(self) -> bool:
        """Whether all came to their end and 99.9% of the requests were answered, at the second try at the latest."""
        return len(self.cases) == self.faults and self.failed <= 0.001 * self.requests


class People:
    """They ask for lists, ``rate`` a second, and click, in a thread of their own; ``clicks``: whether their clicks arrive."""

    def __init__(self, url: str, *, rate: float, seed: int) -> None:
        self._http = httpx.Client(base_url=url, timeout=30.0)
        self._rate, self._random = rate, random.Random(seed)
        self.prices = [0.0] * ITEMS
        self.clicks = True
        self.requests = self.failed = 0
        self.lists: deque[tuple[float, int, int]] = deque(maxlen=100_000)  # when, tier, how many of it were clicked
        self.took_ms: deque[float] = deque(maxlen=20)  # to answer the last ones
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(30.0)
        self._http.close()

    def ctr(self, seconds: float) -> float:
        """Clicks for each place of the lists of the last ``seconds``."""
        since = time.monotonic() - seconds
        seen = [clicked for at, _, clicked in list(self.lists) if at >= since]
        return sum(seen) / (K * len(seen)) if seen else 0.0

    def full(self, seconds: float) -> bool:
        """Whether all lists of the last ``seconds`` were of tier 0, and there were some."""
        since = time.monotonic() - seconds
        tiers = [tier for at, tier, _ in list(self.lists) if at >= since]
        return bool(tiers) and not any(tiers)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._over.wait(max(0.0, due - time.monotonic())):
            due = max(due + self._random.expovariate(self._rate), time.monotonic() - 1.0)
            self._visit(f"user-{self._random.randrange(USERS)}")

    def _visit(self, user: str) -> None:
        self.requests += 1
        began = time.monotonic()
        answer = self._post("/v1/recommend", {"user": user, "k": K, "deadline_ms": DEADLINE_MS})
        if answer is None:
            return
        items = [item["id"] for item in answer["items"]]
        self.took_ms.append(1e3 * (time.monotonic() - began))
        chosen = [item for item in items if self._random.random() < self._likes(item)]
        self.lists.append((time.monotonic(), answer["tier"], len(chosen)))
        if not (chosen and self.clicks):
            return
        events = [
            {"event_id": f"{answer['request_id']}-{item}", "type": "click", "user": user, "item": item}
            for item in chosen
        ]
        self._post("/v1/events", events)

    def _post(self, path: str, body: Any) -> Any:
        """The answer, at the second try if that is what it takes; None: there was none."""
        for _ in range(2):
            try:
                return self._http.post(path, json=body).raise_for_status().json()
            except (httpx.HTTPError, ValueError):
                time.sleep(0.2)
        self.failed += 1
        return None

    def _likes(self, item: str) -> float:
        return LIKED if self.prices[int(item.removeprefix("item-"))] >= DEAR else DISLIKED


class Trial:
    """The server, the people, and a way to wait for what is to happen."""

    def __init__(self, running: Running, people: People) -> None:
        self.running, self.people, self.data = running, people, running.data
        self.plan = compile_plan(running.config)
        self.registry = Registry(self.data / "models")
        self.cases: list[Case] = []
        self.published = 0  # bundles so far

    def until(self, so: Callable[[], bool], what: str) -> float:
        """Wait until it is so; when that was (``time.monotonic``)."""
        end = time.monotonic() + PATIENCE_S
        while not so():
            states = [s for s in read_standing(self.data).states if s.state != "ok"]
            assert time.monotonic() < end, f"{what} did not happen; {states}; {read_audit(self.data, 5)}"
            time.sleep(0.05)
        return time.monotonic()

    def firing(self, alert: str) -> bool:
        return any(state.alert == alert and state.state == "firing" for state in read_standing(self.data).states)

    def entries(self, alert: str) -> list[AuditEntry]:
        return [entry for entry in read_audit(self.data, 1_000) if entry.by == f"alert:{alert}"]

    def case(
        self, fault: str, alert: str, inject: Callable[[], object], recovered: Callable[[], bool], *,
        mend: Callable[[], object] | None = None,
    ) -> None:  # fmt: skip
        """Inject a fault, wait for its alert and its actions; mend it, where that is for somebody else to do; wait until all is well."""
        known, began = {entry.id for entry in self.entries(alert)}, time.monotonic()
        inject()
        fired = self.until(lambda: self.firing(alert), f"the alert {alert}")
        acted = self.until(lambda: bool({e.id for e in self.entries(alert)} - known), f"an action of {alert}")
        if mend is not None:
            mend()
        well = self.until(recovered, f"recovery from {fault}")
        did = [
            f"{entry.action} {entry.subject}{' (undo)' if entry.undoes else ''}"
            for entry in reversed(self.entries(alert)) if entry.id not in known
        ]  # fmt: skip
        case = Case(
            fault=fault, alert=alert, fired_s=round(fired - began, 1), acted_s=round(acted - began, 1),
            recovered_s=round(well - began, 1), did=did,
        )  # fmt: skip
        print(case, file=sys.stderr, flush=True)  # noqa: T201
        self.cases.append(case)

    # -- bundles and items -----------------------------------------------------------------------------

    def price(self, of: Callable[[int], float]) -> None:
        """Upstream sends all items with these prices."""
        items = [{**item, "price": of(i)} for i, item in enumerate(catalogue(ITEMS))]
        self.running.ingest("/v1/items", items)

    def publish(self, files: dict[str, bytes], ranker: str) -> str:
        """Promote a bundle as somebody does who goes round the gate."""
        self.published += 1
        fields = ManifestFields(
            created_ms=CREATED_MS + 1_000 * self.published, plan_hash=self.plan.hash, columns=self.plan.columns, ranker=ranker,
            event_types=self.plan.event_types, data=DataRange(first_offset=1, last_offset=1, first_ms=0, last_ms=0),
        )  # fmt: skip
        version = self.registry.publish(fields, files).version
        self.registry.put_in_service(version, plan_hash=self.plan.hash)
        return version

    def by_price(self, dear: bool) -> dict[str, bytes]:
        """A ranker that was fitted to put dear items first, or last."""
        random_, column = np.random.default_rng(3), self.plan.columns.index("item_price")
        rows = random_.random((4_000, len(self.plan.columns)), np.float32)
        groups = rows[:, column].reshape(1_000, 4)
        best = groups.argmax(1) if dear else groups.argmin(1)
        labels = (np.arange(4) == best[:, None]).astype(np.int64).ravel()
        text, _ = fit_gbdt(
            rows, labels, np.full(1_000, 4), None, columns=self.plan.columns, params=GbdtParams(trees=30, leaves=8), seed=1,
            num_threads=1,
        )  # fmt: skip
        statistics = Statistics.of_plan(self.plan)
        statistics.update(rows)
        return {MODEL_FILE: text, STATISTICS_FILE: statistics.encode()}

    @property
    def in_service(self) -> str | None:
        return self.registry.current(self.plan.hash)

    def knows_features(self) -> bool:
        """Whether the monitor knows how the features of the bundle in service are distributed."""
        history = History(self.data / HISTORY_FILE, readonly=True)
        try:
            filled = history.latest("headwater_drift_reference_filled")
        finally:
            history.close()
        return any(labels == {"of": "features"} and value >= 1.0 for labels, _, value in filled)

    def settle(self) -> None:
        """Wait until what the faults before set off is over.

        Each fault gets a bundle of its own, and so references of its own: what was served in the first seconds of this world, or
        around a fault, is not what is served now. While the world still finds its way back it drifts, and another one is needed.
        """
        for _ in range(SETTLINGS):
            self.publish(self.by_price(dear=True), "lightgbm")
            self.until(lambda: not self.knows_features(), "a reference that begins anew")
            self.until(self.knows_features, "a reference of features")
            end = time.monotonic() + SETTLES_S
            while not self.quiet and time.monotonic() < end:
                time.sleep(0.05)
            if self.quiet:
                break
        self.until(lambda: self.quiet and self.people.full(2.0), "quiet")

    def mend(self) -> None:
        """Have everything as it was before the faults."""
        self.people.clicks = True
        self.price(dear_and_cheap)
        change_controls(
            self.data,
            by="cli",
            reason="the next fault",
            time_ms=time.time_ns() // 1_000_000,
            tier_floor=0,
            promotion_frozen="",
        )
        for each in store.read_experiments(self.data)[0].values():
            if each.is_running:
                store.stop(self.data, each.name, now_ms=time.time_ns() // 1_000_000)

    @property
    def quiet(self) -> bool:
        """Whether nothing is frozen and no alert fires that a fault is to raise."""
        return self.thawed and not any(self.firing(alert) for alert in RAISED)

    @property
    def thawed(self) -> bool:
        return not read_controls(self.data).promotion_frozen

    def undo_all(self, alert: str) -> None:
        """Somebody has looked: promotion thaws."""
        actions = Actions(self.data, self.running.config, lambda: self.plan.hash)
        for entry in self.entries(alert):
            if entry.action == "controls.change" and not entry.undoes:
                actions.undo(entry.id, by="cli", reason="looked at", now_ms=time.time_ns() // 1_000_000)
                return


def dear_and_cheap(item: int) -> float:
    """Prices from 0 to 1, in no order."""
    return (item * 37 % 100) / 100


def prepare(trial: Trial) -> None:
    """Items, users that are known, a good bundle, and people who are used to it."""
    trial.people.prices = [dear_and_cheap(i) for i in range(ITEMS)]
    trial.price(dear_and_cheap)
    events = [
        {"type": "view", "user": f"user-{u}", "item": f"item-{u % ITEMS}", "event_id": f"first-{u}"}
        for u in range(USERS)
    ]
    trial.running.ingest("/v1/events", events[:1_000])
    trial.running.ingest("/v1/events", events[1_000:])
    trial.publish(trial.by_price(dear=True), "lightgbm")
    trial.until(lambda: trial.people.full(2.0), "the good bundle")
    time.sleep(15.0)  # people get used to it


def dead_source(trial: Trial) -> None:
    """The events of people do not arrive any more, until somebody repairs what sends them."""

    def clicks(arrive: bool) -> Callable[[], None]:
        return lambda: setattr(trial.people, "clicks", arrive)

    trial.case("dead source", "ingest-stopped", clicks(False), lambda: trial.thawed, mend=clicks(True))


def duplicates(trial: Trial) -> None:
    """A sender sends the same events again and again."""
    over, calls = threading.Event(), httpx.Client(base_url=trial.running.url, timeout=30.0)
    batch = [
        {"type": "view", "user": f"user-{u}", "item": f"item-{u % ITEMS}", "event_id": f"first-{u}"} for u in range(500)
    ]

    def send() -> None:
        while not over.wait(0.2):
            calls.post("/v1/events", json=batch).raise_for_status()

    sender = threading.Thread(target=send, daemon=True)
    trial.case("upstream duplicates", "ingest-duplicates", sender.start, lambda: trial.thawed, mend=over.set)
    sender.join(10.0)
    calls.close()


def bad_bundle(trial: Trial) -> None:
    """A ranker that puts last what people like; the gate was passed by."""
    good = trial.in_service
    before = trial.people.ctr(10.0)

    def recovered() -> bool:
        return trial.in_service == good and trial.people.ctr(5.0) > 0.8 * before

    trial.case(
        "bad bundle", "bundle-worse",
        lambda: trial.publish(trial.by_price(dear=False), "lightgbm"), recovered,
    )  # fmt: skip
    trial.undo_all("bundle-worse")


def damaged_bundle(trial: Trial) -> None:
    """A bundle whose file was damaged after it was promoted, before the servers read it."""
    good = trial.in_service

    def inject() -> None:
        version = trial.publish(trial.by_price(dear=True), "lightgbm")
        (trial.data / "models" / "bundles" / version / MODEL_FILE).write_text("tree")

    trial.case("damaged bundle", "bundle-refused", inject, lambda: trial.in_service == good and trial.people.full(1.0))


def constant_feature(trial: Trial) -> None:
    """Upstream sends every item with the same price, until somebody repairs it; the ranker knows people by nothing else."""
    before = trial.people.ctr(10.0)

    def recovered() -> bool:
        return trial.thawed and trial.people.ctr(5.0) > 0.8 * before

    trial.case(
        "feature gone constant", "feature-drift", lambda: trial.price(lambda _: 0.0), recovered,
        mend=lambda: trial.price(dear_and_cheap),
    )  # fmt: skip


HARMFUL = """
name = "cheap"
hypothesis = "people want what is cheap"
share = 1.0
metrics = ["clicks_per_user"]

[[guardrails]]
metric = "clicks_per_user"
direction = "decrease"
bound = 0.05

[[variants]]
name = "control"

[[variants]]
name = "cheap"
[[variants.rules]]
name = "only-cheap"
filter = "price < 0.5"
"""


def harmful_experiment(trial: Trial) -> None:
    """Half of the people get lists of what they do not like."""
    before = trial.people.ctr(10.0)

    def inject() -> None:
        store.create(trial.data, HARMFUL)
        store.start(trial.data, "cheap", trial.running.config, now_ms=time.time_ns() // 1_000_000)

    def recovered() -> bool:
        return not store.read_experiment(trial.data, "cheap").is_running and trial.people.ctr(3.0) > 0.8 * before

    trial.case("harmful experiment", "experiment-harm", inject, recovered)
    (entry,) = [entry for entry in trial.entries("experiment-harm") if entry.action == "experiment.stop"]
    assert "clicks_per_user" in entry.reason, entry


def _one_thread() -> SessionOptions:
    options = SessionOptions()
    options.intra_op_num_threads = 1
    return options


def turns_of(graph: bytes, columns: tuple[str, ...]) -> float:
    """How many turns of the loop in ``graph`` take this machine :data:`SLOW_MS`."""
    session, rows, turns = InferenceSession(graph, _one_thread()), np.zeros((200, len(columns)), np.float32), 256.0
    while True:
        rows[:, columns.index("item_price")] = turns
        took_ms = float("inf")  # the shortest of some: what runs beside this makes it longer
        for _ in range(5):
            began = time.thread_time()
            session.run(None, {"features": rows})
            took_ms = min(took_ms, 1e3 * (time.thread_time() - began))
        if took_ms > SLOW_MS / 10.0:
            return turns * SLOW_MS / took_ms
        turns *= 4.0


def slow_ranker(trial: Trial) -> None:
    """The ranker takes long over what upstream sends, until that is mended; meanwhile nobody waits for it."""
    files = endless(trial.plan.columns, "item_price")
    turns = turns_of(files[DEEP_FILE], trial.plan.columns)
    bundle = trial.publish(files, "deep")
    trial.until(lambda: trial.running.recommend(k=1)["model"] == bundle, "the other ranker")
    trial.until(lambda: trial.people.full(1.0), "full lists of the other ranker")

    def recovered() -> bool:
        answered = sorted(trial.people.took_ms)[-2]
        return read_controls(trial.data).tier_floor == 0 and trial.people.full(1.0) and answered < WELL_MS

    trial.case(
        "slow ranker", "slow-answers", lambda: trial.price(lambda _: turns), recovered,
        mend=lambda: trial.price(dear_and_cheap),
    )  # fmt: skip


def run(folder: Path, *, rate: float, seed: int, only: Sequence[str] = ()) -> Outcome:
    """Serve in ``folder`` and do all of it, or the faults ``only``."""
    config = CONFIG.partition("[monitoring]")[0] + ALERTS
    with Running(folder, config) as running, People(running.url, rate=rate, seed=seed) as people:
        trial = Trial(running, people)
        began, spent = time.monotonic(), cpu_seconds(running)
        prepare(trial)
        problems: dict[str, str] = {}
        faults: dict[str, Callable[[], None]] = {
            "dead": lambda: dead_source(trial), "duplicates": lambda: duplicates(trial), "bad": lambda: bad_bundle(trial),
            "damaged": lambda: damaged_bundle(trial), "constant": lambda: constant_feature(trial),
            "harmful": lambda: harmful_experiment(trial), "slow": lambda: slow_ranker(trial),
        }  # fmt: skip
        for name, fault in faults.items():
            if only and name not in only:
                continue
            try:
                trial.settle()
                fault()
            except AssertionError as error:  # the others are tried all the same, on a server that is well
                print(name, error, file=sys.stderr, flush=True)  # noqa: T201
                problems[name] = str(error)
                trial.mend()
        share = (cpu_seconds(running) - spent) / (time.monotonic() - began)
        memory = memory_mb(running)
    return Outcome(
        cases=trial.cases,
        problems=problems,
        faults=len(only) or len(faults),
        requests=people.requests,
        failed=people.failed,
        monitor_share=round(share, 4),
        monitor_mb=memory,
    )


def cpu_seconds(running: Running) -> float:
    """Processor time of the monitor so far."""
    (pid,) = running.pids("monitor")
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100.0


def memory_mb(running: Running) -> float:
    """Memory of the monitor."""
    (pid,) = running.pids("monitor")
    said: dict[str, Any] = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return round(int(said["VmRSS"].split()[0]) / 1024.0, 1)


def main() -> int:
    """Run from the command line."""
    configure_logging("warning")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=25.0)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--out", type=Path, help="Write the JSON into this file too.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = run(Path(folder), rate=given.rate, seed=given.seed, only=given.only)
    said = msgspec.json.encode(outcome).decode()
    if given.out is not None:
        given.out.write_text(f"{said}\n")
    print(said)  # noqa: T201
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
