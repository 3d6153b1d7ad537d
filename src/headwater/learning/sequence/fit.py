"""Training of the sequence two-tower: from sequences to the files of a bundle."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from msgspec import Struct

from headwater.learning.gbdt import TooFewError, TrainingError
from headwater.learning.sequence.ages import Births, drop_unborn
from headwater.learning.sequence.export import export
from headwater.learning.sequence.model import TwoTower
from headwater.learning.sequence.packing import Tokens, tokens_of
from headwater.learning.sequence.precision import in_bf16
from headwater.learning.sequence.trainer import Facts, Progress, Trainer, float_tensor
from headwater.learning.sequence.validation import withhold
from headwater.learning.sequence.warm import Earlier, read_earlier, take_over
from headwater.learning.sequences import Sequences
from headwater.retrieval.sequence_inputs import TYPE_SLOTS, Shape, born_seconds, price_input
from headwater.schema.models import SequenceModel

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
_T = TypeVar("_T", bound=np.generic)

VALIDATION_SHARE, MOST_VALIDATION = 0.1, 2_000  # of the users; each lends one event


class FitReport(Struct, frozen=True, kw_only=True):
    """What training did. ``stopped`` is "epochs", "patience" or "time"; ``warm_rows`` items came from an earlier bundle.

    The weights are those of ``best_epoch``; ``ndcg10`` and ``hr10`` are its validation among all items of the vocabulary
    (``None`` when there were too few users to ask). ``resumed`` is the epoch a killed training went on from.
    """

    epochs: int
    best_epoch: int
    steps: int
    stopped: str
    users: int
    events: int
    items: int
    questions: int
    ndcg10: float | None
    hr10: float | None
    seconds: float
    device: str
    bf16: bool
    resumed: int
    warm_rows: int


class _Vocabulary(NamedTuple):
    items: Int64  # (v,) dense item of each row
    row_of: Int64  # (catalogue,) row of each item, -1: none


def fit_sequence(
    sequences: Sequences,
    content: Float32,
    price: Float32,
    params: SequenceModel,
    *,
    event_types: tuple[str, ...],
    seed: int,
    threads: int,
    born_ms: Int64 | None = None,
    device: str = "auto",
    checkpoint: Path | None = None,
    warm: Mapping[str, bytes] | None = None,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[dict[str, bytes], FitReport]:
    """Train the two towers and export them.

    The same arguments and libraries give the same weights, unless the time of ``params.most_minutes`` ends the training.
    The last target of a share of the users is withheld to choose the best epoch by.

    Args:
        sequences: what users did.
        content: ``float32[items, c]`` by dense item (``ItemIndex.content``); zeros for one of which nothing is known.
        price: ``float32[items]`` by dense item.
        event_types: names of the event types by slot, the first for slot 1.
        threads: threads of torch on the CPU.
        born_ms: ``int64[items]`` by dense item, when each was published or first seen (``Columns.born``; 0: not known). Needed with
            ``params.item_age``.
        device: "auto" takes a GPU when there is one; else a device of torch.
        checkpoint: file in which the training stands after each epoch, and from which it goes on after a kill. It is
            removed at the end. One of another training is overwritten.
        warm: files of an earlier bundle to begin with; those of another shape or other event types are left aside.
        progress: called as ``progress(epoch, epochs, ndcg10 or None)``.

    Returns:
        The files of ``retrieval.sequence_inputs``, and a report.

    Raises:
        TrainingError: inputs that do not fit together, nothing to learn from, weights that are not finite, or an export
            that does not compute what was trained.
    """
    _check(sequences, content, price, born_ms, params, event_types)
    chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    shape = Shape(
        size=params.size,
        blocks=params.blocks,
        heads=params.heads,
        length=params.length,
        content=content.shape[1],
        item_age=params.item_age,
    )
    earlier = read_earlier(warm, shape, event_types) if warm else None
    vocabulary = _vocabulary(sequences, params.min_events, len(content), earlier)
    tokens = tokens_of(sequences, vocabulary.row_of, params.min_events)
    users, events = len(tokens.starts) - 1, len(tokens.rows)
    births = None
    if params.item_age and born_ms is not None:
        born_s = born_seconds(_by_row(born_ms, vocabulary.items))
        drop_unborn(tokens, born_s)
        births = Births.of(born_s, chosen)
    questions = withhold(tokens, VALIDATION_SHARE, MOST_VALIDATION, np.random.default_rng([seed, 2**32]))
    if not _learnable(tokens):
        raise TooFewError(
            "No user has a positive event that follows another event, so there is no sequence to learn. Import more "
            "events, mark an event type `positive`, or lower models.sequence.min_events."
        )
    facts = _facts(content, price, vocabulary.items, tokens, chosen, births)
    devices = [chosen] if chosen.type == "cuda" else []
    threads_before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            model = TwoTower(shape, len(vocabulary.items), params.dropout)
            if earlier is not None:
                take_over(model, earlier)
            model.to(chosen)
            bf16 = in_bf16(params.precision, chosen)
            trainer = Trainer(
                model, facts, tokens, questions, params, seed=seed, clock=clock, bf16=bf16,
                fingerprint=_fingerprint(tokens, facts, params, vocabulary.items, seed, bf16, warm or {}),
            )  # fmt: skip
            done = trainer.run(checkpoint, progress)
            files = export(model.cpu().eval(), shape, vocabulary.items, event_types, content, price)
    finally:
        torch.set_num_threads(threads_before)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    standing, asked = done.standing, len(questions.at) > 0
    return files, FitReport(
        epochs=standing.epoch,
        best_epoch=standing.best_epoch,
        steps=standing.steps,
        stopped=done.why,
        users=users,
        events=events,
        items=len(vocabulary.items),
        questions=len(questions.at),
        ndcg10=standing.best_ndcg if asked else None,
        hr10=standing.best_hr if asked else None,
        seconds=standing.seconds,
        device=str(chosen),
        bf16=bf16,
        resumed=done.resumed,
        warm_rows=len(earlier.items) if earlier is not None else 0,
    )


def _vocabulary(sequences: Sequences, min_events: int, catalogue: int, earlier: Earlier | None) -> _Vocabulary:
    """Rows of an earlier bundle first, where they were; then the other items that the sequences name, ascending."""
    lengths = np.diff(sequences.starts)
    named = np.unique(sequences.items[np.repeat(lengths >= min_events, lengths)])
    kept = earlier.items if earlier is not None else np.zeros(0, np.int64)
    items = np.concatenate([kept, np.setdiff1d(named, kept)])
    row_of = np.full(max(catalogue, int(items.max(initial=0)) + 1), -1, np.int64)
    row_of[items] = np.arange(len(items))
    return _Vocabulary(items, row_of)


def _by_row(values: npt.NDArray[_T], items: Int64) -> npt.NDArray[_T]:
    """``values`` by dense item for each row; an item that only an earlier bundle knew may lie beyond the catalogue: 0."""
    there = items < len(values)
    made = np.zeros((len(items), *values.shape[1:]), values.dtype)
    made[there] = values[items[there]]
    return made


def _facts(
    content: Float32, price: Float32, items: Int64, tokens: Tokens, device: torch.device, births: Births | None
) -> Facts:
    """What the towers know of each row."""
    own, paid = _by_row(content, items), _by_row(price, items)
    counts = np.bincount(tokens.rows[tokens.target], minlength=len(items)).astype(np.float32)
    return Facts(
        float_tensor(own, device), float_tensor(price_input(paid), device),
        torch.from_numpy(own.any(axis=1)).to(device), float_tensor(counts, device), births,
    )  # fmt: skip


def _learnable(tokens: Tokens) -> bool:
    """Whether any target has an event before it."""
    first = np.zeros(len(tokens.rows), np.bool_)
    first[tokens.starts[:-1]] = True
    return bool((tokens.target & ~first).any())


def _fingerprint(
    tokens: Tokens, facts: Facts, params: SequenceModel, items: Int64, seed: int, bf16: bool, warm: Mapping[str, bytes]
) -> str:
    digest = hashlib.sha256(msgspec.json.encode([params, seed, bf16]))
    for array in (*(getattr(tokens, name) for name in ("starts", "rows", "types", "times_s", "target")), items):
        digest.update(np.ascontiguousarray(array).data)
    for tensor in (*facts[:4], *(facts.births or ())):
        digest.update(tensor.cpu().numpy().data)
    for name in sorted(warm):
        digest.update(name.encode() + hashlib.sha256(warm[name]).digest())
    return digest.hexdigest()


def _check(
    sequences: Sequences, content: Float32, price: Float32, born_ms: Int64 | None, params: SequenceModel,
    event_types: tuple[str, ...],
) -> None:  # fmt: skip
    try:
        msgspec.convert(msgspec.to_builtins(params), SequenceModel)
    except msgspec.ValidationError as error:
        raise TrainingError(f"[models.sequence] is out of range: {error}. Correct it.") from error
    if params.size % params.heads:
        raise TrainingError(
            f"models.sequence.size {params.size} cannot be shared by {params.heads} heads. Choose a multiple."
        )
    if content.ndim != 2 or content.dtype != np.float32 or price.shape != (len(content),):
        raise TrainingError(
            f"Expected content float32[items, c] and price float32[items], got {content.dtype}{list(content.shape)} and "
            f"{price.dtype}{list(price.shape)}."
        )
    if not (np.isfinite(content).all() and np.isfinite(price).all()):
        raise TrainingError("An item's content or price is not finite. Verify the item table.")
    if params.item_age and (born_ms is None or born_ms.shape != (len(content),)):
        raise TrainingError(
            f"models.sequence.item_age needs the births of all {len(content)} items, int64[items], got "
            f"{'none' if born_ms is None else list(born_ms.shape)}. Give them, or turn item_age off."
        )
    if len(event_types) >= TYPE_SLOTS or (len(sequences) and int(sequences.types.max()) > len(event_types)):
        raise TrainingError(f"Sequences hold event types that are not among the {len(event_types)} names given.")
    if len(sequences) and not 0 < int(sequences.items.min()) <= int(sequences.items.max()) < len(content):
        raise TrainingError(
            f"Sequences name items up to {sequences.items.max()}, but content is given for {len(content)}. "
            "Give the content of every item that the log knows."
        )
