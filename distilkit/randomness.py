"""Randomness as a function of (seed, purpose, index), never a state that is carried along.

What is drawn for epoch 7 or step 4711 depends on nothing that happened before, so a resumed run draws what the
uninterrupted one would have drawn, and every process of a distributed run draws the same.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(seed: int, purpose: str, index: int = 0) -> int:
    """A 63-bit seed that differs for every (seed, purpose, index)."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, purpose: str, index: int = 0) -> torch.Generator:
    """A fresh CPU generator for (seed, purpose, index). CPU, so that every device gets the same numbers."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, index))


@contextmanager
def seeded(seed: int, purpose: str, index: int = 0) -> Iterator[None]:
    """Seed the global streams (CPU and every accelerator) inside the block; restore them on leaving.

    For what draws from the global stream and takes no generator: initialisers, dropout, stochastic depth.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive_seed(seed, purpose, index))
        yield
