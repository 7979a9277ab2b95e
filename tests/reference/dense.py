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
    router: Tensor | None = None,
    top_k: int | None = None,
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
        router: (K, in) of a softmax a token that weights the blocks (the offset by 1/K).
        top_k: of the router; None for all.
    """
    if router is not None:
        return _routed(x, W, b, scale, blocks, offset, router, top_k)
    rows = []
    for x_row, task in zip(x, task_ids, strict=True):
        y_row = x_row @ (W + scale * dense_delta(gates[task], blocks, offset)).T
        rows.append(y_row if b is None else y_row + b)
    if not rows:
        return x.new_zeros(*x.shape[:-1], W.shape[0])
    return stack(rows)


def _routed(
    x: Tensor,
    W: Tensor,
    b: Tensor | None,
    scale: float,
    blocks: Sequence[Factors],
    offset: Sequence[Factors],
    router: Tensor,
    top_k: int | None,
) -> Tensor:
    """Return y token by token and head by head, as the published codes do."""
    tokens = []
    for token in x.reshape(-1, x.shape[-1]):
        odds = [(row @ token).exp() for row in router]
        kept = sorted(range(len(odds)), key=lambda k: -odds[k].item())[:top_k]
        total = sum(odds[k] for k in kept)
        y = W @ token
        for k in kept:
            A, B = blocks[k]
            y = y + scale * (odds[k] / total) * (B @ (A @ token))
        for A0, B0 in offset:
            y = y - scale / len(blocks) * (B0 @ (A0 @ token))
        tokens.append(y if b is None else y + b)
    if not tokens:
        return x.new_zeros(*x.shape[:-1], W.shape[0])
    return stack(tokens).view(*x.shape[:-1], W.shape[0])
