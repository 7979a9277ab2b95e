"""What a result was made with."""

import platform
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from coadapt._version import __version__

_PACKAGES = ("torch", "transformers", "peft", "datasets", "accelerate", "numpy")


def describe_environment() -> dict[str, Any]:
    """Return package versions, the working tree's commit if any, and the device."""
    return {
        "python": platform.python_version(),
        "packages": {"coadapt": __version__, **{name: version(name) for name in _PACKAGES}},
        "commit": _commit(),
        "device": describe_device(),
        "threads": torch.get_num_threads(),
    }


def _commit() -> str | None:
    """The commit of the checkout that this package lies in; None for an installed one."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return (
        found.stdout.strip() if found.returncode == 0 and "site-packages" not in str(here) else None
    )


def describe_device() -> str:
    """Return the accelerator's name, or the processor's with the number of threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = torch.cpu.get_capabilities().get("cpu_name") or platform.processor()
    return f"{name}, {torch.get_num_threads()} threads"


def describe_command() -> list[str]:
    """Return the command line; the program without its folder, since results get published."""
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    return [name, *sys.argv[1:]]


def peak_memory_mib() -> float:
    """Return the process's peak memory, or the accelerator's where there is one, in MiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def forget_peak_memory() -> None:
    """Let an accelerator's peak begin anew; a process's begins with the process."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
