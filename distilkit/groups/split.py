"""Cuts any backbone into trunk and branch, each with its parameters under the backbone's own names.

`torch.fx` traces the backbone to a graph of calls; cutting at a module divides that graph. What this program knows of
fx is in this file. Graphs are never saved: weights under their original names are.

A backbone is traced twice, in training and in evaluation mode, because tracing freezes whatever its `forward` reads
from `self.training` (dropout as a function, stochastic depth, heads used in training only).
"""

import copy
import operator
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from distilkit.errors import SettingError, nearest
from distilkit.groups.counting import count_multiply_adds

_READS = ("call_module", "get_attr")  # nodes whose target is a path into the backbone
_MOST_POINTS_IN_A_HINT = 24
_LEAST_SHARE_OF_A_STAGE = 0.02
_SMALL_IMAGES = 64  # pixels on a side


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
        self, source: "_Traced", graphs: Mapping[bool, fx.Graph], unused: Iterable[str], head_path: str | None = None
    ) -> None:
        """`graphs`: by mode (True: training). `unused`: state of the backbone that no graph reads, for this part."""
        super().__init__()
        self.training = source.backbone.training
        self.head_path = head_path  # not `head`: backbones call their own so
        targets = {str(node.target): None for mode in graphs for node in graphs[mode].nodes if node.op in _READS}
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

    def _hold(self, source: "_Traced", path: str) -> None:
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
    """Read an uncut `backbone`, which gives logits. Raises `SettingError` on "model.architecture" like `cut`."""
    traced = _trace(backbone)
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

    Raises `SettingError` on "group.split_at" where it cannot be cut there: there is no such module, it is called more
    than once, not exactly one tensor crosses, a side has no parameters, the sides share a tensor of the state, or the
    last linear layer comes before it. Raises `SettingError` on "model.architecture" where the backbone cannot be cut
    at all: fx cannot trace it, it returns something else than one tensor of logits, or it has no linear layer.
    """
    traced = _trace(backbone)
    try:
        divisions = traced.divide(split_at)
    except _CannotCutHereError as error:
        raise SettingError(
            "group.split_at",
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

    It holds the backbone's own modules and tensors, not copies. Raises `SettingError` on "model.architecture" like
    `cut`.
    """
    traced = _trace(backbone)
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
    "model.architecture" like `cut`.
    """
    return list(_points(_trace(backbone)))


class CutPoint(NamedTuple):
    """A module at which a backbone can be cut, as seen on images of one size.

    `path`: the module. `share`: of the backbone's multiply-adds, those from there on, which a branch would repeat.
    `share_of_maps`: the same among those on maps and tokens, without the linear layers on vectors that classifiers are
    made of. `positions`: pixels or tokens of what crosses there; `positions_after`: of what the module makes of it;
    None for vectors. `has_parameters`: whether the module has any.
    """

    path: str
    share: float
    share_of_maps: float
    positions: int | None
    positions_after: int | None
    has_parameters: bool


def measured_points(backbone: nn.Module, images: Tensor) -> list[CutPoint]:
    """List the points of `cut_points` with what `images` [1, C, H, W] cost before and after each.

    Only shapes are computed, so that size costs no time and no memory; the images' values do not matter. Raises
    `SettingError` on "model.architecture" like `cut`.
    """
    traced = _trace(backbone)
    trace = traced.traces[False]
    outcomes = _outcomes(traced, trace, images)
    all_work = sum(outcome.work for outcome in outcomes.values()) or 1
    work_on_maps = sum(outcome.work for outcome in outcomes.values() if outcome.positions is not None) or 1
    points = []
    for path, division in _points(traced).items():
        branch = [outcomes[node] for node in division.branch]
        results = [node for node in trace.calls[path][0] if node in outcomes]
        points.append(
            CutPoint(
                path=path,
                share=sum(outcome.work for outcome in branch) / all_work,
                share_of_maps=sum(o.work for o in branch if o.positions is not None) / work_on_maps,
                positions=outcomes[division.crossing].positions,
                positions_after=outcomes[results[-1]].positions,
                has_parameters=next(backbone.get_submodule(path).parameters(), None) is not None,
            )
        )
    return points


def default_point(points: Sequence[CutPoint], images: Tensor) -> str:
    """Find where to cut a backbone of which nothing is known but its `measured_points` on `images` [1, C, H, W].

    For small images (64 pixels on a side or fewer) its last stage is each student's own, for larger ones its last two.
    A stage begins where maps shrink: at the outermost module that makes fewer pixels of what it gets than any before
    it and in which that happens once, or behind that module if it has no parameters (pooling is then done once, in the
    trunk). What holds less than
    2 % of the multiply-adds on maps and tokens is no stage of its own but belongs to the one before it; so do the
    linear layers on vectors at the end. A backbone without that many beginnings of stages (ViT) is taken for four
    stages of equal cost: it is cut where nearest to a quarter, or a half, of the multiply-adds are still to come.

    Raises `SettingError` on "model.architecture" where there are no points.
    """
    if not points:
        raise SettingError(
            "model.architecture",
            "the architecture can be cut nowhere, so that students cannot share a trunk",
            'train whole networks instead: group.kind = "networks"',
        )
    own_stages = 1 if max(images.shape[2:]) <= _SMALL_IMAGES else 2
    stages = _stages(points)
    if len(stages) >= own_stages:
        return stages[-own_stages].path
    return min(points, key=lambda point: abs(point.share_of_maps - own_stages / 4)).path


def _stages(points: Sequence[CutPoint]) -> list[CutPoint]:
    """Pick the points at which stages begin, the first stage's own beginning not among them."""
    beginnings: list[CutPoint] = []
    fewest, shrunk = None, set()
    for index, point in enumerate(points):
        if point.positions is None:
            continue
        fewest = point.positions if fewest is None else min(fewest, point.positions)
        shrinks = point.positions_after is not None and point.positions_after < point.positions == fewest
        # Of nested modules that shrink the same maps the first is the outermost; windows of attention look larger than
        # the maps that they are cut from, and so are no beginnings.
        if not shrinks or point.positions in shrunk or _holds_stages(point, points):
            continue
        shrunk.add(point.positions)
        behind = (other for other in points[index + 1 :] if not other.path.startswith(f"{point.path}."))
        begins = point if point.has_parameters else next(behind, None)
        if begins is not None and begins.share_of_maps <= 1 - _LEAST_SHARE_OF_A_STAGE:
            beginnings.append(begins)
    stages: list[CutPoint] = []
    end = 0.0
    for point in reversed(beginnings):
        if point.share_of_maps - end >= _LEAST_SHARE_OF_A_STAGE:
            stages.insert(0, point)
            end = point.share_of_maps
    return stages


