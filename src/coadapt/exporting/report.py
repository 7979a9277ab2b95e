"""What an export tells about itself."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Format = Literal["peft", "merged"]
Level = Literal["ok", "note", "refused"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a server would take, take with a condition, or refuse.

    Args:
        level: ``refused`` where the server would not start or load; ``note`` where something has
            to be done.
        what: what it is about.
        why: the server's rule.
        action: what would do; empty if nothing has to be done.
    """

    level: Level
    what: str
    why: str
    action: str = ""


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written.

    Args:
        folder: the export's folder.
        format: ``peft`` or ``merged``.
        tasks: each task's folder in it, None where the task needs the base model and a head only.
        ranks: the rank of each adapter folder.
        findings: of the check for a server, if one was asked for.
    """

    folder: Path
    format: Format
    tasks: dict[str, str | None]
    ranks: dict[str, int] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    @property
    def refused(self) -> bool:
        """Whether the server that was checked for would refuse something."""
        return any(finding.level == "refused" for finding in self.findings)

    def lines(self) -> Iterator[str]:
        """Yield the report as lines of text."""
        yield f"{self.format} export in {self.folder}"
        for task, found in self.tasks.items():
            rank = f" (rank {self.ranks[found]})" if found in self.ranks else ""
            yield f"  {task}: {found or 'the base model'}{rank}"
        for finding in self.findings:
            action = f" -> {finding.action}" if finding.action else ""
            yield f"{finding.level}: {finding.what}: {finding.why}{action}"
