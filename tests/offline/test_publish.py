"""From a trained candidate to what serves: the gate, its reports, and the commands over the registry."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from headwater.cli.local import Site, make_site, write_world
from headwater.cli.main import build_app
from headwater.evaluation.checks import checks_dir
from headwater.evaluation.heldout import held_out_stretch
from headwater.features.fold import Fold
from headwater.features.plan import compile_plan
from headwater.features.replay import fold_to
from headwater.learning.gbdt import GbdtParams, fit_gbdt
from headwater.learning.trainingset import build_training_set
from headwater.log.batch import events_to_batch
from headwater.log.commands import ServedEntry
from headwater.log.identity import LmdbIdentity
from headwater.log.lmdb import LmdbLog
from headwater.log.record import Namespace
from headwater.log.writer import open_writer
from headwater.offline.publish import Publication, publish_and_promote
from headwater.offline.train import TrainReport, train
from headwater.ranking.gbdt import MODEL_FILE
from headwater.registry.audit import Author, read_audit
from headwater.registry.bundle import ManifestFields
from headwater.registry.card import IN_SERVICE, read_card
from headwater.registry.listing import GateReport
from headwater.registry.reference import REFERENCE_FILE, decode_reference, render_reference
from headwater.registry.registry import Registry
from headwater.schema.config import load_config
from headwater.schema.errors import ConfigurationError, HeadwaterError
from headwater.schema.events import Event
from headwater.serving.model import Model, open_model
from headwater.serving.pipeline import Pipeline
from headwater.serving.request import Query, served_list
from headwater.serving.rules import open_rules
from headwater.serving.view import FoldView
from headwater.simulator import World
from headwater.simulator.people import user_id

START_MS = 1_760_313_600_000


@pytest.fixture(autouse=True)
def quiet() -> Iterator[list[Any]]:
    with capture_logs() as logs:
        yield logs


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A small world in a log, and a first bundle in service."""
    site = make_site(
        tmp_path_factory.mktemp("publish"),
        {
            "ranker": {"trees": 20, "leaves": 4, "negatives": 5, "max_rows": 6_000},
            "gate": {"questions": 200, "slower": 100.0},  # the machine that runs tests is busy with other things
            "models": {"licence": "made up"},
        },
    )
    world = World(3, start_ms=START_MS, users=200, items=100, hours=24, visits_per_day=8.0)
    hours: list[int] = []
    with capture_logs():
        write_world(site, world, hours.append)
    return site


def trained(site: Site, later: int, **more: Any) -> TrainReport:
    with closing(LmdbLog(site.data / "log", readonly=True)) as log:
        options: dict[str, Any] = {"promote": Author("cli", lambda: START_MS + later)} | more
        return train(
            load_config(site.config), log, site.data / "models", created_ms=START_MS + later, checks=checks_dir(site.data),
            threads=1, **options,
        )  # fmt: skip


def published(
    site: Site, later: int, *, upside_down: bool = False, text: bytes | None = None, **more: Any
) -> Publication:
    """A candidate of our own making: one that orders the wrong way round, or a text that is no model."""
    config = load_config(site.config)
    plan = compile_plan(config)
    with closing(LmdbLog(site.data / "log", readonly=True)) as log:
        stretch = held_out_stretch(log, config, until=log.last_offset, until_ms=log.last_received_ms)
        rows = build_training_set(log, plan, config, until=stretch.split, start_ms=0, groups=500, seed=7)
        if text is None:
            labels = 1 - rows.labels if upside_down else rows.labels
            params = GbdtParams(trees=20, leaves=4, holdout=0.0)
            text, _ = fit_gbdt(
                rows.features, labels, rows.groups, None, columns=plan.columns, params=params, seed=7, num_threads=1
            )
        fields = ManifestFields(
            created_ms=START_MS + later, plan_hash=plan.hash, columns=plan.columns, ranker="lightgbm",
            event_types=plan.event_types, data=rows.data,
        )  # fmt: skip
        options: dict[str, Any] = {
            "stretch": stretch,
            "promote": Author("cli", lambda: START_MS + later),
            "seed": 7,
        } | more
        return publish_and_promote(
            config, plan, log, Registry(site.data / "models"), fields, {MODEL_FILE: text}, **options
        )