def _holds_stages(point: CutPoint, points: Sequence[CutPoint]) -> bool:
    """Tell whether maps shrink again inside the module: then it is a container of stages."""
    return any(
        other.path.startswith(f"{point.path}.")
        and (other.positions_after or 0) < (other.positions or 0) < point.positions
        for other in points
        if point.positions is not None
    )


class _CannotCutHereError(Exception):
    """Its message completes the sentence "it cannot be cut at X: ..."."""


@dataclass(frozen=True)
class _Trace:
    """A backbone in one mode. `nodes`: those that lead to the logits, in order. `calls`: each module's, by path."""

    nodes: list[fx.Node]
    calls: dict[str, list[list[fx.Node]]]

    @property
    def logits(self) -> fx.Node:
        return self.nodes[-1]


@dataclass(frozen=True)
class _Division:
    """A trace in two: `crossing` is the trunk's last node, what the branch gets."""

    trunk: list[fx.Node]
    branch: list[fx.Node]
    crossing: fx.Node
    features: fx.Node
    logits: fx.Node

    @property
    def nodes(self) -> list[fx.Node]:
        return [*self.trunk, *self.branch]


@dataclass(frozen=True)
class _Traced:
    """A backbone and what tracing it found.

    `traces`: by mode (True: training). `constants`: tensors that its `forward` makes from nothing. `state`: its
    `state_dict()`, the tensors themselves. `keys_by_path`: the keys in that at and below every path.
    """

    backbone: nn.Module
    traces: dict[bool, _Trace]
    constants: dict[str, Tensor]
    state: dict[str, Tensor]
    keys_by_path: dict[str, list[str]]

    def divide(self, split_at: str) -> dict[bool, _Division]:
        return {mode: self._divide(trace, split_at) for mode, trace in self.traces.items()}

    def _divide(self, trace: _Trace, split_at: str) -> _Division:
        alive = set(trace.nodes)
        calls = trace.calls.get(split_at, [])
        if not calls:
            exists = any(name == split_at for name, _ in self.backbone.named_modules(remove_duplicate=False))
            raise _CannotCutHereError("it never calls it" if exists else "it has no such module")
        if len(calls) > 1:
            raise _CannotCutHereError(f"it calls it {len(calls)} times, so that this is not one place")
        branch = alive.intersection(calls[0])
        if not branch:
            raise _CannotCutHereError("what it computes there does not lead to the logits")
        from_image: set[fx.Node] = set()
        for node in trace.nodes:
            if node.op == "placeholder" or not from_image.isdisjoint(node.all_input_nodes):
                from_image.add(node)
            if not branch.isdisjoint(node.all_input_nodes):
                branch.add(node)
        # What is read or computed from parameters alone goes to the side that needs it.
        for node in reversed(trace.nodes):
            if node not in from_image and alive.intersection(node.users) <= branch:
                branch.add(node)
        crossing = [node for node in trace.nodes if node not in branch and not branch.isdisjoint(node.users)]
        if not crossing:
            raise _CannotCutHereError("nothing of the image gets there")
        if len(crossing) > 1:
            raise _CannotCutHereError(
                f"{len(crossing)} tensors cross there ({', '.join(node.name for node in crossing)}), where one may"
            )
        nodes_of_branch = [node for node in trace.nodes if node in branch]
        features = self.features(nodes_of_branch)
        if features is None:
            raise _CannotCutHereError("the last linear layer comes before it")
        nodes_of_trunk = [node for node in trace.nodes if node not in branch]
        self._check_state(nodes_of_trunk, nodes_of_branch)
        return _Division(nodes_of_trunk, nodes_of_branch, crossing[0], features, trace.logits)

    def _check_state(self, nodes_of_trunk: list[fx.Node], nodes_of_branch: list[fx.Node]) -> None:
        # By the tensors themselves and not by their names, which tied weights have several of.
        trunk = {id(self.state[key]) for key in self.keys_of(nodes_of_trunk)}
        branch = {id(self.state[key]): key for key in self.keys_of(nodes_of_branch)}
        parameters = {id(parameter) for parameter in self.backbone.parameters()}
        if parameters.isdisjoint(trunk):
            raise _CannotCutHereError("nothing with parameters comes before it, so that nothing is left to share")
        if parameters.isdisjoint(branch):
            raise _CannotCutHereError("nothing from there on has parameters, so that nothing is a student's own")
        both = [key for tensor, key in branch.items() if tensor in trunk]
        if both:
            raise _CannotCutHereError(f"{both[0]!r} is used on both sides")

    @property
    def head(self) -> str:
        """Name the last linear layer."""
        node = self._last_linear(self.traces[False].nodes)
        assert node is not None  # tracing checks that
        return str(node.target)

    def features(self, nodes: list[fx.Node]) -> fx.Node | None:
        """Find the input of the last linear layer among `nodes`."""
        node = self._last_linear(nodes)
        return None if node is None else node.all_input_nodes[0]

    def _last_linear(self, nodes: list[fx.Node]) -> fx.Node | None:
        for node in reversed(nodes):
            if node.op == "call_module" and isinstance(self.backbone.get_submodule(str(node.target)), nn.Linear):
                return node
        return None

    def keys_of(self, nodes: Iterable[fx.Node]) -> set[str]:
        """Name the state that `nodes` read or write."""
        targets = {str(node.target) for node in nodes if node.op in _READS}
        return {key for target in targets for key in self.keys_by_path.get(target, ())}

    def unused_state(self, nodes: Iterable[fx.Node]) -> list[str]:
        """Name the state that `nodes` leave alone; a strict load wants it all the same."""
        used = self.keys_of(nodes)
        return [key for key in self.state if key not in used]

    def beside(self, unused: list[str], split_at: str, branch: Iterable[fx.Node]) -> list[str]:
        """Pick from `unused` what goes with the branch: other names of its tensors, and the rest of its modules."""
        keys = self.keys_of(branch)
        tensors = {id(self.state[key]) for key in keys}
        modules = {split_at, *(_owner(key) for key in keys if _owner(key))}
        below = {key for module in modules for key in self.keys_by_path.get(module, ())}
        return [key for key in unused if key in below or id(self.state[key]) in tensors]


