"""HASI as its paper writes it, with the inverse of C (arXiv 2505.18640, equations 2 to 7)."""

import math

import torch
from torch import Tensor


def block(W: Tensor, C: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return B (out, r), A (r, in) and all singular values of W C."""
    U, S, Vh = torch.linalg.svd(W @ C, full_matrices=False)
    What_V = Vh @ torch.linalg.inv(C)  # W = U S V' C^-1
    root = S[:rank].sqrt()
    return U[:, :rank] * root, root[:, None] * What_V[:rank], S


def entropy(S: Tensor, rank: int) -> float:
    """Return H of the top ``rank`` values, equation 5."""
    top = [float(s) for s in S[:rank]]
    total = math.fsum(top)
    return -math.fsum(s / total * math.log(s / total) for s in top if s > 0)


def paper_ranks(entropies: list[float], budget: int, least: int, temperature: float) -> list[int]:
    """Return r_t of equation 7 before anything is mended."""
    weights = [math.exp(h / temperature) for h in entropies]
    return [max(least, math.floor(budget * w / math.fsum(weights))) for w in weights]
