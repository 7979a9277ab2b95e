"""Changing what a toy run has learned."""

import torch

from coadapt import Run, load_run


def reopened(run: Run) -> Run:
    """Return a run of the same folder with a model of its own, to be changed."""
    return load_run(run.path)


@torch.no_grad()
def fill(run: Run, *, seed: int = 1, std: float = 0.3) -> Run:
    """Draw every factor of a run's model anew; its folder keeps what was trained."""
    generator = torch.Generator().manual_seed(seed)
    for layer in run.model.attached.layers.values():
        for factor in (*layer.A, *layer.B):
            factor.copy_(torch.randn(factor.shape, generator=generator) * std)
    return run
