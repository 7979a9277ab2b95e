"""What a run's blocks were at its start, at its checkpoints and at its end."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from coadapt._errors import InputError
from coadapt._files import is_whole, load_tensors
from coadapt.analysis._representations import start_of
from coadapt.analysis._subspace_pairs import Factors
from coadapt.checkpoints import MODEL, check_checkpoint
from coadapt.loading import Loader
from coadapt.planning import Plan
from coadapt.runs import ADAPTER, Run

Tensors = Mapping[str, Tensor]

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def start_tensors(
    run: Run, adapter: Tensors, loader: Loader
) -> tuple[Tensors | None, tuple[str, ...]]:
    """Return the tensors before the first step, and a note where they are not known."""
    frozen = {name[:-1]: t for name, t in adapter.items() if name.endswith(("/A0", "/B0"))}
    if frozen:
        return frozen, ()
    if run.config.recipe.init.statistics == "none":
        return start_of(run, loader=loader).model.state_tensors(), ()
    return None, ("the start is not kept, since init.subtract is off",)


def moments(
    run: Run,
    adapter: Tensors,
    start: Tensors | None,
    checkpoints: Sequence[str | Path] | None,
) -> Iterator[tuple[int, Tensors, str]]:
    """Yield each known step with its tensors and where they come from."""
    trained = run.result["train"]
    if trained is None:
        raise InputError(f"run {run.path} was made from another, so it has no steps; take that one")
    last, best = trained["steps"], trained["best_checkpoint"]
    folders = _folders(run.path, checkpoints)
    if start is not None:
        yield 0, start, str(run.path)
    at_best = False
    for step, folder in sorted(folders.items()):
        check_checkpoint(folder)
        tensors = load_tensors(folder / MODEL)
        if folder.name == best and step != last:  # what was loaded at the end is no later state
            at_best = all(n in tensors and t.equal(tensors[n]) for n, t in adapter.items())
        if step < last or at_best:
            yield step, tensors, str(folder)
    if not at_best:
        yield last, adapter, str(run.path / ADAPTER)


def _folders(run: Path, checkpoints: Sequence[str | Path] | None) -> dict[int, Path]:
    given = checkpoints is not None
    folders = [Path(one) for one in checkpoints or ()] if given else run.glob("checkpoint-*")
    found = {}
    for folder in folders:
        name = _CHECKPOINT.fullmatch(folder.name)
        if name is None and given:
            raise InputError(f"checkpoints: {folder} is not named checkpoint-STEP")
        if name is not None and (given or is_whole(folder)):
            found[int(name[1])] = folder
    return found


def factors(tensors: Tensors, plan: Plan, module: str, where: str) -> list[Factors]:
    found = []
    for block, rank in zip(plan.blocks, plan.ranks_in(module), strict=True):
        names = (f"{block}/{module}/A", f"{block}/{module}/B")
        if not all(name in tensors for name in names) or len(tensors[names[0]]) != rank:
            raise InputError(
                f"{where} has no rank-{rank} factors of block '{block}' in module '{module}'; it "
                "is of another run"
            )
        A, B = (tensors[name].double().numpy() for name in names)
        found.append((A, B))
    return found
