"""Suite files: YAML, a ready suite's name or plain data, to a `TaskSuite`."""

import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from coadapt._errors import InputError, nearest
from coadapt.config import apply_overrides, load_yaml, parse, to_plain
from coadapt.tasks.split import SPLITS
from coadapt.tasks.suite import TaskSuite
from coadapt.tasks.task import check_task_name

_SCHEMES = ("asset", "hub", "llama_factory")


def load_suite(
    source: str | Path | Mapping[str, Any],
    *,
    data_root: str | Path | None = None,
    only: Iterable[str] | None = None,
    overrides: Iterable[str] = (),
    seed: int | None = None,
) -> TaskSuite:
    """Load a suite and check it; the data are read when rows or undeclared labels are needed.

    In the file ``tasks`` maps names to the fields of `coadapt.tasks.Task`, where ``data`` may be
    short: ``asset:trec6``, ``hub:owner/dataset`` or ``hub:owner/dataset/configuration``, a file, or
    ``llama_factory:data/dataset_info.json#name``.
    A task's ``local`` holds fields that replace its own where ``data_root`` is read, since a copy
    of the data may have other columns.

    Args:
        source: a YAML file, the name of a ready suite (``demo``), or plain data.
        data_root: read ``DIR/<task>/<split>.jsonl`` instead of every task's source. Train or test
            is needed; with test alone the task can be scored, not trained. If only validation is
            given, it serves as test; a validation split that is missing is taken out of train by
            the hash of the text.
        only: the tasks to take, in this order; all if not given.
        overrides: ``key=value`` assignments, as in ``tasks.trec6.max_rows=100``.
        seed: in place of the suite's own.

    Raises:
        InputError: naming file, key, the value found and what would do.

    Example:
        >>> suite = load_suite({"tasks": {"topic": {
        ...     "kind": "classification", "data": "topics.csv", "labels": ["sports", "science"]}}})
        >>> suite.task("topic").num_outputs
        2
    """
    suite = declared_suite(source, data_root=data_root, only=only, overrides=overrides, seed=seed)
    return suite.resolved()


def declared_suite(
    source: str | Path | Mapping[str, Any],
    *,
    data_root: str | Path | None = None,
    only: Iterable[str] | None = None,
    overrides: Iterable[str] = (),
    seed: int | None = None,
) -> TaskSuite:
    """Return a suite as it is written, without looking at its data; see :func:`load_suite`."""
    data, where, base = _read(source)
    data = apply_overrides(data, overrides)
    if seed is not None:
        data["seed"] = seed
    data["tasks"] = _expand_tasks(data.get("tasks"), where, base)
    if only is not None:
        data["tasks"] = _chosen(data["tasks"], list(only), where)
    for task in data["tasks"]:
        local = task.pop("local", {})
        if data_root is not None:
            task |= local | {"data": _from_root(Path(data_root).absolute(), task["name"])}
    return parse(TaskSuite, data, where)


