"""Looking at every row of a task's source, where loading would stop at the first that is wrong."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from coadapt._errors import InputError
from coadapt.checking.finding import SHOWN, Finding, some
from coadapt.tasks import Task, TaskSuite
from coadapt.tasks.answers import Answer, read_answer
from coadapt.tasks.read import Table, read_tables
from coadapt.tasks.rows import Content, read_content
from coadapt.tasks.sources import FileSource
from coadapt.tasks.split import Split, split_of

RARE, OFTEN = 0.1, 10  # a label is rare beside one that is ten times as frequent, and has ten rows
_WHOLE: Split = "train"  # under which rows of a source without splits are kept


@dataclass(kw_only=True)
class Seen:
    """What a task's source holds, row by row, where it could be read.

    Attributes:
        splits: whether the source says which rows are to be trained on and tested on.
        rows: by split (key, content, label, place).
        findings: what was found on the way.
    """

    splits: bool = False
    rows: dict[Split, list[tuple[bytes, Content, Answer, str]]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def look_at(task: Task) -> Seen:
    """Read a task's source and check each row on its own, and all of them together."""
    seen = Seen()
    seen.findings += _newlines(task)
    try:
        tables = read_tables(task)
    except InputError as error:
        seen.findings.append(_error(task, "read", str(error), "mend it as the message says"))
        return seen
    seen.splits = not isinstance(tables, Table) and set(tables) != {"train"}
    by_split: dict[Split, Table] = {_WHOLE: tables} if isinstance(tables, Table) else tables
    for split, table in by_split.items():
        seen.rows[split] = list(_rows(task, table, seen.findings))
    seen.findings += [*_empty(task, seen), *_labels(task, seen), *_repeated(task, seen)]
    return seen


def _error(task: Task, what: str, said: str, remedy: str) -> Finding:
    return Finding(level="error", task=task.name, what=what, said=said, remedy=remedy)


def _files(task: Task) -> Iterator[Path]:
    if isinstance(task.data, FileSource):
        path = task.data.path
        yield from (Path(p) for p in ([path] if isinstance(path, str) else path.values()))


def _newlines(task: Task) -> Iterator[Finding]:
    """Tell files whose lines end in more than one way, as of two programs' outputs put together."""
    for file in _files(task):
        if not file.is_file() or file.suffix == ".parquet":
            continue
        raw = file.read_bytes()
        ends = {"\\r\\n": raw.count(b"\r\n")}
        ends |= {"\\n": raw.count(b"\n") - ends["\\r\\n"], "\\r": raw.count(b"\r") - ends["\\r\\n"]}
        there = {name: number for name, number in ends.items() if number}
        if len(there) > 1:
            told = ", ".join(f"{number} end in {name}" for name, number in there.items())
            rare = min(there, key=lambda name: there[name])
            at = raw.find(rare.encode().decode("unicode_escape").encode())
            line = raw[:at].replace(b"\r\n", b"\n").replace(b"\r", b"\n").count(b"\n") + 1
            said = f"{file}: lines end in different ways: {told}; the rarer first in line {line}"
            yield Finding(
                level="warning",
                task=task.name,
                what="newlines",
                said=said,
                remedy="write one kind of line end (dos2unix), or a text keeps a stray \\r",
            )


def _rows(
    task: Task, table: Table, findings: list[Finding]
) -> Iterator[tuple[bytes, Content, Answer, str]]:
    wrong: list[str] = []
    for index, values in enumerate(table.rows):
        try:
            content = read_content(task, values)
            label = read_answer(task, table, index, content.options)
        except InputError as error:
            wrong.append(f"{table.place(index)}: {error}")
            continue
        yield content.key, content, label, table.place(index)
    findings += [_error(task, "read", said, "mend or remove the row") for said in wrong[:SHOWN]]
    if len(wrong) > SHOWN:
        said = f"{table.where}: {len(wrong) - SHOWN} more rows cannot be read"
        findings.append(_error(task, "read", said, "mend or remove them"))


def _empty(task: Task, seen: Seen) -> Iterator[Finding]:
    places = [
        place
        for rows in seen.rows.values()
        for _, content, _, place in rows
        if not all(text.strip() for text in content.texts)
    ]
    if places:
        yield Finding(
            level="warning",
            task=task.name,
            what="empty",
            said=f"an empty text in {len(places)} of {_number(seen)} rows: {some(places)}",
            remedy="remove them: nothing can be learnt of them",
        )


