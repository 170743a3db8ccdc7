"""Whether numbers can overflow in a network: what a fused convolution would hide.

PyTorch's ReLU leaves what is not a number (NaN) as it is, oneDNN's makes 0 of it, so a network that has overflowed
would answer as if it had not. NaN first comes of numbers too large for their type, or of weights that are none. So
`guarded` has the tensors before some layers looked at, and `holds` computes from the weights what all between can at
most become: |W x + b| <= max |x| sum |W| + |b|, the sum over what an output channel reads.
"""

import operator
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from distilkit.fusion.convolution import convolved

LIMIT = 2.0**30
"""What no element of a tensor that is looked at may exceed; those of normalised images are below 10."""

CEILING = 2.0**120
"""What nothing between may exceed: 1/256 of the largest number of fp32 and bfloat16."""

STRIDE = 12
"""Tensors are looked at after so many layers: that leaves each a factor of 60 to 180; usual ones have 10 to 40."""

WITHIN_A_BLOCK = 3
"""How many layers more there may be before a tensor that is read once: the block's own input waits to be added."""

RELU = (F.relu, torch.relu, F.relu_, torch.relu_, "relu", "relu_")
SUM = (operator.add, torch.add, operator.iadd, "add", "add_")
SUM_IN_PLACE = (operator.iadd, "add_")
_LAYERS = (nn.Conv2d, nn.BatchNorm2d, nn.SyncBatchNorm)
_NO_LARGER = (nn.ReLU, nn.Identity, nn.Dropout, nn.MaxPool2d)


class TooLargeError(Exception):
    """A tensor holds an element above `LIMIT`, or what is not a number."""


def looked_at(x: Tensor) -> Tensor:
    """Return `x` itself. Raises `TooLargeError` where an element exceeds `LIMIT` or is not a number."""
    if x.numel() and not x.abs().amax() <= LIMIT:
        raise TooLargeError
    return x


def guarded(graph: fx.Graph, network: nn.Module) -> fx.Graph:
    """Have `graph`, which is changed, look at what fused convolutions read: now and then, and what is unknown."""
    while (found := _unwatched(graph, network)) is not None:
        reader, read, known = found
        # Where nothing is known, others may change it: what is looked at is what the convolution is about to read.
        with graph.inserting_after(read) if known else graph.inserting_before(reader):
            looked = graph.call_function(looked_at, (read,))
        for user in [user for user in read.users if user is not looked] if known else [reader]:
            user.replace_input_with(read, looked)
    return graph


def _unwatched(graph: fx.Graph, network: nn.Module) -> tuple[fx.Node, fx.Node, bool] | None:
    """A fused convolution, a tensor it reads that is to be looked at, and whether it is known what that can become."""
    layers: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if node.target is looked_at:
            layers[node] = 0
            continue
        known = reads(node, network)
        for read in known or () if node.target is convolved else ():
            if read not in layers or not _keeps(read, network):
                return node, read, False
            if layers[read] >= STRIDE + (WITHIN_A_BLOCK if len(read.users) == 1 else 0):
                return node, read, True
        if known is not None and all(read in layers for read in known):
            layers[node] = max(layers[read] for read in known) + (_layer(node, network) is not None)
    return None


@torch.no_grad()
def holds(graph: fx.Graph, network: nn.Module) -> bool:
    """Whether no fused convolution of the guarded `graph` can overflow with the weights that `network` now has."""
    bounds: dict[fx.Node, float] = {}
    for node in graph.nodes:
        if node.target is looked_at:
            bounds[node] = LIMIT
            continue
        known = reads(node, network)
        if known is None or any(read not in bounds for read in known):
            if node.target is convolved:
                return False
            continue
        first, *others = (bounds[read] for read in known)
        layer = _layer(node, network)
        gain, shift = _largest(layer) if layer is not None else (1.0, 0.0)
        bounds[node] = gain * first + shift + sum(others)
        if not bounds[node] <= CEILING:  # Nor where it is not a number.
            return False
    return True


def reads(node: fx.Node, network: nn.Module) -> Sequence[fx.Node] | None:
    """The tensors that a step makes its result of, where it is known what that can become; else None."""
    if node.target is convolved:
        return [each for each in node.args[1:3] if isinstance(each, fx.Node)]
    nodes = [each for each in node.args if isinstance(each, fx.Node)]
    if not nodes or len(nodes) != len(node.args):
        return None
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        kinds: tuple[type[nn.Module], ...] = (*_LAYERS, *_NO_LARGER)
        known = type(module) in kinds and not (module._forward_hooks or module._forward_pre_hooks)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            known = known and module.running_mean is not None
        return nodes if known and len(nodes) == 1 and not node.kwargs else None
    if node.target in RELU:
        return nodes if len(nodes) == 1 and not set(node.kwargs) - {"inplace"} else None
    if node.target in SUM and len(nodes) == 2 and not node.kwargs:
        # What a sum is written into must be nobody else's, by no other name.
        own = len(nodes[0].users) == 1 and (nodes[0].target is convolved or _layer(nodes[0], network) is not None)
        return nodes if node.target not in SUM_IN_PLACE or own else None
    return None


def _keeps(node: fx.Node, network: nn.Module) -> bool:
    """Whether nothing that reads `node` can make what it holds larger."""
    return all(user.target is looked_at or reads(user, network) is not None for user in node.users)


def _layer(node: fx.Node, network: nn.Module) -> nn.Module | None:
    """The convolution or batch norm that a step computes."""
    if node.target is convolved:
        held = node.args[0]
        assert isinstance(held, fx.Node)
        return network.get_submodule(str(held.target))
    module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, _LAYERS) else None


def _largest(layer: nn.Module) -> tuple[float, float]:
    """By how much a layer can at most multiply, and what it can add to that."""
    if isinstance(layer, nn.Conv2d):
        gain_C, shift_C = layer.weight.abs().sum((1, 2, 3)), layer.bias
    else:
        assert isinstance(layer, nn.BatchNorm2d | nn.SyncBatchNorm)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        gain_C = (layer.running_var + layer.eps).rsqrt()
        if layer.weight is not None:
            gain_C = gain_C * layer.weight.abs()
        shift_C = layer.running_mean.abs() * gain_C
        if layer.bias is not None:
            shift_C = shift_C + layer.bias.abs()
    return float(gain_C.amax()), 0.0 if shift_C is None else float(shift_C.abs().amax())
