"""The branches of a group computed together: one convolution where each branch would have its own.

All branches take the same steps. `forward` walks them once, with tensors that hold what every branch computes side by
side: maps [B, S * C, H, W], the first branch's channels first. Where the branches' input is still the trunk's one
tensor, a convolution is one with S times the outputs; behind that it is one in S times the groups. Batch norm works
channel by channel, so one over all channels is every branch's own. Weights are joined anew in every step, inside the
graph of gradients: parameters, buffers and the optimizer's state stay the branches', under their names.

Shape suffixes: S students, B images, C channels, D and O features before and after a linear layer.
"""

import copy
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from distilkit.errors import SettingError, first_line
from distilkit.group import BranchGroup, BranchResults
from distilkit.models.pooling import GlobalAveragePool
from distilkit.randomness import generator
from distilkit.split import Part, generated

KEY = "train.branches"
TOLERANCE = 1e-9
"""In float64, of the largest number: what the order of sums may change."""

_HINT = "leave train.branches out"
_GRADIENT = "the gradient of "
_ALIGNED = 4  # numbers; a vector of whole 16 bytes leaves the next one where kernels may read four at once

# What is computed number by number, for maps and vectors alike.
_NUMBERWISE_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Softsign),
    *(nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Identity),
)
_NUMBERWISE_FUNCTIONS = (
    *(F.relu, F.relu_, F.relu6, F.leaky_relu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish, F.softplus, F.sigmoid),
    *(F.tanh, F.hardtanh, F.hardswish, F.hardsigmoid, torch.relu, torch.relu_, torch.sigmoid, torch.tanh),
)
_NUMBERWISE_METHODS = ("relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_")
# What is computed channel by channel.
_CHANNELWISE_MODULES = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, GlobalAveragePool)
_CHANNELWISE_FUNCTIONS = (F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d)
_OF_TWO_FUNCTIONS = (
    *(operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub, torch.mul, torch.div),
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv),
)
_OF_TWO_METHODS = ("add", "sub", "mul", "div", "add_", "sub_", "mul_", "div_")
_IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv, "add_", "sub_", "mul_", "div_")
_MEANS = (torch.mean, "mean")
_CATS = (torch.cat, torch.concat, torch.concatenate)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def forward(group: BranchGroup) -> Callable[[BranchGroup, Tensor], BranchResults]:
    """Write what computes all branches of `group`, or of a copy of it, from the trunk's tensor, in training mode.

    Raises `SettingError` on "train.branches" for what cannot be computed so: a module or an operation that is not known
    to work channel by channel, one that somebody listens to, branches that differ.
    """
    written: Callable[[BranchGroup, Tensor], Any] = generated(group, _Rewriting(group).graph)
    return written


def check(group: BranchGroup, images: Tensor) -> None:
    """Compute a training step of a copy in both forms, in float64; raise `SettingError` unless they are one.

    `images`: raw, [B >= 2, channels, H, W], on the CPU. The branches are given noise of the shape that the trunk makes
    of them; dropout does not take part. Compared are logits, features, gradients, and buffers afterwards.
    """
    written = forward(group)
    with torch.no_grad():
        trunk = copy.deepcopy(group.trunk).eval()(group.normalize(images))
    noise = torch.randn(trunk.shape, generator=generator(0, "grouped"), dtype=torch.float64)
    found = []
    for together in (None, written):
        twin = copy.deepcopy(group).double().train()
        twin.together = together
        for module in twin.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        try:
            found.append(dict(_step(twin, noise.clone().requires_grad_())))
        except Exception as error:
            # Any kind of exception: a step that is not what it was taken for fails in its own way.
            raise SettingError(KEY, f"the branches cannot be computed together: {first_line(error)}", _HINT) from error
    plain, grouped = found
    # Some gradients are nothing but rounding, such as those of biases before a batch norm.
    steepest = max(float(value.abs().max()) for name, value in plain.items() if name.startswith(_GRADIENT))
    for name, value in plain.items():
        size = steepest if name.startswith(_GRADIENT) else float(value.abs().max())
        if not (grouped[name] - value).abs().max() <= TOLERANCE * max(1.0, size):
            raise SettingError(
                KEY, f"computed together, the branches differ from themselves one by one in {name}", _HINT
            )


