"""What a network costs: parameters, operations, activations, bytes. The one door to fvcore.

The papers' convention (ONE's and OKDDip's "TrCost" and "TeCost"): 2 FLOPs for a multiply-add, convolutions and linear
layers only, one image. fvcore counts multiply-adds, and counts batch norm and pooling as well; here those are left out.
The matrix products of attention are counted, being linear layers whose weights are computed.

Activations are the numbers that these same operators put out for one image (fvcore's convention, and that of
Radosavovic et al. 2020, arXiv 2003.13678, who counted convolutions): not memory, for norms and non-linearities put out
more, but the part of it that predicts running time. Attention counts as its two products, the scores and the mixture,
however it was computed.

Counting runs the network once. It does so on one thread: a single image gives threads next to nothing to do, and where
other programs keep the cores busy they wait for one another, which made 0.9 seconds for ResNet-164 with ONE's three
branches 20 (2026-11, two cores at a load of 5).
"""

import copy
import json
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distilkit.groups.counting import count_multiply_adds, slow_attention
from distilkit.threads import threads


@dataclass(frozen=True)
class Cost:
    """The cost of one image.

    `parameters`: trainable ones, shared ones once. `multiply_adds`: of convolutions, linear layers and other matrix
    products. `flops`: 2 x `multiply_adds`, the papers' convention. `uncounted`: operators met that may multiply
    matrices and that could not be counted, with the number of their uses; empty for every architecture of distilkit.
    `activations`: numbers that the counted operators put out. `bytes`: of the state, all weights and buffers, as one
    safetensors file.
    """

    parameters: int
    multiply_adds: int
    flops: int
    uncounted: dict[str, int]
    activations: int = 0
    bytes: int = 0


def named_uses(uncounted: Mapping[str, int]) -> str:
    """Operators that were not counted, as a person reads them: "aten::fft_fft, aten::cdist (3 times)"."""
    return ", ".join(name if count == 1 else f"{name} ({count} times)" for name, count in uncounted.items())


