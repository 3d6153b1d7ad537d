"""Files as tables: CSV, Parquet and JSON lines, read in ranges of rows that are the same on every run."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from headwater.offline.importing.mapping import CHUNK_ROWS, ImportFailedError

Format = Literal["csv", "parquet", "jsonl"]
FORMATS: dict[str, Format] = {"csv": "csv", "parquet": "parquet", "jsonl": "jsonl"}
_SUFFIXES: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """SHA-256 of a file's bytes, and its line count (0 for Parquet and compressed files)."""

    sha256: str
    lines: int


@dataclass(frozen=True, slots=True)
class Malformed:
    """A CSV row with the wrong number of columns."""

    text: str


def format_of(path: Path, wanted: str | None = None) -> Format:
    """The format by ``wanted`` or by the file's name.

    Raises:
        ImportFailedError: neither says it, or the file cannot be read.
    """
    if not path.is_file():
        raise ImportFailedError(f"{path}: There is no such file")
    if wanted is not None:
        if wanted not in FORMATS:
            raise ImportFailedError(f"--format {wanted}: Expected csv, parquet or jsonl")
        return FORMATS[wanted]
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    if not suffixes or suffixes[-1].lower() not in _SUFFIXES:
        raise ImportFailedError(f"{path}: Cannot tell the format from the name; give --format csv, parquet or jsonl")
    return _SUFFIXES[suffixes[-1].lower()]


def identify(path: Path, count_lines: bool) -> FileIdentity:
    """Hash a file and count its lines in one pass."""
    digest, lines = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            if count_lines:
                lines += block.count(b"\n")
    return FileIdentity(digest.hexdigest(), lines)


class CsvTable:
    """A CSV file with a header; every column is text, so that ``007`` stays what it is.

    ``malformed`` grows while :meth:`chunks` is read.
    """

    def __init__(
        self,
        path: Path,
        *,
        delimiter: str | None = None,
        encoding: str = "utf-8",
        content: bytes | None = None,
        names: Sequence[str] | None = None,
        quote: bool = True,
    ) -> None:
        self._path, self._content, self._encoding, self._quote = path, content, encoding, quote
        if delimiter is not None and len(delimiter) != 1:
            raise ImportFailedError(f"--delimiter {delimiter}: Expected one character")
        self._delimiter = delimiter or ("\t" if ".tsv" in path.suffixes else ",")
        self._names = list(names) if names is not None else None
        self.columns = self._names if self._names is not None else self._header()
        self.malformed: list[Malformed] = []

    def _open(self) -> pa.NativeFile:
        if self._content is not None:
            return pa.BufferReader(self._content)
        return pa.input_stream(str(self._path), compression="detect")

    def _header(self) -> list[str]:
        with self._open() as stream:
            head = stream.read(_BLOCK)
        try:
            # what is no text shows as such: left out, it could make a name that Arrow does not find in the file
            text = head.decode(self._encoding, errors="replace").removeprefix("\ufeff")
        except LookupError as error:
            raise ImportFailedError(f"--encoding {self._encoding}: There is no such encoding") from error
        try:
            names = next(csv.reader(io.StringIO(text, newline=""), delimiter=self._delimiter), [])
        except csv.Error as error:
            raise ImportFailedError(f"{self._path}: The header cannot be read: {error}") from error
        if not names:
            raise ImportFailedError(f"{self._path}: Expected a header line, the file is empty")
        for index, name in enumerate(names):
            if name in names[:index]:
                raise ImportFailedError(f"{self._path}: The column `{name}` stands twice in the header")
        return names

    def _skip(self, row: pyarrow.csv.InvalidRow) -> str:
        self.malformed.append(Malformed(row.text))
        return "skip"

    def chunks(self, columns: Sequence[str], rows: int = CHUNK_ROWS) -> Iterator[pa.Table]:
        """Tables of ``rows`` rows (the last one shorter) with the named columns as text."""
        self.malformed = []
        with self._open() as stream:
            try:
                reader = pyarrow.csv.open_csv(
                    stream,
                    read_options=pyarrow.csv.ReadOptions(
                        block_size=4 * _BLOCK, encoding=self._encoding, column_names=self._names, use_threads=False
                    ),
                    parse_options=pyarrow.csv.ParseOptions(
                        delimiter=self._delimiter,
                        newlines_in_values=self._quote,
                        quote_char='"' if self._quote else False,
                        invalid_row_handler=self._skip,
                    ),
                    convert_options=pyarrow.csv.ConvertOptions(
                        include_columns=list(columns),
                        column_types=dict.fromkeys(columns, pa.string()),
                        strings_can_be_null=False,
                    ),
                )
                yield from _regroup(reader, reader.schema, rows)
            except pa.ArrowInvalid as error:
                if "Empty CSV file" in str(error):
                    return
                raise ImportFailedError(f"{self._path}: {error} (is it --encoding or --delimiter?)") from error
            except pa.ArrowKeyError as error:
                raise ImportFailedError(
                    f"{self._path}: The header cannot be read as --encoding {self._encoding}: {error}"
                ) from error


class ParquetTable:
    """A Parquet file; columns keep their types."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = pyarrow.parquet.ParquetFile(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise ImportFailedError(f"{path}: Not a Parquet file: {error}") from error
        self.columns: list[str] = list(self._file.schema_arrow.names)
        self.rows: int = self._file.metadata.num_rows
        self.malformed: list[Malformed] = []

    def chunks(self, columns: Sequence[str], rows: int = CHUNK_ROWS) -> Iterator[pa.Table]:
        """Tables of ``rows`` rows (the last one shorter) with the named columns."""
        schema = pa.schema([self._file.schema_arrow.field(name) for name in columns])
        batches = self._file.iter_batches(batch_size=rows, columns=list(columns))
        yield from _regroup((batch.select(list(columns)) for batch in batches), schema, rows)


def line_chunks(path: Path, rows: int = CHUNK_ROWS) -> Iterator[list[bytes]]:
    """Lines of a JSON-lines file (gzip by its name), ``rows`` at a time, blank ones left out."""
    with pa.input_stream(str(path), compression="detect") as stream:
        rest, held = b"", list[bytes]()
        while block := stream.read(4 * _BLOCK):
            lines = (rest + block).split(b"\n")
            rest = lines.pop()
            held.extend(line for line in lines if line.strip())
            while len(held) >= rows:
                yield held[:rows]
                held = held[rows:]
        if rest.strip():
            held.append(rest)
        for start in range(0, len(held), rows):
            yield held[start : start + rows]


def _regroup(batches: Iterator[pa.RecordBatch], schema: pa.Schema, rows: int) -> Iterator[pa.Table]:
    """Tables of exactly ``rows`` rows out of batches of any size, the rest last."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        position = 0
        while position < batch.num_rows:
            take = min(rows - count, batch.num_rows - position)
            held.append(batch.slice(position, take))
            count, position = count + take, position + take
            if count == rows:
                yield pa.Table.from_batches(held, schema).combine_chunks()
                held, count = [], 0
    if held:
        yield pa.Table.from_batches(held, schema).combine_chunks()
