"""A CUDA graph's rules, played on the CPU: operators are written down with their tensors, undone, and replayed.

As a capture on a device does, it takes every tensor and every number as it stands, computes nothing in the end, leaves
the memory of its results undefined, and refuses what would have to wait for a result.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero")


class Operator:
    """One operator with its arguments and what it gave."""

    def __init__(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        self.func, self.args, self.kwargs, self.result = func, args, kwargs, result

    def given(self) -> Iterator[Tensor]:
        yield from (each for each in tree_flatten((self.args, self.kwargs))[0] if isinstance(each, Tensor))

    def made(self) -> Iterator[tuple[int, Tensor]]:
        """Its results that have memory of their own, by position."""
        known = {each.untyped_storage().data_ptr() for each in self.given()}
        for place, each in enumerate(tree_flatten(self.result)[0]):
            if isinstance(each, Tensor) and each.untyped_storage().data_ptr() not in known:
                yield place, each


class Writing(TorchDispatchMode):
    """Writes operators down, and what their first writers found in memory that is not the recording's own."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[Operator] = []
        self.own: set[int] = set()
        self.found: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.name in WAITS:
            raise RuntimeError(f"{func._schema.name} would wait for the device")
        self._keep_what_is_written(func, args, kwargs)
        result = func(*args, **kwargs)
        operator = Operator(func, args, kwargs, result)
        self.own |= {each.untyped_storage().data_ptr() for _, each in operator.made()}
        self.operators.append(operator)
        return result

    def _keep_what_is_written(self, func: Any, args: Any, kwargs: Any) -> None:
        for place, argument in enumerate(func._schema.arguments):
            declared = argument.alias_info is not None and argument.alias_info.is_write
            # Batch norm's operators do not declare it.
            if not declared and argument.name not in ("running_mean", "running_var"):
                continue
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            for each in tree_flatten(value)[0]:
                if isinstance(each, Tensor):
                    storage = each.untyped_storage()
                    if storage.data_ptr() not in self.own and storage.data_ptr() not in self.found:
                        self.found[storage.data_ptr()] = (storage, storage.clone())


class PlayedBack:
    """Stands for `distilkit.training.captured.CudaGraph`. `replays`: how often it was replayed."""

    def __init__(self) -> None:
        self._operators: list[Operator] = []
        self.replays = 0

    def warm_up(self, work: Callable[[], Tensor]) -> Tensor:
        return work()

    def record(self, work: Callable[[], Tensor]) -> Tensor:
        assert not self._operators, "one recording"
        with torch.random.fork_rng(devices=[]), Writing() as writing:
            result = work()
        self._operators = writing.operators
        with torch.no_grad():
            for operator in self._operators:
                for _, each in operator.made():
                    each.detach().fill_(77)
            for storage, found in writing.found.values():
                storage.copy_(found)
        return result

    def replay(self) -> None:
        self.replays += 1
        with torch.no_grad():
            for operator in self._operators:
                made = dict(operator.made())
                again = tree_flatten(operator.func(*operator.args, **operator.kwargs))[0]
                for place, each in made.items():
                    each.detach().copy_(again[place])