class _Stand(fx.Proxy):
    """Stands for a tensor while tracing; unlike fx's own it knows that `x += y` writes into x."""


def _in_place(name: str) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    def write(stand: fx.Proxy, other: Any) -> fx.Proxy:
        return stand.tracer.create_proxy("call_function", getattr(operator, name), (stand, other), {})

    return write


for _name in ("iadd", "isub", "imul", "itruediv", "ipow", "ifloordiv", "imod"):
    setattr(_Stand, f"__{_name}__", _in_place(_name))


class _Tracer(fx.Tracer):
    """Remembers which nodes each call of a module made, and takes the first argument of `forward` alone."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, list[list[fx.Node]]] = {}

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Stand for what `node` computes."""
        return _Stand(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Call whole, as it stands, what has nothing inside, and every batch norm.

        Others' own norms and activations then need not be traceable. Batch norms with an activation inside count their
        batches by an in-place addition whose result nobody reads; traced, it would be taken for dead.
        """
        inside = next(m.children(), None)
        batch_norm = isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
        return inside is None or batch_norm or super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Hand images to `forward` and leave everything else at its default, as whoever calls the backbone does."""
        return root_fn, [self.root, self.create_proxy("placeholder", "images", (), {})]

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call `m` and note the nodes that come of it."""
        calls = self.calls.setdefault(self.path_of_module(m), [])
        before = len(self.graph.nodes)
        result = super().call_module(m, forward, args, kwargs)
        calls.append(list(self.graph.nodes)[before:])
        return result


def _trace(backbone: nn.Module) -> _Traced:
    modes = {module: module.training for module in backbone.modules()}
    own = set(vars(backbone))
    try:
        traces = {mode: _trace_in_mode(backbone, mode) for mode in (True, False)}
    finally:
        for module, mode in modes.items():
            module.training = mode
        # Tensors that `forward` makes from nothing; fx leaves them on the backbone.
        constants = {name: vars(backbone).pop(name) for name in set(vars(backbone)) - own}
    state = backbone.state_dict(keep_vars=True)
    keys_by_path: dict[str, list[str]] = {}
    for key in state:
        parts = key.split(".")
        for count in range(1, len(parts) + 1):
            keys_by_path.setdefault(".".join(parts[:count]), []).append(key)
    traced = _Traced(backbone, traces, constants, state, keys_by_path)
    if any(traced.features(trace.nodes) is None for trace in traces.values()):
        raise SettingError(
            "model.architecture",
            f"{type(backbone).__name__} has no linear layer that leads to its logits, so that there are no features "
            "before a classifier",
            "choose an architecture that ends in a linear layer",
        )
    return traced


def _trace_in_mode(backbone: nn.Module, training: bool) -> _Trace:
    backbone.train(training)
    tracer = _Tracer()
    name = type(backbone).__name__
    try:
        graph = tracer.trace(backbone)
    except Exception as error:
        # Any kind of exception: the backbone's own code runs here, on stand-ins for tensors.
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise SettingError(
            "model.architecture",
            f"{name} cannot be taken apart, because torch.fx cannot trace it: {reason}",
            "its forward must not depend on the values of tensors; choose another architecture",
        ) from error
    (output,) = graph.find_nodes(op="output")
    logits = output.args[0]
    # A named tuple comes as a node too, one that calls the tuple's class.
    if not isinstance(logits, fx.Node) or isinstance(logits.target, type):
        raise SettingError(
            "model.architecture",
            f"{name} returns something else than one tensor of logits in {'training' if training else 'evaluation'}",
            "choose it without auxiliary heads",
        )
    # Only what leads to the logits: DenseNet leaves nodes that nothing reads, and ViT asserts that belong to neither
    # side (whoever builds a group runs the stock network on images of the same size, asserts and all).
    alive = {logits}
    for node in reversed(graph.nodes):
        if node in alive:
            alive.update(node.all_input_nodes)
    return _Trace([node for node in graph.nodes if node in alive], tracer.calls)


def _points(traced: _Traced) -> dict[str, _Division]:
    """Every module at which it can be cut, in the order of their calls, and how that divides the evaluation's trace."""
    points: dict[frozenset[fx.Node], tuple[str, _Division]] = {}
    for path in traced.traces[False].calls:
        try:
            division = traced.divide(path)[False]
        except _CannotCutHereError:
            continue
        # A module is called before those inside it, so the outermost of equal cuts comes first.
        points.setdefault(frozenset(division.branch), (path, division))
    return dict(points.values())


class _Outcome(NamedTuple):
    """What a node computes: `work` in multiply-adds, and the pixels or tokens of its result, None for vectors."""

    work: int
    positions: int | None


def _outcomes(traced: _Traced, trace: _Trace, images: Tensor) -> dict[fx.Node, _Outcome]:
    """Run the nodes of a trace on the shapes of `images`."""
    # Wanted where costs are asked for, which most that imports this file does not do.
    from torch._subclasses.fake_tensor import FakeTensorMode

    # A copy, because a module may keep what it computes, and that is no real tensor here.
    backbone = copy.deepcopy(traced.backbone).eval()
    values: dict[fx.Node, Any] = {}
    outcomes: dict[fx.Node, _Outcome] = {}
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), count_multiply_adds() as counted:
        for node in trace.nodes:
            before = counted.total()
            value = values[node] = _computed(node, traced, backbone, values, images)
            # `nn.MultiheadAttention` gives tokens and weights.
            first = value[0] if isinstance(value, tuple) and value else value
            positions = _positions(first) if isinstance(first, Tensor) else None
            outcomes[node] = _Outcome(counted.total() - before, positions)
    return outcomes


