"""What a bundle was seen to give where it was not trained: ``reference.json`` in it, which the monitor holds served lists against.

``columns`` are of lists as they would have been served: the gate asked, the pipeline answered, the head of each answer was kept. They know what a
question leaves out (the state just before a click is not that of any request), so a monitor takes from them which columns are alive, not how they
are distributed. ``labels`` and ``calibration`` are of training rows that the ranker did not see.
"""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from headwater.registry.bundle import Manifest, file_alone
from headwater.registry.errors import BundleError

REFERENCE_FILE = "reference.json"
FORMAT = 1
GRID = tuple(round(0.05 * i, 2) for i in range(21))  # of the quantiles that are kept
SCORE = "score"
LEAST_LISTS = 20  # of an hour that is looked at by itself
_Z = 3.0

Float32 = npt.NDArray[np.float32]


class ReferenceColumn(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A column of the lists. ``missing`` is the share of cells that are NaN or infinite, ``quantiles`` those of the others at ``GRID`` (none: all
    are missing). ``hours`` are, for each hour, its lists and those of them that were wholly of the one value that most lists were wholly of.
    """

    name: str
    missing: float
    quantiles: tuple[float, ...]
    hours: tuple[tuple[int, int], ...]

    @property
    def constant(self) -> float:
        """The share of lists that may be wholly of one value, at most: the upper end of Wilson's interval (3 standard deviations) in the hour
        where it is largest; 1 where nothing is known. An hour of few lists counts with the others.
        """
        large = [hour for hour in self.hours if hour[0] >= LEAST_LISTS]
        rest = [hour for hour in self.hours if hour[0] < LEAST_LISTS]
        if rest:
            large.append((sum(n for n, _ in rest), sum(k for _, k in rest)))
        return max((_upper(k, n) for n, k in large if n), default=1.0)


class ReferenceHead(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a head of the ranker says on the lists, at ``GRID``."""

    name: str
    quantiles: tuple[float, ...]


class ReferenceLabel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The share of held-out training rows that led to an event of ``type``."""

    type: str
    rows: int
    rate: float


class ReferenceBin(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tenth of the held-out training rows, by score: the largest score in it, its rows, and the share of them that was taken."""

    up_to: float
    rows: int
    rate: float


class BundleReference(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``reference.json``. ``lists`` 0: nobody was asked (published without the gate), and there are no ``columns``. The last of these is the score.

    ``learnt_from`` says what the training rows are: only rates of "lists" are those of places that somebody saw.
    """

    format: int = FORMAT
    lists: int = 0
    users: int = 0
    rows: int = 0
    first_ms: int = 0
    last_ms: int = 0
    columns: tuple[ReferenceColumn, ...] = ()
    heads: tuple[ReferenceHead, ...] = ()
    learnt_from: str
    labels: tuple[ReferenceLabel, ...] = ()
    calibration: tuple[ReferenceBin, ...] = ()


def quantiles_of(cells: Float32) -> tuple[float, ...]:
    """Those of the finite ``cells`` at ``GRID``; none where there is no such cell."""
    known = cells[np.isfinite(cells)]
    return tuple(float(value) for value in np.quantile(known, GRID, method="lower")) if len(known) else ()


def encode_reference(reference: BundleReference) -> bytes:
    """The bytes of the file."""
    return msgspec.json.encode(reference) + b"\n"


def decode_reference(data: bytes) -> BundleReference:
    """What :func:`encode_reference` wrote.

    Raises:
        BundleError: damaged, or of another format.
    """
    try:
        reference = msgspec.json.decode(data, type=BundleReference)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{REFERENCE_FILE} cannot be read: {error}. Train again, or update Headwater here") from error
    if reference.format != FORMAT:
        raise BundleError(
            f"{REFERENCE_FILE} has format {reference.format}, this version reads {FORMAT}: update Headwater"
        )
    return reference


def reference_alone(bundles: Path, manifest: Manifest) -> BundleReference | None:
    """The reference of a bundle in the folder ``bundles`` without the rest of it; ``None`` when it was published without one.

    Raises:
        BundleError: it is damaged, or of another format.
    """
    data = file_alone(bundles, manifest, REFERENCE_FILE, REFERENCE_FILE)
    return None if data is None else decode_reference(data)


def render_reference(reference: BundleReference) -> str:
    """The reference as Markdown: how large it is, rates, calibration, heads, and the columns that were one value."""
    lines = ["## Reference", ""]
    if reference.lists:
        still = [column.name for column in reference.columns if _still(column)]
        lines.append(
            f"{reference.lists:,} lists of {reference.users:,} users ({reference.rows:,} rows) as they would have been served. "
            f"Columns that were one value: {', '.join(still) or 'none'}."
        )
    else:
        lines.append("Published without the gate: no list was looked at.")
    if reference.labels:
        lines += ["", f"| label (held-out rows of {reference.learnt_from}) | rows | rate |", "|---|---|---|"]
        lines += [f"| {label.type} | {label.rows:,} | {label.rate:.4f} |" for label in reference.labels]
    if reference.calibration:
        lines += ["", "| score up to | rows | taken |", "|---|---|---|"]
        lines += [f"| {part.up_to:.4g} | {part.rows:,} | {part.rate:.4f} |" for part in reference.calibration]
    scored = [(column.name, column.quantiles) for column in reference.columns if column.name == SCORE]
    scored += [(f"head {head.name}", head.quantiles) for head in reference.heads]
    if scored:
        lines += ["", "| | 5% | 50% | 95% |", "|---|---|---|---|"]
        lines += [f"| {name} | {q[1]:.4g} | {q[10]:.4g} | {q[19]:.4g} |" for name, q in scored if q]
    return "\n".join([*lines, ""])


def _still(column: ReferenceColumn) -> bool:
    """Whether all cells were one value, or missing."""
    return not column.quantiles or (column.quantiles[0] == column.quantiles[-1] and column.missing == 0.0)


def _upper(hits: int, n: int) -> float:
    """The upper end of Wilson's interval."""
    p, z2 = hits / n, _Z * _Z
    middle = p + z2 / (2.0 * n)
    spread = _Z * math.sqrt(p * (1.0 - p) / n + z2 / (4.0 * n * n))
    return min((middle + spread) / (1.0 + z2 / n), 1.0)
