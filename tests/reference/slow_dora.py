"""DoRA as its paper writes it: one row of the weight after the other, each formed in full."""

from torch import Tensor, stack


def slow_rows(W: Tensor, A: Tensor, B: Tensor, scale: float) -> list[Tensor]:
    """Return the rows v_o = w_o + s sum_k B_ok a_k of V.

    Args:
        W: (out, in).
        A: (r, in).
        B: (out, r).
        scale: s.
    """
    rows = []
    for w, b in zip(W, B, strict=True):
        v = w
        for value, a in zip(b, A, strict=True):
            v = v + scale * value * a
        rows.append(v)
    return rows


def slow_norm(W: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """Return (out,) the length of each row of V."""
    return stack([(v * v).sum().sqrt() for v in slow_rows(W, A, B, scale)])


def slow_weight(
    W: Tensor, A: Tensor, B: Tensor, m: Tensor, scale: float, *, detach_norm: bool = True
) -> Tensor:
    """Return W' (out, in), whose row o is m_o v_o / |v_o|; m is (out, 1)."""
    rows = []
    for v, length in zip(slow_rows(W, A, B, scale), m, strict=True):
        norm = (v * v).sum().sqrt()
        rows.append(length * v / (norm.detach() if detach_norm else norm))
    return stack(rows)
