"""Leading and trailing left singular vectors of W C, a map's weight and its inputs' moments."""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from coadapt._errors import InputError

_OVERSAMPLE = 16  # columns beyond the rank that is asked for
_MAX_PASSES = 12
_FINE = 0.01  # a tolerance that float32 products of a wide spectrum may miss


@dataclass(frozen=True, kw_only=True, eq=False)
class Spectrum:
    """Left singular vectors of W C and their singular values.

    Attributes:
        U: (out, q) float64, orthonormal columns.
        sigma: (q,) float64, in the order of the columns.
        residual: the largest ||(W C) v_i - sigma_i u_i|| / sigma_i among those asked for, half a
            pass before the end, by which a sigma_i is off at most; 0 for a full decomposition.
    """

    U: Tensor
    sigma: Tensor
    residual: float = 0.0

    @property
    def rank(self) -> int:
        """How many singular values are above 1e-7 of the largest: the others say nothing."""
        return int((self.sigma > 1e-7 * self.sigma.max().clamp_min(1e-300)).sum())


def leading(
    W: Tensor,
    C: Tensor | None,
    rank: int,
    *,
    generator: Generator,
    near: Tensor | None = None,
    tolerance: float = 0.3,
) -> Spectrum:
    r"""Return the largest singular values of W C, with a few more than were asked for.

    A randomised subspace iteration (Halko, Martinsson and Tropp, arXiv 0909.4061, algorithm 4.4)
    that multiplies by W and C in turn and never forms W C. Products are of float32, but for those
    of the last projection where a tolerance below 0.01 asks for more. It goes on until the residual
    of each of the leading ``rank`` triplets is within ``tolerance`` of its singular value. An error
    in a value is of the square of the residual where values lie apart: with 0.3 it is at most some
    hundredths, at the end of the spectrum. Where this takes too many passes, or the matrix is
    hardly larger than what is asked for, the full decomposition is taken.

    Args:
        W: (out, in).
        C: (in, in) symmetric, positive semi-definite, or None for the identity.
        rank: how many, at least 1.
        generator: of the random start, on the CPU.
        near: (out, q) orthonormal columns to start from instead, such as another task's U of the
            same map, which saves passes.
        tolerance: relative, above 0.

    Raises:
        InputError: if W or C is not finite.
    """
    _refuse_infinite(W, C)
    size, width = min(W.shape), rank + _OVERSAMPLE
    if 2 * width >= size:
        return full(W, C, count=min(width, size))
    # In units in which no sum of squares of float32 overflows or vanishes.
    # No entry of C is larger than the largest on its diagonal.
    unit = 1.0 if C is None else float(C.diagonal().max()) or 1.0
    coarse_W, coarse_C = W.float(), None if C is None else (C / unit).float()
    if near is not None and near.shape[1] == width:
        Q = near.to(coarse_W)
    else:
        start = torch.randn(W.shape[1], width, generator=generator).to(W.device)
        Q = torch.linalg.qr(_times(coarse_W, coarse_C, start)).Q
    for _ in range(_MAX_PASSES):
        U, sigma, V = _ritz(Q, _transposed_times(coarse_W, coarse_C, Q))
        Y = _times(coarse_W, coarse_C, V)
        wrong = (Y[:, :rank] - U[:, :rank] * sigma[:rank]).norm(dim=0)
        residual = float((wrong / sigma[:rank].clamp_min(1e-30)).max())
        Q = torch.linalg.qr(Y).Q
        if residual <= tolerance:
            Q = torch.linalg.qr(Q.double()).Q
            if tolerance < _FINE:
                last = _transposed_times(W.double(), None if C is None else C.double(), Q)
            else:
                last = unit * _transposed_times(coarse_W, coarse_C, Q.float()).double()
            U, sigma, _ = _ritz(Q, last)
            return Spectrum(U=U, sigma=sigma, residual=residual)
    return full(W, C, count=width)


def _ritz(Q: Tensor, Z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the singular triplets of Q Z', for orthonormal Q, in their dtype.

    By the eigenvectors of Z'Z in float64, which square the ratio of singular values: 1e-8 of the
    largest is 0.
    """
    exact = Z.double()
    values, P = torch.linalg.eigh(exact.T @ exact)
    sigma, P = values.flip(0).clamp_min(0.0).sqrt().to(Z), P.flip(1).to(Z)
    return Q @ P, sigma, (Z @ P) / sigma.clamp_min(1e-30)


def full(W: Tensor, C: Tensor | None, *, count: int, smallest: bool = False) -> Spectrum:
    """Return the ``count`` largest, or smallest, of the full singular value decomposition of W C.

    Args:
        W: (out, in).
        C: (in, in) symmetric, or None for the identity.
        count: how many, at most min(out, in).
        smallest: whether to take those at the end; they come in descending order too.

    Raises:
        InputError: if W or C is not finite.
    """
    _refuse_infinite(W, C)
    M = W.double() if C is None else W.double() @ C.double()
    U, sigma, _ = torch.linalg.svd(M, full_matrices=False)
    kept = slice(len(sigma) - count, None) if smallest else slice(count)
    return Spectrum(U=U[:, kept].contiguous(), sigma=sigma[kept])


def spectral_entropy_of(sigma: Tensor, *, normalised: bool = True) -> float:
    r"""Return H = - sum p ln p with p = sigma / sum sigma, in nats, or over its bound ln(count).

    ThanoRA (arXiv 2505.18640, equation 5) uses H; its figure shows the normalised one. 0 where all
    values are 0.

    Args:
        sigma: (R,) singular values, at least 0.
        normalised: whether to divide by ln R, so that the value lies in [0, 1].
    """
    total = float(sigma.sum())
    if total <= 0 or len(sigma) < 2:
        return 0.0
    p = sigma / total
    entropy = -float(torch.special.xlogy(p, p).sum())
    return entropy / math.log(len(sigma)) if normalised else entropy


def _times(W: Tensor, C: Tensor | None, X: Tensor) -> Tensor:
    return W @ (X if C is None else C @ X)


def _transposed_times(W: Tensor, C: Tensor | None, X: Tensor) -> Tensor:
    found = W.T @ X
    return found if C is None else C @ found


def _refuse_infinite(W: Tensor, C: Tensor | None) -> None:
    for name, matrix in (("weight", W), ("second moment", C)):
        if matrix is not None and not torch.isfinite(matrix.sum()):
            raise InputError(f"a {name} is not finite, so it has no singular values")
