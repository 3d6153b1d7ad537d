"""How the fitted sources and the deep ranker are trained, and when what was trained may be served."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from headwater.schema.durations import PATTERN, Duration

Limit = Annotated[str, Meta(pattern=f"^never$|{PATTERN}", description='A duration, or "never"')]

_Size = Annotated[int, Meta(ge=8, le=1_024)]
_Share = Annotated[float, Meta(ge=0.0, le=1.0)]
_Rate = Annotated[float, Meta(gt=0.0, le=1.0)]
_Penalty = Annotated[float, Meta(ge=0.0, le=1e6)]


class SequenceModel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The sequence two-tower: a causal transformer over the recent sequence and a tower for items.

    ``length`` is at most ``features.recent``. ``loss``: "full" is softmax over the whole vocabulary, "sampled" draws
    ``negatives`` items a batch and corrects for it (log-Q). ``id_dropout`` is the share of items that training sees by
    their content alone. ``item_age``: what the age of an item adds to its vector is learned, and looked up at the moment of
    each request. ``precision`` of the softmax over the whole vocabulary: "bf16" takes half the time where the processor has
    instructions for it, which "auto" finds out; everything else is float32. Training ends after ``epochs``, when the validation has not improved for
    ``patience`` epochs, or after ``most_minutes``.
    """

    size: _Size = 64
    blocks: Annotated[int, Meta(ge=1, le=12)] = 2
    heads: Annotated[int, Meta(ge=1, le=16)] = 2
    length: Annotated[int, Meta(ge=1, le=1_024)] = 50
    dropout: _Share = 0.2
    id_dropout: _Share = 0.1
    item_age: bool = False
    loss: Literal["full", "sampled"] = "full"
    negatives: Annotated[int, Meta(ge=1, le=65_536)] = 1_024
    epochs: Annotated[int, Meta(ge=1, le=10_000)] = 40
    patience: Annotated[int, Meta(ge=1, le=1_000)] = 5
    batch_tokens: Annotated[int, Meta(ge=64, le=1_000_000)] = 8_192
    learning_rate: _Rate = 0.002
    weight_decay: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.01
    most_minutes: Annotated[float, Meta(gt=0.0, le=10_000.0)] = 60.0
    min_events: Annotated[int, Meta(ge=1, le=1_000_000)] = 2
    precision: Literal["auto", "float32", "bf16"] = "auto"


class ItemKnnModel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Item neighbours from sessions: cosine of decayed co-occurrence, ``shrink`` against chance."""

    neighbours: Annotated[int, Meta(ge=1, le=4_096)] = 100
    half_life: Duration = "2d"
    shrink: _Penalty = 10.0


class EaseModel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """EASE: a closed-form item-item regression, over the ``most_items`` most frequent items, kept sparse."""

    l2: Annotated[float, Meta(gt=0.0, le=1e9)] = 500.0
    neighbours: Annotated[int, Meta(ge=1, le=4_096)] = 200
    most_items: Annotated[int, Meta(ge=10, le=50_000)] = 10_000


class AlsModel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Implicit alternating least squares; a user is folded in from the recent sequence at request time."""

    size: _Size = 64
    l2: _Penalty = 0.05
    alpha: Annotated[float, Meta(gt=0.0, le=1e6)] = 10.0
    iterations: Annotated[int, Meta(ge=1, le=1_000)] = 15


class DeepModel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The deep ranker: DCN-v2 crosses, target attention over the recent sequence, a head for each of ``heads``.

    ``heads`` are positive event types, absent: one head for whatever was chosen. ``value`` weighs the heads in the final order (absent: the weights of
    the event types).
    """

    width: _Size = 128
    crosses: Annotated[int, Meta(ge=0, le=8)] = 2
    heads: tuple[Annotated[str, Meta(min_length=1, max_length=64)], ...] = ()
    value: dict[str, float] = {}
    dropout: _Share = 0.1
    epochs: Annotated[int, Meta(ge=1, le=1_000)] = 6
    patience: Annotated[int, Meta(ge=1, le=1_000)] = 2
    batch: Annotated[int, Meta(ge=16, le=1_000_000)] = 4_096
    learning_rate: _Rate = 0.001
    weight_decay: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.01


class Models(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Training of what a bundle holds besides LightGBM. ``licence`` is what model cards say about the data's.

    With fitted sources the last ``ranker_share`` of the positive events train the ranker, and the sources are trained on
    what lies before them, so that a score that the ranker learns from never knew the answer. ``refit``: afterwards the
    sources are trained again on everything (not under a ranker that attends to their vectors).
    """

    ranker_share: Annotated[float, Meta(ge=0.01, le=0.9)] = 0.3
    refit: bool = True

    licence: Annotated[str, Meta(max_length=1_000)] = ""
    sequence: SequenceModel = SequenceModel()
    item_knn: ItemKnnModel = ItemKnnModel()
    ease: EaseModel = EaseModel()
    als: AlsModel = AlsModel()
    deep: DeepModel = DeepModel()


class Gate(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a new bundle has to show before it is promoted, against the one in service on the same questions.

    ``margin``: NDCG@10 on questions, or that of shown items on lists, may fall by this share at most. ``lists``: with fewer held-out lists, questions decide. ``slower``: scoring may take so many times as long. ``off_policy``: the lists that were
    drawn by lot are asked too, with an effective sample size of at least ``off_policy_ess``.
    """

    enabled: bool = True
    margin: _Share = 0.02
    slower: Annotated[float, Meta(ge=1.0, le=100.0)] = 2.0
    questions: Annotated[int, Meta(ge=50, le=1_000_000)] = 500
    lists: Annotated[int, Meta(ge=50, le=1_000_000)] = 200
    holdout: Duration = "1h"
    off_policy: bool = False
    off_policy_ess: Annotated[float, Meta(ge=1.0, le=1e9)] = 100.0


class Learn(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Continuous training: how often, and on which last stretch of the log."""

    every: Duration = "5m"
    window: Limit = "36h"
