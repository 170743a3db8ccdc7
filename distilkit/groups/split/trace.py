"""Traces a backbone with torch.fx, in training and in evaluation mode, and divides the graph of its calls.

What this program knows of fx is in this package. A backbone is traced twice because tracing freezes whatever its
`forward` reads from `self.training` (dropout as a function, stochastic depth, heads used in training only).
"""

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from distilkit.errors import SettingError

READS = ("call_module", "get_attr")  # nodes whose target is a path into the backbone


class CannotCutHereError(Exception):
    """Its message completes the sentence "it cannot be cut at X: ..."."""


@dataclass(frozen=True)
class Trace:
    """A backbone in one mode. `nodes`: those that lead to the logits, in order. `calls`: each module's, by path."""

    nodes: list[fx.Node]
    calls: dict[str, list[list[fx.Node]]]

    @property
    def logits(self) -> fx.Node:
        """The node of the logits."""
        return self.nodes[-1]


@dataclass(frozen=True)
class Division:
    """A trace in two: `crossing` is the trunk's last node, what the branch gets."""

    trunk: list[fx.Node]
    branch: list[fx.Node]
    crossing: fx.Node
    features: fx.Node
    logits: fx.Node

    @property
    def nodes(self) -> list[fx.Node]:
        """The nodes of both sides."""
        return [*self.trunk, *self.branch]


@dataclass(frozen=True)
class Traced:
    """A backbone and what tracing it found.

    `traces`: by mode (True: training). `constants`: tensors that its `forward` makes from nothing. `state`: its
    `state_dict()`, the tensors themselves. `keys_by_path`: the keys in that at and below every path.
    """

    backbone: nn.Module
    traces: dict[bool, Trace]
    constants: dict[str, Tensor]
    state: dict[str, Tensor]
    keys_by_path: dict[str, list[str]]

    def divide(self, split_at: str) -> dict[bool, Division]:
        """Divide the graph of each mode before the module `split_at`. Raises `CannotCutHereError`."""
        return {mode: self._divide(trace, split_at) for mode, trace in self.traces.items()}

    def _divide(self, trace: Trace, split_at: str) -> Division:
        alive = set(trace.nodes)
        calls = trace.calls.get(split_at, [])
        if not calls:
            exists = any(name == split_at for name, _ in self.backbone.named_modules(remove_duplicate=False))
            raise CannotCutHereError("it never calls it" if exists else "it has no such module")
        if len(calls) > 1:
            raise CannotCutHereError(f"it calls it {len(calls)} times, so that this is not one place")
        branch = alive.intersection(calls[0])
        if not branch:
            raise CannotCutHereError("what it computes there does not lead to the logits")
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
            raise CannotCutHereError("nothing of the image gets there")
        if len(crossing) > 1:
            raise CannotCutHereError(
                f"{len(crossing)} tensors cross there ({', '.join(node.name for node in crossing)}), where one may"
            )
        nodes_of_branch = [node for node in trace.nodes if node in branch]
        features = self.features(nodes_of_branch)
        if features is None:
            raise CannotCutHereError("the last linear layer comes before it")
        nodes_of_trunk = [node for node in trace.nodes if node not in branch]
        self._check_state(nodes_of_trunk, nodes_of_branch)
        return Division(nodes_of_trunk, nodes_of_branch, crossing[0], features, trace.logits)

    def _check_state(self, nodes_of_trunk: list[fx.Node], nodes_of_branch: list[fx.Node]) -> None:
        # By the tensors themselves and not by their names, which tied weights have several of.
        trunk = {id(self.state[key]) for key in self.keys_of(nodes_of_trunk)}
        branch = {id(self.state[key]): key for key in self.keys_of(nodes_of_branch)}
        parameters = {id(parameter) for parameter in self.backbone.parameters()}
        if parameters.isdisjoint(trunk):
            raise CannotCutHereError("nothing with parameters comes before it, so that nothing is left to share")
        if parameters.isdisjoint(branch):
            raise CannotCutHereError("nothing from there on has parameters, so that nothing is a student's own")
        both = [key for tensor, key in branch.items() if tensor in trunk]
        if both:
            raise CannotCutHereError(f"{both[0]!r} is used on both sides")

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
        targets = {str(node.target) for node in nodes if node.op in READS}
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


def trace_backbone(backbone: nn.Module) -> Traced:
    """Trace a backbone in both modes, and leave it as it was. Raises `SettingError` on "architecture"."""
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
    traced = Traced(backbone, traces, constants, state, keys_by_path)
    if any(traced.features(trace.nodes) is None for trace in traces.values()):
        raise SettingError(
            "architecture",
            f"{type(backbone).__name__} has no linear layer that leads to its logits, so that there are no features "
            "before a classifier",
            "choose an architecture that ends in a linear layer",
        )
    return traced


def _trace_in_mode(backbone: nn.Module, training: bool) -> Trace:
    backbone.train(training)
    tracer = _Tracer()
    name = type(backbone).__name__
    try:
        graph = tracer.trace(backbone)
    except Exception as error:
        # Any kind of exception: the backbone's own code runs here, on stand-ins for tensors.
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise SettingError(
            "architecture",
            f"{name} cannot be taken apart, because torch.fx cannot trace it: {reason}",
            "its forward must not depend on the values of tensors; choose another architecture",
        ) from error
    (output,) = graph.find_nodes(op="output")
    logits = output.args[0]
    # A named tuple comes as a node too, one that calls the tuple's class.
    if not isinstance(logits, fx.Node) or isinstance(logits.target, type):
        raise SettingError(
            "architecture",
            f"{name} returns something else than one tensor of logits in {'training' if training else 'evaluation'}",
            "choose it without auxiliary heads",
        )
    # Only what leads to the logits: DenseNet leaves nodes that nothing reads, and ViT asserts that belong to neither
    # side (whoever builds a group runs the stock network on images of the same size, asserts and all).
    alive = {logits}
    for node in reversed(graph.nodes):
        if node in alive:
            alive.update(node.all_input_nodes)
    return Trace([node for node in graph.nodes if node in alive], tracer.calls)


def points_of(traced: Traced) -> dict[str, Division]:
    """Every module at which it can be cut, in the order of their calls, and how that divides the evaluation's trace."""
    points: dict[frozenset[fx.Node], tuple[str, Division]] = {}
    for path in traced.traces[False].calls:
        try:
            division = traced.divide(path)[False]
        except CannotCutHereError:
            continue
        # A module is called before those inside it, so the outermost of equal cuts comes first.
        points.setdefault(frozenset(division.branch), (path, division))
    return dict(points.values())


def _owner(key: str) -> str:
    return key.rpartition(".")[0]
