"""`precision = "auto"`: a short timing probe decides, not the hardware's own claims.

torch says that bfloat16 is supported on CPUs that only emulate it, where autocast makes a step up to ten times slower.
"""

import copy
import statistics
import time

import torch
from torch import Tensor

from distilkit.errors import SettingError
from distilkit.learners.learner import Learner
from distilkit.randomness import seeded

GAIN = 1.05
"""bf16 must be this many times as fast as fp32 to be chosen: below that, exactness is worth more."""

GIVE_UP = 3.0
"""A bf16 step this many times as long as an fp32 one ends the probe."""


def check(precision: str, device: torch.device) -> None:
    """Raise `SettingError` where the device cannot train in this precision."""
    if precision == "fp16" and device.type != "cuda":
        raise SettingError(
            "train.precision",
            f"fp16 trains on a CUDA device only, and this one is {device.type}",
            'use "bf16" or "fp32"',
        )


def choose(learner: Learner, images: Tensor, labels: Tensor, *, repetitions: int = 3) -> tuple[str, dict[str, float]]:
    """Time forward and backward of one batch in fp32 and bf16 autocast, in turn, on a copy of the learner.

    Returns the faster precision and the median seconds of each that was measured. Leaves the learner, its gradients
    and the global random stream as they were.
    """
    twin = copy.deepcopy(learner).train()
    seconds: dict[str, list[float]] = {"fp32": [], "bf16": []}
    with seeded(0, "precision-probe"):
        for repetition in range(repetitions + 1):
            for precision, times in seconds.items():
                elapsed = timed_step(twin, images, labels, precision)
                if repetition:  # The first of each warms up allocators and kernels.
                    times.append(elapsed)
            if repetition and min(seconds["bf16"]) > GIVE_UP * min(seconds["fp32"]):
                break
    medians = {precision: statistics.median(times) for precision, times in seconds.items()}
    return ("bf16" if medians["fp32"] > GAIN * medians["bf16"] else "fp32"), medians


def timed_step(learner: Learner, images: Tensor, labels: Tensor, precision: str) -> float:
    """Seconds of one forward and backward pass; the gradients are dropped."""
    _synchronize(images.device)
    start = time.perf_counter()
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        loss = learner(images, labels, 1.0).loss
    loss.backward()
    _synchronize(images.device)
    learner.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
