"""Random streams that depend on names, not on order.

A parameter drawn from the stream of its own name starts the same whichever other tasks, blocks or
modules exist, which is what makes a private adapter trained among others equal to the same adapter
trained alone.
"""

import hashlib

import torch


def named_seed(seed: int, *names: str) -> int:
    """Return a 63-bit seed that depends on ``seed`` and on every name."""
    digest = hashlib.blake2b("\x1f".join([str(seed), *names]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def named_generator(seed: int, *names: str) -> torch.Generator:
    """Return a CPU generator seeded by :func:`named_seed`."""
    return torch.Generator().manual_seed(named_seed(seed, *names))
