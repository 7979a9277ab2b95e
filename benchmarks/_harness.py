"""Interleaved timing, so that a machine's moods hit every case alike."""

import json
import multiprocessing
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from coadapt._environment import describe_environment

RESULTS = Path(__file__).parent / "results"


def processor_seconds(
    cases: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """Return processor seconds a call, after one that does not count.

    Each round runs every case once, in turn.
    """
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


def peak_mib(make: Callable[..., Callable[[], object]], *arguments: object) -> float:
    """Return the MiB that a call needs at most above what its process held before it.

    Args:
        make: returns the call; a function of a module, since a fresh process runs it.
        arguments: what it is called with.
    """
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh) as pool:
        return pool.submit(_peak, make, arguments).result()


def _peak(make: Callable[..., Callable[[], object]], arguments: tuple[object, ...]) -> float:
    threads(1)
    call = make(*arguments)
    before = _resident("VmRSS")
    # Loading may peak higher than the call: start the kernel's high-water mark anew.
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    call()
    return _resident("VmHWM") - before


def _resident(what: str) -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (kilobytes,) = re.findall(rf"{what}:\s+(\d+) kB", status)
    return int(kilobytes) / 1024


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
