"""What a run's adapters make of rows: the down-projections A x, by module and task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coadapt._errors import InputError, nearest
from coadapt._seeds import named_seed
from coadapt.inits import Start
from coadapt.loading import Loader
from coadapt.model import MultiTaskModel, build_model
from coadapt.penalties import visible_modules
from coadapt.regularizers import Captured, Need
from coadapt.runs import ADAPTER, Run, load_run
from coadapt.saving import read_adapter, saved_form
from coadapt.tasks import SPLITS
from coadapt.tasks.render import answer_tokens

Items = Sequence[Mapping[str, Any]]

_BATCH = 16  # rows a forward


@dataclass(frozen=True, kw_only=True, eq=False)
class Representations:
    """A x of rows of several tasks, before gate and dropout.

    Attributes:
        run: whose adapters.
        base: fingerprint of its base model.
        tasks: their names.
        task_ids: (N,) an index into them a row.
        tokens: (N, S) what was read; rows are padded to the longest.
        valid: (N, S) true where a token is none of padding.
        learned: (N, S) true where a token is part of an answer; None where labels are no tokens.
        values: by module, (N, S, r) float32 or wider.
    """

    run: str
    base: str
    tasks: tuple[str, ...]
    task_ids: Tensor
    tokens: Tensor
    valid: Tensor
    learned: Tensor | None
    values: dict[str, Tensor]

    def captured(self, module: str) -> Captured:
        """Return a module's as a regularizer gets to see it."""
        return Captured(
            task_ids=self.task_ids,
            valid=self.valid,
            learned=self.learned,
            representations={module: self.values[module]},
        )

    def by_token(self, module: str) -> NDArray[np.float64]:
        """Return (tokens, r) of all rows."""
        return self.values[module][self.valid].double().numpy()

    def by_row(self, module: str) -> NDArray[np.float64]:
        """Return (N, r) means over each row's tokens."""
        values = self.values[module].double().masked_fill(~self.valid[..., None], 0.0)
        return (values.sum(dim=1) / self.valid.sum(dim=1, keepdim=True)).numpy()


def opened(run: str | Path | Run, loader: Loader) -> Run:
    """Return a run, opened if it is a folder.

    Raises:
        InputError: if it has no adapters.
    """
    found = run if isinstance(run, Run) else load_run(run, loader=loader)
    structure = found.config.recipe.structure
    if not structure.divides:
        raise InputError(
            f"run {found.path} has no adapters to look at: its structure is '{structure.kind}'; "
            "take one of a LoRA-family recipe"
        )
    return found


def start_of(run: str | Path | Run, *, loader: Loader | None = None) -> Run:
    """Return a run as it was before its first step.

    Built anew from its configuration and seed, which loads the base model. Blocks that were
    imported start here as fresh ones do. Not for writing: it has the folder of the trained run.

    Args:
        run: a finished run, or its folder.
        loader: keeps what several runs share, the base model among it.

    Raises:
        InputError: if the run has no adapters, or its start is not known.
    """
    loader = loader or Loader()
    found = opened(run, loader)
    config = found.config
    structure, plan = saved_form(found.path / ADAPTER)
    if structure != config.recipe.structure:
        raise InputError(
            f"run {found.path} was merged after training, so what it holds has no start; look at a "
            "run of recipe 'private'"
        )
    statistical = config.recipe.init.statistics != "none"
    model = build_model(
        config.model,
        found.suite.tasks,
        config.recipe,
        plan,
        loss_mean=config.loss_mean,
        seed=config.seed,
        loader=loader,
        start=Start(fills=not statistical),
    )
    if statistical:
        _take_start(model, found)
    return Run(found.path, config, found.suite, model.eval(), loader)


def _take_start(model: MultiTaskModel, run: Run) -> None:
    """Copy in the factors that a run froze before its first step."""
    if not run.config.recipe.init.offset:
        raise InputError(
            f"run {run.path} does not keep its start, which statistics of the rows made, since it "
            "does not subtract it; take a run with init.subtract"
        )
    saved = read_adapter(run.path / ADAPTER)
    given = {name: saved.get(f"{name}0", t) for name, t in model.state_tensors().items()}
    frozen = {name: saved[name] for name in given if name.endswith(("/A0", "/B0"))}
    model.load_state_tensors(given | frozen, str(run.path))


