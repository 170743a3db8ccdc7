"""What an architecture holds, before any of it takes memory: its weights' names, shapes and kinds of numbers."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from distilkit.errors import SettingError
from distilkit.memory import free_memory
from distilkit.models import own, registry
from distilkit.models.registry import Norm


class Outline(NamedTuple):
    """`state`: the network's `state_dict()`, without its contents. `parameters`: how many numbers are trained."""

    state: Mapping[str, Tensor]
    parameters: int

    @property
    def bytes(self) -> int:
        """What the tensors take."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.state.values())


class _WithoutMemory(TorchFunctionMode):
    """Inside the block weights are on the meta device: what is made empty, to be drawn or loaded.

    Not all tensors, as `torch.device("meta")` would have it: some networks compute their widths with small ones.
    Nothing is drawn for the weights: PyTorch would import two seconds of rules for tensors without memory.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if args and isinstance(args[0], Tensor) and args[0].is_meta and re.fullmatch(r"[a-z]\w*_", func.__name__):
            return args[0]
        given = dict(kwargs or {})
        if func is torch.empty and given.get("device") is None:
            given["device"] = "meta"
        return func(*args, **given)


def outline(name: str, num_classes: int, channels: int = 3, norm: Norm = "batch") -> Outline | None:
    """Say what `registry.create` would build, without its memory; torch's random streams are left as they are.

    None for a user's own network, whose builder may do anything, and for one that cannot be built so: why, or that it
    needs its memory to be built, `registry.create` itself will say.
    """
    if own.is_own(name):
        return None
    try:
        with torch.random.fork_rng(devices=[]), _WithoutMemory():
            network = registry.create(name, num_classes, channels, norm)
    except SettingError:
        return None
    return Outline(network.state_dict(), sum(parameter.numel() for parameter in network.parameters()))


def require_room(name: str, found: Outline, num_classes: int, networks: int = 1) -> None:
    """Raise `SettingError` on "architecture" where so many networks do not fit into the free memory."""
    needed, free = networks * found.bytes, free_memory()
    if free is not None and needed > free:
        several = f", {networks} times" if networks > 1 else ""
        raise SettingError(
            "architecture",
            f"{name} for {num_classes:,} classes has {found.parameters:,} parameters{several}: {needed / 1e9:,.1f} GB, "
            f"and {free / 1e9:,.1f} GB of memory are free",
            "choose a smaller architecture, or a machine with more memory",
        )
