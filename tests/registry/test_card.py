"""The card is read back as it was written; a difference names what differs and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from headwater.registry.bundle import BundleError, ManifestFields, unwritten
from headwater.registry.card import (
    CANDIDATE,
    CARD_FILE,
    IN_SERVICE,
    Estimate,
    HeldOut,
    Measured,
    ModelCard,
    SegmentFigures,
    encode_card,
    read_card,
    render_card,
)
from headwater.registry.difference import Change, difference

Fields = Callable[..., ManifestFields]

FIGURES = {key: Estimate(0.3, 0.25, 0.35) for key in ("hr@10", "ndcg@10", "mrr")}
HELD = HeldOut(
    first_offset=901, last_offset=1_000, first_ms=1_700_000_000_000, last_ms=1_700_000_003_000, questions=80, users=40, seed=7,
    systems={
        CANDIDATE: Measured(version="new", metrics=FIGURES, score_ms=0.21, fetch_ms=0.5, list_ms=2.0),
        IN_SERVICE: Measured(
            version="old", metrics=FIGURES, ndcg_over=Estimate(0.01, -0.01, 0.03), relative_over=Estimate(0.1, -0.1, 0.3),
            score_ms=0.2, fetch_ms=0.5, list_ms=2.1,
        ),
    },
    segments=(SegmentFigures(segment="country=de", questions=40, ndcg=FIGURES["mrr"], over=None),),
    coverage={"item_knn": 0.75},
)  # fmt: skip


def card_of(fields: ManifestFields, held: HeldOut | None = HELD, licence: str = "CC BY 4.0") -> ModelCard:
    return ModelCard(
        created_ms=fields.created_ms, plan_hash=fields.plan_hash, ranker=fields.ranker, sources=fields.sources, columns=2,
        data=fields.data, licence=licence, training=fields.training, versions={"numpy": "2.0"}, training_metrics={},
        sizes={"ranker.lgb.txt": 12_345}, history="no row holds the score of a model", held_out=held,
    )  # fmt: skip


def test_a_card_is_read_back_and_readable(fields: Fields) -> None:
    card = card_of(fields())
    bundle = unwritten(fields(), encode_card(card))
    assert read_card(bundle) == card
    assert read_card(unwritten(fields(), {})) is None
    text = render_card(card)
    for said in (
        "offsets 1 to 900", "CC BY 4.0", "12,345 bytes", "80 questions of 40 users", "country=de", "0.0100 [-0.0100, 0.0300]",
        "in service old", "0.750", "2023-11-14 22:13:20Z", "no row holds the score of a model", "lambdarank",
    ):  # fmt: skip
        assert said in text, said
    assert "nothing was held out" in render_card(card_of(fields(), None))
    later = msgspec.json.encode(msgspec.to_builtins(card) | {"novel": 1})
    with pytest.raises(BundleError, match="Update Headwater"):
        read_card(unwritten(fields(), {CARD_FILE: later}))


def test_a_difference_names_what_differs(fields: Fields) -> None:
    first = unwritten(fields(), {"ranker.lgb.txt": b"one", **encode_card(card_of(fields()))})
    assert difference(first, first) == []
    changed = fields(
        5, columns=("user.age", "item.rate"), training={"seed": 8, "objective": "lambdarank"}, metrics={"ndcg@10": 0.4}
    )
    second = unwritten(changed, {"ranker.lgb.txt": b"three", **encode_card(card_of(changed, None, "none"))})
    found = {change.key: (change.first, change.second) for change in difference(first, second)}
    assert found["columns"] == ("item.count.click.30m", "item.rate")
    assert found["training.seed"] == (7, 8)
    assert found["training.learning_rate"] == (0.08, None)
    assert "training.objective" not in found
    assert found["metrics.ndcg@10"] == (0.31, 0.4)
    assert found["files.ranker.lgb.txt.size"] == (3, 5)
    assert found["card.licence"] == ("CC BY 4.0", "none")
    assert found["card.held_out.systems.candidate.score_ms"] == (0.21, None)
    assert {"version", "created_ms"} <= set(found)
    assert not any(key.startswith("files.card") for key in found)
    order = unwritten(fields(columns=("user.age", "item.count.click.30m")), {})
    assert difference(unwritten(fields(), {}), order)[0] == Change(
        "columns", "item.count.click.30m, user.age", "user.age, item.count.click.30m"
    )
