"""Cuts any backbone into trunk and branch, each with its parameters under the backbone's own names.

Graphs are never saved: weights under their original names are.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from distilkit.errors import SettingError, nearest
from distilkit.groups.split.trace import READS, CannotCutHereError, Traced, points_of, trace_backbone

_MOST_POINTS_IN_A_HINT = 24


class Part(nn.Module):
    """A piece of a backbone: the trunk, a branch, or the whole.

    It holds the backbone's own modules, parameters and buffers under the names they have there, so its `state_dict()`
    is a part of the backbone's. Called with images [B, C, H, W] a trunk gives the one tensor that goes to the branches
    [B, ...]; called with that tensor a branch gives `(logits [B, C], features [B, D])`, the features being the input of
    its last linear layer. The whole is a branch that takes images.

    `head_path`: that of that last linear layer, in a branch or a whole; None in a trunk.

    `folds`: see `Layers`. Made by `cut` and `whole`. It can be copied, moved, exported and compiled, but not pickled.
    """

    def __init__(
        self, source: "Traced", graphs: Mapping[bool, fx.Graph], unused: Iterable[str], head_path: str | None = None
    ) -> None:
        """`graphs`: by mode (True: training). `unused`: state of the backbone that no graph reads, for this part."""
        super().__init__()
        self.training = source.backbone.training
        self.head_path = head_path  # not `head`: backbones call their own so
        targets = {str(node.target): None for mode in graphs for node in graphs[mode].nodes if node.op in READS}
        # Shallow paths first, so that a module held as a whole is there before a path that leads into it.
        for path in sorted([*targets, *unused], key=lambda path: path.count(".")):
            self._hold(source, path)
        # A generated forward looks its modules up on the `self` that it is given, so it serves every copy of this part.
        self._forward_in_training = generated(self, graphs[True])
        self._forward_in_evaluation = generated(self, graphs[False])
        self.folds = _folds(graphs[False])

    def forward(self, x: Tensor) -> Any:
        """Compute the trunk's tensor, or the branch's `(logits [B, C], features [B, D])`."""
        compute = self._forward_in_training if self.training else self._forward_in_evaluation
        return compute(self, x)

    def _hold(self, source: "Traced", path: str) -> None:
        *containers, name = path.split(".")
        here: nn.Module = self
        there: nn.Module = source.backbone
        for container in containers:
            there = getattr(there, container)
            if not hasattr(here, container):
                here.add_module(container, nn.Module().train(self.training))
            here = getattr(here, container)
            if here is there:
                return  # inside a module that this part holds as a whole
        value = source.constants[path] if path in source.constants else getattr(there, name)
        if isinstance(value, nn.Module):
            here.add_module(name, value)
        elif isinstance(value, nn.Parameter):
            here.register_parameter(name, value)
        else:
            # Plain tensor attributes become buffers too, so that they move with the part from device to device.
            here.register_buffer(name, value, persistent=path in source.state)


class Layers(NamedTuple):
    """What inference wants to know of an uncut network.

    `folds`: pairs of modules, a convolution's place and a batch norm's, of which the second alone reads the first in
    evaluation mode; what they are has still to be looked at. `head`: the path of the last linear layer.
    """

    folds: tuple[tuple[str, str], ...]
    head: str | None


def layers(backbone: nn.Module) -> Layers:
    """Read an uncut `backbone`, which gives logits. Raises `SettingError` on "architecture" like `cut`."""
    traced = trace_backbone(backbone)
    trace = traced.traces[False]
    return Layers(_folds(_graph(trace.nodes, trace.logits)), traced.head)


def _folds(graph: fx.Graph) -> tuple[tuple[str, str], ...]:
    calls = [node for node in graph.nodes if node.op == "call_module"]
    times = Counter(str(node.target) for node in calls)
    found = []
    for node in calls:
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        pair = (str(before.target), str(node.target))
        if all(times[path] == 1 for path in pair):
            found.append(pair)
    return tuple(found)


def cut(backbone: nn.Module, split_at: str) -> tuple[Part, Part]:
    """Cut `backbone` before its module `split_at`: (trunk, branch).

    The branch is that module and all that depends on it; the trunk is the rest. The two hold the backbone's own modules
    and tensors, not copies. `branch(trunk(images))` joins them again, and the union of their `state_dict()`s is the
    backbone's. The backbone keeps its modes.

    Raises `SettingError` on "split_at" where it cannot be cut there: there is no such module, it is called more
    than once, not exactly one tensor crosses, a side has no parameters, the sides share a tensor of the state, or the
    last linear layer comes before it. Raises `SettingError` on "architecture" where the backbone cannot be cut
    at all: fx cannot trace it, it returns something else than one tensor of logits, or it has no linear layer.
    """
    traced = trace_backbone(backbone)
    try:
        divisions = traced.divide(split_at)
    except CannotCutHereError as error:
        raise SettingError(
            "split_at",
            f"{type(backbone).__name__} cannot be cut at {split_at!r}: {error}",
            _hint(traced, split_at),
        ) from None
    unused = traced.unused_state([node for division in divisions.values() for node in division.nodes])
    unused_in_branch = traced.beside(unused, split_at, [node for mode in divisions for node in divisions[mode].branch])
    trunk_graphs = {mode: _graph(division.trunk, division.crossing) for mode, division in divisions.items()}
    branch_graphs = {
        mode: _graph([division.crossing, *division.branch], (division.logits, division.features))
        for mode, division in divisions.items()
    }
    trunk = Part(traced, trunk_graphs, [key for key in unused if key not in unused_in_branch])
    return trunk, Part(traced, branch_graphs, unused_in_branch, traced.head)


def whole(backbone: nn.Module) -> Part:
    """Turn the uncut `backbone` into a part: images [B, C, H, W] -> (logits [B, C], features [B, D]).

    It holds the backbone's own modules and tensors, not copies. Raises `SettingError` on "architecture" like
    `cut`.
    """
    traced = trace_backbone(backbone)
    graphs = {}
    for mode, trace in traced.traces.items():
        features = traced.features(trace.nodes)
        assert features is not None  # tracing checks that
        graphs[mode] = _graph(trace.nodes, (trace.logits, features))
    unused = traced.unused_state(node for trace in traced.traces.values() for node in trace.nodes)
    return Part(traced, graphs, unused, traced.head)


def cut_points(backbone: nn.Module) -> list[str]:
    """List the modules at which `backbone` can be cut, in the order in which they are called.

    Where several names mean the same cut ("layer3", "layer3.0"), the outermost. Raises `SettingError` on
    "architecture" like `cut`.
    """
    return list(points_of(trace_backbone(backbone)))


def _hint(traced: Traced, split_at: str) -> str:
    points = points_of(traced)
    meant = None if split_at in traced.traces[False].calls else nearest(split_at, points)
    return f"did you mean {meant!r}? {_listed(points)}" if meant else _listed(points)


def _listed(points: Collection[str]) -> str:
    if not points:
        return "it can be cut nowhere; train a group of whole networks instead"
    # Whole depths of nesting, as many as can be taken in at a glance.
    shown: set[str] = set()
    for depth in sorted({path.count(".") for path in points}):
        level = {path for path in points if path.count(".") == depth}
        if shown and len(shown | level) > _MOST_POINTS_IN_A_HINT:
            break
        shown |= level
    listed = f"it can be cut at {', '.join(path for path in points if path in shown)}"
    if len(shown) < len(points):
        listed += "; and at some modules inside these"
    return listed


def _graph(nodes: list[fx.Node], result: fx.Node | tuple[fx.Node, ...]) -> fx.Graph:
    """Copy `nodes` to a graph of their own; the first is its input, whatever it was before."""
    first, *rest = sorted(nodes, key=lambda node: node.op != "placeholder")
    graph = fx.Graph()
    copies = {first: graph.placeholder(first.name)}
    for node in rest:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[result] if isinstance(result, fx.Node) else tuple(copies[node] for node in result))
    return graph


def generated(network: nn.Module, graph: fx.Graph) -> Callable[[nn.Module, Tensor], Any]:
    """Write a `forward` that computes what `graph` says, for `network` and every copy of it."""
    forward: Callable[[nn.Module, Tensor], Any] = type(fx.GraphModule(network, graph)).forward
    return forward
