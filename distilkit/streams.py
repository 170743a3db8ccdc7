"""The branches of a group computed at the same time: each on a CUDA stream of its own.

A branch's kernels are small, and leave most of a large device idle; on streams of their own those of several branches
run side by side, in a captured CUDA graph too. The streams begin behind what the caller's stream has been given so far,
and the caller's goes on behind all of them. The backward pass of every step runs on the stream of its forward pass, and
autograd itself waits where gradients cross from one to another.
"""

from typing import Any

import torch
from torch import Tensor

from distilkit.group import BranchGroup, BranchResults


class Streams:
    """Computes the branches of a group with `branches` members on a CUDA `device`, in training mode."""

    def __init__(self, branches: int, device: torch.device) -> None:
        self._streams = [torch.cuda.Stream(device) for _ in range(branches)]  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: Any) -> "Streams":
        """Stay what it is: streams belong to the device."""
        return self

    def __call__(self, group: BranchGroup, trunk: Tensor) -> BranchResults:
        """Compute logits [S, B, C] and features, S tensors [B, D], from the trunk's tensor."""
        caller = torch.cuda.current_stream(trunk.device)
        results = []
        for stream, name in zip(self._streams, group.members, strict=True):
            stream.wait_stream(caller)
            with torch.cuda.stream(stream):
                # Memory is given out again in the order of the stream that it was taken on, which must therefore be
                # told of every other stream that reads it.
                trunk.record_stream(stream)
                results.append(group.branch(name, trunk))
        for stream, tensors in zip(self._streams, results, strict=True):
            caller.wait_stream(stream)
            for tensor in tensors:
                tensor.record_stream(caller)
        return torch.stack([logits for logits, _ in results]), [features for _, features in results]