def _step(group: BranchGroup, trunk: Tensor) -> Iterator[tuple[str, Tensor]]:
    """What a step of the branches computes and leaves, by name."""
    logits_SBC, features = group.from_trunk(trunk * 1)
    outcomes = {"logits": logits_SBC, **{f"features {i}": each for i, each in enumerate(features)}}
    draws = generator(1, "grouped")
    total = logits_SBC.new_zeros(())
    for each in outcomes.values():
        # Every number with a weight of its own, so that none can stand for another.
        total = total + (each * torch.randn(each.shape, generator=draws, dtype=each.dtype)).sum()
    total.backward()  # type: ignore[no-untyped-call]
    yield from ((name, value.detach()) for name, value in outcomes.items())
    yield f"{_GRADIENT}the trunk", _gradient(trunk)
    for name, parameter in group.branches.named_parameters():
        yield f"{_GRADIENT}{name}", _gradient(parameter)
    for name, buffer in group.branches.named_buffers():
        yield name, buffer.double()


def _gradient(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


# -------------------------------------------------------------------------------------------- what the steps consist of


def repeated(x: Tensor, students: int) -> Tensor:
    """Every branch's own copy of a tensor that they share, side by side: [B, C, ...] -> [B, S * C, ...]."""
    return torch.cat([x] * students, 1)


def interleaved(tensors: Sequence[Tensor], shared: Sequence[bool], students: int) -> Tensor:
    """`torch.cat` along the channels, branch by branch; `shared`: which tensors are the same for all branches."""
    parts = [
        [x] * students if same else x.chunk(students, 1) for x, same in zip(tensors, shared, strict=True)
    ]  # In four dimensions, because a tensor of five would lose its memory layout.
    return torch.cat([part[student] for student in range(students) for part in parts], 1)


def stacked(x: Tensor, students: int) -> Tensor:
    """Vectors side by side, [B, S * D], as [S, B, D]."""
    if x.dim() != 2:
        raise ValueError(f"a linear layer of {x.dim()}-dimensional tensors; vectors are known only")
    return x.view(len(x), students, -1).transpose(0, 1)


def beside(x_SBD: Tensor) -> Tensor:
    """Stacked vectors, [S, B, D], side by side: [B, S * D]."""
    return x_SBD.transpose(0, 1).flatten(1)


def multiplied(x_SBD: Tensor, weights: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """Every branch's linear layer: [S, B, D] -> [S, B, O]; `bias`: all of them, one after another."""
    weight_SDO = torch.stack(list(weights)).transpose(1, 2)
    if bias is None:
        return torch.bmm(x_SBD, weight_SDO)
    return torch.baddbmm(bias.view(len(weights), 1, -1), x_SBD, weight_SDO)


def write_back(joined: Tensor, statistics: Sequence[Tensor], counts: Sequence[Tensor]) -> None:
    """Give every branch's batch norms their new statistics, and count the batch."""
    with torch.no_grad():
        torch._foreach_copy_(list(statistics), torch.split(joined, [each.numel() for each in statistics]))
        torch._foreach_add_(list(counts), 1)


class _Value(NamedTuple):
    """What a step gives. `kind`: "shared" by all branches, "beside" [B, S * C, ...] or "stacked" [S, B, D]."""

    node: fx.Node
    kind: str


class _Rewriting:
    """Walks the steps of the first branch, which are all branches' steps, and writes those of all together."""

    def __init__(self, group: BranchGroup) -> None:
        self.members, self.S = group.members, len(group.members)
        self.parts: list[Part] = []
        for name in self.members:
            part = group.branches[name]
            if not isinstance(part, Part):
                raise _unable(f"branch {name!r} is a {type(part).__name__}")
            self._require_alone(f"the branch {name!r}", part)
            self.parts.append(part)
        self.source = self.parts[0].steps.graphs[True]
        steps = _said(self.source)
        for name, part in zip(self.members, self.parts, strict=True):
            if _said(part.steps.graphs[True]) != steps:
                raise _unable(f"{name!r} takes other steps than {self.members[0]!r}")
        self.calls = [str(node.target) for node in self.source.nodes if node.op == "call_module"]
        for path in dict.fromkeys(self.calls):
            self._require_known(path)
        self.graph = fx.Graph()
        self.values: dict[fx.Node, _Value] = {}
        self.vectors: dict[tuple[str, str], fx.Node] = {}
        self.statistics: dict[tuple[str, str], fx.Node] = {}
        self._write(group.separate)

    # ------------------------------------------------------------------------------------------------- what is refused

    def _modules(self, path: str) -> list[nn.Module]:
        return [part.get_submodule(path) for part in self.parts]

    def _require_alone(self, what: str, module: nn.Module) -> None:
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        if any(hooks) or "forward" in vars(module):
            raise _unable(f"somebody listens to {what}, a {type(module).__name__}")

    def _require_known(self, path: str) -> None:
        """Raise `SettingError` if a module is not one of the very classes that are known, or differs among branches."""
        first, *others = modules = self._modules(path)
        kind = type(first)
        for module in modules:
            self._require_alone(repr(path), module)
        if any(type(other) is not kind or repr(other) != repr(first) for other in others):
            raise _unable(f"{path!r} is not the same in all branches")
        known = (nn.Conv2d, nn.Linear, nn.Dropout, nn.Flatten, *_BATCH_NORMS, *_NUMBERWISE_MODULES)
        if kind not in (*known, *_CHANNELWISE_MODULES):
            raise _unable(f"{path!r} is a {kind.__name__}")
        if isinstance(first, nn.Conv2d) and first.padding_mode != "zeros":
            raise _unable(f"{path!r} is a Conv2d with padding_mode {first.padding_mode!r}")
        if isinstance(first, nn.Flatten) and (first.start_dim, first.end_dim) != (1, -1):
            raise _unable(f"{path!r} is a Flatten of some dimensions")
        if getattr(first, "return_indices", False):
            raise _unable(f"{path!r} is a {kind.__name__} that returns indices")
        if isinstance(first, _BATCH_NORMS):
            if first.momentum is None:
                raise _unable(f"{path!r} is a {kind.__name__} without momentum")
            if self.calls.count(path) > 1:
                raise _unable(f"{path!r}, a {kind.__name__}, is called more than once")

    # ------------------------------------------------------------------------------------------------- what is written

    def _write(self, separate: bool) -> None:
        inputs = self.source.find_nodes(op="placeholder")
        trunk = self.graph.placeholder(inputs[0].name)
        self._read_vectors()
        counts, buffers = self._read_statistics()
        # A branch that writes into its input writes into a copy: one for all, who write the same.
        start = self.graph.call_method("clone", (trunk,)) if separate else trunk
        for node in self.source.nodes:
            if node.op == "placeholder":
                self.values[node] = _Value(start, "shared")
            elif node.op == "output":
                (outputs,) = node.args
                assert isinstance(outputs, tuple)
                logits, features = (self._value(each) for each in outputs if isinstance(each, fx.Node))
                if counts:
                    self.graph.call_function(write_back, (self.joined_statistics, buffers, counts))
                self.graph.output(self._results(logits, features))
            elif _is_shape(node) or (_is_count_of_images(node) and all(map(_is_flatten, node.users))):
                continue  # It is read where vectors are made of maps, which needs no numbers here.
            else:
                self.values[node] = self._step(node)

    def _of_all(self, path: str, name: str) -> list[fx.Node]:
        """A tensor of every branch's module."""
        return [self.graph.get_attr(f"branches.{member}.{path}.{name}") for member in self.members]

    def _join(self, keys: Iterable[tuple[str, str]]) -> tuple[fx.Node | None, dict[tuple[str, str], fx.Node]]:
        """Join vectors of all branches in one operator: their node, and each key's part of it, branch after branch."""
        sizes: dict[tuple[str, str], int] = {}
        kinds = set()
        for path, name in keys:
            tensors = [getattr(module, name) for module in self._modules(path)]
            if all(tensor is not None for tensor in tensors):
                sizes[path, name] = sum(tensor.numel() for tensor in tensors)
                kinds |= {tensor.dtype for tensor in tensors}
        if not sizes:
            return None, {}
        if len(kinds) > 1:
            raise _unable(f"they have parameters of several types: {', '.join(sorted(map(str, kinds)))}")
        ordered = sorted(sizes, key=lambda key: sizes[key] % _ALIGNED != 0)
        joined = self.graph.call_function(torch.cat, ([each for key in ordered for each in self._of_all(*key)],))
        parts = self.graph.call_method("split", (joined, [sizes[key] for key in ordered]))
        found = {key: self.graph.call_function(operator.getitem, (parts, place)) for place, key in enumerate(ordered)}
        return joined, found

    def _read_vectors(self) -> None:
        """Biases, and what batch norms scale and shift by."""
        keys = []
        for path in dict.fromkeys(self.calls):
            (first, *_) = self._modules(path)
            if isinstance(first, _BATCH_NORMS):
                keys.append((path, "weight"))
            if isinstance(first, (nn.Conv2d, nn.Linear, *_BATCH_NORMS)):
                keys.append((path, "bias"))
        _, self.vectors = self._join(keys)

    def _read_statistics(self) -> tuple[list[fx.Node], list[fx.Node]]:
        """Batch norms' running statistics; returns every branch's counts of batches, and the statistics themselves."""
        norms = [path for path in self.calls if isinstance(self._modules(path)[0], _BATCH_NORMS)]
        keys = [(path, name) for path in norms for name in ("running_mean", "running_var")]
        self.joined_statistics, self.statistics = self._join(keys)
        counted = [path for path in norms if (path, "running_mean") in self.statistics]
        counts = [each for path in counted for each in self._of_all(path, "num_batches_tracked")]
        return counts, [each for key in self.statistics for each in self._of_all(*key)]

    def _step(self, node: fx.Node) -> _Value:
        if node.op == "call_module":
            if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
                raise _unable(f"{node.target!r} is called with several arguments")
            return self._call(str(node.target), self._value(node.args[0]))
        what = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        if node.op not in ("call_function", "call_method"):
            raise _unable(f"they read {what!r} outside of a module")
        method = node.op == "call_method"
        if node.target in (_OF_TWO_METHODS if method else _OF_TWO_FUNCTIONS):
            return self._of_two(node, str(what))
        if node.target in _CATS:
            return self._cat(node)
        if _is_flatten(node):
            (maps, *_) = node.args
            assert isinstance(maps, fx.Node)
            value = self._not_stacked(self._value(maps))
            return _Value(self.graph.call_method("flatten", (value.node, 1)), value.kind)
        if node.args and isinstance(node.args[0], fx.Node) and not _nodes((node.args[1:], node.kwargs)):
            value = self._value(node.args[0])
            if node.target in (_NUMBERWISE_METHODS if method else _NUMBERWISE_FUNCTIONS):
                return self._again(node, value)
            channelwise = not method and node.target in _CHANNELWISE_FUNCTIONS and not node.kwargs.get("return_indices")
            if channelwise or _is_mean_over_positions(node):
                return self._again(node, self._not_stacked(value))
        raise _unable(f"they call {what!r}, of which it is not known that it works channel by channel")

    def _value(self, node: fx.Node) -> _Value:
        if node not in self.values:
            raise _unable("they compute with the sizes of tensors")
        return self.values[node]

    def _again(self, node: fx.Node, value: _Value) -> _Value:
        """The same step with the tensor of all branches."""
        return _Value(
            self.graph.create_node(node.op, node.target, (value.node, *node.args[1:]), dict(node.kwargs)), value.kind
        )

    def _call(self, path: str, x: _Value) -> _Value:
        (module, *_) = self._modules(path)
        if isinstance(module, nn.Conv2d):
            return self._convolution(path, module, self._not_stacked(x))
        if isinstance(module, _BATCH_NORMS):
            return self._batch_norm(path, module, self._own(x))
        if isinstance(module, nn.Linear):
            rows = (
                x
                if x.kind == "stacked"
                else _Value(self.graph.call_function(stacked, (self._own(x).node, self.S)), "stacked")
            )
            weights, bias = self._of_all(path, "weight"), self.vectors.get((path, "bias"))
            return _Value(self.graph.call_function(multiplied, (rows.node, weights, bias)), "stacked")
        if isinstance(module, nn.Dropout):
            # What they share, each branch drops for itself.
            if x.kind == "shared" and module.inplace:
                raise _unable(f"{path!r}, a Dropout, writes into what the branches share")
            x = x if x.kind == "stacked" else self._own(x)
        elif not isinstance(module, _NUMBERWISE_MODULES):
            x = self._not_stacked(x)
        return _Value(self.graph.call_module(f"branches.{self.members[0]}.{path}", (x.node,)), x.kind)

    def _convolution(self, path: str, module: nn.Conv2d, x: _Value) -> _Value:
        if x.kind == "shared" and module.groups > 1:
            x = self._own(x)
        groups = module.groups * (1 if x.kind == "shared" else self.S)
        weight = self.graph.call_function(torch.cat, (self._of_all(path, "weight"),))
        settings = (module.stride, module.padding, module.dilation, groups)
        bias = self.vectors.get((path, "bias"))
        return _Value(self.graph.call_function(F.conv2d, (x.node, weight, bias, *settings)), "beside")

    def _batch_norm(self, path: str, module: nn.BatchNorm1d | nn.BatchNorm2d, x: _Value) -> _Value:
        mean, variance = (self.statistics.get((path, name)) for name in ("running_mean", "running_var"))
        weight, bias = (self.vectors.get((path, name)) for name in ("weight", "bias"))
        settings = (True, module.momentum, module.eps)
        return _Value(
            self.graph.call_function(F.batch_norm, (x.node, mean, variance, weight, bias, *settings)), "beside"
        )

    def _of_two(self, node: fx.Node, what: str) -> _Value:
        """A sum or a product, of tensors or with a number."""
        given = node.args
        tensors = [self._value(each) for each in given if isinstance(each, fx.Node)]
        if _nodes(node.kwargs) or not tensors or not all(isinstance(each, fx.Node | int | float) for each in given):
            raise _unable(f"they call {what!r} with something else than tensors and numbers")
        kinds = {value.kind for value in tensors}
        kind = kinds.pop() if len(kinds) == 1 else "beside"
        in_place = node.target in _IN_PLACE
        arguments: list[Any] = []
        for place, each in enumerate(given):
            if not isinstance(each, fx.Node):
                arguments.append(each)
                continue
            value = self._value(each)
            if value.kind != kind:
                if in_place and place == 0:
                    raise _unable(f"{what!r} writes into what the branches share")
                value = self._own(value)
            arguments.append(value.node)
        return _Value(self.graph.create_node(node.op, node.target, tuple(arguments), dict(node.kwargs)), kind)

    def _cat(self, node: fx.Node) -> _Value:
        tensors, *rest = node.args
        along = rest[0] if rest else node.kwargs.get("dim", 0)
        if along != 1 or not isinstance(tensors, list | tuple) or set(node.kwargs) - {"dim"}:
            raise _unable("they join tensors, but not along the channels")
        values = [self._not_stacked(self._value(each)) for each in tensors if isinstance(each, fx.Node)]
        shared = [value.kind == "shared" for value in values]
        if all(shared):
            return _Value(self.graph.call_function(torch.cat, ([value.node for value in values], 1)), "shared")
        return _Value(
            self.graph.call_function(interleaved, ([value.node for value in values], shared, self.S)), "beside"
        )

    def _not_stacked(self, value: _Value) -> _Value:
        if value.kind != "stacked":
            return value
        return _Value(self.graph.call_function(beside, (value.node,)), "beside")

    def _own(self, value: _Value) -> _Value:
        """Side by side, whatever it was."""
        if value.kind == "shared":
            return _Value(self.graph.call_function(repeated, (value.node, self.S)), "beside")
        return self._not_stacked(value)

    def _results(self, logits: _Value, features: _Value) -> tuple[fx.Node, fx.Node]:
        rows = logits.node
        if logits.kind != "stacked":
            rows = self.graph.call_function(stacked, (self._own(logits).node, self.S))
        if features.kind == "stacked":
            return rows, self.graph.call_method("unbind", (features.node,))
        return rows, self.graph.call_method("chunk", (self._own(features).node, self.S, 1))


def _unable(problem: str) -> SettingError:
    return SettingError(KEY, f"the branches cannot be computed together: {problem}", _HINT)


def _said(graph: fx.Graph) -> list[str]:
    """A graph's steps in words that are alike for graphs that are alike."""
    places = {node: f"%{place}" for place, node in enumerate(graph.nodes)}
    return [
        f"{node.op} {node.target} {fx.node.map_arg((node.args, node.kwargs), places.__getitem__)}"
        for node in graph.nodes
    ]


def _nodes(arguments: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(arguments, found.append)
    return found


def _is_flatten(node: fx.Node) -> bool:
    """Whether it makes vectors of maps."""
    if node.target in ("view", "reshape"):
        first, *rest = node.args[1:]
        return isinstance(first, fx.Node) and _is_count_of_images(first) and rest == [-1] and not node.kwargs
    settings = (*node.args[1:], *(node.kwargs.get(name) for name in ("start_dim", "end_dim") if name in node.kwargs))
    return node.target in (torch.flatten, "flatten") and settings in ((1,), (1, -1))


def _is_count_of_images(node: fx.Node) -> bool:
    """Whether it is `x.size(0)` or `x.shape[0]`."""
    if node.target == "size":
        return node.args[1:] == (0,)
    shape = node.args[0] if node.target is operator.getitem else None
    return isinstance(shape, fx.Node) and _is_shape(shape) and node.args[1:] == (0,)


def _is_shape(node: fx.Node) -> bool:
    return (node.target is getattr and node.args[1:] == ("shape",)) or (node.target == "size" and len(node.args) == 1)


def _is_mean_over_positions(node: fx.Node) -> bool:
    if node.target not in _MEANS or set(node.kwargs) - {"dim", "keepdim"}:
        return False
    over = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    return isinstance(over, list | tuple) and sorted(int(d) % 4 for d in over if isinstance(d, int)) == [2, 3]
