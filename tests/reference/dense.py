"""The slow oracle of every LoRA-family layer: the paper's equation with dense matrices, row by row.

It shares no code with the package: no rank axis, no gate tensor, no concatenation.
"""

from collections.abc import Sequence

from torch import Tensor, stack, zeros_like

Factors = tuple[Tensor, Tensor]  # A (r, in), B (out, r)


def dense_delta(
    gates: Sequence[float], blocks: Sequence[Factors], offset: Sequence[Factors] = ()
) -> Tensor:
    """Return sum_k g_k B_k A_k - sum_k g_k B0_k A0_k, an (out, in) matrix.

    Args:
        gates: (K,) one value a block.
        blocks: (K,) the factors.
        offset: (K,) the frozen initial factors, under the same gates; or none.
    """
    A, B = blocks[0]
    delta = zeros_like(B @ A)
    for gate, (A, B) in zip(gates, blocks, strict=True):
        delta = delta + gate * (B @ A)
    if offset:
        for gate, (A0, B0) in zip(gates, offset, strict=True):
            delta = delta - gate * (B0 @ A0)
    return delta


def dense_layer(
    x: Tensor,
    task_ids: Sequence[int],
    *,
    W: Tensor,
    b: Tensor | None,
    scale: float,
    gates: Sequence[Sequence[float]],
    blocks: Sequence[Factors],
    offset: Sequence[Factors] = (),
) -> Tensor:
    """Return y with y_i = (W + s Delta_t) x_i + b for each row i, t being the row's task.

    Args:
        x: (B, ..., in).
        task_ids: (B,).
        W: (out, in).
        b: (out,) or None.
        scale: s.
        gates: (T, K), what a row of each task multiplies each block by.
        blocks: (K,) factors.
        offset: (K,) frozen initial factors, or none.
    """
    rows = []
    for x_row, task in zip(x, task_ids, strict=True):
        y_row = x_row @ (W + scale * dense_delta(gates[task], blocks, offset)).T
        rows.append(y_row if b is None else y_row + b)
    if not rows:
        return x.new_zeros(*x.shape[:-1], W.shape[0])
    return stack(rows)
