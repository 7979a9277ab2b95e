"""How fast the products of a LoRA run beside those of the map that it is added to.

    python benchmarks/thin_products.py [--rounds 25]

A step's products on 2048 rows, for maps of all-MiniLM-L6-v2: those of the frozen map, y = x W' and
dx = dy W, and the six of a LoRA of rank 8, 24 (query, key and value of rank 8 at once) and 64, in
the layouts of ``coadapt.adapters.products``. Per product: time, and operations a second as a share
of those of y = x W'. One thread, processor time.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from _harness import machine, processor_seconds, threads, write

ROWS = 2048
SHAPES = {"384 to 384": (384, 384), "384 to 1536": (384, 1536), "1536 to 384": (1536, 384)}
RANKS = (8, 24, 64)


def products(
    size_in: int, size_out: int, rank: int, dtype: torch.dtype
) -> dict[str, tuple[Callable[[], object], int]]:
    """Return each product with its multiplications."""
    torch.manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=dtype)

    x, dy, W = draw(ROWS, size_in), draw(ROWS, size_out), draw(size_out, size_in)
    A, B_t = draw(rank, size_in), draw(rank, size_out)
    y, dx, z_t, dz_t = draw(ROWS, size_out), draw(ROWS, size_in), draw(rank, ROWS), draw(rank, ROWS)
    whole, down, up = size_in * size_out * ROWS, rank * size_in * ROWS, rank * size_out * ROWS
    return {
        "y = x W'": (lambda: torch.mm(x, W.t()), whole),
        "dx = dy W": (lambda: torch.mm(dy, W), whole),
        "z = x A'": (lambda: torch.mm(A, x.t()), down),
        "y += s z B'": (lambda: torch.addmm(y, z_t.t(), B_t, alpha=2.0, out=y), up),
        "dz = s dy B": (lambda: torch.mm(B_t, dy.t()), up),
        "dB = s dy' z": (lambda: torch.mm(z_t, dy), up),
        "dA = dz' x": (lambda: torch.mm(dz_t, x), down),
        "dx += dz A": (lambda: torch.addmm(dx, dz_t.t(), A, out=dx), down),
    }


def measured(shape: tuple[int, int], rank: int, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Return each product's time and speed, and all of the LoRA's by the map's."""
    made = products(*shape, rank, dtype)
    seconds = processor_seconds({name: run for name, (run, _) in made.items()}, rounds)
    rows = {}
    for name, (_, count) in made.items():
        time = statistics.median(seconds[name])
        rows[name] = {"ms": 1e3 * time, "gflops": 2e-9 * count / time}
    own = sum(row["ms"] for name, row in rows.items() if "W" not in name)
    base = sum(row["ms"] for name, row in rows.items() if "W" in name)
    counts = {name: count for name, (_, count) in made.items()}
    operations = sum(c for name, c in counts.items() if "W" not in name)
    return {
        "rows": rows,
        "time": own / base,
        "operations": operations / sum(c for name, c in counts.items() if "W" in name),
    }


def main() -> None:
    """Time, print and write."""
    parser = argparse.ArgumentParser(description="the products of a LoRA beside those of its map")
    parser.add_argument("--rounds", type=int, default=25)
    given = parser.parse_args()
    threads(1)
    found: dict[str, Any] = {}
    for dtype in (torch.bfloat16, torch.float32):
        for name, shape in SHAPES.items():
            for rank in RANKS:
                key = f"{str(dtype).removeprefix('torch.')}, {name}, rank {rank}"
                data = found[key] = measured(shape, rank, dtype, given.rounds)
                print(f"{key}: {data['operations']:.2f} operations, {data['time']:.2f} time")
    path = write("thin_products.json", {"cases": found, "machine": machine()})
    print(f"written to {path.name}")


if __name__ == "__main__":
    main()
