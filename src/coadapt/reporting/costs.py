"""What training and inference took, as it was measured."""

from collections.abc import Iterable, Mapping
from typing import Any

from coadapt._sheet import Sheet
from coadapt.reporting import parts
from coadapt.reporting.parts import Part

_INFERENCE = ("split", "rows", "at once", "rows/s", "peak MiB", "computed in", "machine")


def training(told: Mapping[str, Mapping[str, Any]]) -> Part | None:
    """Return what the training of runs took, by the run's name."""
    rows = tuple(
        (
            name,
            f"{made['trainable']['adapters']:,}",
            f"{made['trainable']['heads']:,}",
            f"{made['steps']:,}",
            f"{made['tokens']:,}",
            f"{made['seconds']:,.0f}",
            f"{made['peak_memory_mib']:,.0f}",
        )
        for name, run in told.items()
        if (made := run["train"])
    )
    columns = ("run", "adapter values", "head values", "updates", "tokens", "seconds", "peak MiB")
    sheet = Sheet(title="what training took", columns=columns, rows=rows)
    return parts.table(sheet) if rows else None


def inference(told: Iterable[tuple[str, Mapping[str, Any]]], *, what: str = "run") -> Part | None:
    """Return what scoring took: a row a name and split.

    Args:
        told: names, and what ``inference`` of a result or of a cell's record holds; a name may come
            several times, as an arm does with its seeds, and then its fastest pass is shown.
        what: the names stand for.
    """
    passes: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for name, splits in told:
        for split, took in splits.items():
            passes.setdefault((name, split), []).append(took)
    if not passes:
        return None
    notes = [
        "One pass over each task's rows, one task at a time, tokenised before; with the time that "
        "the first batch takes to warm up.",
        "Peak memory is an accelerator's while it predicted, else the whole process's since it "
        "began, which is training's too where both were done in one.",
    ]
    rows = tuple((*key, *_cells(max(found, key=_speed))) for key, found in passes.items())
    if any(len(found) > 1 for found in passes.values()):
        notes.append(f"Of several passes of one {what} the fastest.")
    if len({name for name, _ in passes}) > 1:
        notes.append("Compare speeds only if the machine was the same and had nothing else to do.")
    columns = (what, *_INFERENCE)
    title = "what inference took, as scoring measured it"
    return parts.table(Sheet(title=title, columns=columns, rows=rows, notes=tuple(notes)))


def of_cells(records: list[dict[str, Any]]) -> list[Part | None]:
    """Return what training and scoring a study's final cells took, by arm."""
    final = [record for record in records if record["cell"]["role"] == "final"]
    scored = ((record["cell"]["group"], record.get("inference") or {}) for record in final)
    return [_memory(final), inference(scored, what="arm")]


def _memory(records: list[dict[str, Any]]) -> Part | None:
    peaks: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        if train := record.get("train"):
            told = (train["peak_memory_mib"], train["seconds"])
            peaks.setdefault(record["cell"]["group"], []).append(told)
    if not peaks:
        return None
    rows = tuple(
        (name, f"{max(peak for peak, _ in seen):,.0f}", f"{min(s for _, s in seen):,.0f}")
        for name, seen in peaks.items()
    )
    columns = ("arm", "peak memory of the process, MiB", "shortest training, s")
    return parts.table(Sheet(title="memory and time of final runs", columns=columns, rows=rows))


def _rows(took: Mapping[str, Any]) -> int:
    return sum(task["rows"] for task in took["tasks"].values())


def _speed(took: Mapping[str, Any]) -> float:
    return _rows(took) / sum(task["seconds"] for task in took["tasks"].values())


def _cells(took: Mapping[str, Any]) -> tuple[str, ...]:
    at_once = dict.fromkeys(task["batch"] for task in took["tasks"].values())
    return (
        f"{_rows(took):,}",
        ", ".join(at_once),
        f"{_speed(took):,.0f}",
        f"{took['peak_memory_mib']:,.0f}",
        took["dtype"],
        took["device"],
    )
