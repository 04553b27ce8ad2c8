"""Data sets as lazy rows: JSONL (also gzipped), CSV, Parquet, or a Hugging Face data set by name or local folder.

Opening a manifest reads it once, keeps two numbers a row, and reports every bad row with file and line. Rows are parsed when asked for,
by any thread.
"""

from __future__ import annotations

import bisect
import csv
import gzip
import json
import logging
import mmap
import re
import shutil
import tempfile
import threading
import zlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from omni.chat import parts_of
from omni.errors import DataError

log = logging.getLogger(__name__)

Row = dict[str, Any]
MEDIA = ("audio", "image")
BAD_ROWS_KEPT = 100


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: which file, which line (or row number, from 1), and why."""

    source: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line}: {self.reason}"


class Rows(ABC):
    """The good rows of one manifest, in order. `bad` keeps the first bad ones, `n_bad` counts all."""

    def __init__(self, source: str, root: Path, required: Sequence[str]) -> None:
        self.source, self.root, self.required = source, root, tuple(required)
        self.bad: list[BadRow] = []
        self.n_bad = 0
        self._lines = array("Q")
        self._lock = threading.Lock()
        self._index()
        if self.n_bad:
            log.warning("%s", self.report())
        if not len(self):
            detail = f"; the first of {self.n_bad} bad rows: {self.bad[0]}" if self.bad else ": it is empty"
            raise DataError(f"{source}: no usable row{detail}")

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[Row]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> Row:
        with self._lock:
            return self._read(index)

    @abstractmethod
    def _read(self, index: int) -> Row:
        """Good row number `index`; one thread at a time."""

    @abstractmethod
    def _index(self) -> None:
        """Read everything once: note good rows and report bad ones."""

    def where(self, index: int) -> str:
        """`file:line` of a good row, for errors."""
        return f"{self.source}:{self._lines[index]}"

    def report(self) -> str:
        """How many rows are good and bad, then a line for each of the first bad ones."""
        lines = [f"{self.source}: {len(self)} rows, {self.n_bad} bad", *map(str, self.bad)]
        if self.n_bad > len(self.bad):
            lines.append(f"and {self.n_bad - len(self.bad)} more")
        return "\n  ".join(lines)

    def path(self, value: str) -> Path:
        """A media path, relative to the manifest's folder."""
        return self.root / value

    def _note(self, row: Any, line: int) -> bool:
        """Whether `row` is usable; if not, why is noted."""
        reason = self._problem(row)
        if reason is not None:
            self._reject(line, reason)
            return False
        self._lines.append(line)
        return True

    def _reject(self, line: int, reason: str) -> None:
        self.n_bad += 1
        if len(self.bad) < BAD_ROWS_KEPT:
            self.bad.append(BadRow(self.source, line, reason))

    def _problem(self, row: Any) -> str | None:
        if not isinstance(row, dict):
            return f"expected an object, found {type(row).__name__}"
        for choice in self.required:
            name = next((n for n in choice.split("|") if row.get(n)), choice)
            value = row.get(name)
            if value is None or value == [] or (isinstance(value, str) and not value.strip()):
                return f"has no {name!r}"
            if name == "messages":
                problem = self._problem_of_messages(value)
            elif name in MEDIA:
                problem = self._problem_of_media(name, value)
            else:
                problem = _problem_of_text(name, value)
            if problem is not None:
                return problem
        return None

    def _problem_of_messages(self, messages: Any) -> str | None:
        if not isinstance(messages, list):
            return f"'messages' should be a list, found {type(messages).__name__}"
        for message in messages:
            try:
                parts = parts_of(message)
            except DataError as error:
                return str(error)
            for kind, value in parts:
                problem = self._problem_of_media(kind, value) if kind in MEDIA else _problem_of_text(kind, value)
                if problem is not None:
                    return problem
        if all(message["role"] != "assistant" for message in messages):
            return "has no assistant message: there is nothing to learn from it"
        return None

    def _problem_of_media(self, name: str, value: Any) -> str | None:
        """Media are a path, or a Hugging Face {"bytes", "path"}."""
        if isinstance(value, dict):
            if value.get("bytes"):
                return None
            value = value.get("path")
        if not isinstance(value, str):
            return f"{name!r} should be a path, found {type(value).__name__}"
        if "\0" in value or not self.path(value).is_file():
            return f"no such file {self.path(value)}"
        return None

    def _columns(self, names: Sequence[str]) -> list[str]:
        """The columns that hold the required fields. Raises DataError for one that a table lacks altogether."""
        for choice in self.required:
            if not set(choice.split("|")) & set(names):
                raise DataError(f"{self.source}: has no column {choice.replace('|', ' or ')!r}; it has: {', '.join(names)}")
        return [name for name in names if any(name in choice.split("|") for choice in self.required)]


