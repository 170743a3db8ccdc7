"""Speed's regression guard: counts instead of seconds, which hold on a busy machine too.

A step may not wait for the device (on CUDA each `.item()` would), nor do more operators than it does today; a batch may
not read more than the pixels it is made of; starting up may not import what it does not need.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import contestants
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distilkit.data.resident import TrainingImages
from distilkit.observer import Observer
from distilkit.training.processes import make_accelerator
from distilkit.training.trainer import Trainer

WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero")
"""What makes the host wait for the device."""

FREE = ("detach", "empty", "view", "t", "transpose", "permute", "unsqueeze", "squeeze", "expand", "slice", "select")
"""What computes nothing."""

OPERATORS = {"baseline": 330, "one": 590, "okddip": 740}
"""At most, in a step of ResNet-32, those that compute nothing not counted."""


class Counting(TorchDispatchMode):
    """Counts operators."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


def counted(work: Callable[[], object]) -> Counter[str]:
    with Counting() as counting:
        work()
    return counting.counts


def working(counts: Counter[str]) -> int:
    return sum(count for name, count in counts.items() if name.removeprefix("aten::") not in FREE)


def trainer(method: str, folder: Any, accelerator: Accelerator, *more: str) -> Trainer:
    recipe = contestants.recipe_of(method, "train.batch_size=8", "train.precision=fp32", *more)
    data = contestants.data(32)
    made = Trainer(recipe, contestants.learner_of(recipe, data), data, accelerator, folder, Observer())
    made.update.wrapped.train()
    return made


@pytest.mark.parametrize("method", OPERATORS)
def test_a_step_never_waits_and_does_no_more_than_it_did(method: str, tmp_path: Any) -> None:
    made = trainer(method, tmp_path, make_accelerator("fp32", "cpu"))
    order = torch.arange(32)
    made._step(0, order[:8], 1.0)  # The first makes the optimizer's state.
    counts = counted(lambda: made._step(1, order[8:16], 1.0))
    assert not {name: counts[name] for name in WAITS if counts[name]}
    assert counts["aten::convolution"] == counts["aten::convolution_backward"] > 30
    done = working(counts)
    assert done <= OPERATORS[method], counts.most_common(20)
    assert done > 0.8 * OPERATORS[method], f"{done} operators: lower the bound, so that it guards"


def _is_map(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4 and len(value) == 8 and value.shape[2] == value.shape[3] > 1


class Layouts(TorchDispatchMode):
    """Notes the operators that read activations in two memory layouts; on CPUs they take several times as long."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        maps = [each for each in tree_leaves((args, kwargs)) if _is_map(each)]
        if len({each.is_contiguous(memory_format=torch.channels_last) for each in maps}) > 1:
            self.mixed[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", OPERATORS)
def test_a_step_keeps_one_memory_layout(method: str, tmp_path: Any) -> None:
    made = trainer(method, tmp_path, make_accelerator("fp32", "cpu"))
    order = torch.arange(32)
    with Layouts() as layouts:
        made._step(0, order[:8], 1.0)
    assert not layouts.mixed


def test_pooling_alone_would_not_keep_it(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distilkit.training.trainer.keep_layout", lambda network: None)
    made = trainer("baseline", tmp_path, make_accelerator("fp32", "cpu"))
    with Layouts() as layouts:
        made._step(0, torch.arange(8), 1.0)
    assert layouts.mixed, "it keeps the layout by itself: drop models/pooling.py"


def test_a_training_batch_is_one_gather_of_bytes() -> None:
    split = contestants.data(32).splits["train"]
    source = TrainingImages(split, augment="crop-flip", seed=0, device=torch.device("cpu"))
    order = torch.arange(16)
    counts = counted(lambda: source.batch(order, 0))
    images, _ = source.batch(order, 0)
    assert images.dtype == torch.uint8
    assert (counts["aten::index_select"], counts["aten::index"]) == (1, 1), "one for the pixels, one for the labels"
    done = working(counts)
    assert done <= 25, counts


def test_the_losses_are_read_together(tmp_path: Any) -> None:
    made = trainer("one", tmp_path, make_accelerator("fp32", "cpu"))
    order = torch.arange(32)
    for step in range(3):
        made._step(step, order[8 * step : 8 * step + 8], 1.0)
    counts = counted(lambda: made._look(0, 3))
    assert sum(counts[name] for name in WAITS) == 0, "one copy of all values, none value by value"
    assert sum(counts.values()) < 20
