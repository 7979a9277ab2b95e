"""Training by the stock Trainer, overridden where several tasks ask for it and nowhere else."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback, TrainingArguments

from coadapt._errors import InputError, TrainingDiverged
from coadapt._progress import ProgressBar
from coadapt.evaluation import TaskScores, flatten
from coadapt.model import MultiTaskModel
from coadapt.resuming import AbstractResumingTrainer
from coadapt.stepping import BalancedStep
from coadapt.tasks.language import LanguageCollator
from coadapt.tasks.mixing import Composition, Mixing, StepBatchSampler
from coadapt.tasks.render import Collator, TaskDataset

METRICS_FILE = "metrics.jsonl"


class _EpochLoader(DataLoader):
    """A DataLoader that tells its batch sampler the epoch."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]


class MultiTaskTrainer(AbstractResumingTrainer):
    """The transformers Trainer for a :class:`MultiTaskModel`.

    Overridden: the sampler (mixes tasks, buckets lengths, deals a step's rows to the ranks), the
    loss (a mean over tasks needs counts by task over the whole step), the optimizer (parameters of
    tasks that a step lacks are skipped), evaluation (a score a task), the log (losses by task).

    Args:
        model: the model.
        args: untouched.
        dataset: the training rows of all tasks.
        collate: makes rows into a batch.
        mixing: how often each task is drawn.
        composition: which tasks' rows stand together in a step.
        bucket: steps a window in which rows are sorted by length.
        score: returns the scores of the validation rows, for evaluation while training.
        config_hash: written into checkpoints.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        args: TrainingArguments,
        *,
        dataset: TaskDataset,
        collate: Collator | LanguageCollator,
        mixing: Mixing,
        composition: Composition = "mixed",
        bucket: int = 16,
        score: Callable[[], dict[str, TaskScores]] | None = None,
        config_hash: str = "",
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            train_dataset=dataset,
            # The Trainer asks for one where it evaluates; ours are rows a task, see evaluate().
            eval_dataset=dataset if score else None,
            data_collator=collate,
        )
        warn_of_one_row(args, model)
        refuse_re_entrant(args, model)
        for stock in (ProgressCallback, PrinterCallback):
            self.remove_callback(stock)
        if not args.disable_tqdm:
            self.add_callback(ProgressBar())
        self.multi, self.folder = model, Path(str(args.output_dir))
        self.dataset, self.collate, self.score = dataset, collate, score
        self.config_hash = config_hash
        self.loss_is_scaled_for_ga = True
        self.sampler = StepBatchSampler(
            lengths=dataset.lengths,
            task_ids=dataset.task_ids,
            task_names=model.task_names,
            mixing=mixing,
            per_device_batch_size=args.train_batch_size,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            world_size=args.world_size,
            rank=args.process_index,
            composition=composition,
            bucket=bucket,
            packed=isinstance(collate, LanguageCollator) and collate.packed,
            seed=args.data_seed if args.data_seed is not None else args.seed,
        )
        names = (*model.attached.blocks, *(f"heads/{task}" for task in model.heads.names))
        self.updates = dict.fromkeys(names, 0)
        self.tokens_seen = 0  # of all ranks, without padding
        self._step_counts = torch.zeros(len(model.tasks))
        self._micro_batches = 1  # of the step, on this rank
        self._balanced = self._balance()
        # Since the last line of the log: losses and rows a task; then the whole loss and steps;
        # then a regularizer's terms.
        terms = [part.kind for part in model.recipe.regularizers]
        self._terms = terms
        width = len(model.tasks) + 1 + len(terms)
        self._logged = torch.zeros(2, width, device=args.device)

    def _balance(self) -> BalancedStep | None:
        balancing = self.multi.recipe.balancing
        if balancing is None:
            return None
        if self.args.fp16:
            raise InputError(
                "training.fp16 scales gradients, which a balancing would not see; use bf16"
            )
        named = self.multi.named_parameters()
        shared = [p for n, p in named if p.requires_grad and not n.startswith("heads.")]
        return BalancedStep(balancing, shared, len(self.multi.tasks), seed=self.args.seed)

    # Data ----------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """Return batches that are this rank's already: accelerate must not deal them again."""
        return _EpochLoader(
            self.dataset,
            batch_sampler=self.sampler,
            collate_fn=self.collate,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type != "cpu",
        )

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        """Return (T,) rows (or labels) a task in the whole step: every micro-batch and rank."""
        self._micro_batches = len(batch_samples)
        num_tasks = len(self.multi.tasks)
        counts = torch.zeros(num_tasks + 1, dtype=torch.long, device=device)
        for batch in batch_samples:
            counts[:-1] += self.multi.counts(batch["task_ids"], batch["labels"], batch).to(device)
            if len(batch["task_ids"]):
                counts[-1] += batch["attention_mask"].sum()
        counts = self._over_ranks(counts).cpu()
        self._step_counts = counts[:-1]
        self.tokens_seen += int(counts[-1])
        if self._balanced is not None:
            self._balanced.begin(self._step_counts > 0, self.args.device)
        return self._step_counts

    # Loss and optimizer --------------------------------------------------------------------

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return this micro-batch's share of the step's loss.

        Raises:
            TrainingDiverged: naming step and tasks, if it is not finite.
        """
        share = 1.0 / (self._micro_batches * self.args.world_size)
        outputs = model(**inputs, task_counts=num_items_in_batch, penalty_share=share)
        losses, task_ids = outputs["row_losses"].detach().float(), inputs["task_ids"]
        if not torch.isfinite(losses).all():
            bad = sorted({self.multi.task_names[t] for t in task_ids[~losses.isfinite()].tolist()})
            raise TrainingDiverged(
                f"the loss of task {', '.join(bad)} is not finite at step "
                f"{self.state.global_step + 1}; a lower learning rate or max_grad_norm may help. "
                + self._where_to_go_on()
            )
        self._logged[0].index_add_(0, task_ids, losses)
        self._logged[1].index_add_(0, task_ids, torch.ones_like(losses))
        column = len(self.multi.tasks)
        self._logged[0, column] += outputs["loss"].detach()
        for index, term in enumerate(self._terms, start=column + 1):
            self._logged[0, index] += share * outputs["penalties"].get(term, 0.0)
        loss = outputs["loss"]
        if self._balanced is not None:
            counts = self._step_counts.to(task_ids.device)[task_ids]
            means = loss.new_zeros(len(self.multi.tasks))
            means = means.index_add(0, task_ids, (outputs["row_losses"] / counts).to(means))
            loss = loss + self._balanced.add(means, torch.unique(task_ids).tolist())
        # Ranks average their gradients; the shares must sum.
        loss = loss * self.args.world_size
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Balance the gradients after a step's last micro-batch, before they are clipped."""
        loss = super().training_step(*args, **kwargs)
        if self._balanced is not None and self.accelerator.sync_gradients:
            self._balanced.finish(self._over_ranks, self.state.global_step)
        return loss

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Build the optimizer on the recipe's groups and make it skip absent tasks' parameters."""
        if self.optimizer is None:
            adapters = [
                (n, p) for n, p in self.multi.named_parameters() if not n.startswith("heads.")
            ]
            groups = self.multi.recipe.groups.split(
                adapters,
                self.multi.heads.named_parameters(),
                learning_rate=self.args.learning_rate,
                weight_decay=self.args.weight_decay,
            )
            make, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.multi)  # pyright: ignore[reportArgumentType]
            self.optimizer = make(groups, **kwargs)
            self.optimizer.register_step_pre_hook(self._skip_absent)
        return self.optimizer

    def _skip_absent(self, *_: Any) -> None:
        """Take the gradients of parameters that no row of the step used: zero is not absent.

        With a gradient of zero AdamW would still decay the weight and follow its old moments.
        """
        self._logged[1, len(self.multi.tasks)] += 1 / self.args.world_size
        present = set(torch.nonzero(self._step_counts).flatten().tolist())
        for tasks, parameters in self.multi.lazy_parameters():
            if present.isdisjoint(tasks):
                for parameter in parameters:
                    parameter.grad = None
        for block, owners in zip(
            self.multi.attached.blocks, self.multi.attached.owners, strict=True
        ):
            self.updates[block] += not present.isdisjoint(owners)
        for index, task in enumerate(self.multi.heads.names):
            self.updates[f"heads/{task}"] += index in present

    # Evaluation and log --------------------------------------------------------------------

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Score the validation rows: ``eval_overall``, ``eval_<task>``, see `flatten`."""
        assert self.score is not None
        metrics = flatten(self.score())
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add losses a task and the share of padding, and append a line to metrics.jsonl."""
        if "loss" in logs:
            columns = self._over_ranks(self._logged).T.tolist()
            tasks, steps = columns[: len(self.multi.tasks)], columns[len(self.multi.tasks)]
            # The stock value forgets, on resuming, the steps before the checkpoint.
            logs["loss"] = steps[0] / steps[1]
            for name, column in zip(self._terms, columns[len(tasks) + 1 :], strict=True):
                logs[f"penalty_{name}"] = column[0] / steps[1]
            for name, (total, count) in zip(self.multi.task_names, tasks, strict=True):
                if count > 0:
                    logs[f"loss_{name}"] = total / count
            logs["padding"] = self.sampler.padding_share()
            self._logged.zero_()
        super().log(logs, start_time)
        if self.is_world_process_zero():
            line = {"step": self.state.global_step, **self.state.log_history[-1]}
            with (self.folder / METRICS_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def counters(self) -> dict[str, Any]:
        """Updates by block, tokens and what the log has not said yet; summed over ranks."""
        logged = self._over_ranks(self._logged).tolist()
        found = {"updates": self.updates, "tokens_seen": self.tokens_seen, "logged": logged}
        if self._balanced is not None:
            found["balancing"] = self._balanced.to_plain()
        return found

    def take_counters(self, plain: dict[str, Any]) -> None:
        """Go on counting from there; the log's sums on one rank only."""
        self.updates, self.tokens_seen = plain["updates"], plain["tokens_seen"]
        if self._balanced is not None:
            self._balanced.take_plain(plain["balancing"])
        if self.is_world_process_zero():  # the sum over all ranks
            self._logged = torch.tensor(plain["logged"], device=self.args.device)


def refuse_re_entrant(args: TrainingArguments, model: MultiTaskModel) -> None:
    """Refuse activation checkpointing that hides the graph from what looks into it.

    Raises:
        InputError: naming the setting.
    """
    recipe, options = model.recipe, args.activation_checkpointing_kwargs
    re_entrant = isinstance(options, dict) and options.get("use_reentrant", False)
    looks = any(not part.needs.lasting for part in recipe.regularizers)
    looks = looks or (recipe.balancing and recipe.balancing.needs_jacobian)
    if args.activation_checkpointing and re_entrant and looks:
        raise InputError(
            "re-entrant activation checkpointing hides the graph that a regularizer's gradients, "
            "and those of each task, pass through; set training.activation_checkpointing_kwargs "
            "to {use_reentrant: false}"
        )


def warn_of_one_row(args: TrainingArguments, model: MultiTaskModel) -> None:
    """Warn where a regularizer that compares tasks never sees two of them."""
    if args.train_batch_size < 2 and any(p.several_tasks for p in model.recipe.regularizers):
        warnings.warn(
            "a regularizer compares the tasks of a micro-batch, and per_device_train_batch_size "
            "is 1: it has no effect",
            stacklevel=2,
        )
