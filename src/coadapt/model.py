"""One frozen backbone, adapters in it, what reads its output, and one loss."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from coadapt._errors import InputError
from coadapt.adapters import Route, target_names
from coadapt.backbone import (
    ModelConfig,
    ModelKind,
    Pooling,
    compute_dtype,
    fingerprint,
    is_quantized,
    language_kind,
    load_backbone,
)
from coadapt.heads import TaskHeads
from coadapt.inits import Start
from coadapt.loading import Loader
from coadapt.penalties import Penalties
from coadapt.planning import Plan
from coadapt.readouts import AbstractReadout, HeadReadout, LanguageReadout, Reading
from coadapt.recipe import Recipe
from coadapt.structures import Attached, Site
from coadapt.tasks import Task
from coadapt.tasks.language import IGNORED

LossMean = Literal["tasks", "rows", "tokens"]


class MultiTaskModel(nn.Module):
    """A backbone shared by several tasks.

    Args:
        backbone: a transformers encoder without head, or a language model; all weights frozen.
        pooling: how an encoder's output becomes a vector; None for a language model.
        tasks: the suite's tasks; a row's ``task_ids`` entry is an index into them.
        recipe: what is trained.
        plan: who shares; required by a structure that divides the rank axis.
        config: the base model's name and use.
        loss_mean: a step's loss is the mean over its tasks of the mean over their rows, the mean
            over its rows, or the mean over its labels (tokens that are learned, as the stock
            Trainer takes it).
        seed: of adapters and heads.
        start: what the init fills the adapters from.

    Raises:
        InputError: if the plan does not fit the tasks, or no module matches.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        pooling: Pooling | None,
        tasks: Sequence[Task],
        *,
        recipe: Recipe,
        plan: Plan | None,
        config: ModelConfig,
        loss_mean: LossMean = "tasks",
        seed: int = 0,
        start: Start | None = None,
    ) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        # Not `config`: the Trainer takes that for a transformers one and writes into it.
        self.recipe, self.plan, self.model_config = recipe, plan, config
        self.pooling: Pooling | None = pooling
        self.loss_mean: LossMean = loss_mean
        self.seed = seed
        self.base_fingerprint = fingerprint(backbone)
        self.route = Route()
        self.attached = self._attach(backbone, start or Start())
        self.backbone = backbone
        with_head = self.tasks if pooling is not None else ()
        self.heads = TaskHeads(with_head, backbone.config.get_text_config().hidden_size, seed)
        self.readout: AbstractReadout = (
            LanguageReadout(backbone) if pooling is None else HeadReadout(self.heads, pooling)
        )
        self.penalties = self._regularized(recipe)

    def _attach(self, backbone: PreTrainedModel, start: Start) -> Attached:
        names, structure = self.task_names, self.recipe.structure
        if structure.divides:
            if self.plan is None:
                raise InputError(f"structure '{structure.kind}' needs a plan: who shares a block?")
            self.plan.check(names)
        site = Site(
            backbone=backbone,
            names=target_names(backbone, self.model_config.target_modules)
            if structure.divides
            else (),
            tasks=names,
            plan=self.plan,
            init=self.recipe.init,
            route=self.route,
            seed=self.seed,
            start=start,
        )
        return structure.attach(site)

    def _regularized(self, recipe: Recipe) -> Penalties | None:
        if not recipe.regularizers:
            return None
        return Penalties(
            recipe.regularizers,
            self.attached,
            num_tasks=len(self.tasks),
            answers_known=self.kind in ("decoder", "image-text")
            and not self.model_config.prompt_loss,
            apart=self.kind == "encoder-decoder",
        )

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks' names in order."""
        return tuple(task.name for task in self.tasks)

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return self.backbone.device

    @property
    def kind(self) -> ModelKind:
        """Which kind of model the backbone is."""
        return "encoder" if self.pooling is not None else language_kind(self.backbone.config)

    @property
    def is_language_model(self) -> bool:
        """Whether it scores and writes text, rather than run heads on an encoder's vectors."""
        return self.pooling is None

    def task_id(self, name: str) -> int:
        """Return the index of a task."""
        return self.task_names.index(name)

    def forward(
        self,
        task_ids: Tensor,
        labels: Tensor | None = None,
        task_counts: Tensor | None = None,
        penalty_share: float = 1.0,
        **inputs: Tensor,
    ) -> dict[str, Any]:
        """Run a batch of rows of any tasks.

        Args:
            task_ids: (B,).
            labels: (B,) class indices or values, as floats; or (B, S) tokens to predict.
            task_counts: (T,) see :meth:`counts`, of the whole optimizer step, on all ranks; the
                batch's own if None. The micro-batches' losses of a step then sum to the step's
                loss.
            penalty_share: what the regularizers' terms of this micro-batch count in the loss, one
                by the number of micro-batches of the step.
            inputs: what else the collator made: ``input_ids``, ``attention_mask``, ...

        Returns:
            ``outputs`` (B, C) if there are heads, and with labels ``loss`` () and ``row_losses``
            (B,); with regularizers ``penalties``, their terms without weight while gradients flow.
        """
        num_rows = len(task_ids)
        penalty, terms = None, {}
        if num_rows == 0:  # a rank that got no row of a short batch still has to take part
            read = self._read_nothing(inputs, labels)
            if self.penalties is not None and labels is not None and torch.is_grad_enabled():
                penalty, terms = self.penalties.of_weights(task_ids)
        else:
            row_ids = inputs.get("row_ids")
            self.route.set(task_ids if row_ids is None else task_ids[row_ids])
            if self.penalties is None or labels is None or not torch.is_grad_enabled():
                read = self._read(inputs, labels)
            else:
                with self.route.noting(self.penalties.watched) as noted:
                    read = self._read(inputs, labels)
                penalty, terms = self.penalties(noted, task_ids, labels, inputs, self.route)
        found: dict[str, Any] = {} if read.outputs is None else {"outputs": read.outputs}
        if labels is None:
            return found
        assert read.row_losses is not None
        weights = self._weights(task_ids, labels, inputs, task_counts).to(read.row_losses.dtype)
        loss = (read.row_losses * weights).sum()
        if penalty is not None:
            loss = loss + penalty_share * penalty
        if self.penalties is not None:
            found["penalties"] = terms
        return {**found, "loss": loss, "row_losses": read.row_losses}

    def _read(self, inputs: dict[str, Tensor], labels: Tensor | None) -> Reading:
        dtype = compute_dtype(self.model_config.dtype)
        mixed = self.recipe.structure.trains_backbone and dtype == torch.bfloat16
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=mixed):
            return self.readout.read(self.backbone, inputs, labels, self.route)

    def _read_nothing(self, inputs: dict[str, Tensor], labels: Tensor | None) -> Reading:
        """Run a row of padding and keep none of its output."""
        inputs = {k: v.new_ones(1, max(v.shape[1], 1)) for k, v in inputs.items()}
        if labels is not None:
            labels = torch.full((1, *labels.shape[1:]), IGNORED, device=labels.device).to(labels)
            labels = labels if self.is_language_model else labels.clamp_min(0)
        self.route.set(torch.zeros(1, dtype=torch.long, device=self.device))
        found = self._read(inputs, labels)
        self.route.set(torch.zeros(0, dtype=torch.long, device=self.device))
        return Reading(*(None if value is None else value[:0] for value in found))

    def counts(self, task_ids: Tensor, labels: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Return (T,) what a step's mean divides by: rows a task, or its labels (loss_mean)."""
        units = self._units(task_ids, labels, inputs)
        zeros = torch.zeros(len(self.tasks), dtype=units.dtype, device=units.device)
        return zeros.index_add(0, task_ids, units)

    def _units(self, task_ids: Tensor, labels: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        if self.loss_mean != "tokens" or len(task_ids) == 0:
            return torch.ones_like(task_ids)
        return self.readout.tokens_learned(labels, inputs, len(task_ids))

    def _weights(
        self,
        task_ids: Tensor,
        labels: Tensor,
        inputs: dict[str, Tensor],
        counts: Tensor | None,
    ) -> Tensor:
        """Return (B,) weights of the rows' losses, summing to 1 over an optimizer step."""
        if counts is None:
            counts = self.counts(task_ids, labels, inputs)
        counts = counts.to(task_ids.device)
        if self.loss_mean == "tasks":
            return 1.0 / (counts[task_ids].clamp_min(1) * (counts > 0).sum().clamp_min(1))
        return self._units(task_ids, labels, inputs) / counts.sum().clamp_min(1)

    def state_tensors(self) -> dict[str, Tensor]:
        """Return all that training changed, by name: blocks, heads, and a backbone that trains."""
        found: dict[str, Tensor] = dict(self.attached.tensors())
        for task, weight, bias in zip(
            self.heads.names, self.heads.weight, self.heads.bias, strict=True
        ):
            found[f"heads/{task}/weight"], found[f"heads/{task}/bias"] = weight, bias
        if self.recipe.structure.trains_backbone:
            found |= {f"backbone/{name}": p for name, p in self.backbone.named_parameters()}
        return {name: tensor.detach() for name, tensor in found.items()}

    @torch.no_grad()
    def load_state_tensors(self, tensors: dict[str, Tensor], source: str) -> None:
        """Copy tensors of :meth:`state_tensors` in; every one must be there, with its shape.

        Raises:
            InputError: naming ``source`` and the first tensor that is missing or of another shape.
        """
        for name, mine in self.state_tensors().items():
            if name not in tensors:
                raise InputError(f"{source} has no tensor '{name}'; it is of another configuration")
            if tensors[name].shape != mine.shape:
                raise InputError(
                    f"{source}: tensor '{name}' has shape {tuple(tensors[name].shape)}, "
                    f"the configuration asks for {tuple(mine.shape)}"
                )
            mine.copy_(tensors[name])

    def lazy_parameters(self) -> list[tuple[tuple[int, ...], list[nn.Parameter]]]:
        """Return the parameters that a step may leave out, with the tasks that use each group.

        A block that no row of a step used has a gradient of zero, but an optimizer's decay and old
        moments would still move it; so would they a head. A block that the gate never closes is
        not among them.
        """
        groups: list[tuple[tuple[int, ...], list[nn.Parameter]]] = [
            ((index,), [self.heads.weight[index], self.heads.bias[index]])
            for index in range(len(self.heads.names))
        ]
        if self.recipe.structure.depends_on == "task":
            for block, owners in enumerate(self.attached.owners):
                groups.append((owners, self.attached.of_block(block)))
        return groups

    def fold(self, task: str) -> dict[str, tuple[Tensor, Tensor]]:
        """Return plain float32 factors ``{module: (A, B)}`` of a task's whole update, ``B A``.

        Raises:
            InputError: if the structure has no exact LoRA form.
        """
        if not self.recipe.structure.mergeable:
            kind, ships = self.recipe.structure.kind, self.recipe.structure.ships_as
            raise InputError(f"structure '{kind}' has no exact LoRA form (it ships as '{ships}')")
        return self.attached.fold(self.task_id(task))

    @property
    def num_trainable(self) -> dict[str, int]:
        """Trainable values by part: ``adapters`` (or backbone) and ``heads``."""
        heads = sum(p.numel() for p in self.heads.parameters())
        every = sum(p.numel() for p in self.parameters() if p.requires_grad)
        return {"adapters": every - heads, "heads": heads}

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Turn on activation checkpointing in the backbone, re-entrant or not."""
        # Re-entrant checkpointing drops the graph unless an input of each block asks for gradients.
        self.backbone.enable_input_require_grads()
        self.backbone.activation_checkpointing_enable(**kwargs)

    @property
    def is_activation_checkpointing(self) -> bool:
        """Whether the backbone recomputes its activations."""
        return self.backbone.is_activation_checkpointing


def build_model(
    config: ModelConfig,
    tasks: Sequence[Task],
    recipe: Recipe,
    plan: Plan | None,
    *,
    loss_mean: LossMean = "tasks",
    seed: int = 0,
    loader: Loader | None = None,
    start: Start | None = None,
) -> MultiTaskModel:
    """Load the backbone that ``config`` names, or take it from ``loader``, and build on it."""
    # A backbone that trains keeps float32 master weights and computes under autocast.
    dtype = compute_dtype(config.dtype)
    trains = recipe.structure.trains_backbone
    if trains and dtype == torch.bfloat16:
        dtype = torch.float32
    if trains and is_quantized(config):
        raise InputError(
            f"recipe structure '{recipe.structure.kind}' trains the weights of '{config.name}', "
            "which are quantised; take the model in full precision (no model.quantization), or a "
            "recipe that adds an update, such as lora"
        )
    if loader is None:
        backbone, pooling = load_backbone(config, dtype)
    else:
        backbone, pooling = loader.backbone(config, dtype, trains=trains)
    return MultiTaskModel(
        backbone,
        pooling,
        tasks,
        recipe=recipe,
        plan=plan,
        config=config,
        loss_mean=loss_mean,
        seed=seed,
        start=start,
    )
