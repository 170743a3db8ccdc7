"""How many threads compute on a CPU, by a rule: as many as there are cores, but for small networks fewer.

Small operators gain nothing from a second thread, and where other programs keep the cores busy the threads of one
operator wait for the one among them that the system has put aside, at every operator. A race between one thread and all
would measure that load, and leave the same training with another number of threads, and other bits, every time.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from distilkit import hardware
from distilkit.analysis.learner_cost import LearnerCost
from distilkit.data.base import Split
from distilkit.data.resident import evaluation_batch
from distilkit.groups.counting import count_multiply_adds
from distilkit.threads import threads

SHARE = 2 * 10**9
"""Multiply-adds of one step that a thread is worth: see docs/performance.md, "Threads"."""


def thread_count(multiply_adds: int | None, cores: int, quota: float | None, processes: int) -> int:
    """Threads for a step of so many multiply-adds in each of `processes` on this machine; None: of any number.

    `cores`: those that may be used. `quota`: processor time that the control group grants, in cores; None: no limit.
    """
    allowed = cores if quota is None else min(cores, int(quota))
    worth = allowed if multiply_adds is None else multiply_adds // SHARE
    return max(1, min(allowed // processes, worth))


def step_multiply_adds(cost: LearnerCost, images: int) -> int:
    """Multiply-adds of one training step: forward, and backward twice that; of a teacher forward alone."""
    taught = cost.parts["teacher"].multiply_adds if "teacher" in cost.parts else 0
    return images * (3 * (cost.train.multiply_adds - taught) + taught)


def choose(multiply_adds: int | None, device: torch.device, processes: int) -> tuple[int, str]:
    """Threads for work in steps of so many multiply-adds, None: the most for any; and why, in a few words."""
    own = torch.get_num_threads()
    if device.type != "cpu":
        return own, f"the {device.type} device computes"
    if "OMP_NUM_THREADS" in os.environ:
        return own, "OMP_NUM_THREADS says so"
    # torch's own number is lower where cores have two threads each, or where whoever imports us has set it.
    cores, quota = min(hardware.affinity(), own), hardware.cpu_quota()
    limit = "" if quota is None else f", a quota of {quota:g}"
    shared = "" if processes == 1 else f", {processes} processes"
    why = f"{cores} core{'s' * (cores != 1)}{limit}{shared}"
    if multiply_adds is not None:
        why = f"{multiply_adds / 1e9:.1f} billion multiply-adds a step, {why}"
    return thread_count(multiply_adds, cores, quota, processes), why


@contextmanager
def suited(device: torch.device, network: Callable[[Tensor], object], split: Split) -> Iterator[int]:
    """Inside the block, which gets their number, as many threads as suit passes over the split's images.

    `network`: on `device`, in evaluation mode.
    """
    multiply_adds = 0
    if device.type == "cpu" and torch.get_num_threads() > 1:
        # Below inference mode operators are taken apart, which counting needs.
        with threads(1), torch.inference_mode(False), torch.no_grad(), count_multiply_adds() as counted:
            network(split.images[:1])
        multiply_adds = min(len(split.labels), evaluation_batch(device)) * counted.total()
    count, _ = choose(multiply_adds, device, 1)
    with threads(count):
        yield count