def _problem_of_text(name: str, value: Any) -> str | None:
    if not isinstance(value, str):
        return f"{name!r} should be text, found {type(value).__name__}"
    try:
        value.encode()
    except UnicodeEncodeError:
        return f"{name!r} is not Unicode text"
    return None


class _LineRows(Rows):
    """Rows that begin at byte offsets of a file."""

    def __init__(self, path: Path, required: Sequence[str]) -> None:
        self._file: IO[bytes] = open(path, "rb") if path.suffix != ".gz" else _unzipped(path)  # noqa: SIM115 - lives as long as the rows
        self._offsets = array("Q")
        super().__init__(str(path), path.parent, required)

    def _read(self, index: int) -> Row:
        self._file.seek(self._offsets[index])
        return self._parse_from()

    @abstractmethod
    def _parse_from(self) -> Row:
        """The row that begins where the file stands."""


class JSONLRows(_LineRows):
    """One JSON object a line."""

    def _index(self) -> None:
        offset = 0
        for number, line in enumerate(self._file, start=1):
            if line.strip():
                try:
                    good = self._note(json.loads(line), number)
                except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
                    self._reject(number, f"not JSON: {error}")
                    good = False
                if good:
                    self._offsets.append(offset)
            offset += len(line)

    def _parse_from(self) -> Row:
        return json.loads(self._file.readline())


class CSVRows(_LineRows):
    """A header line, then records; a quoted field may span lines."""

    def _index(self) -> None:
        self._names: list[str] = []
        for offset, number, fields in self._records():
            if isinstance(fields, str):
                if not self._names:
                    raise DataError(f"{self.source}:{number}: the header is {fields}")
                self._reject(number, fields)
            elif not self._names:
                self._names = self._header(fields)
            elif len(fields) != len(self._names):
                self._reject(number, f"{len(fields)} fields, but the header names {len(self._names)}")
            elif self._note(dict(zip(self._names, fields, strict=True)), number):
                self._offsets.append(offset)

    def _header(self, names: list[str]) -> list[str]:
        self._columns(names)
        if len(set(names)) < len(names):
            raise DataError(f"{self.source}:1: the header names a column twice: {', '.join(names)}")
        return names

    def _records(self) -> Iterator[tuple[int, int, list[str] | str]]:
        """(offset, line, fields) of every record from where the file stands; instead of the fields, what is wrong with it."""
        offset, number = self._file.tell(), 0

        def lines() -> Iterator[str]:
            nonlocal offset, number
            for line in self._file:
                text = line.decode("utf-8-sig" if offset == 0 else "utf-8", errors="surrogateescape")
                offset, number = offset + len(line), number + 1
                yield text

        reader = csv.reader(lines(), strict=True)  # asks for a line only when it needs one, so that offset and number are the record's
        while True:
            start, first = offset, number + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                span = f" (lines {first} to {number} read as one record: is a quote not closed?)" if number > first else ""
                yield start, first, f"not CSV: {error}{span}"
                continue
            if any(_problem_of_text("field", field) for field in fields):
                yield start, first, "not UTF-8 text"
            elif fields:
                yield start, first, fields

    def _parse_from(self) -> Row:
        _, _, fields = next(self._records())
        return dict(zip(self._names, fields, strict=True))


class ParquetRows(Rows):
    """Parquet cannot be read row by row: opening copies it into an unnamed temporary Arrow file, which is memory-mapped."""

    def __init__(self, path: Path, required: Sequence[str]) -> None:
        self._path = path
        super().__init__(str(path), path.parent, required)

    def _index(self) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise DataError(
                f"{self.source}: reading Parquet needs pyarrow; install it with: pip install -c constraints.txt -e .[train]"
            ) from None
        self._starts: list[int] = []
        number = 0
        with tempfile.TemporaryFile() as out:
            try:
                with pyarrow.parquet.ParquetFile(self._path, memory_map=True) as parquet:
                    columns = self._columns(parquet.schema_arrow.names)
                    with pyarrow.ipc.new_file(out, parquet.schema_arrow) as writer:
                        for batch in parquet.iter_batches(batch_size=256):
                            writer.write_batch(batch)
                            self._starts.append(number)
                            for row in _without_bytes(batch, columns):
                                number += 1
                                self._note(row, number)
            except (pyarrow.ArrowException, OSError) as error:
                raise DataError(f"{self.source}: not a readable Parquet file ({error})") from None
            out.flush()
            self._batches = pyarrow.ipc.open_file(pyarrow.py_buffer(mmap.mmap(out.fileno(), 0, access=mmap.ACCESS_READ)))

    def _read(self, index: int) -> Row:
        number = self._lines[index] - 1
        batch = bisect.bisect_right(self._starts, number) - 1
        return self._batches.get_batch(batch).slice(number - self._starts[batch], 1).to_pylist()[0]


