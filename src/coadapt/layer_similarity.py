"""How alike a model's layers represent the training rows, and where its last layers begin."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from torch import Tensor, nn

from coadapt.adapters.attention import layer_of, self_attentions
from coadapt.backbone import compute_dtype
from coadapt.loading import Loader
from coadapt.settings import RunConfig
from coadapt.tasks import TaskSuite
from coadapt.tasks.render import TaskDataset

_ROWS = 32  # a task


@dataclass(frozen=True, kw_only=True)
class LayerSimilarity:
    """What was found on a model's layers.

    Attributes:
        matrices: by stack of layers (n, n) linear CKA between the layers' outputs.
        chosen: the self-attention modules of the last segments, in the model's order.
    """

    matrices: Mapping[str, NDArray[np.float64]]
    chosen: tuple[str, ...]


def linear_cka(states: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    r"""Return (n, n) the linear centred kernel alignment between representations of the same rows.

    .. math:: \mathrm{CKA}(X, Y) = \frac{\|Y^\top X\|_F^2}{\|X^\top X\|_F\, \|Y^\top Y\|_F}

    with columns centred (Kornblith et al., arXiv 1905.00414, equation 4, linear kernel).

    Args:
        states: n arrays (N, d).
    """
    kernels = [x @ x.T for x in (values - values.mean(axis=0) for values in states)]
    flat = np.stack([kernel.ravel() / np.linalg.norm(kernel) for kernel in kernels])
    return flat @ flat.T


def last_segment(similarity: NDArray[np.float64]) -> int:
    """Return how many last layers are more like each other than like those before them.

    The cut into two runs of layers with the largest mean similarity within them less that between
    them. Our reading: the paper says that its layers follow from an interlayer similarity analysis.

    Args:
        similarity: (n, n) symmetric; n >= 2.
    """
    num = len(similarity)
    pairs = ~np.eye(num, dtype=bool)

    def separation(cut: int) -> float:
        together = np.zeros_like(pairs)
        together[:cut, :cut] = together[cut:, cut:] = True
        within, between = similarity[together & pairs], similarity[~together]
        return float((within.mean() if within.size else 1.0) - between.mean())

    return num - max(range(1, num), key=separation)


def find_last_layers(config: RunConfig, suite: TaskSuite, loader: Loader) -> LayerSimilarity:
    """Run up to 32 training rows a task through the base model and cut its stacks of layers.

    A row is represented by the mean of a layer's outputs over its tokens.

    Args:
        config: of the run.
        suite: its tasks.
        loader: keeps what several runs share.
    """
    device = PartialState().device
    backbone, _ = loader.backbone(config.model, compute_dtype(config.model.dtype), trains=False)
    backbone = backbone.to(device).eval()  # pyright: ignore[reportArgumentType]
    stacks = self_attentions(backbone)
    found: dict[str, list[NDArray[np.float64]]] = {n: [] for of in stacks.values() for n in of}
    collate = loader.collator(config.model)
    with _watching(backbone, found):
        for item in _items(config, suite, loader):
            # Alone, so that there is no padding to leave out.
            batch = {key: value.to(device) for key, value in collate([item]).items()}
            labels = batch.pop("labels")
            del batch["task_ids"]
            if backbone.config.is_encoder_decoder:
                backbone(**batch, labels=labels)
            else:  # a decoder's logits are not needed
                backbone.base_model(**batch)
    matrices = {
        stack: linear_cka([np.stack(found[name]) for name in names])
        for stack, names in stacks.items()
    }
    chosen = [
        name
        for stack, names in stacks.items()
        for name in names[-(last_segment(matrices[stack]) if len(names) > 1 else 1) :]
    ]
    return LayerSimilarity(matrices=matrices, chosen=tuple(chosen))


def _items(config: RunConfig, suite: TaskSuite, loader: Loader) -> Iterator[dict[str, Any]]:
    for task in suite.names:
        encoded = loader.encoded(config.model, suite, task, "train")[:_ROWS]
        labels = [np.zeros(len(encoded))] if loader.kind(config.model) == "encoder" else None
        dataset = TaskDataset([encoded], labels)
        yield from (dataset[row] for row in range(len(dataset)) if dataset.lengths[row])


@contextmanager
def _watching(
    backbone: nn.Module, found: Mapping[str, list[NDArray[np.float64]]]
) -> Iterator[None]:
    """Keep the mean output of the layer around each self-attention while forwards run."""

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            states: Tensor = output[0] if isinstance(output, tuple) else output
            found[name].append(states[0].double().mean(dim=0).cpu().numpy())

        return hook

    with ExitStack() as stack, torch.no_grad():
        for name in found:
            layer = backbone.get_submodule(layer_of(name))
            stack.callback(layer.register_forward_hook(keep(name)).remove)
        yield
