"""How many threads compute a step on a CPU: all that torch would take, or one, by a short timing probe.

On an idle machine several threads are faster. On one that other programs keep busy the threads of one operator wait for
the one among them that the system has put aside, at every operator: small networks then train ten times slower with two
threads than with one (226 against 2,600 images/s, the digits quickstart, two cores at a load of 4, 2026-11-20).
"""

import copy
import os
import statistics
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from distilkit.learner import Learner
from distilkit.randomness import seeded
from distilkit.training.precision import timed_step

GAIN = 1.1
"""One thread must be this many times as fast as all of them to be chosen: a busy moment passes."""

GIVE_UP = 3.0
"""A step with all threads this many times as long as with one ends the probe."""


def may_choose(device: torch.device) -> bool:
    """Whether there is something to choose: on a CPU, where the user's environment has not decided."""
    return device.type == "cpu" and torch.get_num_threads() > 1 and "OMP_NUM_THREADS" not in os.environ


def choose(learner: Learner, images: Tensor, labels: Tensor, *, repetitions: int = 3) -> tuple[int, dict[str, float]]:
    """Time forward and backward of one batch in fp32 with one thread and with all, in turn, on a copy of the learner.

    Returns the faster number of threads, and the median seconds of each number. Leaves the learner, its gradients, the
    global random stream and torch's number of threads as they were.
    """
    most = torch.get_num_threads()
    twin = copy.deepcopy(learner).train()
    seconds: dict[int, list[float]] = {1: [], most: []}
    with seeded(0, "thread-probe"):
        for repetition in range(repetitions + 1):
            for count, times in seconds.items():
                with threads(count):
                    elapsed = timed_step(twin, images, labels, "fp32")
                if repetition == 1:  # The first of each, which warms up, counts only if it is the last.
                    times.clear()
                times.append(elapsed)
            if min(seconds[most]) > GIVE_UP * min(seconds[1]):
                break
    medians = {count: statistics.median(times) for count, times in seconds.items()}
    chosen = 1 if medians[most] > GAIN * medians[1] else most
    return chosen, {str(count): median for count, median in medians.items()}


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Inside the block operators compute with so many threads; None: with as many as they would."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
