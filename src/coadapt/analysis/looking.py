"""Looking into a run, and keeping what was seen in its folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coadapt._errors import InputError
from coadapt._files import write_json
from coadapt._folders import ANALYSIS
from coadapt._version import __version__
from coadapt.analysis.head_similarities import head_similarity
from coadapt.analysis.representation_maps import representation_map
from coadapt.loading import Loader
from coadapt.runs import Run, load_run

_MAX_POINTS = 1200  # in a map, shared out among the tasks; a picture of more is no clearer
_MIN_ROWS, _MAX_ROWS = 10, 100  # a task


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What was written of a run's inside.

    Attributes:
        files: in its folder ``analysis``.
        left_out: by analysis, why this run has none.
    """

    files: tuple[Path, ...]
    left_out: dict[str, str]


def look_into(run: str | Path | Run, *, loader: Loader | None = None) -> Looked:
    """Measure how alike a run's heads are and map its tasks' rows; keep both in its folder.

    ``RUN/analysis/head_similarity.json`` holds what :func:`coadapt.analysis.head_similarity`
    returns, ``representation_map.json`` a map of test rows by principal components, see
    :func:`coadapt.analysis.representation_map`. ``coadapt report`` shows what lies there.

    Args:
        run: a finished run, or its folder.
        loader: keeps what several runs share.

    Raises:
        InputError: if the run has not finished, or nothing can be seen in it.
    """
    loader = loader or Loader()
    found = run if isinstance(run, Run) else load_run(run, loader=loader)
    rows = max(_MIN_ROWS, min(_MAX_ROWS, _MAX_POINTS // len(found.suite.names)))
    analyses: dict[str, Callable[[], Any]] = {
        "head_similarity": lambda: head_similarity(found, loader=loader),
        "representation_map": lambda: representation_map(found, rows=rows, loader=loader),
    }
    files, left_out = [], {}
    for kind, analysis in analyses.items():
        try:
            seen = analysis()
        except InputError as error:
            left_out[kind] = str(error)
            continue
        file = found.path / ANALYSIS / f"{kind}.json"
        file.parent.mkdir(exist_ok=True)
        write_json(file, {"coadapt_version": __version__, "kind": kind, **seen.to_plain()})
        files.append(file)
    if not files:
        raise InputError("; ".join(dict.fromkeys(left_out.values())))
    return Looked(files=tuple(files), left_out=left_out)
