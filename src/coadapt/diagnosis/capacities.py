"""How much each adapted layer of a trained run lets through."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coadapt._errors import InputError
from coadapt.adapters.linear import linear_weight
from coadapt.backbone import Pooling
from coadapt.diagnosis.collect import Collector, Encoded, Moments
from coadapt.diagnosis.measures import TableMeasure
from coadapt.model import MultiTaskModel
from coadapt.tasks.render import Collator
from coadapt.theory import (
    capacity_proxy,
    capacity_upper_bound,
    delta_capacity,
    unit_snr_noise,
    water_filling,
)

Array = NDArray[np.float64]

SWEEP = (0.1, 1.0, 10.0)  # times the noise of unit signal-to-noise ratio


def input_moments(
    model: MultiTaskModel, collate: Collator, encoded: Mapping[str, Encoded], batch_size: int = 32
) -> dict[str, Moments]:
    """Return the moments of each adapted map's input over the tokens of all tasks together.

    Args:
        model: a trained model; each task's rows go through its own blocks.
        collate: pads rows into a batch.
        encoded: rows of each task, the mixture.
        batch_size: rows a forward.
    """
    totals: dict[str, Moments] = {}
    for name, rows in encoded.items():
        index = model.task_id(name)

        def before(num: int, index: int = index) -> None:
            model.route.set(torch.full((num,), index, device=model.device))

        collector = Collector(
            backbone=model.backbone,
            pooling=_pooling(model),
            collate=collate,
            modules=tuple(model.attached.layers),
            batch_size=batch_size,
            before=before,
        )
        found = collector.features(rows)
        for module, source in found.source.items():
            moments = found.moments[source]
            totals[module] = totals[module] + moments if module in totals else moments
    return totals


def reference_noise(model: MultiTaskModel, moments: Mapping[str, Moments]) -> dict[str, float]:
    """Return for each module the noise at which a run's adapter has a signal-to-noise ratio of 1.

    Args:
        model: the reference, such as the run in which all tasks share.
        moments: of the modules' inputs.

    Raises:
        InputError: if the reference does not adapt one of the modules.
    """
    noise = {}
    for module, found in moments.items():
        if module not in model.attached.layers:
            raise InputError(f"the reference run does not adapt '{module}'; take one that does")
        noise[module] = unit_snr_noise(_stack(model.attached.layers[module].A), found.covariance)
    return noise


def capacity_tables(
    model: MultiTaskModel, moments: Mapping[str, Moments], noise: Mapping[str, float]
) -> dict[str, TableMeasure]:
    """Return capacities by module: of each block, of the whole, their bounds, and a sweep.

    Args:
        model: the trained model.
        moments: of the modules' inputs over the mixture.
        noise: sigma^2 by module, of a reference.
    """
    modules, blocks = tuple(model.attached.layers), model.attached.blocks
    proxies = np.zeros((len(modules), len(blocks)))
    invariant = np.zeros_like(proxies)
    bounds = np.zeros((len(modules), 3))
    sweep = np.zeros((len(SWEEP), len(blocks)))
    for m, (module, layer) in enumerate(model.attached.layers.items()):
        cov = moments[module].covariance
        base = _output_power(layer.base, moments[module])
        for k, (A, B) in enumerate(map(_arrays, layer.blocks())):
            proxies[m, k] = capacity_proxy(A, cov, noise[module])
            invariant[m, k] = delta_capacity(A, B, cov, base, layer.scale)
            for row, factor in enumerate(SWEEP):
                sweep[row, k] += capacity_proxy(A, cov, factor * noise[module])
        bounds[m] = _bounds(_stack(layer.A), cov, noise[module])
    return _tables(modules, blocks, proxies, invariant, bounds, sweep)


def _tables(
    modules: tuple[str, ...],
    blocks: tuple[str, ...],
    proxies: Array,
    invariant: Array,
    bounds: Array,
    sweep: Array,
) -> dict[str, TableMeasure]:
    upper = "an upper bound for inputs that are not Gaussian; layers are not independent channels"
    return {
        "capacity": TableMeasure(
            title="capacity proxy 1/2 log det(I + A S A'/sigma^2) by block, nats",
            reading=f"{_largest(blocks, proxies.sum(axis=0))}; {upper}; it does not see B",
            rows=modules,
            columns=blocks,
            values=proxies,
        ),
        "update": TableMeasure(
            title="capacity of the update s B A with noise as strong as the map's own output, nats",
            reading=f"{_largest(blocks, invariant.sum(axis=0))}; does not depend on how B A is cut",
            rows=modules,
            columns=blocks,
            values=invariant,
        ),
        "bounds": TableMeasure(
            title="all blocks together at their power: proxy, best for this spectrum, bound; nats",
            reading="proxy <= water-filling <= bound; between the first two lies unused spectrum",
            rows=modules,
            columns=("proxy", "water-filling", "bound"),
            values=bounds,
        ),
        "sweep": TableMeasure(
            title="capacity proxy summed over modules, at three noises; nats",
            reading="the noise sets the scale: compare blocks within a row only",
            rows=tuple(f"{factor:g} x unit SNR" for factor in SWEEP),
            columns=blocks,
            values=sweep,
        ),
    }


def _bounds(A: Array, cov: Array, noise: float) -> tuple[float, float, float]:
    eigenvalues = np.clip(np.linalg.eigvalsh(cov), 0.0, None)
    power, rank = float((A**2).sum()), min(len(A), len(cov))
    best, _ = water_filling(eigenvalues, power, noise, rank)
    return (
        capacity_proxy(A, cov, noise),
        best,
        capacity_upper_bound(eigenvalues, power, noise, rank),
    )


def _output_power(base: torch.nn.Module, moments: Moments) -> float:
    """Return the mean variance of the frozen map's outputs."""
    weight = linear_weight(base).double().cpu().numpy()
    # Not by one einsum of three factors, which is a loop: seconds a layer.
    return float(((weight @ moments.covariance) * weight).sum(axis=1).mean())


def _largest(blocks: Sequence[str], totals: Array) -> str:
    best = int(totals.argmax())
    return f"largest for block {blocks[best]} ({totals[best]:.1f} nats over all modules)"


def _arrays(factors: Iterable[Tensor]) -> list[Array]:
    return [factor.detach().double().cpu().numpy() for factor in factors]


def _stack(factors: Iterable[Tensor]) -> Array:
    return np.concatenate(_arrays(factors))


def _pooling(model: MultiTaskModel) -> Pooling:
    assert model.pooling is not None, "diagnose_run refuses language models"
    return model.pooling
