"""Sources to tables: files, hub data sets and assets become rows that know where they stand."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coadapt import assets
from coadapt._errors import InputError, nearest
from coadapt.config import decode_utf8
from coadapt.tasks.llama_factory import Entry, find_entry
from coadapt.tasks.sources import MESSAGES, AssetSource, FileSource, HubSource, LlamaFactorySource
from coadapt.tasks.split import SPLITS, Split
from coadapt.tasks.task import Task

if TYPE_CHECKING:
    from _csv import Reader

    from datasets import Dataset


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Rows of one source, reduced to the columns a task uses.

    Args:
        where: the file or data set, for error messages.
        rows: column -> value.
        lines: the line of each row in its file, where there are lines.
        textual: whether numbers come as text, as in CSV.
        class_names: what the integers in the label column stand for, where the source says so.
        places: where each row stands, where file and number do not tell.
    """

    where: str
    rows: list[dict[str, Any]]
    lines: Sequence[int] | None = None
    textual: bool = False
    class_names: tuple[str, ...] = ()
    places: Sequence[str] | None = None

    def place(self, index: int) -> str:
        """Name a row for an error message."""
        if self.places is not None:
            return self.places[index]
        if self.lines is not None:
            return f"{self.where}, line {self.lines[index]}"
        return f"{self.where}, row {index + 1}"


def read_tables(task: Task) -> dict[Split, Table] | Table:
    """Read a task's source.

    Returns:
        A table a split if the source has splits, else one table.

    Raises:
        InputError: if the source cannot be read or lacks a column, with file and line.
    """
    source = task.data
    if isinstance(source, AssetSource):
        table = Table(where=f"asset '{source.name}'", rows=assets.read_dataset(source.name))
        return _with_columns(table, task)
    if isinstance(source, FileSource):
        if isinstance(source.path, str):
            return _read_file(Path(source.path), task)
        return {s: _read_file(Path(source.path[s]), task) for s in SPLITS if s in source.path}
    if isinstance(source, LlamaFactorySource):
        if source.name is not None:
            return _read_entry(source, source.name, task)
        named = source.splits or {}
        return {s: _read_entry(source, named[s], task) for s in SPLITS if s in named}
    return _read_hub(source, task)


def _read_file(path: Path, task: Task) -> Table:
    table = _with_columns(_read_whole(path, task, task.source_columns), task)
    if task.image is not None:  # a path is seen from the file that names it
        for row in table.rows:
            if isinstance(row[task.image], str) and row[task.image]:
                row[task.image] = str(path.parent / row[task.image])
    return table


def read_file(path: Path) -> list[dict[str, Any]]:
    """Return all columns of a file's rows; an empty cell of CSV and TSV is None.

    Raises:
        InputError: if it cannot be read, with file and line.
    """
    return _read_whole(
        path, Task(name=path.stem, kind="generation", data=FileSource(path=str(path))), None
    ).rows


def _read_whole(path: Path, task: Task, wanted: Sequence[str] | None) -> Table:
    """Read a file's wanted columns or more, all if None; its ending tells the format."""
    if path.suffix not in _READERS:
        raise InputError(
            f"{task}: {path}: unknown file format '{path.suffix}'; use {', '.join(_READERS)}"
        )
    if not path.is_file():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = nearest(path.name, beside) if len(beside) <= 20 else "; check the path"
        raise InputError(f"{task}: {path}: no such file{hint or '; check the path'}")
    try:
        return _READERS[path.suffix](path, task, wanted)
    except OSError as error:
        raise InputError(f"{task}: {path}: cannot be read ({error})") from error


def _with_columns(table: Table, task: Task) -> Table:
    """Check that each row has the task's columns, and keep only those."""
    wanted = task.source_columns
    rows = []
    for index, row in enumerate(table.rows):
        for column in wanted:
            if column not in row:
                raise InputError(
                    f"{table.place(index)}: {task}: no column '{column}'{nearest(column, row)}"
                )
        rows.append({column: row[column] for column in wanted})
    return replace(table, rows=rows)


def _read_jsonl(path: Path, task: Task, _: Sequence[str] | None) -> Table:
    rows, lines = [], []
    # Not `splitlines`: a text may hold U+2028 and the like, which JSON does not escape.
    for number, line in enumerate(_read_text(path, task).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}: {task}"
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{where}: not JSON ({error}); write one object a line") from error
        if not isinstance(row, dict):
            kind = type(row).__name__
            raise InputError(f"{where}: found a {kind}; write one object a line")
        rows.append(row)
        lines.append(number)
    return Table(where=str(path), rows=rows, lines=lines)


def _read_json(path: Path, task: Task, wanted: Sequence[str] | None) -> Table:
    """Read a list of objects, or an object a line."""
    text = _read_text(path, task)
    if not text.lstrip().startswith("["):
        return _read_jsonl(path, task, wanted)
    try:
        rows = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: {task}: not JSON ({error}); write a list of objects") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            kind = type(row).__name__
            raise InputError(f"{path}, row {number}: {task}: found a {kind}; write an object")
    return Table(where=str(path), rows=rows)