def current(site: Site) -> str | None:
    return Registry(site.data / "models").current(compile_plan(load_config(site.config)).hash)


def run(site: Site, *command: str) -> tuple[int, Any]:
    """(exit code, what ``--json`` printed)"""
    done = CliRunner().invoke(build_app(), [*command, "--config", str(site.config), "--data", str(site.data), "--json"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, json.loads(done.stdout.splitlines()[-1])


def test_the_way_of_a_bundle(site: Site, quiet: list[Any]) -> None:
    registry, config = Registry(site.data / "models"), load_config(site.config)
    plan = compile_plan(config)

    first = trained(site, 1)
    assert first.promoted
    assert first.gate is not None
    assert first.gate.version == first.bundle
    assert (first.gate.passed, first.gate.against) == (True, None)
    assert "compared with none" in first.gate.notes[0]
    card = read_card(registry.load(first.bundle, plan_hash=plan.hash))
    assert card is not None
    assert card.licence == "made up"
    assert card.held_out == first.gate.held_out
    assert card.held_out is not None
    assert card.held_out.questions >= 50
    assert card.data.last_offset == card.held_out.first_offset - 1  # what asks was not trained on
    assert card.sizes.keys() >= {MODEL_FILE}
    reference = decode_reference(registry.load(first.bundle, plan_hash=plan.hash).files[REFERENCE_FILE])
    assert 0 < reference.lists <= card.held_out.questions
    assert 0 < reference.users <= card.held_out.users
    assert [column.name for column in reference.columns] == [*plan.columns, "score"]
    assert any(column.constant < 0.9 for column in reference.columns)
    assert sum(hour[0] for hour in reference.columns[-1].hours) == reference.lists
    assert {label.type for label in reference.labels} == {kind.name for kind in config.events if kind.positive}
    assert sum(part.rows for part in reference.calibration) == reference.labels[0].rows
    assert reference.calibration[-1].rate > reference.calibration[0].rate
    assert f"{reference.lists:,} lists of {reference.users:,} users" in render_reference(reference)
    assert {"headwater", "numpy", "lightgbm"} == set(card.versions)

    second = trained(site, 2)  # the same data and seed: the same model
    assert second.promoted
    assert second.gate is not None
    assert second.gate.against == first.bundle
    assert second.gate.held_out is not None
    over = second.gate.held_out.systems[IN_SERVICE].ndcg_over
    assert over is not None
    assert over.value == 0.0
    assert current(site) == second.bundle

    worse = published(site, 3, upside_down=True)
    assert not worse.promoted
    assert worse.gate is not None
    assert "NDCG@10 is lower by" in worse.gate.reasons[0]
    assert current(site) == second.bundle
    stored = registry.report(worse.bundle)
    assert stored is not None
    assert msgspec.json.decode(stored, type=GateReport) == worse.gate
    assert any(line["event"] == "gate_refused" and line["version"] == worse.bundle for line in quiet)

    broken = published(site, 4, text=b"tree\nversion=v4\n")
    assert not broken.promoted
    assert broken.gate is not None
    assert broken.gate.reasons[0].startswith("it cannot be opened: ")
    assert current(site) == second.bundle

    forced = published(site, 5, upside_down=True, force=True)
    assert forced.promoted
    assert forced.gate is not None
    assert (forced.gate.passed, forced.gate.forced) == (False, True)
    assert current(site) == forced.bundle

    entries = read_audit(site.data)[::-1]  # what was refused changed nothing
    assert [(entry.by, entry.action, entry.subject, entry.time_ms - START_MS) for entry in entries] == [
        ("cli", "bundle.promote", each.bundle, later) for later, each in ((1, first), (2, second), (5, forced))
    ]
    assert entries[0].undo is None, "there was none before it"
    assert [entry.undo.before["version"] for entry in entries[1:] if entry.undo] == [first.bundle, second.bundle]
    assert entries[1].reason.startswith("the gate lets it pass: ndcg@10 +0.0%")
    assert f"over {first.bundle} on " in entries[1].reason
    assert entries[2].reason.startswith("the gate refuses it; it was promoted all the same: NDCG@10 is lower by")

    # the commands
    code, said = run(site, "models", "list")
    listed = {line["version"]: line for line in said["bundles"]}
    assert code == 0
    assert [listed[b]["gate"] for b in (first.bundle, second.bundle, worse.bundle, broken.bundle, forced.bundle)] == [
        "passed", "passed", "refused", "refused", "forced",
    ]  # fmt: skip
    assert [v for v, line in listed.items() if line["current"]] == [forced.bundle]
    assert {v for v, line in listed.items() if line["rollback"]} == {first.bundle, second.bundle}

    code, said = run(site, "models", "show")
    assert (code, said["gate"]["forced"], said["card"]["licence"]) == (0, True, "made up")
    code, said = run(site, "models", "rollback")
    assert (code, said) == (0, {"version": second.bundle, "before": forced.bundle})
    assert current(site) == second.bundle

    code, said = run(site, "models", "promote", worse.bundle)
    assert code == 1
    assert not said["promoted"]
    assert "NDCG@10 is lower" in said["gate"]["reasons"][0]
    code, said = run(site, "models", "promote", broken.bundle)
    assert (code, said["promoted"]) == (1, False)
    assert current(site) == second.bundle
    code, said = run(site, "models", "promote", worse.bundle, "--force")
    assert (code, said["promoted"], said["gate"]["forced"]) == (0, True, True)
    code, said = run(site, "models", "promote", first.bundle, "--no-gate")
    assert (code, said["promoted"], said["gate"]) == (0, True, None)
    assert current(site) == first.bundle

    code, said = run(site, "models", "diff", first.bundle, worse.bundle)
    changed = {change["key"]: (change["first"], change["second"]) for change in said["changes"]}
    assert code == 0
    assert "training.seed" in changed
    assert "plan_hash" not in changed
    assert changed[f"files.{MODEL_FILE}.sha256"][0] != changed[f"files.{MODEL_FILE}.sha256"][1]

    code, said = run(site, "models", "prune", "--keep", "0")
    assert code == 0
    assert said["removed"] == sorted({broken.bundle, forced.bundle})  # rolled back from, and promoted never
    with pytest.raises(ConfigurationError, match="no bundle begins"):
        run(site, "models", "show", "2099")
    with pytest.raises(ConfigurationError, match="bundles begin"):
        run(site, "models", "show", "2025")


def test_a_bundle_in_service_that_knows_the_answers_is_no_measure(site: Site) -> None:
    """Whoever was trained on the held-out stretch is not asked there."""
    whole = trained(site, 10, promote=None)  # nothing is held out of what is not to be promoted
    assert whole.gate is None
    Registry(site.data / "models").put_in_service(whole.bundle)
    later = trained(site, 11)
    assert not later.promoted
    assert later.gate is not None
    (why,) = later.gate.reasons
    assert why.startswith(
        "only 0 positive events lie behind what both bundles were trained on (at least 50 are needed)"
    )
    code, said = run(site, "train")
    assert (code, said["promoted"]) == (1, False)
    code, said = run(site, "train", "--force")
    assert (code, said["promoted"], said["gate"]["forced"]) == (0, True, True)


def test_a_damaged_bundle_in_service_does_not_stop_a_good_one(site: Site) -> None:
    registry = Registry(site.data / "models")
    trained(site, 20, force=True)
    version = current(site)
    assert version is not None
    path = registry.path / "bundles" / version / MODEL_FILE
    path.write_bytes(path.read_bytes()[:-1])
    mended = trained(site, 21)
    assert mended.promoted
    assert mended.gate is not None
    assert "cannot be opened" in mended.gate.notes[0]
    assert current(site) == mended.bundle


EXPLORING = """
[[surfaces]]
name = "home"
exploration = {share = 1.0, temperature = 1.0, candidates = 200}
"""


def explore(site: Site, model: Model, lists: int) -> None:
    """Serve lists of two that are drawn by lot; what the model ranks high is clicked, the rest hardly ever. Then the window goes by."""
    config = load_config(site.config)
    plan, names = compile_plan(config), [user_id(n) for n in range(80)]
    with closing(LmdbLog(site.data / "log", readonly=True)) as log:
        fold = Fold(plan)
        fold_to(log, fold, log.last_offset)
        view = FoldView(plan, fold)
        view.refresh()
        pipeline = Pipeline(config, plan, rules=open_rules(config, plan, log.vocabulary()))
        with closing(LmdbIdentity(site.data / "identity", readonly=True)) as identity:
            known = {name: key for name in names if (key := identity.lookup(name)) is not None}
        now_ms, rng, entries, clicked = log.last_received_ms, np.random.default_rng(5), [], []
        for n, (name, key) in zip(range(lists), itertools.cycle(known.items()), strict=False):
            query = Query(f"drawn-{n}", user=key.user, k=2, deadline_ms=1e9)
            answer = pipeline.recommend(query, view, model, now_ms)
            assert answer.explored is not None
            entries.append(ServedEntry(*key[:2], msgspec.msgpack.encode(served_list(query, answer, sampled=False))))
            for item in answer.items.tolist():
                if rng.random() < (0.8 if item in answer.explored.candidates[:25] else 0.02):
                    text = log.vocabulary().text(Namespace.ITEM, item)
                    assert text is not None
                    clicked.append(Event(user=name, item=text, type="click", time=now_ms + 1_000))
    moment = [now_ms]
    with open_writer(site.data, clock=lambda: moment[0], segment_keys=config.segments.keys) as writer:
        writer.append_served(entries)
        moment[0] += 1_900_000
        writer.append_events(events_to_batch(clicked, config.segments.keys))


def test_lists_that_were_drawn_judge_a_bundle(site: Site, tmp_path: Path) -> None:
    exploring = Site(tmp_path / "headwater.toml", site.data)
    plain = site.config.read_text()
    exploring.config.write_text(plain.replace("[gate]", "[gate]\noff_policy = true\noff_policy_ess = 2.0") + EXPLORING)
    serving, config = current(site), load_config(exploring.config)
    assert serving is not None
    plan, registry = compile_plan(config), Registry(site.data / "models")
    worse, same = published(site, 30, upside_down=True, promote=None), published(site, 31, promote=None)
    with pytest.raises(HeadwaterError, match=r"says anything of another policy.*exploration"):
        run(exploring, "ope", "--policy", "current")
    with closing(open_model(registry.load(serving, plan_hash=plan.hash), config, plan)) as model:
        explore(exploring, model, 80)

    code, said = run(exploring, "ope", "--policy", serving, "--reward", "click", "--least-ess", "20")
    assert said["bundles"] == {serving: 80}
    assert (code, said["policy"], said["lists"], said["reproduced"], said["refused"]) == (0, serving, 80, 1.0, {})
    for name in ("SIPS", "RIPS", "SNRIPS", "IIPS"):
        assert said["estimates"][name]["value"] == pytest.approx(said["logging"]["value"])
    told = [
        "ope",
        "--policy",
        "current",
        "--config",
        str(exploring.config),
        "--data",
        str(site.data),
        "--least-ess",
        "20",
    ]
    shown = CliRunner().invoke(build_app(), told)
    assert shown.exit_code == 0
    for words in ("as logged", "SNRIPS", "80 lists of", "with any positive event"):
        assert words in shown.stdout
    code, said = run(exploring, "models", "promote", worse.bundle)
    (why,) = (reason for reason in said["gate"]["reasons"] if reason.startswith("off-policy: "))
    assert code == 1
    assert "on home a list is worth -" in why
    assert "gate.margin allows" in why
    code, said = run(exploring, "models", "promote", same.bundle)
    assert not any(reason.startswith("off-policy: ") for reason in said["gate"]["reasons"])
    assert any(note.startswith("off-policy: on home a list is worth ") for note in said["gate"]["notes"])
    strict = Site(tmp_path / "strict.toml", site.data)
    strict.config.write_text(exploring.config.read_text().replace("off_policy_ess = 2.0", "off_policy_ess = 5000.0"))
    code, said = run(strict, "models", "promote", same.bundle)
    assert any("effective sample size" in reason for reason in said["gate"]["reasons"])
