"""What PyTorch's operators multiply, counted as they are called: the same figures with every version of PyTorch.

PyTorch's own counter says which operators were called inside which module, also for tensors without numbers (on the
meta device, or fake ones). Which of them it has formulas for is each version's own affair, and so is which operator a
layer ends in; what has no formula counts nothing. In 2.11.0 and 2.14.1 that is attention on a CPU, for one. The
formulas here are therefore our own, and nothing else is counted.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

_Shape = Sequence[int]


class Counted:
    """Multiply-adds of the operators that were called since the counting began."""

    def __init__(self, counter: "FlopCounterMode") -> None:
        self._counter = counter

    def total(self) -> int:
        """Count all of them."""
        return _ours(self._counter.flop_counts.get("Global", {}))

    def by_module(self) -> dict[str, int]:
        """Count those inside each module: by the name of the outermost one's class, and the path from there."""
        return {path: _ours(by_operator) for path, by_operator in self._counter.get_flop_counts().items()}


@contextmanager
def count_multiply_adds() -> Iterator[Counted]:
    """Count what is computed inside the block."""
    # Imported here: most that imports this file counts nothing.
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    # Attention step by step, in products of matrices: a fused form may be new. A network that itself asks for one gets
    # it, which is why those that there are have a formula too.
    with sdpa_kernel(SDPBackend.MATH), slow_attention(), counter:
        yield Counted(counter)


@contextmanager
def slow_attention() -> Iterator[None]:
    """Have `nn.MultiheadAttention` show its matrix products: its fast path is one operator without known cost."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _ours(by_operator: Mapping[Any, int]) -> int:
    return sum(count for operator, count in by_operator.items() if operator in _FORMULAS)


# Each takes the shapes of an operator's arguments, and that of its result.


def _product(first: _Shape, second: _Shape, *rest: Any, **options: Any) -> int:
    # Each number of the first factor is multiplied with a row of the second, which may be a vector.
    return math.prod(first) * (second[-1] if len(second) > 1 else 1)


def _added_product(added: _Shape, first: _Shape, second: _Shape, *rest: Any, **options: Any) -> int:
    return _product(first, second)


def _convolution(
    images: _Shape,
    weight: _Shape,
    bias: _Shape | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    *rest: Any,
    out_shape: _Shape,
    **options: Any,
) -> int:
    # Of the weight [out, in / groups, ...] each output channel's own part for every output; transposed convolutions,
    # [in, out / groups, ...], do the same from the other end.
    return math.prod(images if transposed else out_shape) * math.prod(weight[1:])


def _attention(query: _Shape, key: _Shape, value: _Shape, *rest: Any, **options: Any) -> int:
    # Query times key, then the weights times the values.
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _recurrent_layer(sequence: _Shape, input_weight: _Shape, hidden_weight: _Shape, *rest: Any, **options: Any) -> int:
    # Both matrices once for each step of each sequence.
    return math.prod(sequence[:-1]) * (math.prod(input_weight) + math.prod(hidden_weight))


_aten = torch.ops.aten
_FORMULAS = {
    _aten.mm: _product,
    _aten.bmm: _product,
    _aten.mv: _product,
    _aten.dot: _product,
    _aten.addmm: _added_product,
    _aten.addmv: _added_product,
    _aten.baddbmm: _added_product,
    _aten.addbmm: _added_product,
    _aten.convolution: _convolution,
    _aten._scaled_dot_product_flash_attention: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_efficient_attention: _attention,
    _aten._scaled_dot_product_cudnn_attention: _attention,
    _aten._scaled_dot_product_fused_attention_overrideable: _attention,
    _aten.mkldnn_rnn_layer: _recurrent_layer,
}