def _read_csv(path: Path, task: Task, wanted: Sequence[str] | None) -> Table:
    # Quotation marks in TSV files are mostly text; taken as quoting they swallow lines.
    quoting = csv.QUOTE_NONE if path.suffix == ".tsv" else csv.QUOTE_MINIMAL
    delimiter = "\t" if path.suffix == ".tsv" else ","
    stream = io.StringIO(_read_text(path, task), newline="")
    reader = csv.reader(stream, delimiter=delimiter, quoting=quoting, strict=True)
    rows, lines = [], []
    header: list[str] = []
    for line, fields in _records(reader, path, task):
        if not header:
            header = fields
            _check_columns(wanted or header, header, f"{path}, line {line}", task)
            continue
        if len(fields) != len(header):
            raise InputError(
                f"{path}, line {line}: {task}: {len(fields)} fields, but the header has "
                f"{len(header)}; quote a field that holds the separator"
            )
        # An empty cell is how these formats write a missing value.
        rows.append({name: value or None for name, value in zip(header, fields, strict=True)})
        lines.append(line)
    return Table(where=str(path), rows=rows, lines=lines, textual=True)


def _records(reader: "Reader", path: Path, task: Task) -> Iterator[tuple[int, list[str]]]:
    """Yield the first line and the fields of each record that is not blank."""
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise InputError(f"{path}, line {line}: {task}: {error}") from error
        if fields is None:
            return
        if fields:
            yield line, fields


def _read_parquet(path: Path, task: Task, wanted: Sequence[str] | None) -> Table:
    import pyarrow
    from pyarrow import parquet

    try:
        known = parquet.read_schema(path).names
        wanted = wanted or known
        _check_columns(wanted, known, str(path), task)
        rows = parquet.read_table(path, columns=list(dict.fromkeys(wanted))).to_pylist()
    except pyarrow.ArrowException as error:
        raise InputError(f"{task}: {path}: not a whole Parquet file ({error})") from error
    return Table(where=str(path), rows=rows)


def _read_text(path: Path, task: Task) -> str:
    return decode_utf8(path.read_bytes(), f"{task}: {path}")


_READERS: dict[str, Callable[[Path, Task, Sequence[str] | None], Table]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}


def _check_columns(wanted: Sequence[str], known: Sequence[str], where: str, task: Task) -> None:
    for column in wanted:
        if column not in known:
            raise InputError(f"{where}: {task}: no column '{column}'{nearest(column, known)}")
        if list(known).count(column) > 1:
            raise InputError(f"{where}: {task}: column '{column}' stands twice; rename one")


def _read_hub(source: HubSource, task: Task) -> dict[Split, Table]:
    loaded = _load_hub(task, source.path, source.name, revision=source.revision)
    found = {str(split): rows for split, rows in loaded.items()}
    splits = source.splits or {split: split for split in SPLITS if split in found}
    if not splits:
        raise InputError(
            f"{task}: the hub data set '{source.path}' has the splits {', '.join(found)}; "
            f"say which is which: data.splits: {{train: ...}}"
        )
    tables: dict[Split, Table] = {}
    for ours in SPLITS:
        if ours in splits:
            theirs = splits[ours]
            if theirs not in found:
                hint = nearest(theirs, found)
                raise InputError(f"{task}: '{source.path}' has no split '{theirs}'{hint}")
            tables[ours] = _hub_table(found[theirs], f"{source.path}[{theirs}]", task)
    return tables


def _load_hub(task: Task, path: str, name: str | None, **how: Any) -> Any:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        # No `trust_remote_code`: a data set that needs its own code is refused.
        return load_dataset(path, name, **how)
    # Its own errors, and those of the network and of missing configurations.
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{task}: the hub data set '{path}' cannot be loaded "
            f"({type(error).__name__}: {reason}). Check its name and the network; without a "
            f"network, HF_HUB_OFFLINE=1 uses what the cache holds, and --data-root reads "
            f"<task>/<split>.jsonl files instead"
        ) from error


def _hub_table(split: "Dataset", where: str, task: Task) -> Table:
    """Read one split of a hub data set, only the columns that are used."""
    from datasets import ClassLabel, Image

    wanted = task.source_columns
    _check_columns(wanted, split.column_names, where, task)
    if task.image is not None and isinstance(split.features.get(task.image), Image):
        split = split.cast_column(task.image, Image(decode=False))
    rows = split.select_columns(list(dict.fromkeys(wanted))).to_list()
    feature = split.features.get(task.label)
    names = feature.names if isinstance(feature, ClassLabel) else ()
    return Table(where=where, rows=rows, class_names=tuple(names))


def _read_entry(source: LlamaFactorySource, name: str, task: Task) -> Table:
    """Read one of LLaMA-Factory's data sets as conversations."""
    entry = find_entry(Path(source.path), name, str(task))
    tables = _entry_tables(entry, task)
    rows = [row for table in tables for row in table.rows]
    places = [table.place(index) for table in tables for index in range(len(table.rows))]
    chosen = entry.sampled(len(rows))
    talks = []
    for index in chosen:
        try:
            talks.append({MESSAGES: entry.conversation(rows[index])})
        except InputError as error:
            raise InputError(f"{places[index]}: {task}, entry '{name}': {error}") from error
    return Table(where=entry.info, rows=talks, places=[places[index] for index in chosen])


def _entry_tables(entry: Entry, task: Task) -> list[Table]:
    if entry.hf_hub_url is not None:
        how = {"data_dir": entry.folder, "split": entry.split, "revision": entry.revision}
        loaded = _load_hub(task, entry.hf_hub_url, entry.subset, **how)
        where = f"{entry.hf_hub_url}[{entry.split}]"
        entry.check_known(loaded.column_names, f"{where}: {task}")
        used = [column for column in loaded.column_names if column in entry.used_columns]
        return [Table(where=where, rows=loaded.select_columns(used).to_list())]
    tables = [_read_whole(path, task, None) for path in entry.files()]
    for table in tables:
        if known := dict.fromkeys(column for row in table.rows for column in row):
            entry.check_known(known, f"{table.where}: {task}")
    return tables
