"""The verb that takes over what was made elsewhere."""

from pathlib import Path
from typing import Annotated

import typer

from coadapt._errors import InputError
from coadapt.verbs.common import DataRoot, TasksOption, mendable, names, out, read_early


def import_(
    what: Annotated[
        list[str], typer.Argument(help="A LLaMA-Factory YAML; or PEFT folders, TASK=FOLDER.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder.")],
    suite: Annotated[str | None, typer.Option(help="The adapters' tasks, as a suite.")] = None,
    model: Annotated[str | None, typer.Option(help="The adapters' base model.")] = None,
    data_root: DataRoot = None,
    tasks: TasksOption = None,
) -> None:
    """Turn a LLaMA-Factory YAML into train.yaml and suite.yaml, or PEFT adapters into a run."""
    with mendable():
        if len(what) == 1 and Path(what[0]).suffix in (".yaml", ".yml"):
            if suite or model or tasks or data_root:
                raise InputError("--suite, --model, --tasks and --data-root go with PEFT folders")
            lines = _file(Path(what[0]), output)
        else:
            lines = _adapters(what, output, suite, model, data_root, names(tasks))
    for line in lines:
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def _file(file: Path, output: Path) -> list[str]:
    read_early(file)
    from coadapt.conversion import convert, write_conversion

    made = convert(file)
    suite, train = write_conversion(made, file, output)
    return [*made.lines(), f"written: {suite} and {train}", f"next: coadapt check {train}"]


def _adapters(
    what: list[str],
    output: Path,
    suite: str | None,
    model: str | None,
    data_root: Path | None,
    only: list[str] | None,
) -> list[str]:
    if suite is None or model is None:
        raise InputError(
            "PEFT adapters need --suite, for their tasks' prompts and labels, and --model, their "
            "base model"
        )
    read_early(suite)
    folders = {}
    for word in what:
        task, given, folder = word.partition("=")
        folder = folder if given else word
        if not (Path(folder) / "adapter_config.json").is_file():
            raise InputError(f"{folder} is no PEFT adapter: it has no adapter_config.json")
        folders[task if given else Path(folder).name] = folder
    from coadapt.conversion import import_adapters
    from coadapt.tasks import load_suite

    loaded = load_suite(suite, data_root=data_root, only=only)
    run = import_adapters(folders, loaded, model, output)
    assert run.config.plan is not None
    return [
        *(
            f"{', '.join(block.tasks)}: rank {block.rank}"
            for block in run.config.plan.blocks.values()
        ),
        f"written: {output}; score it with: coadapt evaluate {output}",
    ]