def _computed(
    node: fx.Node, traced: _Traced, backbone: nn.Module, values: Mapping[fx.Node, Any], images: Tensor
) -> Any:
    arguments = fx.node.map_arg(node.args, values.__getitem__)
    keywords = fx.node.map_arg(node.kwargs, values.__getitem__)
    path = str(node.target)
    if node.op == "placeholder":
        return torch.empty_like(images)
    if node.op == "get_attr":
        if path in traced.constants:
            return traced.constants[path]
        owner, _, name = path.rpartition(".")
        return getattr(backbone.get_submodule(owner), name)
    if node.op == "call_module":
        return backbone.get_submodule(path)(*arguments, **keywords)
    if node.op == "call_method":
        first, *rest = arguments
        return getattr(first, path)(*rest, **keywords)
    assert callable(node.target)
    return node.target(*arguments, **keywords)


def _positions(value: Tensor) -> int | None:
    """Count the pixels of maps [B, C, H, W] or [B, H, W, C], or the tokens of [B, N, C]; None for vectors."""
    if value.dim() < 3:
        return None
    return value.shape[1:].numel() // channels(value)


def channels(value: Tensor) -> int:
    """Count the channels of maps [B, C, H, W] or [B, H, W, C], tokens [B, N, C] or vectors [B, C].

    The images are square, so of four dimensions the two that are equal are the map's; where all three are, the second
    is taken for the channels, as in nearly every network.
    """
    if value.dim() == 4:
        _, first, second, third = value.shape
        return third if first == second != third else first
    return value.shape[-1]


def _hint(traced: _Traced, split_at: str) -> str:
    points = _points(traced)
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


def _owner(key: str) -> str:
    return key.rpartition(".")[0]