def collect(
    run: Run,
    loader: Loader,
    *,
    modules: Sequence[str] | None,
    rows: int,
    split: str,
    seed: int,
) -> Representations:
    """Run rows of every task through a run's backbone and keep what its layers note.

    Of an encoder-decoder the encoder's modules are looked at; of a language model the rows are read
    with their answers, as in training.

    Args:
        run: with adapters.
        loader: has its rows.
        modules: names or their endings; None for all.
        rows: a task, drawn without replacement; all where there are fewer.
        split: whose.
        seed: of the draw, together with the task's name.

    Raises:
        InputError: if a task has fewer than two rows, or no module has such a name.
    """
    if split not in SPLITS:
        raise InputError(f"unknown split '{split}'{nearest(split, SPLITS)}")
    if rows < 2:
        raise InputError(f"rows must be at least 2 a task, not {rows}")
    names = run.suite.names
    drawn = {task: _drawn(run, loader, task, split, rows, seed) for task in names}
    model = run.model
    watched = _watched(model, modules)
    items = [
        {"label": 0.0, **item, "task_id": index}
        for index, task in enumerate(names)
        for item in drawn[task]
    ]
    return replace(
        _through(model, loader.collator(run.config.model), items, watched),
        run=str(run.path),
        tasks=tuple(names),
    )


def _drawn(run: Run, loader: Loader, task: str, split: str, rows: int, seed: int) -> Items:
    encoded = loader.encoded(run.config.model, run.suite, task, split)
    items = [item for item in encoded if "input_ids" in item]  # others have no answer to read
    if len(items) < 2:
        raise InputError(f"task '{task}' has {len(items)} {split} rows to look at; 2 are needed")
    if len(items) <= rows:
        return items
    generator = np.random.default_rng(named_seed(seed, "rows to look at", task))
    return [items[index] for index in np.sort(generator.permutation(len(items))[:rows])]


def _watched(model: MultiTaskModel, wanted: Sequence[str] | None) -> list[str]:
    """Return the modules to look at, in the backbone's order."""
    known = visible_modules(model.attached, apart=model.kind == "encoder-decoder")
    if not known:
        raise InputError("no adapted module is in the encoder, whose rows are looked at")
    if wanted is None:
        return known
    wanted = [wanted] if isinstance(wanted, str) else wanted
    for end in wanted:
        if not any(name == end or name.endswith(f".{end}") for name in known):
            raise InputError(f"modules: no adapted module is '{end}'{nearest(end, known)}")
    return [name for name in known if any(name == e or name.endswith(f".{e}") for e in wanted)]


def _through(
    model: MultiTaskModel, collate: Any, items: Items, watched: Sequence[str]
) -> Representations:
    """Return the representations, rows in the order given; they run with others of like length."""
    lengths = [len(item["input_ids"]) for item in items]
    shape = (len(items), max(lengths))
    tokens = torch.zeros(shape, dtype=torch.long)
    valid, learned = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    values: dict[str, Tensor] = {}
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), _BATCH):
        rows = torch.from_numpy(order[start : start + _BATCH])
        batch = collate([items[row] for row in rows.tolist()])
        width = batch["input_ids"].shape[1]
        tokens[rows, :width] = batch["input_ids"]
        valid[rows, :width] = batch["attention_mask"].bool()
        if model.kind in ("decoder", "image-text"):
            learned[rows, :width] = answer_tokens(batch["labels"])
        for name, z in _forward(model, batch, watched).items():
            wide = torch.promote_types(z.dtype, torch.float32)
            if name not in values:
                values[name] = torch.zeros(*shape, z.shape[-1], dtype=wide)
            values[name][rows, :width] = z.to("cpu", wide)
    answers_known = model.kind in ("decoder", "image-text") and not model.model_config.prompt_loss
    return Representations(
        run="",
        base=model.base_fingerprint,
        tasks=(),
        task_ids=torch.tensor([item["task_id"] for item in items]),
        tokens=tokens.masked_fill(~valid, 0),
        valid=valid,
        learned=learned if answers_known else None,
        values={name: values[name] for name in watched},
    )


def _forward(
    model: MultiTaskModel, batch: Mapping[str, Tensor], watched: Sequence[str]
) -> dict[str, Tensor]:
    """Return what the layers note of a batch, without its graph."""
    backbone: Any = model.backbone
    dropped = ("task_ids", "labels")
    decodes = model.kind in ("decoder", "image-text")
    if model.kind == "encoder-decoder":
        backbone = backbone.get_encoder()
    elif decodes:
        backbone = backbone.base_model  # without the vocabulary's head
    inputs: dict[str, Any] = (
        {} if model.kind in ("encoder", "encoder-decoder") else {"use_cache": False}
    )
    inputs |= {key: value.to(model.device) for key, value in batch.items() if key not in dropped}
    # Layers note while gradients are enabled, and only then.
    with torch.enable_grad(), model.route.noting({Need.REPRESENTATION: watched}) as noted:
        model.route.set(batch["task_ids"].to(model.device))
        backbone(**inputs)
    return {name: z.detach() for name, z in noted[Need.REPRESENTATION].items()}