def _labels(task: Task, seen: Seen) -> Iterator[Finding]:
    """Tell labels that are alone, misspelled, unknown or never trained on."""
    if task.kind != "classification" or not seen.rows:
        return
    places: defaultdict[str, list[str]] = defaultdict(list)
    for rows in seen.rows.values():
        for _, _, label, place in rows:
            places[str(label)].append(place)
    counts = {label: len(found) for label, found in places.items()}
    if len(counts) == 1:
        [(label, number)] = counts.items()
        remedy = "check the label column; a classification needs two labels"
        said = f"all {number} rows have the label '{label}'"
        yield _error(task, "label", said, remedy)
    for label, number in counts.items():
        known = {str(name) for name in task.labels}
        other = _meant(label, counts, known)
        if other is None:
            continue
        said = f"'{label}' is the label of {number}, '{other}' of {counts[other]} rows"
        level = "error" if known and label not in known else "warning"
        yield Finding(
            level=level,
            task=task.name,
            what="label",
            said=f"{said}: a typing error? {some(places[label])}",
            remedy=f"write '{other}', or leave it if it is a label of its own",
        )
    if seen.splits and "train" in seen.rows:
        trained = {str(label) for _, _, label, _ in seen.rows["train"]}
        for label in counts.keys() - trained:
            said = f"the label '{label}' is in no training row: {some(places[label])}"
            yield _error(task, "label", said, "put rows of it into train, or remove it")


def _meant(label: str, counts: Mapping[str, int], known: set[str]) -> str | None:
    """Return the label that this one may be a misspelling of."""
    for other in sorted(counts, key=lambda name: -counts[name]):
        if other == label or (known and other not in known) or label in known:
            continue
        same = counts[label] < counts[other] and _plain(label) == _plain(other)
        rare = counts[other] >= OFTEN and counts[label] <= RARE * counts[other]
        if not label.isdecimal() and (same or (rare and _is_near(label, other))):
            return other
    return None


def _plain(label: str) -> str:
    return label.casefold().strip()


def _is_near(one: str, other: str) -> bool:
    """Whether two words differ by at most two letters, and are long enough for that to be few."""
    longest = max(len(one), len(other))
    return longest >= 4 and _distance(one.casefold(), other.casefold()) <= (2 if longest > 5 else 1)


def _distance(one: str, other: str) -> int:
    """Return Levenshtein's distance, with two letters that changed places as one step."""
    rows = [list(range(len(other) + 1))]
    for i, a in enumerate(one, start=1):
        row = [i]
        for j, b in enumerate(other, start=1):
            best = min(row[j - 1] + 1, rows[-1][j] + 1, rows[-1][j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                best = min(best, rows[-2][j - 2] + 1)
            row.append(best)
        rows.append(row)
    return rows[-1][-1]


def _repeated(task: Task, seen: Seen) -> Iterator[Finding]:
    """Tell texts that stand more than once, alike or with different labels."""
    labels: defaultdict[tuple[bytes, tuple[str, ...]], dict[str, str]] = defaultdict(dict)
    counted: Counter[tuple[bytes, tuple[str, ...], str]] = Counter()
    again: list[str] = []
    for rows in seen.rows.values():
        counted.clear()  # a text in two splits is a leak, and told as one
        for key, content, label, place in rows:
            labels[key, content.options].setdefault(str(label), place)
            counted[key, content.options, str(label)] += 1
            if counted[key, content.options, str(label)] == 2:
                again.append(place)
    if again:
        yield Finding(
            level="note",
            task=task.name,
            what="duplicate",
            said=f"{len(again)} of {_number(seen)} rows repeat a text with its label: "
            f"{some(again)}",
            remedy="one of each is kept where coadapt splits; declared splits stay as they are",
        )
    torn = [" and ".join(found.values()) for found in labels.values() if len(found) > 1]
    if torn and task.kind != "generation":
        yield Finding(
            level="warning",
            task=task.name,
            what="duplicate",
            said=f"{len(torn)} of {len(labels)} texts stand with different labels: {some(torn)}",
            remedy="decide on one: such rows can be neither learnt nor scored",
        )


def leaks(suite: TaskSuite, found: Mapping[str, Seen]) -> list[Finding]:
    """Tell texts that one task tests or validates on and the same or another one trains on.

    Rows of a source without splits are where the hash of their text puts them.
    """
    placed = {name: list(_placed(suite, seen)) for name, seen in found.items()}
    findings = []
    for held in ("test", "validation"):
        where = {
            key: (name, place)
            for name, rows in placed.items()
            for split, key, place in rows
            if split == held
        }
        for name, rows in placed.items():
            trained = [(key, place) for split, key, place in rows if split == "train"]
            pairs = [
                f"{place} is {where[key][1]}" + (f" (task '{other}')" if other != name else "")
                for key, place in trained
                if key in where
                for other in [where[key][0]]
            ]
            if pairs:
                said = f"{len(pairs)} of {len(trained)} training texts are {held} texts too: "
                said += some(pairs)
                remedy = "they are removed from train; make the splits of all tasks by text"
                finding = Finding(level="warning", task=name, what="leak", said=said, remedy=remedy)
                findings.append(finding)
    return findings


def _placed(suite: TaskSuite, seen: Seen) -> Iterator[tuple[Split, bytes, str]]:
    for split, rows in seen.rows.items():
        for key, content, _, place in rows:
            own = split if seen.splits else split_of(content.split_key, suite.split, suite.seed)
            yield own, key, place


def _number(seen: Seen) -> int:
    return sum(len(rows) for rows in seen.rows.values())
