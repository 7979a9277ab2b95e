"""Directions found from the tasks' gradients and how they conflict; TorchJD computes them."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from coadapt._errors import InputError
from coadapt.balancing.base import AbstractGradientBalancing, State

_COLUMNS = 2**20  # widened to float64 at a time


@dataclass(frozen=True, kw_only=True)
class AbstractSurgery(AbstractGradientBalancing):
    """A combination of the tasks' gradients whose weights follow from their inner products.

    The Gram matrix is summed in float64 and divided by its trace: TorchJD's solvers take gradients
    for zeros whose squares sum to less than 1e-4, which those of adapters may well be. Nothing is
    remembered from step to step. Gradients that are all zero, or not finite, give their mean.

    Raises:
        InputError: at the start of training, if TorchJD or a solver it calls is not installed.
    """

    @abstractmethod
    def _gram_weights(self, torchjd: Any, gram: Tensor) -> Tensor:
        """Return (P,) weights of the gradients; equal gradients are to give their mean.

        Args:
            torchjd: the package.
            gram: (P, P) inner products, float64 on the CPU, of trace 1.
        """

    def start(self, num_tasks: int) -> State:
        """Try the solver once, so that a package that is missing is told of before training."""
        self._solve(torch.ones(1, 1, dtype=torch.float64), torch.Generator())
        return {}

    @torch.no_grad()
    def combine(
        self,
        state: State,
        jacobian: Tensor,
        losses: Tensor,
        present: Tensor,
        generator: Generator,
    ) -> Tensor:
        """Return the weighted sum of the gradients."""
        assert len(jacobian) == present.sum(), "a row for each task of the step"
        gram = _gram(jacobian)
        size = float(gram.trace())
        if size == 0 or not math.isfinite(size):
            return jacobian.mean(dim=0)
        return self._solve(gram / size, generator).to(jacobian) @ jacobian

    def _solve(self, gram: Tensor, generator: Generator) -> Tensor:
        """Return the weights; what TorchJD draws from the global stream comes from ours."""
        assert generator.device.type == "cpu", "TorchJD draws on the CPU"
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(generator.get_state())
            try:
                import torchjd.aggregation  # pyright: ignore[reportMissingImports]
                import torchjd.linalg  # pyright: ignore[reportMissingImports]

                weights = self._gram_weights(torchjd, gram)
            except ImportError as error:
                raise InputError(
                    f"{type(self).__name__} is computed by the package torchjd and its solvers: "
                    f"pip install coadapt[gradients] ({error})"
                ) from error
            generator.set_state(torch.get_rng_state())
        return weights


def _gram(jacobian: Tensor) -> Tensor:
    """Return the rows' inner products, in float64 on the CPU, without a wide copy of them all."""
    parts = (part.double() for part in jacobian.split(_COLUMNS, dim=1))
    return torch.stack([part @ part.T for part in parts]).sum(dim=0).cpu()


@dataclass(frozen=True, kw_only=True)
class PCGrad(AbstractSurgery):
    r"""Each task's gradient loses what points against another task's.

    In random order over the other tasks j, where g_i now points against g_j:

    .. math:: g_i \leftarrow g_i - \frac{g_i \cdot g_j}{\lVert g_j \rVert^2}\, g_j

    Gradient Surgery for Multi-Task Learning (Yu et al., arXiv 2001.06782), algorithm 1. The paper
    sums the results, here is their mean. The authors' code visits the tasks in one fixed order
    (what it shuffles is discarded); TorchJD draws an order for each task, as the paper says.

    With two tasks the result points against neither. With more it can: a projection may undo an
    earlier one. `UPGrad` has no such order.
    """

    kind: Literal["pcgrad"] = "pcgrad"

    def _gram_weights(self, torchjd: Any, gram: Tensor) -> Tensor:
        return torchjd.aggregation.PCGradWeighting()(gram) / len(gram)


@dataclass(frozen=True, kw_only=True)
class UPGrad(AbstractSurgery):
    r"""Each gradient is moved as little as needed to point against none; then their mean is taken.

    .. math:: \frac{1}{P} \sum_i \arg\min_x \lVert x - g_i \rVert \quad \text{with} \quad
        g_j \cdot x \ge 0 \text{ for all } j

    Jacobian Descent for Multi-Objective Optimization (Quinton and Rey, arXiv 2406.16232), section
    3. TorchJD adds a multiple of the identity to the Gram matrix, which at its default of 1e-4
    can move the result by half where norms differ tenfold. It gets gradients of length 1 here, with
    their lengths as preferences, which is the same problem, and adds 1e-12.
    """

    kind: Literal["upgrad"] = "upgrad"

    def _gram_weights(self, torchjd: Any, gram: Tensor) -> Tensor:
        lengths = gram.diagonal().sqrt()
        lengths = torch.where(lengths > 0, lengths, 1.0)
        weighting = torchjd.aggregation.UPGradWeighting(
            pref_vector=lengths / len(gram),
            projector=torchjd.linalg.QuadprogProjector(reg_eps=1e-12),
        )
        return weighting(gram / torch.outer(lengths, lengths)) / lengths


