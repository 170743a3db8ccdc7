"""What a network costs: parameters and operations. The one door to fvcore.

The papers' convention (ONE's and OKDDip's "TrCost" and "TeCost"): 2 FLOPs for a multiply-add, convolutions and linear
layers only, one image. fvcore counts multiply-adds, and counts batch norm and pooling as well; here those are left out.
The matrix products of attention are counted, being linear layers whose weights are computed.
"""

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Cost:
    """The cost of one image.

    `parameters`: trainable ones, shared ones once. `multiply_adds`: of convolutions, linear layers and other matrix
    products. `flops`: 2 x `multiply_adds`, the papers' convention. `uncounted`: operators met that may multiply
    matrices and that could not be counted, with the number of their uses; empty for every architecture of distilkit.
    """

    parameters: int
    multiply_adds: int
    flops: int
    uncounted: dict[str, int]


def parameter_count(module: nn.Module) -> int:
    """Count the trainable parameters; one that is used in several places counts once."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def measure(module: nn.Module, images: Tensor) -> Cost:
    """Count what `module` computes for the first of `images` [N, C, H, W] in eval mode.

    `module`: images -> tensors, in any nesting of tuples, lists and dictionaries (a `GroupOutput`, for one). It is
    copied first, so its mode, statistics and parameters stay as they are, and so does the state of the generators.
    """
    with _quiet():
        # Imported here: fvcore is wanted by few commands.
        from fvcore.nn import FlopCountAnalysis

    tensors_only = _TensorsOnly(copy.deepcopy(module)).eval()
    device = next((parameter.device for parameter in module.parameters()), images.device)
    analysis = FlopCountAnalysis(tensors_only, images[:1].to(device))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    analysis.set_op_handle(**_HANDLES)
    with _quiet(), _slow_attention(), torch.no_grad(), torch.random.fork_rng(_cuda(device)):
        by_operator = analysis.by_operator()
        unsupported = analysis.unsupported_ops()
    multiply_adds = sum(count for operator, count in by_operator.items() if operator in _MULTIPLY_ADDS)
    return Cost(
        parameters=parameter_count(module),
        multiply_adds=int(multiply_adds),
        flops=2 * int(multiply_adds),
        uncounted={operator: int(count) for operator, count in sorted(unsupported.items()) if not _is_free(operator)},
    )


class _TensorsOnly(nn.Module):
    """Tracing takes no strings and no None among the outputs; this drops them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(_tensors(self.module(images)))


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def _shape(value: Any) -> list[int]:
    shape: list[int] = value.type().sizes()
    return shape


def _matrix_product(inputs: list[Any], outputs: list[Any]) -> int:
    # Each number of the product is a sum over the first factor's last dimension. Unlike fvcore's own rule, this also
    # holds for vectors and for batch dimensions that are broadcast.
    return math.prod(_shape(outputs[0])) * _shape(inputs[0])[-1]


def _added_matrix_product(inputs: list[Any], outputs: list[Any]) -> int:
    return _matrix_product(inputs[1:], outputs)


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    query, key = _shape(inputs[0]), _shape(inputs[1])
    # Query times key, then the weights times the values: the positions of the keys are summed over once for each.
    return (math.prod(query) + math.prod(_shape(outputs[0]))) * key[-2]


_HANDLES = {
    "aten::matmul": _matrix_product,
    "aten::mm": _matrix_product,
    "aten::bmm": _matrix_product,
    "aten::baddbmm": _added_matrix_product,
    "aten::scaled_dot_product_attention": _attention,
}

# fvcore's names for what it counted; everything else that it counts (norms, pooling, resizing) is outside the
# convention.
_MULTIPLY_ADDS = frozenset(
    ("conv", "linear", "addmm", "einsum", *(operator.removeprefix("aten::") for operator in _HANDLES))
)

# Operators that multiply no matrices, so leaving them uncounted is the convention and no omission. What is not listed
# is reported: a new operator must be looked at before it is called free. Names without the in-place underscore; fvcore
# ignores the pure reshapes of its own accord.
_FREE_OPERATORS = """
    abs add addcdiv addcmul div erf exp log maximum minimum mul neg pow reciprocal rsqrt rsub sign sqrt square sub
    clamp_max clamp_min eq ge gt le lt ne logical_and logical_not logical_or where masked_fill
    celu elu gelu glu hardsigmoid hardswish hardtanh leaky_relu mish prelu relu6 rrelu selu sigmoid silu softplus
    softsign tanh softmax log_softmax logsumexp dropout feature_dropout alpha_dropout
    all amax amin any argmax argmin cumsum mean min norm linalg_vector_norm sort std std_mean sum topk var var_mean
    avg_pool1d avg_pool2d max_pool1d max_pool2d adaptive_avg_pool1d adaptive_max_pool1d adaptive_max_pool2d
    rms_norm upsample_bicubic2d
    alias broadcast_tensors broadcast_to channel_shuffle clone concat expand_as flip hstack index_select lift_fresh
    meshgrid movedim numel pad pixel_shuffle pixel_unshuffle repeat repeat_interleave reshape_as rot90 swapaxes
    tensor_split tile unflatten unfold view_as vstack
    bernoulli embedding empty_like fill linspace new_ones one_hot ones_like rand rand_like randn randn_like
    scalar_tensor tensor tril triu uniform zero Bool Float Int item
"""
_FREE = frozenset(_FREE_OPERATORS.split())


def _is_free(operator: str) -> bool:
    namespace, _, name = operator.partition("::")
    return namespace == "prim" or (namespace == "aten" and name.rstrip("_") in _FREE)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the deprecation of torch.jit, on which fvcore is built; that is not the user's to mend."""
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", message=r"`torch\.jit\..*` is deprecated", category=category)
        yield


@contextmanager
def _slow_attention() -> Iterator[None]:
    """Have `nn.MultiheadAttention` show its matrix products: its fast path is one operator without known cost."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _cuda(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def multiply_adds_by_module(module: nn.Module, images: Tensor) -> dict[str, int]:
    """Count what each module inside `module` computes for the first of `images` [N, C, H, W] in eval mode, by its path.

    A module's number holds those of all inside it; "" is the whole, which `measure` counts the same. What a `forward`
    computes by functions counts for its module. PyTorch's own counter does it, which fvcore's cannot: it also takes a
    network and images on the meta device, where a network costs neither memory nor time. `module` stays as it is.
    """
    from torch.utils.flop_counter import FlopCounterMode

    network = copy.deepcopy(module).eval()
    device = next((parameter.device for parameter in module.parameters()), images.device)
    counter = FlopCounterMode(display=False)
    with _slow_attention(), torch.no_grad(), torch.random.fork_rng(_cuda(device)), counter:
        network(images[:1].to(device))
    root = type(network).__name__
    counts = {path: sum(by_operator.values()) // 2 for path, by_operator in counter.get_flop_counts().items()}
    inside = {path.removeprefix(f"{root}."): count for path, count in counts.items() if path.startswith(f"{root}.")}
    return {"": counter.get_total_flops() // 2, **inside}
