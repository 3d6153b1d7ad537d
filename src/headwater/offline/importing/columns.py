"""Columns of a file as validated columns of an event: the limits of ``schema.events``, without a loop over rows.

Texts are coded first (each different one once), so that a limit is checked per text and not per row.
Numbers and times are converted by Polars; what cannot be converted is refused with a reason that
starts with the field.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from headwater.offline.importing.mapping import ImportFailedError, TimeUnit
from headwater.offline.importing.rejects import Verdicts
from headwater.schema.events import MAX_TEXT_VALUE

MAX_ID = 128
MAX_NAME = 64
MAX_MILLIS = 4_102_444_800_000
MAX_VALUE = 1e12
MAX_POSITION = 100_000
EARLIEST_LIKELY_MS = 10**11  # March 1973: milliseconds before that are seconds that nobody declared
_UNREADABLE = np.iinfo(np.int64).min
_NAME = re.compile(r"^[A-Za-z0-9_.:\-]+$")
_UNIT_PER_MS = {"ms": 1, "us": 1_000, "ns": 1_000_000}
_BOOLS = {"true": True, "false": False, "1": True, "0": False}

MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Coded:
    """A column as its different values and, for each row, the position among them; −1: none."""

    values: list[Any]
    codes: npt.NDArray[np.int64]

    def rows_where(self, wrong: Callable[[Any], bool]) -> npt.NDArray[np.bool_]:
        """``bool[n]``: rows whose value is ``wrong``; a row without a value never is."""
        flags = np.zeros(len(self.values) + 1, np.bool_)  # the last entry answers for code −1
        for position, value in enumerate(self.values):
            flags[position] = wrong(value)
        return flags[self.codes]


def _array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _coded(array: pa.Array) -> Coded:
    encoded = array.dictionary_encode()
    codes = pc.fill_null(encoded.indices.cast(pa.int64()), -1)
    return Coded(encoded.dictionary.to_pylist(), codes.to_numpy(zero_copy_only=False).copy())


def _is_text(array: pa.Array) -> bool:
    kind = array.type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _series(array: pa.Array) -> pl.Series:
    series = pl.from_arrow(array)
    if not isinstance(series, pl.Series):
        raise TypeError(f"Expected one column, got {array.type}")
    return series


def texts(
    column: pa.ChunkedArray, field: str, verdicts: Verdicts, *, required: bool = False, limit: int = MAX_ID
) -> Coded:
    """Ids and other short texts; whole numbers become text. Empty text is no value."""
    array = _array(column)
    if pa.types.is_floating(array.type):
        array = _whole_numbers(array, field, verdicts)
    kind = array.type
    if not (_is_text(array) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise ImportFailedError(f"The column of `{field}` holds {kind}; expected text or whole numbers")
    if pa.types.is_null(kind):
        array = array.cast(pa.string())
    coded = _coded(array)
    values = [str(value) for value in coded.values]
    if "" in values:
        coded.codes[coded.codes == values.index("")] = -1
    coded = Coded(values, coded.codes)
    if required:
        verdicts.refuse(coded.codes < 0, f"{field}: {MISSING}")
    if max(map(len, values), default=0) > limit:
        too_long = coded.rows_where(lambda text: len(text) > limit)
        verdicts.refuse(too_long, f"{field}: Expected `str` of length <= {limit}")
    return coded


def names(column: pa.ChunkedArray, field: str, verdicts: Verdicts, *, required: bool = False) -> Coded:
    """Event types and surfaces: short texts of letters, digits and ``_ . : -``."""
    coded = texts(column, field, verdicts, required=required, limit=MAX_NAME)
    wrong = coded.rows_where(lambda text: _NAME.match(text) is None)
    verdicts.refuse(wrong, f"{field}: Expected letters, digits and _ . : -")
    return coded


def scalars(column: pa.ChunkedArray, field: str, verdicts: Verdicts) -> Coded:
    """An attribute: text, number or truth value as the file has it. NaN and empty text are no value."""
    array = _array(column)
    kind = array.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        array = array.cast(pa.string())
    elif pa.types.is_decimal(kind):
        array = array.cast(pa.float64())
    elif pa.types.is_null(kind):
        array = array.cast(pa.string())
    elif not (_is_text(array) or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise ImportFailedError(f"The column of `{field}` holds {kind}; expected text, numbers or truth values")
    coded = _coded(array)
    for position, value in enumerate(coded.values):
        if value == "" or (isinstance(value, float) and math.isnan(value)):
            coded.codes[coded.codes == position] = -1
    too_long = coded.rows_where(lambda value: isinstance(value, str) and len(value) > MAX_TEXT_VALUE)
    verdicts.refuse(too_long, f"{field}: Expected `str` of length <= {MAX_TEXT_VALUE}")
    infinite = coded.rows_where(lambda value: isinstance(value, float) and math.isinf(value))
    verdicts.refuse(infinite, f"{field}: Expected a finite number")
    return coded


def numbers(column: pa.ChunkedArray, field: str, verdicts: Verdicts) -> npt.NDArray[np.float64]:
    """``float64[n]``, NaN where there is none; values beyond ±1e12 are refused."""
    array = _array(column)
    if not (_is_text(array) or pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
        if not (pa.types.is_null(array.type) or pa.types.is_decimal(array.type) or pa.types.is_boolean(array.type)):
            raise ImportFailedError(f"The column of `{field}` holds {array.type}; expected numbers")
        array = array.cast(pa.float64())
    series = _series(array)
    if series.dtype == pl.String:
        given = series.is_not_null() & (series != "")
        parsed = series.cast(pl.Float64, strict=False)
        verdicts.refuse((given & parsed.is_null()).to_numpy(), f"{field}: Expected a number")
    else:
        parsed = series.cast(pl.Float64)
    values = parsed.fill_null(math.nan).to_numpy().astype(np.float64)
    with np.errstate(invalid="ignore"):
        verdicts.refuse(np.abs(values) > MAX_VALUE, f"{field}: Expected `float` from -1e12 to 1e12")
    return values


def positions(column: pa.ChunkedArray, field: str, verdicts: Verdicts) -> Coded:
    """Whole numbers from 0 to 100,000."""
    values = numbers(column, field, verdicts)
    given = ~np.isnan(values)
    whole = given & (values == np.floor(values))
    verdicts.refuse(given & ~whole, f"{field}: Expected a whole number")
    verdicts.refuse(
        given & ((values < 0) | (values > MAX_POSITION)), f"{field}: Expected `int` from 0 to {MAX_POSITION}"
    )
    safe = np.where(whole & (values >= 0) & (values <= MAX_POSITION), values, 0).astype(np.int64)
    return _coded(pa.array(safe, mask=~given))


def truths(column: pa.ChunkedArray, field: str, verdicts: Verdicts) -> npt.NDArray[np.bool_]:
    """``bool[n]``: true, false, 1, 0; none is false."""
    array = _array(column)
    if pa.types.is_boolean(array.type):
        return np.asarray(pc.fill_null(array, False).to_numpy(zero_copy_only=False), np.bool_)
    coded = texts(pa.chunked_array([array]), field, verdicts)
    verdicts.refuse(coded.rows_where(lambda text: text.lower() not in _BOOLS), f"{field}: Expected true or false")
    return coded.rows_where(lambda text: _BOOLS.get(text.lower(), False))


def times(
    column: pa.ChunkedArray, field: str, verdicts: Verdicts, unit: TimeUnit | None, *, required: bool = True
) -> npt.NDArray[np.int64]:
    """Unix milliseconds ``int64[n]``, −1 where there is none.

    ``unit`` None: dates as they are, ISO 8601 for text that is no number, else milliseconds. Times
    without an offset are UTC.

    Raises:
        ImportFailedError: the column holds no times; or undeclared milliseconds all lie before March 1973.
    """
    array = _array(column)
    kind = array.type
    dated = bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))
    if dated:
        series = _series(array)
        given = series.is_not_null()
        found = _dated(series.cast(pl.Datetime("ms")).cast(pl.Int64))
    elif _is_text(array):
        series = _series(array)
        given = series.is_not_null() & (series != "")
        if unit == "iso" or (unit is None and _looks_like_iso(series)):
            dated, found = True, _dated(iso_millis(series))
        else:
            found = _scaled(series.cast(pl.Int64, strict=False), series.cast(pl.Float64, strict=False), unit)
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind):
        if unit == "iso":
            raise ImportFailedError(f"--time-unit iso: The column of `{field}` holds {kind}, expected text")
        series = _series(array.cast(pa.float64()) if pa.types.is_null(kind) else array)
        given = series.is_not_null()
        found = _scaled(series if series.dtype.is_integer() else None, series.cast(pl.Float64), unit)
    else:
        raise ImportFailedError(f"The column of `{field}` holds {kind}; expected times")
    if required:
        verdicts.refuse((~given).to_numpy(), f"{field}: {MISSING}")
    readable = found != _UNREADABLE
    verdicts.refuse(given.to_numpy() & ~readable, f"{field}: Expected a time")
    outside = readable & ((found < 0) | (found > MAX_MILLIS))
    verdicts.refuse(outside, f"{field}: Expected a time from 1970 to 2099")
    known = found[readable & ~outside]
    if unit is None and not dated and len(known) and int(known.max()) < EARLIEST_LIKELY_MS:
        raise ImportFailedError(
            f"The times of `{field}` end in {_date(int(known.max()))} when read as milliseconds; "
            "are they seconds? Give --time-unit s, ms, us, ns or iso"
        )
    return np.where(readable & ~outside, found, -1)


def iso_millis(series: pl.Series) -> pl.Series:
    """Milliseconds of ISO 8601 texts, null where a text is none. Without an offset it is UTC."""
    text = series.str.strip_chars().str.replace(r"[Zz]$", "+00:00").str.replace(r"^(\d{4}-\d{2}-\d{2})[ t]", "${1}T")
    text = text.str.replace(r"^(\d{4}-\d{2}-\d{2})$", "${1}T00:00:00+00:00")
    text = text.str.replace(r"^(\S*T\d{2}:\d{2})(Z|[+-]|$)", "${1}:00${2}")
    text = text.str.replace(r"^(\S*T[0-9:.]+)$", "${1}+00:00").str.replace(r"([+-]\d{2})(\d{2})?$", "${1}:${2}")
    text = text.str.replace(r"([+-]\d{2}):$", "${1}:00")
    return text.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%:z", time_unit="ms", strict=False).cast(pl.Int64)


def _looks_like_iso(series: pl.Series) -> bool:
    """Whether the first text that is there is no number."""
    first = series.filter(series.is_not_null() & (series != "")).head(1)
    return len(first) > 0 and first.cast(pl.Float64, strict=False).null_count() == 1


def _dated(millis: pl.Series) -> npt.NDArray[np.int64]:
    return millis.fill_null(_UNREADABLE).to_numpy().astype(np.int64)


def _scaled(whole: pl.Series | None, real: pl.Series, unit: TimeUnit | None) -> npt.NDArray[np.int64]:
    """Milliseconds: exact where ``whole`` has a number, else rounded from ``real``; ``_UNREADABLE`` for neither."""
    seconds, divisor = unit == "s", 1 if unit == "s" else _UNIT_PER_MS[unit or "ms"]
    reals = real.fill_null(math.nan).to_numpy().astype(np.float64)
    scaled = reals * 1_000.0 if seconds else reals / divisor
    readable = ~np.isnan(scaled)
    near = np.clip(np.where(readable, scaled, 0.0), -2.0, 2.0 * MAX_MILLIS)  # beyond that it is refused anyway
    millis = np.round(near).astype(np.int64)
    if whole is not None:
        exact = readable & (near == scaled) & whole.is_not_null().to_numpy()
        counts = np.where(exact, whole.fill_null(0).to_numpy().astype(np.int64), 0)
        millis = np.where(exact, counts * 1_000 if seconds else counts // divisor, millis)
    return np.where(readable, millis, _UNREADABLE)


def _date(millis: int) -> str:
    return str(np.datetime64(millis, "ms").astype("datetime64[D]"))


def _whole_numbers(array: pa.Array, field: str, verdicts: Verdicts) -> pa.Array:
    """Ids that a data frame turned into floats because some are missing."""
    series = _series(array)
    whole = series.is_finite() & (series == series.round()) & series.abs().le(2.0**53)
    broken = (series.is_not_null() & series.is_not_nan() & ~whole).fill_null(False)
    verdicts.refuse(broken.to_numpy(), f"{field}: Expected text or a whole number")
    kept = pl.select(pl.when(whole).then(series).otherwise(None).cast(pl.Int64)).to_series()
    return kept.to_arrow()
