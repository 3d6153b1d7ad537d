"""Training of the sequence two-tower, on sequences whose right answer is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from headwater.learning.gbdt import TrainingError
from headwater.learning.sequence import export
from headwater.learning.sequence.fit import FitReport, fit_sequence
from headwater.learning.sequence.precision import in_bf16
from headwater.learning.sequence.warm import read_earlier
from headwater.learning.sequences import Sequences
from headwater.retrieval.sequence_inputs import ENCODER_FILE, META_FILE, WEIGHTS_FILE, read_meta
from headwater.schema.models import SequenceModel
from tests.learning.chains import SMALL, TYPES, bare, circle

ITEMS = 20


def fit(
    sequences: Sequences, params: SequenceModel = SMALL, items: int = ITEMS, **more: Any
) -> tuple[dict[str, bytes], FitReport]:
    content, price = bare(items)
    return fit_sequence(sequences, content, price, params, **{"event_types": TYPES, "seed": 3, "threads": 1, **more})


@pytest.mark.parametrize("loss", ["full", "sampled"])
def test_the_next_item_of_a_circle_is_learned(loss: str) -> None:
    params = msgspec.structs.replace(SMALL, loss=loss, negatives=8)
    _, report = fit(circle(200, ITEMS, 1, views=0.1), params)
    assert report.ndcg10 is not None
    assert report.ndcg10 > 0.95
    assert (report.items, report.users, report.device, report.warm_rows, report.resumed) == (ITEMS, 200, "cpu", 0, 0)


def test_the_same_seed_gives_the_same_bytes() -> None:
    few = msgspec.structs.replace(SMALL, epochs=2, dropout=0.2)
    sequences = circle(40, ITEMS, 1)
    first, again, other = fit(sequences, few)[0], fit(sequences, few)[0], fit(sequences, few, seed=4)[0]
    assert first == again
    assert first[WEIGHTS_FILE] != other[WEIGHTS_FILE]


class _KilledError(Exception):
    pass


def test_a_killed_training_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    params, sequences = msgspec.structs.replace(SMALL, epochs=5, dropout=0.2), circle(60, ITEMS, 1)
    checkpoint = tmp_path / "work" / "sequence.npz"
    whole, report = fit(sequences, params)

    def kill(epoch: int, epochs: int, ndcg: float | None) -> None:
        if epoch == 3:
            raise _KilledError

    with pytest.raises(_KilledError):
        fit(sequences, params, checkpoint=checkpoint, progress=kill)
    resumed, after = fit(sequences, params, checkpoint=checkpoint)
    assert after.resumed == 2
    assert resumed == whole
    assert (after.steps, after.best_epoch) == (report.steps, report.best_epoch)
    assert not checkpoint.exists(), "a training that ended leaves nothing to go on from"


def test_a_checkpoint_of_another_training_is_no_beginning(tmp_path: Path) -> None:
    few, checkpoint = msgspec.structs.replace(SMALL, epochs=2), tmp_path / "sequence.npz"

    def kill(epoch: int, epochs: int, ndcg: float | None) -> None:
        if epoch == 2:
            raise _KilledError

    with pytest.raises(_KilledError):
        fit(circle(40, ITEMS, 1), few, checkpoint=checkpoint, progress=kill)
    assert checkpoint.exists()
    files, report = fit(circle(40, ITEMS, 2), few, checkpoint=checkpoint)
    assert report.resumed == 0
    assert files == fit(circle(40, ITEMS, 2), few)[0]
    checkpoint.write_bytes(b"PK\x03\x04 cut off")
    assert fit(circle(40, ITEMS, 2), few, checkpoint=checkpoint)[0] == files


def test_a_warm_start_keeps_rows_and_knows_what_was_learned() -> None:
    sequences = circle(200, ITEMS, 1)
    files, cold = fit(sequences)
    more, one = circle(200, ITEMS + 2, 1), msgspec.structs.replace(SMALL, epochs=1, learning_rate=1e-4)
    warm, report = fit(more, one, ITEMS + 2, warm=files)
    assert (report.warm_rows, report.items) == (ITEMS, ITEMS + 2)
    shape = read_meta(files[META_FILE]).shape
    before, after = read_earlier(files, shape, TYPES), read_earlier(warm, shape, TYPES)
    assert before is not None
    assert after is not None
    assert after.items[:ITEMS].tolist() == before.items.tolist()
    assert np.abs(after.ids[:ITEMS] - before.ids[:ITEMS]).max() < 0.02
    _, kept = fit(sequences, one, warm=files)
    _, fresh = fit(sequences, one)
    assert cold.ndcg10 is not None
    assert kept.ndcg10 is not None
    assert fresh.ndcg10 is not None
    assert kept.ndcg10 > 0.9 * cold.ndcg10 > fresh.ndcg10


def test_a_bundle_of_another_shape_is_left_aside() -> None:
    few = msgspec.structs.replace(SMALL, epochs=1)
    files, _ = fit(circle(40, ITEMS, 1), few)
    _, report = fit(circle(40, ITEMS, 1), msgspec.structs.replace(few, size=24), warm=files)
    assert report.warm_rows == 0
    with pytest.raises(TrainingError, match="cannot be read"):
        fit(circle(40, ITEMS, 1), few, warm={**files, WEIGHTS_FILE: files[WEIGHTS_FILE][:-8]})


def test_training_ends_when_the_time_is_up_or_nothing_improves() -> None:
    seconds = iter(range(10**9))
    short = msgspec.structs.replace(SMALL, most_minutes=0.5)
    _, report = fit(circle(40, ITEMS, 1), short, clock=lambda: float(next(seconds)))
    assert report.stopped == "time"
    assert report.epochs < short.epochs
    idle = msgspec.structs.replace(SMALL, learning_rate=1e-12, weight_decay=0.0, patience=2)
    _, still = fit(circle(200, ITEMS, 1), idle)
    assert (still.stopped, still.epochs) == ("patience", 3)


def test_few_users_are_not_asked() -> None:
    _, report = fit(circle(8, ITEMS, 1), msgspec.structs.replace(SMALL, epochs=2))
    assert (report.ndcg10, report.questions, report.best_epoch) == (None, 0, 2)


def test_what_cannot_be_trained_says_why() -> None:
    sequences = circle(20, ITEMS, 1)
    nobody = sequences.where(np.zeros(len(sequences), np.bool_))
    with pytest.raises(TrainingError, match="no sequence to learn"):
        fit(nobody)
    with pytest.raises(TrainingError, match="no sequence to learn"):
        fit(circle(20, ITEMS, 1, views=1.0))
    with pytest.raises(TrainingError, match="min_events"):
        fit(sequences, msgspec.structs.replace(SMALL, min_events=1_000))
    with pytest.raises(TrainingError, match="content of every item"):
        fit(sequences, items=ITEMS - 1)
    with pytest.raises(TrainingError, match="multiple"):
        fit(sequences, msgspec.structs.replace(SMALL, heads=3))
    with pytest.raises(TrainingError, match="event types"):
        fit(circle(20, ITEMS, 1, views=0.5), event_types=("click",))
    content, price = bare(ITEMS)
    price[3] = np.nan
    with pytest.raises(TrainingError, match="not finite"):
        fit_sequence(sequences, content, price, SMALL, event_types=TYPES, seed=1, threads=1)


def test_an_export_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = export._block

    def wrong(graph: Any, block: Any, x: str, *rest: Any, **more: Any) -> str:
        made: str = graph.op("Mul", honest(graph, block, x, *rest, **more), graph.constant(np.array(1.01, np.float32)))
        return made

    monkeypatch.setattr(export, "_block", wrong)
    with pytest.raises(TrainingError, match="differs from the trained one"):
        fit(circle(20, ITEMS, 1), msgspec.structs.replace(SMALL, epochs=1))


def test_the_number_of_threads_and_the_random_state_are_left_as_they_were() -> None:
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    files, _ = fit(circle(20, ITEMS, 1), msgspec.structs.replace(SMALL, epochs=1))
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)
    assert len(files[ENCODER_FILE]) > 0


def test_bf16_learns_as_well_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    sequences, half = circle(200, ITEMS, 1), msgspec.structs.replace(SMALL, dropout=0.1, epochs=4, precision="bf16")
    files, report = fit(sequences, half)
    exact, wanted = fit(sequences, msgspec.structs.replace(half, precision="float32"))
    assert (report.bf16, wanted.bf16) == (True, False)
    assert report.ndcg10 is not None
    assert wanted.ndcg10 is not None
    assert abs(report.ndcg10 - wanted.ndcg10) < 0.1
    assert files[WEIGHTS_FILE] != exact[WEIGHTS_FILE]
    checkpoint = tmp_path / "sequence.npz"

    def kill(epoch: int, epochs: int, ndcg: float | None) -> None:
        if epoch == 3:
            raise _KilledError

    with pytest.raises(_KilledError):
        fit(sequences, half, checkpoint=checkpoint, progress=kill)
    resumed, after = fit(sequences, half, checkpoint=checkpoint)
    assert (after.resumed, resumed == files) == (2, True)


def test_auto_is_bf16_where_the_processor_has_it(tmp_path: Path) -> None:
    cpu, gpu, cpuinfo = torch.device("cpu"), torch.device("cuda"), tmp_path / "cpuinfo"
    assert not in_bf16("auto", cpu, cpuinfo), "another system, that has no such file"
    for flags, has in (("avx512f avx512_bf16 avx2", True), ("avx512f avx2", False)):
        cpuinfo.write_text(f"processor : 0\nflags : {flags}\n")
        assert in_bf16("auto", cpu, cpuinfo) is has
        assert not in_bf16("auto", gpu, cpuinfo)
        assert in_bf16("bf16", cpu, cpuinfo)
        assert not in_bf16("float32", cpu, cpuinfo)
