"""How alike existing adapters are, for people who have already trained one a task."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from coadapt._errors import InputError
from coadapt._files import read_json
from coadapt.diagnosis.describe import extremes
from coadapt.diagnosis.folds import AdapterSimilarity, adapter_similarity
from coadapt.diagnosis.measures import Diagnosis, PairMeasure, TableMeasure, TaskMeasure
from coadapt.exporting.peft_format import CONFIG_FILE
from coadapt.importing import read_peft_adapter

_TITLES = {
    "cosine": "cosine of the updates B A, all modules as one vector",
    "overlap_in": "overlap of the subspaces that the updates read, 0 to 1",
    "overlap_out": "overlap of the subspaces that the updates write, 0 to 1",
}


def diagnose_adapters(
    folders: Sequence[str | Path], names: Sequence[str] | None = None
) -> Diagnosis:
    """Compare PEFT LoRA folders of one base model by the updates that they make.

    By pair: ``cosine`` of the updates, and ``overlap_in`` and ``overlap_out`` of what they read and
    write; see :func:`coadapt.diagnosis.folds.fold_cosine` and ``principal_angles`` for what these
    do not say: adapters that started from different random A may be orthogonal on one task.

    Args:
        folders: two or more, each with ``adapter_config.json`` and ``adapter_model.safetensors``.
        names: of the adapters; the folders' names if None.

    Raises:
        InputError: if there are fewer than two, two have one name, a folder holds no plain LoRA, or
            their updates do not fit one base model.
    """
    paths = [Path(folder) for folder in folders]
    names = [path.resolve().name for path in paths] if names is None else list(names)
    if len(paths) < 2:
        raise InputError(f"give two adapter folders or more to compare, not {len(paths)}")
    if len(names) != len(paths):
        raise InputError(f"there are {len(paths)} folders but {len(names)} names; give one each")
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InputError(f"two of the folders are called '{name}'; rename one")
    for path in paths:
        _refuse_other_folders(path)
    adapters = [read_peft_adapter(path, factors_only=True) for path in paths]
    found = adapter_similarity(
        {name: adapter.factors for name, adapter in zip(names, adapters, strict=True)}
    )
    ranks = [adapter.r for adapter in adapters]
    return Diagnosis(
        tasks=tuple(names),
        of=f"{len(names)} adapters",
        rows={},
        pairs={
            key: PairMeasure(
                title=title,
                reading=extremes(names, found.matrices[key]),
                values=found.matrices[key],
            )
            for key, title in _TITLES.items()
        },
        by_task={
            "rank": TaskMeasure(
                title="largest rank of a module",
                reading=f"{min(ranks)} to {max(ranks)}",
                values=np.array(ranks, dtype=np.float64),
            )
        },
        tables={"by_module": _by_module(found)},
        notes=(
            "adapters that were not started from the same A may be orthogonal even on one task; "
            "random subspaces overlap by the larger rank over the width of the map",
            *_other_bases(paths),
        ),
    )


def _by_module(found: AdapterSimilarity) -> TableMeasure:
    upper = np.triu_indices(len(found.names), k=1)
    return TableMeasure(
        title="the same by module, mean over pairs",
        reading=f"{len(found.modules)} modules",
        rows=found.modules,
        columns=tuple(_TITLES),
        values=np.stack(
            [[_mean(matrix[upper]) for matrix in found.by_module[key]] for key in _TITLES], axis=1
        ),
    )


def _refuse_other_folders(path: Path) -> None:
    if (path / CONFIG_FILE).is_file():
        return
    inside = path / "adapters"  # where an export has them
    hint = f"; give the folders in {inside}" if inside.is_dir() else ""
    raise InputError(f"{path} is no PEFT adapter: it has no {CONFIG_FILE}{hint}")


def _other_bases(paths: Sequence[Path]) -> list[str]:
    """Return a note where the adapters name several base models, one of which may be a copy."""
    named = [read_json(path / CONFIG_FILE).get("base_model_name_or_path") for path in paths]
    found = list(dict.fromkeys(str(name) for name in named if name))
    if len(found) < 2:
        return []
    told = f"they name different base models ({', '.join(found)})"
    return [f"{told}; updates of different models do not compare"]


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
