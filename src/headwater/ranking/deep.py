"""The deep ranker and the light one: ONNX Runtime on one thread, trained by ``headwater.learning.deep``."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from typing import Literal, Self

import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime
from msgspec import Struct

from headwater.ranking.calibration import Calibration
from headwater.ranking.ranker import Attention, Features, RankerError, Scores

DEEP_FILE, LIGHT_FILE, DESCRIPTION_FILE = "ranker.onnx", "ranker.light.onnx", "ranker.json"

_ROWS = 16  # a call is filled up to a multiple of it: kernels take other ways for the last few rows

Given = Mapping[str, npt.NDArray[np.generic]]
Heads = npt.NDArray[np.float32]


class Description(Struct, frozen=True, kw_only=True):
    """``ranker.json``: what the numbers of the models mean.

    ``value`` weighs the heads. ``size`` is that of the vectors which the deep model attends to, 0: none. A "listwise" model
    was trained on order alone: its score is ``Σ value · logit``; a "pointwise" one's is ``Σ value · probability``.
    """

    objective: Literal["listwise", "pointwise"]
    heads: tuple[str, ...]
    value: tuple[float, ...]
    calibration: tuple[Calibration, ...]
    light_calibration: tuple[Calibration, ...]
    columns: tuple[str, ...]
    size: int = 0
    version: Literal[1] = 1

    def __post_init__(self) -> None:
        if not len(self.heads) == len(self.value) == len(self.calibration) == len(self.light_calibration) > 0:
            raise ValueError("Expected a value and calibrations for each of at least one head")


def session(model: bytes, what: str) -> onnxruntime.InferenceSession:
    """A session that computes on the calling thread alone and never spins.

    Raises:
        RankerError: the bytes are no model that ONNX Runtime can run.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise RankerError(f"ONNX Runtime cannot open {what}: {error}. Publish the bundle again.") from error


def run_session(
    opened: onnxruntime.InferenceSession, given: Given, options: onnxruntime.RunOptions | None = None
) -> Heads:  # fmt: skip
    """Logits ``float32[n, h]``.

    Raises:
        RankerError: ONNX Runtime failed, or ``options.terminate`` was set.
    """
    try:
        return np.asarray(opened.run(["logits"], dict(given), options)[0], np.float32)
    except Exception as error:
        raise RankerError(f"ONNX Runtime gave no scores: {error}") from error


class _OnnxRanker:
    """What both rankers share: columns, calibration, value."""

    def __init__(
        self, model: bytes, name: str, description: Description, calibration: tuple[Calibration, ...],
        columns: tuple[str, ...],
    ) -> None:  # fmt: skip
        if description.columns != columns:
            raise RankerError(
                f"The ranker was trained on {len(description.columns)} columns, its bundle names {len(columns)} (or others, or in "
                "another order). Train and publish it again."
            )
        self._session: onnxruntime.InferenceSession | None = session(model, name)
        self._run_options = onnxruntime.RunOptions()
        wanted = {node.name for node in self._session.get_inputs()}
        if wanted != self._inputs(description):
            raise RankerError(f"{name} takes {', '.join(sorted(wanted))}; it does not belong to {DESCRIPTION_FILE}.")
        self.description = description
        self._columns = columns
        self._calibration = calibration
        self._value = np.array(description.value, np.float32)

    @staticmethod
    def _inputs(description: Description) -> set[str]:  # noqa: ARG004
        return {"features"}

    @property
    def columns(self) -> tuple[str, ...]:
        return self._columns

    @property
    def attends(self) -> bool:
        return False

    @property
    def head_names(self) -> tuple[str, ...]:
        return self.description.heads

    def weighing(self, objective: Mapping[str, float]) -> Self:
        """The same session with other weights; its calls are interrupted by themselves. See :class:`Headed`."""
        heads = self.description.heads
        for name in objective:
            if name not in heads:
                close = difflib.get_close_matches(name, heads, n=1)
                hint = f', did you mean "{close[0]}"?' if close else ""
                raise RankerError(f'There is no head "{name}"{hint} (the ranker has {", ".join(heads)})')
        other = copy.copy(self)
        other._run_options = onnxruntime.RunOptions()
        other._value = np.array([objective.get(name, 0.0) for name in heads], np.float32)
        return other

    def score(self, features: Features, attention: Attention | None = None) -> Scores:
        """Score rows: ``float32[n, len(columns)]`` → ``float32[n]``. See :meth:`Ranker.score`."""
        scores = np.zeros(len(features), np.float32)
        # column by column, not as a product: a row's score may not depend on how many rows there are
        for h, column in enumerate(self.heads(features, attention).T):
            scores += self._value[h] * column
        return scores

    def heads(self, features: Features, attention: Attention | None = None) -> Heads:
        """What each head says, ``float32[n, h]``: probabilities, or logits of a listwise model.

        Raises:
            RankerError: as :meth:`Ranker.score`.
        """
        logits = self._logits(features, attention)
        if not np.isfinite(logits).all():
            bad = int((~np.isfinite(logits)).any(axis=1).sum())
            raise RankerError(
                f"The model gave {bad} of {len(logits)} rows a score that is not finite. Roll the bundle back."
            )
        if self.description.objective == "listwise":
            return logits
        return np.stack([c.apply(logits[:, h]) for h, c in enumerate(self._calibration)], 1)

    def _logits(self, features: Features, attention: Attention | None) -> Heads:
        opened = self._session
        if opened is None:
            raise RankerError("This ranker was closed; take the current one.")
        if features.dtype != np.float32 or features.ndim != 2 or features.shape[1] != len(self._columns):
            raise RankerError(
                f"The ranker expects float32[n, {len(self._columns)}], got {features.dtype}{list(features.shape)}. "
                "The features come from another plan than the model: train again or roll back."
            )
        n = len(features)
        if not n:
            return np.zeros((0, len(self._value)), np.float32)
        given = {"features": _filled(features), **self._attended(n, attention)}
        return run_session(opened, given, self._run_options)[:n]

    def _attended(self, n: int, attention: Attention | None) -> dict[str, npt.NDArray[np.generic]]:  # noqa: ARG002
        return {}

    def interrupt(self) -> None:
        """End the calls that are under way, between two operators. See :class:`Interruptible`."""
        under_way, self._run_options = self._run_options, onnxruntime.RunOptions()
        under_way.terminate = True

    def close(self) -> None:
        self._session = None


