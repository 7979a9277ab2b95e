"""A progress bar that carries the loss, instead of a dictionary a log line."""

from typing import Any

from transformers import ProgressCallback


class ProgressBar(ProgressCallback):
    """The stock bar; what is logged goes to its end and to metrics.jsonl, not to the screen."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: dict[str, str] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the loss, and the mean validation score where there is one."""
        shown = {"loss": "loss", "eval_overall": "validation"}
        found = {name: f"{logs[key]:.3f}" for key, name in shown.items() if key in (logs or {})}
        if self.training_bar is not None and found:
            self._shown = {**self._shown, **found}
            self.training_bar.set_postfix(self._shown, refresh=False)