def parameter_count(module: nn.Module) -> int:
    """Count the trainable parameters; one that is used in several places counts once."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def file_bytes(state: Mapping[str, Tensor]) -> int:
    """Size of the safetensors file that would hold `state`, to the byte, without writing it.

    The format: 8 bytes that say how long the header is; the header, JSON padded to a multiple of 8; the numbers, tensor
    after tensor, in the order of `_DTYPES` and then of their names.
    """
    entries, end = {}, 0
    for name, tensor in sorted(state.items(), key=lambda item: (_RANK[item[1].dtype], item[0].encode())):
        begin, end = end, end + tensor.numel() * tensor.element_size()
        dtype, shape = _DTYPES[_RANK[tensor.dtype]][1], list(tensor.shape)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    header = len(json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + (header + 7) // 8 * 8 + end


_DTYPES = [
    (torch.uint64, "U64"),
    (torch.int64, "I64"),
    (torch.float64, "F64"),
    (torch.complex64, "C64"),
    (torch.float32, "F32"),
    (torch.uint32, "U32"),
    (torch.int32, "I32"),
    (torch.bfloat16, "BF16"),
    (torch.float16, "F16"),
    (torch.uint16, "U16"),
    (torch.int16, "I16"),
    (torch.float8_e4m3fn, "F8_E4M3"),
    (torch.float8_e5m2, "F8_E5M2"),
    (torch.int8, "I8"),
    (torch.uint8, "U8"),
    (torch.bool, "BOOL"),
]
_RANK = {dtype: rank for rank, (dtype, _) in enumerate(_DTYPES)}


def measure(module: nn.Module, images: Tensor | tuple[Tensor, ...]) -> Cost:
    """Count what `module` computes for the first of `images` [N, C, H, W] in eval mode.

    `module`: images -> tensors, in any nesting of tuples, lists and dictionaries (a `GroupOutput`, for one). Where it
    takes several tensors, `images` are these, of one image. It is copied first (all but its parameters' numbers), so
    its mode, statistics and hooks stay as they are, and so does the state of the generators.
    """
    inputs = images if isinstance(images, tuple) else (images[:1],)
    with _quiet():
        # Imported here: fvcore is wanted by few commands.
        from fvcore.nn import FlopCountAnalysis

    tensors_only = _TensorsOnly(_copy(module)).eval()
    device = next((parameter.device for parameter in module.parameters()), inputs[0].device)
    analysis = FlopCountAnalysis(tensors_only, tuple(value.to(device) for value in inputs))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    analysis.set_op_handle(**_HANDLES)
    with threads(1), _quiet(), slow_attention(), torch.no_grad(), torch.random.fork_rng(_cuda(device)):
        by_operator = analysis.by_operator()
        unsupported = analysis.unsupported_ops()
    multiply_adds = sum(count for operator, count in by_operator.items() if operator in _MULTIPLY_ADDS)
    return Cost(
        parameters=parameter_count(module),
        multiply_adds=int(multiply_adds),
        flops=2 * int(multiply_adds),
        uncounted={operator: int(count) for operator, count in sorted(unsupported.items()) if not _is_free(operator)},
        activations=int(by_operator[_ACTIVATIONS]),
        bytes=file_bytes(module.state_dict()),
    )


def _copy(module: nn.Module) -> nn.Module:
    """A copy on the same parameters, which are the most of it; buffers of its own, lest the copy write to them."""
    kept = {id(parameter): parameter for parameter in module.parameters()}
    return copy.deepcopy(module, {**kept, **{id(buffer): buffer.clone() for buffer in module.buffers()}})


class _TensorsOnly(nn.Module):
    """Tracing takes no strings and no None among the outputs; this drops them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(_tensors(self.module(*inputs)))


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


def _elements(value: Any) -> int:
    return math.prod(_shape(value))


def _listed(value: Any) -> list[Any]:
    """The values of a list that an operator takes."""
    return list(value.node().inputs())


def _convolution(inputs: list[Any], outputs: list[Any]) -> int:
    # Of the weight [out, in / groups, ...] each output channel's own part for every output; transposed convolutions,
    # [in, out / groups, ...], do the same from the other end.
    transposed = inputs[6].toIValue()
    return _elements(inputs[0] if transposed else outputs[0]) * math.prod(_shape(inputs[1])[1:])


def _convolution_with_padding_mode(inputs: list[Any], outputs: list[Any]) -> int:
    return _elements(outputs[0]) * math.prod(_shape(inputs[1])[1:])


def _matrix_product(inputs: list[Any], outputs: list[Any]) -> int:
    # Each number of the product is a sum over the first factor's last dimension. Unlike fvcore's own rule, this also
    # holds for vectors and for batch dimensions that are broadcast.
    return _elements(outputs[0]) * _shape(inputs[0])[-1]


def _added_matrix_product(inputs: list[Any], outputs: list[Any]) -> int:
    return _matrix_product(inputs[1:], outputs)


def _summed_matrix_products(inputs: list[Any], outputs: list[Any]) -> int:
    return _elements(inputs[1]) * _shape(inputs[2])[-1]


def _tensor_product(inputs: list[Any], outputs: list[Any]) -> int:
    # What is summed over appears in both factors and not in the result.
    first, second, result = _elements(inputs[0]), _elements(inputs[1]), _elements(outputs[0])
    return result * math.isqrt(first * second // result)


def _einsum(inputs: list[Any], outputs: list[Any]) -> int:
    """Factor after factor from the left, as torch contracts them.

    fvcore reads the figure from a text that NumPy has rounded to four digits.
    """
    equation = inputs[0].toIValue().replace(" ", "")
    shapes = [_shape(factor) for factor in _listed(inputs[1])]
    left, _, right = equation.partition("->")
    terms = left.split(",")
    sizes: dict[str, int] = {}
    labels = []
    for term, shape in zip(terms, shapes, strict=True):
        # The dimensions behind "..." are numbered from the right, as they are broadcast.
        hidden = [str(index) for index in range(len(shape) - len(term.replace("...", "")), 0, -1)]
        before, dots, after = term.partition("...")
        labels.append([*before, *hidden, *after] if dots else list(term))
        for label, size in zip(labels[-1], shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    if "->" in equation:
        kept = {*right.replace("...", ""), *(label for label in sizes if label.isdigit())}
    else:
        every = [label for term_labels in labels for label in term_labels]
        kept = {label for label in sizes if label.isdigit() or every.count(label) == 1}
    total, have = 0, set(labels[0])
    for index, more in enumerate(labels[1:], start=1):
        together = have | set(more)
        total += math.prod(sizes[label] for label in together)
        wanted = kept.union(*labels[index + 1 :])
        have = together & wanted
    return total


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    query, key = _shape(inputs[0]), _shape(inputs[1])
    # Query times key, then the weights times the values: the positions of the keys are summed over once for each.
    return (math.prod(query) + _elements(outputs[0])) * key[-2]


def _attention_activations(inputs: list[Any], outputs: list[Any]) -> int:
    scores = math.prod(_shape(inputs[0])[:-1]) * _shape(inputs[1])[-2]
    return scores + _elements(outputs[0])


def _recurrence(inputs: list[Any], outputs: list[Any]) -> int:
    # Every weight matrix once for each step of each sequence. The weights are the last list, also where sequences are
    # packed, which is another overload.
    weights = [value for value in inputs if value.type().kind() == "ListType"][-1]
    matrices = [_elements(weight) for weight in _listed(weights) if len(_shape(weight)) == 2]
    return math.prod(_shape(inputs[0])[:-1]) * sum(matrices)


_Count = Callable[[list[Any], list[Any]], int]
_ACTIVATIONS = "activations"


def _put_out(inputs: list[Any], outputs: list[Any]) -> int:
    return _elements(outputs[0])


def _handle(operator: str, multiply_adds: _Count, activations: _Count = _put_out) -> Callable[..., Counter[str]]:
    def handle(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
        return Counter({operator: multiply_adds(inputs, outputs), _ACTIVATIONS: activations(inputs, outputs)})

    return handle


_COUNTS: dict[str, _Count] = {
    "aten::_convolution": _convolution,
    "aten::_convolution_mode": _convolution_with_padding_mode,
    "aten::linear": _matrix_product,
    "aten::matmul": _matrix_product,
    "aten::mm": _matrix_product,
    "aten::bmm": _matrix_product,
    "aten::mv": _matrix_product,
    "aten::dot": _matrix_product,
    "aten::inner": _matrix_product,
    "aten::addmm": _added_matrix_product,
    "aten::addmv": _added_matrix_product,
    "aten::baddbmm": _added_matrix_product,
    "aten::addbmm": _summed_matrix_products,
    "aten::tensordot": _tensor_product,
    "aten::einsum": _einsum,
    "aten::scaled_dot_product_attention": _attention,
    "aten::lstm": _recurrence,
    "aten::gru": _recurrence,
    "aten::rnn_tanh": _recurrence,
    "aten::rnn_relu": _recurrence,
    "torchvision::deform_conv2d": _convolution_with_padding_mode,
}

# Names of what was counted; everything else that fvcore counts (norms, pooling, resizing) is outside the convention.
_MULTIPLY_ADDS = frozenset(operator.partition("::")[2] for operator in _COUNTS)

_HANDLES = {
    operator: _handle(operator.partition("::")[2], count, _attention_activations if count is _attention else _put_out)
    for operator, count in _COUNTS.items()
}

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
    _pack_padded_sequence _pad_packed_sequence pad_sequence
    bernoulli embedding empty_like fill linspace new_ones one_hot ones_like rand rand_like randn randn_like
    scalar_tensor tensor tril triu uniform zero Bool Float Int item
"""
_FREE = frozenset(_FREE_OPERATORS.split())


def _is_free(operator: str) -> bool:
    namespace, _, name = operator.partition("::")
    return namespace == "aten" and name.rstrip("_") in _FREE


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the deprecation of torch.jit, on which fvcore is built; that is not the user's to mend."""
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", message=r"`torch\.jit\..*` is deprecated", category=category)
        yield


def _cuda(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def multiply_adds_by_module(module: nn.Module, images: Tensor) -> dict[str, int]:
    """Count what each module inside `module` computes for the first of `images` [N, C, H, W] in eval mode, by its path.

    A module's number holds those of all inside it; "" is the whole, which `measure` counts the same. What a `forward`
    computes by functions counts for its module. Unlike fvcore's counter this takes a network and images on the meta
    device, too, where a network costs neither memory nor time. `module` stays as it is.
    """
    network = copy.deepcopy(module).eval()
    device = next((parameter.device for parameter in module.parameters()), images.device)
    with torch.no_grad(), torch.random.fork_rng(_cuda(device)), count_multiply_adds() as counted:
        network(images[:1].to(device))
    root = type(network).__name__
    counts = counted.by_module().items()
    return {
        "": counted.total(),
        **{path.removeprefix(f"{root}."): n for path, n in counts if path.startswith(f"{root}.")},
    }