def ready_suites() -> tuple[str, ...]:
    """Return the names of the suites that come with coadapt."""
    files = resources.files("coadapt.suites").iterdir()
    return tuple(sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml")))


def _read(source: str | Path | Mapping[str, Any]) -> tuple[dict[str, Any], str, Path]:
    """Return the suite's data, what to call the source, and the folder that paths start from."""
    if isinstance(source, Mapping):
        return dict(source), "suite", Path.cwd()
    path = Path(source)
    if isinstance(source, str) and source in ready_suites():
        with resources.as_file(resources.files("coadapt.suites") / f"{source}.yaml") as ready:
            return {"name": source} | load_yaml(ready), f"{source}.yaml", Path.cwd()
    if not path.exists() and path.suffix not in (".yaml", ".yml"):
        hint = nearest(str(source), ready_suites())
        raise InputError(f"'{source}' is neither a YAML file nor a ready suite{hint}")
    return {"name": path.stem} | load_yaml(path), str(path), path.parent.absolute()


def _expand_tasks(tasks: object, where: str, base: Path) -> list[dict[str, Any]]:
    """Turn the mapping of tasks into a list, and short sources into long ones."""
    if not isinstance(tasks, Mapping) or not tasks:
        raise InputError(f"{where}: tasks: found {tasks!r}; give a mapping of names to tasks")
    expanded = []
    for name, fields in tasks.items():
        place = f"{where}: tasks.{name}"
        try:
            check_task_name(str(name))
        except InputError as error:
            raise InputError(f"{where}: tasks: {error}") from error
        if not isinstance(fields, Mapping):
            raise InputError(f"{place}: found {fields!r}; give at least 'kind' and 'data'")
        if "name" in fields:
            raise InputError(f"{place}: 'name' is the key of the task; remove it")
        task = {"name": str(name), **to_plain(fields)}
        if not isinstance(task.get("local", {}), dict):
            raise InputError(f"{place}.local: found {task['local']!r}; give a mapping of fields")
        if "data" in task:
            task["data"] = _expand_source(task["data"], place, base)
        expanded.append(task)
    return expanded


def _chosen(tasks: list[dict[str, Any]], only: list[str], where: str) -> list[dict[str, Any]]:
    by_name = {task["name"]: task for task in tasks}
    for name in only:
        if name not in by_name:
            raise InputError(f"{where}: there is no task '{name}'{nearest(name, by_name)}")
    return [by_name[name] for name in dict.fromkeys(only)]


def _expand_source(data: object, place: str, base: Path) -> dict[str, Any]:
    if isinstance(data, str):
        data = _from_short(data, place, base)
    if not isinstance(data, dict):
        raise InputError(
            f"{place}.data: found {data!r}; give 'asset:NAME', 'hub:OWNER/DATASET', a file, or a "
            f"mapping with 'kind'"
        )
    path = data.get("path")
    if data.get("kind") in ("file", "llama_factory"):
        if isinstance(path, str):
            return data | {"path": _absolute(path, base)}
        if isinstance(path, dict):
            return data | {"path": {s: _absolute(p, base) for s, p in path.items()}}
    if data.get("kind") == "hub" and isinstance(path, str) and path.startswith((".", "/", "~")):
        return data | {"path": _absolute(path, base)}
    return data


def _from_short(data: str, place: str, base: Path) -> dict[str, Any]:
    scheme, colon, rest = data.partition(":")
    if scheme == "asset" and colon:
        return {"kind": "asset", "name": rest}
    if scheme == "hub" and colon:
        if rest.startswith((".", "/", "~")) or rest.count("/") < 2:
            return {"kind": "hub", "path": rest}
        path, _, name = rest.rpartition("/")
        return {"kind": "hub", "path": path, "name": name}
    if scheme == "llama_factory" and colon:
        path, _, name = rest.partition("#")
        return {"kind": "llama_factory", "path": path, "name": name}
    # One letter before a colon is a drive, not a scheme.
    if colon and re.fullmatch(r"[a-z_]{2,}", scheme) and not (base / data).exists():
        raise InputError(f"{place}.data: unknown scheme '{scheme}:'{nearest(scheme, _SCHEMES)}")
    return {"kind": "file", "path": data}


def _absolute(path: object, base: Path) -> object:
    return str((base / Path(path).expanduser()).absolute()) if isinstance(path, str) else path


def _from_root(root: Path, name: str) -> dict[str, Any]:
    folder = root / name
    paths = {split: str(folder / f"{split}.jsonl") for split in SPLITS}
    found = {split: path for split, path in paths.items() if Path(path).is_file()}
    if not {"train", "test"} & set(found):
        there = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
        hint = f"; {root} has {', '.join(there)}" if there else ""
        raise InputError(
            f"task '{name}': {paths['train']}: no such file{hint}; take some of the tasks with "
            "--tasks, or add the file"
        )
    return {"kind": "file", "path": found}