class HuggingFaceRows(Rows):
    """A data set of the `datasets` library, memory-mapped by it; media columns come undecoded, as {"bytes", "path"}."""

    def __init__(self, source: str, required: Sequence[str]) -> None:
        try:
            import datasets
        except ImportError:
            raise DataError(
                f"{source}: Hugging Face data sets need the datasets package; install it with: pip install -c constraints.txt -e .[train]"
            ) from None
        name, _, split = source.partition(":")
        split, folder = split or "train", Path(name)
        try:
            if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
                data: Any = datasets.load_from_disk(name)
                data = data[split] if isinstance(data, datasets.DatasetDict) else data
            elif folder.is_dir() or re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
                data = datasets.load_dataset(name, split=split)
            else:
                raise DataError(f"{source}: no such manifest or folder")
        except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            missing = "the folder cannot be read as a" if folder.is_dir() else "no such manifest, and no"
            raise DataError(f"{source}: {missing} Hugging Face data set with split {split!r} ({reason})") from None
        for column, feature in data.features.items():
            if isinstance(feature, (datasets.Audio, datasets.Image)):
                data = data.cast_column(column, type(feature)(decode=False))
        self._data = data
        super().__init__(source, folder if folder.is_dir() else Path(), required)

    def _index(self) -> None:
        columns = self._columns(self._data.column_names)
        number = 0
        for table in self._data.select_columns(columns).with_format("arrow").iter(batch_size=256):
            for row in _without_bytes(table, columns):
                number += 1
                self._note(row, number)

    def _read(self, index: int) -> Row:
        return self._data[int(self._lines[index]) - 1]


def _without_bytes(table: Any, columns: Sequence[str]) -> Iterator[Row]:
    """Rows of an Arrow table; of embedded media only whether there are bytes, so that checking them does not read them."""
    import pyarrow.compute

    values = []
    for name in columns:
        column = table.column(name)
        fields = [field.name for field in column.type] if name in MEDIA and str(column.type).startswith("struct") else []
        if "bytes" in fields:
            present = pyarrow.compute.is_valid(pyarrow.compute.struct_field(column, "bytes")).to_pylist()
            paths = pyarrow.compute.struct_field(column, "path").to_pylist() if "path" in fields else [None] * len(present)
            values.append([{"bytes": b, "path": p} for b, p in zip(present, paths, strict=True)])
        else:
            values.append(column.to_pylist())
    return (dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True))


def _unzipped(path: Path) -> IO[bytes]:
    """The content of a gzip file in an unnamed temporary file, where it can be sought."""
    out = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the rows
    try:
        with gzip.open(path, "rb") as packed:
            shutil.copyfileobj(packed, out)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a complete gzip file ({error})") from None
    out.seek(0)
    return out


def open_rows(source: str, required: Sequence[str]) -> Rows:
    """The rows of a manifest that hold all of the `required` fields ("a|b": either of them). `source` is a file, or a Hugging Face name or
    folder, whose split is "train" unless named as in "owner/name:validation". Raises DataError when there is no good row, or no such source.
    """
    path = Path(source)
    kind = path.suffixes[-2] if path.suffix == ".gz" and len(path.suffixes) > 1 else path.suffix
    readers: dict[str, Callable[[Path, Sequence[str]], Rows]] = {".jsonl": JSONLRows, ".csv": CSVRows, ".parquet": ParquetRows}
    if kind in readers:
        if not path.is_file():
            raise DataError(f"{source}: no such manifest")
        return readers[kind](path, required)
    if path.is_file():
        raise DataError(f"{source}: unknown kind of manifest {kind!r}; use .jsonl, .jsonl.gz, .csv or .parquet")
    return HuggingFaceRows(source, required)


class Manifests:
    """Several manifests one after the other, or chosen rows of them: `[i]` is (row, its manifest, its number there)."""

    def __init__(self, parts: Sequence[Rows], chosen: array[int] | None = None) -> None:
        self.parts = list(parts)
        self._starts = [sum(map(len, self.parts[:i])) for i in range(len(self.parts))]
        self._chosen = chosen

    def __len__(self) -> int:
        return sum(map(len, self.parts)) if self._chosen is None else len(self._chosen)

    def __getitem__(self, index: int) -> tuple[Row, Rows, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        if self._chosen is not None:
            index = self._chosen[index]
        part = bisect.bisect_right(self._starts, index) - 1
        number = index - self._starts[part]
        return self.parts[part][number], self.parts[part], number

    def choose(self, indices: Iterable[int]) -> Manifests:
        """Only these of its rows."""
        chosen = indices if self._chosen is None else (self._chosen[index] for index in indices)
        return Manifests(self.parts, array("Q", chosen))
