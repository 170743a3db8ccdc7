"""A training step that is written down once, as a CUDA graph, and then replayed: one launch instead of hundreds.

A replay repeats kernels with the addresses and the numbers that they were recorded with. So what changes from step to
step lies in tensors of its own, that stay where they are; the step asks the device for nothing; and every batch has the
same shape. The first steps are computed as ever, which makes what a step finds made: the optimizer's state, plans of
libraries, compiled code.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

WARM_UP = 3
"""Steps before the recording."""


class Recorder(Protocol):
    """What writes a step down and replays it: `CudaGraph`; in the tests one that does so on the CPU."""

    def warm_up(self, work: Callable[[], Tensor]) -> Tensor:
        """Do the work where it will be recorded."""

    def record(self, work: Callable[[], Tensor]) -> Tensor:
        """Write the work down without doing it; returns the tensor that every replay writes its result into."""

    def replay(self) -> None:
        """Do what was written down."""


class CudaGraph:
    """A graph of the current CUDA device. It holds the memory of all that a step computes on its way."""

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def warm_up(self, work: Callable[[], Tensor]) -> Tensor:
        """Do the work on the stream of the recording, for some libraries prepare themselves for each stream."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = work()
        torch.cuda.current_stream().wait_stream(self._stream)
        result.record_stream(torch.cuda.current_stream())
        return result

    def record(self, work: Callable[[], Tensor]) -> Tensor:
        """Capture the kernels that the work launches. Raises `RuntimeError` where it waits for the device."""
        with torch.cuda.graph(self._graph, stream=self._stream):
            return work()

    def replay(self) -> None:
        """Launch the graph."""
        self._graph.replay()


class CapturedStep:
    """Calls of `work` with tensors of the first call's shapes and types, replayed from the fourth call on.

    `work`: tensors in, one tensor out; everything that changes from call to call must be among the tensors, or in
    tensors that it changes in place. Between calls those may be changed from outside, in place. `optimizer`: one that
    the work steps, whose learning rate is a tensor.
    """

    def __init__(
        self, work: Callable[..., Tensor], recorder: Recorder, optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        self._work, self._recorder, self._optimizer = work, recorder, optimizer
        self._inputs: tuple[Tensor, ...] = ()
        self._calls = 0
        self._result: Tensor | None = None

    def fits(self, *inputs: Tensor) -> bool:
        """Whether these are of the shapes and types of the first call's; before that, anything is."""
        if not self._inputs:
            return True
        ours = [(each.shape, each.dtype) for each in self._inputs]
        return ours == [(each.shape, each.dtype) for each in inputs]

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Do the work. The result is the caller's own."""
        if not self._inputs:
            self._inputs = tuple(torch.empty_like(each) for each in inputs)
        for ours, given in zip(self._inputs, inputs, strict=True):
            ours.copy_(given)
        self._calls += 1
        if self._calls <= WARM_UP:
            return self._recorder.warm_up(self._whole)
        if self._result is None:
            self._result = self._recorded()
        self._recorder.replay()
        return self._result.clone()

    def _whole(self) -> Tensor:
        return self._work(*self._inputs)

    def _recorded(self) -> Tensor:
        # Adam wants to be told that its steps are counted on the device, and complains of it outside a recording.
        groups = self._optimizer.param_groups if self._optimizer else []
        adams = [group for group in groups if "capturable" in group]
        for group in adams:
            group["capturable"] = True
        try:
            return self._recorder.record(self._whole)
        finally:
            for group in adams:
                group["capturable"] = False
