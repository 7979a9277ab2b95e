"""A diagnosis' numbers the slow way: a stock PEFT LoRA a probe, a loop a token, chunk or entry."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from coadapt.backbone import pool


def peft_row_gradients(
    make_backbone: Callable[[], torch.nn.Module],
    rows: Iterable[dict[str, torch.Tensor]],
    grad_pooled: np.ndarray,  # (n, d)
    probes: dict[str, torch.Tensor],  # (P, in) a module
    pooling,
) -> tuple[dict[str, np.ndarray], float]:
    """Return each row's gradients of B, (n, out, P) a module, and the largest gradient of A.

    A PEFT model of rank 1 for each probe, A set to the probe, B as PEFT starts it, each row alone.
    """
    num_probes = len(next(iter(probes.values())))
    found = {name: [[] for _ in range(num_probes)] for name in probes}
    largest = 0.0
    for k in range(num_probes):
        config = LoraConfig(r=1, lora_alpha=1, lora_dropout=0.0, target_modules=list(probes))
        model = get_peft_model(make_backbone(), config).eval()  # pyright: ignore[reportArgumentType]
        layers: dict[str, Any] = {
            name: model.get_submodule(f"base_model.model.{name}") for name in probes
        }
        for name, layer in layers.items():
            layer.lora_A["default"].weight.data = probes[name][k : k + 1].clone()
        for row, gradient in zip(rows, torch.tensor(grad_pooled, dtype=torch.float32), strict=True):
            model.zero_grad()
            pooled = pool(model(**row), row["attention_mask"], pooling)
            (pooled[0] * gradient).sum().backward()
            for name, layer in layers.items():
                found[name][k].append(layer.lora_B["default"].weight.grad[:, 0].numpy().copy())
                largest = max(largest, float(layer.lora_A["default"].weight.grad.abs().max()))
    return {name: np.moveaxis(np.array(each), 0, -1) for name, each in found.items()}, largest


def moments_by_tokens(
    backbone: torch.nn.Module, modules: Iterable[str], rows: Iterable[dict[str, torch.Tensor]]
) -> dict[str, tuple[np.ndarray, np.ndarray, int]]:
    """Return sum, products and number of the tokens that enter each map, each row alone."""
    seen: dict[str, list[np.ndarray]] = {name: [] for name in modules}
    handles = [
        backbone.get_submodule(name).register_forward_hook(
            lambda _, args, __, name=name: seen[name].extend(args[0][0].double().numpy())
        )
        for name in seen
    ]
    with torch.no_grad():
        for row in rows:  # of one row, so that nothing is padded
            backbone(**row)
    for handle in handles:
        handle.remove()
    result = {}
    for name, tokens in seen.items():
        size = len(tokens[0])
        total, products = np.zeros(size), np.zeros((size, size))
        for token in tokens:
            total += token
            products += np.outer(token, token)
        result[name] = total, products, len(tokens)
    return result


def gram_by_loops(chunks: list[dict[str, np.ndarray]], weights=None) -> np.ndarray:
    """Return (P, N, N) inner products of the chunks of tasks, (C, out, P) a module."""
    modules = list(chunks[0])
    num_probes = chunks[0][modules[0]].shape[2]
    flat = [
        [
            np.concatenate([task[name][c, :, p] * root(weights, name, p) for name in modules])
            for task in chunks
            for c in range(len(task[modules[0]]))
        ]
        for p in range(num_probes)
    ]
    return np.array([[[float(a @ b) for b in rows] for a in rows] for rows in flat])


def root(weights, name: str, p: int) -> np.ndarray | float:
    return 1.0 if weights is None else np.sqrt(weights[name][:, p])


def fisher_weights_by_loops(squares: list[dict[str, np.ndarray]], damping: float):
    """Return 1 / (F + damping * mean F), F the mean of the tasks' squares, each of sum 1."""
    modules = list(squares[0])
    fisher = {name: np.zeros_like(squares[0][name]) for name in modules}
    for task in squares:
        total = sum(float(task[name].sum()) for name in modules)
        for name in modules:
            fisher[name] += task[name] / total / len(squares)
    mean = np.mean([value for name in modules for value in fisher[name].ravel()])
    return {name: 1 / (fisher[name] + damping * mean) for name in modules}


def cosines_by_loops(gradients: list[np.ndarray], *, paired: bool = False):
    """Return cosines, reliabilities and corrected cosines of tasks' gradients, (C, P, D) each.

    From the gradients themselves: the products of the means, and of all pairs of distinct chunks.
    """
    num, num_probes = len(gradients), gradients[0].shape[1]
    cosine, without = np.zeros((num, num)), np.zeros((num, num))
    for p in range(num_probes):
        means = [task[:, p].mean(axis=0) for task in gradients]
        for i in range(num):
            for j in range(num):
                lengths = np.linalg.norm(means[i]) * np.linalg.norm(means[j])
                cosine[i, j] += means[i] @ means[j] / lengths / num_probes
                distinct = i == j or paired
                products = [
                    float(a @ b)
                    for c, a in enumerate(gradients[i][:, p])
                    for e, b in enumerate(gradients[j][:, p])
                    if not distinct or c != e
                ]
                without[i, j] += np.mean(products) / lengths / num_probes
    reliability = np.diagonal(without)
    corrected = without / np.sqrt(np.outer(reliability, reliability))
    return cosine, reliability, corrected
