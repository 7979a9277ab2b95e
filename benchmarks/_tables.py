"""Headings and tables of the page of benchmarks."""

from collections.abc import Mapping, Sequence
from typing import Any

from aims import read

Rows = Mapping[str, Mapping[str, float]]


def machine(data: Mapping[str, Any]) -> str:
    """Return where a file's numbers were taken."""
    told = data["machine"]
    device = told["device"].replace(" 1 threads", " one thread")
    return f"{device}, torch {told['packages']['torch']}, commit {told['commit'][:8]}."


def section(title: str, command: str, file: str, told: str, body: str) -> str:
    """Return a heading, how it was made, and tables."""
    link = f"[`{file}`](../benchmarks/results/{file})"
    return f"\n## {title}\n\n    {command}\n\n{told} {machine(read(file))} {link}.\n\n{body}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def ratio(row: Mapping[str, float]) -> str:
    """Return a median with its quartiles."""
    return f"{row['ratio']:.2f} ({row['ratio_q1']:.2f} to {row['ratio_q3']:.2f})"
