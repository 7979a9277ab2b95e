"""Interleaved timing, so that a machine's moods hit every case alike."""

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from coadapt._environment import describe_environment

RESULTS = Path(__file__).parent / "results"


def interleaved(
    cases: dict[str, Callable[[], object]], *, rounds: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Return seconds a call: each round runs every case once, in turn.

    Args:
        cases: what to time.
        rounds: timed calls of each case, at least 7.
        warmup: untimed calls of each before.
    """
    assert rounds >= 7
    for case in cases.values():
        for _ in range(warmup):
            case()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def processor_seconds(
    cases: dict[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """Return processor seconds a call, after one that does not count."""
    for case in cases.values():
        case()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            start = time.process_time()
            case()
            seconds[name].append(time.process_time() - start)
    return seconds


def summary(seconds: dict[str, list[float]], reference: str) -> dict[str, dict[str, float]]:
    """Return each case's median and the median over rounds of its ratio to ``reference``."""
    rows = {}
    for name, values in seconds.items():
        ratios = sorted(v / r for v, r in zip(values, seconds[reference], strict=True))
        quarter = len(ratios) // 4
        rows[name] = {
            "median_s": statistics.median(values),
            "ratio": statistics.median(ratios),
            "ratio_q1": ratios[quarter],
            "ratio_q3": ratios[-1 - quarter],
        }
    return rows


def machine() -> dict[str, object]:
    """Return what the numbers were taken on."""
    return {"platform": platform.machine(), **describe_environment()}


def write(name: str, data: dict[str, object]) -> Path:
    """Write a result file."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / name
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    return path


def threads(count: int) -> None:
    """Fix torch's threads."""
    torch.set_num_threads(count)
