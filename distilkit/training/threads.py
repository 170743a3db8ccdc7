"""How many threads compute a step on a CPU: all that torch would take, or one, by a short timing probe.

On an idle machine several threads are faster. On one that other programs keep busy the threads of one operator wait for
the one among them that the system has put aside, at every operator: small networks then train ten times slower with two
threads than with one (226 against 2,600 images/s, the digits quickstart, two cores at a load of 4, 2026-11-20).
"""

import copy
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from distilkit.learners.learner import Learner
from distilkit.randomness import seeded
from distilkit.threads import threads
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
    twin = copy.deepcopy(learner).train()
    with seeded(0, "thread-probe"):
        return _faster(lambda: timed_step(twin, images, labels, "fp32"), repetitions)


@contextmanager
def suited(device: torch.device) -> Iterator[int]:
    """Inside the block, which gets their number, as many threads as a pass over images is fastest with: all, or one.

    Times a chain of small convolutions, a tenth of a second on an idle machine, where there is something to choose.
    """
    count = torch.get_num_threads()
    if may_choose(device):
        count, _ = _faster(_convolutions, 3)
    with threads(count):
        yield count


@torch.inference_mode()
def _convolutions() -> float:
    """Seconds of a few operators as ResNets on small images are made of."""
    images = torch.zeros(32, 16, 32, 32).contiguous(memory_format=torch.channels_last)
    kernel = torch.zeros(16, 16, 3, 3).contiguous(memory_format=torch.channels_last)
    start = time.perf_counter()
    for _ in range(12):
        images = F.relu(F.conv2d(images, kernel, padding=1))
    return time.perf_counter() - start


def _faster(work: Callable[[], float], repetitions: int) -> tuple[int, dict[str, float]]:
    """One or all: the number of threads with which the work, which gives its seconds, is faster; medians of both."""
    most = torch.get_num_threads()
    seconds: dict[int, list[float]] = {1: [], most: []}
    for repetition in range(repetitions + 1):
        for count, times in seconds.items():
            with threads(count):
                elapsed = work()
            if repetition == 1:  # The first of each, which warms up, counts only if it is the last.
                times.clear()
            times.append(elapsed)
        if min(seconds[most]) > GIVE_UP * min(seconds[1]):
            break
    medians = {count: statistics.median(times) for count, times in seconds.items()}
    chosen = 1 if medians[most] > GAIN * medians[1] else most
    return chosen, {str(count): median for count, median in medians.items()}
