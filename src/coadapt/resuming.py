"""Saving and loading the state of a training: no pickle, and whole or not there."""

import logging
import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import rotate_checkpoints

from coadapt._errors import TrainingDiverged
from coadapt._files import load_tensors, put_in_place, read_json, save_tensors, seal
from coadapt.checkpoints import (
    MODEL,
    STATE,
    check_checkpoint,
    load_random_state,
    load_state,
    save_random_state,
    save_state,
)
from coadapt.model import MultiTaskModel
from coadapt.tasks.mixing import StepBatchSampler

logger = logging.getLogger(__name__)

TRAINER_STATE = "trainer_state.json"  # the stock Trainer looks for this name


class AbstractResumingTrainer(Trainer, ABC):
    """The stock Trainer with checkpoints of safetensors and JSON, renamed when they are whole.

    Attributes:
        multi: the model.
        folder: where checkpoints go.
        sampler: told the epoch of a checkpoint.
        config_hash: written into checkpoints.
    """

    multi: MultiTaskModel
    folder: Path
    sampler: StepBatchSampler
    config_hash: str

    @abstractmethod
    def counters(self) -> dict[str, Any]:
        """Return, as plain data, what counts up while training; called on every rank."""

    @abstractmethod
    def take_counters(self, plain: dict[str, Any]) -> None:
        """Take what :meth:`counters` returned."""

    def go_on(self, checkpoint: Path | None) -> None:
        """Train from the start, or from a checkpoint that is whole to the end."""
        if checkpoint is not None:
            self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE))
            if self.state.global_step >= self.state.max_steps:
                # The stock loop asks only after a step whether it was the last.
                self._take_finished(checkpoint)
                return
        self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    def _take_finished(self, checkpoint: Path) -> None:
        self._load_from_checkpoint(str(checkpoint))
        if self.args.load_best_model_at_end and self.state.best_global_step:
            best = checkpoint.with_name(f"checkpoint-{self.state.best_global_step}")
            self.state.best_model_checkpoint = str(best)
            self._load_best_model()

    def _where_to_go_on(self) -> str:
        return f"Checkpoints in {self.folder} are from before and can be resumed."

    def _over_ranks(self, values: Tensor) -> Tensor:
        summed = self.accelerator.reduce(values.clone(), "sum")
        assert isinstance(summed, Tensor)
        return summed

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write a checkpoint into a temporary folder and rename it when it is whole."""
        self.refuse_bad_weights()
        counters = self.counters()
        path = self.folder / f"checkpoint-{self.state.global_step}"
        temporary = path.with_name(f"tmp-{path.name}")
        if self.args.should_save:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        save_random_state(temporary, self.args.process_index)
        self.accelerator.wait_for_everyone()
        if self.state.best_global_step:
            best = path.with_name(f"checkpoint-{self.state.best_global_step}")
            if best.is_dir() or best == path:
                self.state.best_model_checkpoint = str(best)
        if self.args.should_save:
            self._write_state(temporary, counters)
            seal(temporary)
            put_in_place(temporary, path)
            rotate_checkpoints(
                output_dir=str(self.folder),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=False,
            )
        self.accelerator.wait_for_everyone()

    def refuse_bad_weights(self) -> None:
        """Raise TrainingDiverged unless every weight is finite."""
        for name, tensor in self.multi.state_tensors().items():
            if not torch.isfinite(tensor).all():
                raise TrainingDiverged(
                    f"'{name}' is not finite after step {self.state.global_step}; "
                    "a lower learning rate may help. " + self._where_to_go_on()
                )

    def _write_state(self, folder: Path, counters: dict[str, Any]) -> None:
        save_tensors(folder / MODEL, self.multi.state_tensors())
        scaler = self.accelerator.scaler
        plain = counters | {
            "config_hash": self.config_hash,
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        save_state(folder, self.optimizer, self.lr_scheduler, plain)
        states: Any = self.state.stateful_callbacks  # a mapping by now, whatever it says
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                states[type(callback).__name__] = callback.state()
        self.state.save_to_json(str(folder / TRAINER_STATE))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        self._load_weights(folder)
        self.take_counters(read_json(folder / STATE))
        # For a checkpoint within an epoch; not every version of the stock loop tells the sampler.
        steps_an_epoch = len(self.sampler) // self.args.gradient_accumulation_steps
        step = read_json(folder / TRAINER_STATE)["global_step"]
        self.sampler.set_epoch((step - 1) // steps_an_epoch)

    def _load_weights(self, folder: Path) -> None:
        self.multi.load_state_tensors(load_tensors(folder / MODEL), str(folder / MODEL))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_state(Path(checkpoint), self.optimizer, self.lr_scheduler)

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(read_json(Path(checkpoint) / STATE)["scaler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_random_state(Path(checkpoint), self.args.process_index)

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        best = Path(self.state.best_model_checkpoint)
        logger.info("taking the weights of %s", best)
        check_checkpoint(best)
        self._load_weights(best)