class DeepRanker(_OnnxRanker):
    """Crosses, target attention and several heads. Thread-safe: a session may run in several threads at once.

    Args:
        model: ``ranker.onnx``.
        description: ``ranker.json``.
        columns: names of the feature columns, in order, as the bundle's manifest has them.

    Raises:
        RankerError: a file is damaged, or they do not belong together.
    """

    def __init__(self, model: bytes, description: bytes, columns: tuple[str, ...]) -> None:
        described = describe(description)
        super().__init__(model, DEEP_FILE, described, described.calibration, columns)

    @staticmethod
    def _inputs(description: Description) -> set[str]:
        attended = {"candidates", "recent", "types", "age_s", "there"} if description.size else set()
        return {"features", *attended}

    @property
    def attends(self) -> bool:
        return self.description.size > 0

    def _attended(self, n: int, attention: Attention | None) -> dict[str, npt.NDArray[np.generic]]:
        size = self.description.size
        if not size:
            return {}
        if attention is None:
            raise RankerError("The deep ranker attends to a sequence source, and got no vectors of one.")
        recent, types, age_s = attention.recent, attention.types, attention.age_s
        length = len(recent)
        if (
            attention.candidates.shape != (n, size) or recent.shape != (length, size)
            or types.shape != (length,) or age_s.shape != (length,)
        ):  # fmt: skip
            raise RankerError(
                f"The ranker attends to vectors of size {size} of {n} candidates and the recent items, got candidates"
                f"{list(attention.candidates.shape)}, recent{list(recent.shape)}, types{list(types.shape)}, age_s{list(age_s.shape)}."
            )
        there = np.ones(max(length, 1), np.float32)
        if not length:  # one that is not there: no operator has to cope with nothing
            there[0] = 0.0
            recent, types, age_s = np.zeros((1, size), np.float32), np.zeros(1, np.int64), np.zeros(1, np.float32)
        return {
            "candidates": _filled(attention.candidates.astype(np.float32, copy=False)),
            "recent": np.ascontiguousarray(recent, np.float32),
            "types": np.ascontiguousarray(types, np.int64),
            "age_s": np.ascontiguousarray(age_s, np.float32),
            "there": there,
        }


class LightRanker(_OnnxRanker):
    """The small network that was taught by the deep one: features alone, a fraction of the cost. See :class:`DeepRanker`."""

    def __init__(self, model: bytes, description: bytes, columns: tuple[str, ...]) -> None:
        described = describe(description)
        super().__init__(model, LIGHT_FILE, described, described.light_calibration, columns)


def describe(text: bytes) -> Description:
    """Decode ``ranker.json``.

    Raises:
        RankerError: it is damaged.
    """
    try:
        return msgspec.json.decode(text, type=Description)
    except msgspec.DecodeError as error:
        raise RankerError(f"{DESCRIPTION_FILE} is damaged: {error}. Publish the bundle again.") from error


def _filled(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """``rows`` in C order, filled up with zeros to a multiple of ``_ROWS``."""
    missing = -len(rows) % _ROWS
    if not missing:
        return np.ascontiguousarray(rows)
    return np.concatenate([rows, np.zeros((missing, rows.shape[1]), np.float32)])