@dataclass(frozen=True, kw_only=True)
class MGDA(AbstractSurgery):
    r"""The shortest vector between the gradients, which decreases every loss, or is zero.

    .. math:: \min_a \Bigl\lVert \sum_i a_i g_i \Bigr\rVert, \qquad a_i \ge 0, \quad \sum_i a_i = 1

    Multi-Task Learning as Multi-Objective Optimization (Sener and Koltun, arXiv 1810.04650),
    algorithm 2, for the gradients of the parameters, not of a representation; after
    Désidéri (2012). At most 100 steps of Frank-Wolfe. The task with the smallest gradient decides,
    and one with none stops all.
    """

    kind: Literal["mgda"] = "mgda"

    def _gram_weights(self, torchjd: Any, gram: Tensor) -> Tensor:
        return torchjd.aggregation.MGDAWeighting()(gram)


@dataclass(frozen=True, kw_only=True)
class CAGrad(AbstractSurgery):
    r"""Near the mean gradient, the direction that is best for the task it helps least.

    .. math::
        \max_d \min_i\, g_i \cdot d \quad \text{with} \quad
        \lVert d - \bar{g} \rVert \le c\, \lVert \bar{g} \rVert

    Conflict-Averse Gradient Descent for Multi-task Learning (Liu et al., arXiv 2110.14048),
    algorithm 1. Equal gradients give (1 + c) times their mean, so d is divided by
    1 + c, as the fast version in the authors' code does; other versions there divide by 1 + c^2,
    or by one plus the multiplier of the correction. Where some weighted mean of the gradients is
    (nearly) zero, as with a task whose gradient is, the direction is zero: TorchJD ends there.

    Args:
        c: radius in units of the mean gradient's norm, at least 0. 0 is the mean; below 1, the
            paper's range, the mean loss goes down.

    Raises:
        InputError: if c is negative.
    """

    kind: Literal["cagrad"] = "cagrad"
    c: float = 0.5

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 <= self.c < math.inf:
            raise InputError(f"cagrad: c must be at least 0, not {self.c}")

    def _gram_weights(self, torchjd: Any, gram: Tensor) -> Tensor:
        # At its default of 1e-4 a task whose gradient is that much shorter would end the training.
        weighting = torchjd.aggregation.CAGradWeighting(c=self.c, norm_eps=1e-8)
        return weighting(gram) / (1 + self.c)


@dataclass(frozen=True, kw_only=True)
class AlignedMTL(AbstractSurgery):
    r"""The mean of the gradients after all their principal components are made equally long.

    .. math:: \frac{\sigma_{min}}{P}\, 1^\top U V^\top, \qquad J = U \Sigma V^\top

    Independent Component Alignment for Multi-Task Learning (Senushkin et al., arXiv 2305.19000),
    algorithm 1, with its scale, the least singular value that is not zero: the direction is never
    longer than the mean gradient, and often much shorter. The authors' code, TorchJD says, takes
    the root mean square of the singular values.
    """

    kind: Literal["aligned_mtl"] = "aligned_mtl"

    def _gram_weights(self, torchjd: Any, gram: Tensor) -> Tensor:
        return torchjd.aggregation.AlignedMTLWeighting()(gram)


@dataclass(frozen=True, kw_only=True)
class IMTLG(AbstractSurgery):
    r"""The combination, of weights that sum to 1, with an equal projection on every gradient.

    .. math:: \frac{g_i \cdot d}{\lVert g_i \rVert} \text{ equal for all } i, \qquad
        d = \sum_i a_i g_i, \quad \sum_i a_i = 1

    Towards Impartial Multi-task Learning (Liu et al., ICLR 2021), with a pseudoinverse
    where gradients depend on each other (arXiv 2406.16232). Weights may be negative, and large
    where gradients are nearly parallel but of different length.
    """

    kind: Literal["imtl_g"] = "imtl_g"

    def _gram_weights(self, torchjd: Any, gram: Tensor) -> Tensor:
        return torchjd.aggregation.IMTLGWeighting()(gram)
