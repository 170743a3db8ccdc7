"""How a network computes in evaluation mode, in fewer passes over memory: what `inference` is made of.

`folds` finds batch norms that the convolution before them can do. `fused` lets a convolution add the shortcut and
apply ReLU while it writes its result, which takes three passes over memory in most code; oneDNN does so on CPUs. The
steps of a network come from `split`, which traces it.
"""

import operator
from collections import Counter
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from distilkit.split import Steps, generated

_RELU_FUNCTIONS = (F.relu, torch.relu, F.relu_, torch.relu_)
_RELU_METHODS = ("relu", "relu_")
_SUM_FUNCTIONS = (operator.add, torch.add, operator.iadd)
_SUM_METHODS = ("add", "add_")
_SUMS_IN_PLACE = (operator.iadd, "add_")

Forward = Callable[[nn.Module, Tensor], Any]
_written: "WeakKeyDictionary[Steps, dict[frozenset[str], Forward | None]]" = WeakKeyDictionary()


def folds(steps: Steps) -> list[tuple[str, str]]:
    """Pairs of modules of which the second is the only one to read the first; whoever folds looks what they are."""
    calls = [node for node in steps.graphs[False].nodes if node.op == "call_module"]
    times = Counter(str(node.target) for node in calls)
    found = []
    for node in calls:
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        pair = (str(before.target), str(node.target))
        if all(times[path] == 1 for path in pair):
            found.append(pair)
    return found


def available() -> bool:
    """Whether this PyTorch has oneDNN's fused convolutions, and may use them."""
    return bool(
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise_")
    )


def fused(network: nn.Module, steps: Steps) -> Forward | None:
    """Write a `forward` of `network` in evaluation mode whose convolutions add and apply ReLU themselves.

    `network`: a part or a backbone whose `steps` these are; an `nn.Identity` in it may stand for what was folded. None
    where there is nothing to fuse. What it computes is the same; it serves networks on CPUs that want no gradients.
    """
    graph = steps.graphs[False]
    convolutions = {path for path, module in _called(graph, network) if _is_plain(module, nn.Conv2d)}
    identities = {path for path, module in _called(graph, network) if _is_plain(module, nn.Identity)}
    relus = {path for path, module in _called(graph, network) if _is_plain(module, nn.ReLU)}
    key = frozenset([*convolutions, *(f"{path}?" for path in identities), *(f"{path}!" for path in relus)])
    known = _written.setdefault(steps, {})
    if key not in known:
        rewritten = _Rewriting(graph, convolutions, identities, relus).result()
        known[key] = generated(network, rewritten) if rewritten else None
    return known[key]


def _called(graph: fx.Graph, network: nn.Module) -> list[tuple[str, nn.Module]]:
    paths = dict.fromkeys(str(node.target) for node in graph.nodes if node.op == "call_module")
    return [(path, network.get_submodule(path)) for path in paths]


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether this is the very class, with nothing attached that would want to see it called."""
    if type(module) is not kind or module._forward_hooks or module._forward_pre_hooks:
        return False
    return not isinstance(module, nn.Conv2d) or (module.padding_mode == "zeros" and not isinstance(module.padding, str))


def convolved(convolution: nn.Conv2d, x: Tensor, other: Tensor | None, relu: bool, overwrite: bool) -> Tensor:
    """Compute `convolution(x)`, plus `other` where there is one, and ReLU of that if `relu`.

    `overwrite`: nobody needs `other` afterwards, so the result may be written there. Under autocast as autocast would.
    """
    weight, bias = convolution.weight, convolution.bias
    if torch.is_autocast_enabled("cpu"):
        kind = torch.get_autocast_dtype("cpu")
        x, weight = x.to(kind), weight.to(kind)
        bias = None if bias is None else bias.to(kind)
    stride, padding, dilation = convolution.stride, convolution.padding, convolution.dilation
    if _fits(convolution, x, weight, other):
        # The order of these operators' arguments is PyTorch's own compiler's, which calls them so.
        settings = (weight, bias, padding, stride, dilation, convolution.groups)
        activation = "relu" if relu else None
        if other is None:
            result: Tensor = torch.ops.mkldnn._convolution_pointwise(x, *settings, activation or "none", [], "")
        else:
            rows = torch.channels_last
            onto = other if overwrite and other.is_contiguous(memory_format=rows) else other.clone(memory_format=rows)
            result = torch.ops.mkldnn._convolution_pointwise_.binary(onto, x, *settings, "add", 1.0, activation, [], "")
        return result
    result = F.conv2d(x, weight, bias, stride, padding, dilation, convolution.groups)
    if other is not None:
        result = result + other
    return result.relu_() if relu else result


def _fits(convolution: nn.Conv2d, x: Tensor, weight: Tensor, other: Tensor | None) -> bool:
    """Whether oneDNN does this in one pass: channels last, one type of numbers, and a sum of tensors of one shape."""
    if x.dim() != 4 or x.numel() == 0 or not x.is_contiguous(memory_format=torch.channels_last):
        return False
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16):
        return False
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return False
    if other is None:
        return True
    assert not isinstance(convolution.padding, str)
    sides = [
        (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, padding, dilation in zip(
            x.shape[2:],
            convolution.kernel_size,
            convolution.stride,
            convolution.padding,
            convolution.dilation,
            strict=True,
        )
    ]
    return other.dtype == x.dtype and other.shape == (len(x), convolution.out_channels, *sides)


class _Rewriting:
    """One pass over a copy of the graph, from its beginning to its end."""

    def __init__(self, graph: fx.Graph, convolutions: set[str], identities: set[str], relus: set[str]) -> None:
        self.graph = fx.Graph()
        self.graph.output(self.graph.graph_copy(graph, {}))
        self.convolutions, self.relus = convolutions, relus
        self.changed = False
        for node in list(self.graph.nodes):
            if node.op == "call_module" and node.target in identities:
                node.replace_all_uses_with(node.args[0])
                self.graph.erase_node(node)

    def result(self) -> fx.Graph | None:
        """The graph with all that can be fused; None if there is nothing."""
        for node in list(self.graph.nodes):
            if self._is_convolution(node):
                self._fuse(node)
        return self.graph if self.changed else None

    def _fuse(self, convolution: fx.Node) -> None:
        x, last = convolution.args[0], convolution
        other: fx.Node | None = None
        # A convolution moves to nowhere: the sum is the very next step, so that nothing can happen between the two.
        total = convolution.next
        if _only_reader(convolution) is total and (found := self._summand(total, convolution)):
            other, last = found, total
        reader = _only_reader(last)
        relu = reader if reader is not None and self._is_relu(reader) else None
        if other is None and relu is None:
            return
        overwrite = other is not None and other is not x and self._is_dead_after(other, total)
        with self.graph.inserting_before(last):
            module = self.graph.get_attr(str(convolution.target))
            new = self.graph.call_function(convolved, (module, x, other, relu is not None, overwrite))
        for old in [*([relu] if relu else []), *([total] if other else []), convolution]:
            old.replace_all_uses_with(new)
            self.graph.erase_node(old)
        self.changed = True

    def _is_convolution(self, node: fx.Node) -> bool:
        return node.op == "call_module" and node.target in self.convolutions and len(node.args) == 1 and not node.kwargs

    def _is_fresh(self, node: fx.Node) -> bool:
        """Whether a step's result is in memory of its own, that no other step's result shares."""
        return self._is_convolution(node) or (node.op == "call_function" and node.target is convolved)

    def _is_relu(self, node: fx.Node) -> bool:
        if set(node.kwargs) - {"inplace"} or len(node.args) != 1:
            return False
        if node.op == "call_module":
            return node.target in self.relus
        targets: tuple[Any, ...] = _RELU_METHODS if node.op == "call_method" else _RELU_FUNCTIONS
        return node.op in ("call_method", "call_function") and node.target in targets

    def _summand(self, total: fx.Node, convolution: fx.Node) -> fx.Node | None:
        """What is added to the convolution's result, if `total` adds two tensors and changes no third one."""
        targets: tuple[Any, ...] = _SUM_METHODS if total.op == "call_method" else _SUM_FUNCTIONS
        if total.op not in ("call_method", "call_function") or total.target not in targets:
            return None
        if len(total.args) != 2 or total.kwargs or not all(isinstance(each, fx.Node) for each in total.args):
            return None
        first, second = total.args
        assert isinstance(first, fx.Node)
        assert isinstance(second, fx.Node)
        if total.target in _SUMS_IN_PLACE and not (self._is_fresh(first) and _only_reader(first) is total):
            return None
        return second if first is convolution else first

    def _is_dead_after(self, node: fx.Node, total: fx.Node) -> bool:
        """Whether nobody reads `node` after `total`, neither itself nor through a view of it."""
        readers = [reader for reader in node.users if reader is not total]
        return self._is_fresh(node) and all(self._is_fresh(reader) and reader < total for reader in readers)


def _only_reader(node: fx.Node) -> fx.Node | None:
    """The one step that reads `node`, once; None if there are several, or it is the network's output."""
    if len(node.users) != 1:
        return None
    (reader,) = node.users
    times = sum(each is node for each in [*reader.args, *reader.kwargs.values()])
    return reader if times == 1 and reader.op != "output" else None
