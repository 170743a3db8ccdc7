"""What `inference` is made of: which layers of a network can be one.

`folds` finds batch norms that the convolution before them can do. `fused` lets a convolution add the shortcut and
apply ReLU while it writes its result, which takes three passes over memory in most code; oneDNN does so on CPUs. The
steps of a network come from `split`, which traces it.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, fx, nn

from distilkit.fusion import overflow
from distilkit.fusion.convolution import available, convolved
from distilkit.split import Steps, generated

Forward = Callable[[nn.Module, Tensor], Any]
_written: "WeakKeyDictionary[Steps, dict[frozenset[str], tuple[Forward, fx.Graph] | None]]" = WeakKeyDictionary()


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


class Fused:
    """A network's `forward` in evaluation mode whose convolutions add and apply ReLU themselves.

    What it computes is what `plain` does, which computes instead where numbers could overflow (see `overflow`).
    """

    def __init__(self, forward: Forward, plain: Forward, graph: fx.Graph) -> None:
        self._forward, self._plain, self._graph = forward, plain, graph
        self._fits = False

    def weigh(self, network: nn.Module) -> None:
        """Look at the weights that `network` now has; to be called whenever they have changed."""
        self._fits = overflow.holds(self._graph, network)

    def __call__(self, network: nn.Module, x: Tensor) -> Any:
        """Compute the network's answer to `x`."""
        if self._fits:
            try:
                return self._forward(network, x)
            except overflow.TooLargeError:
                pass  # The one forward changes no tensor that the other reads.
        return self._plain(network, x)


def fused(network: nn.Module, steps: Steps, plain: Forward) -> Fused | None:
    """Write a faster `plain` for `network`, or None where there is nothing to fuse.

    `network`: a part or a backbone whose `steps` these are; an `nn.Identity` in it may stand for what was folded. It
    serves networks on CPUs that want no gradients.
    """
    if not available():
        return None
    graph = steps.graphs[False]
    convolutions = {path for path, module in _called(graph, network) if _is_plain(module, nn.Conv2d)}
    identities = {path for path, module in _called(graph, network) if _is_plain(module, nn.Identity)}
    relus = {path for path, module in _called(graph, network) if _is_plain(module, nn.ReLU)}
    key = frozenset([*convolutions, *(f"{path}?" for path in identities), *(f"{path}!" for path in relus)])
    known = _written.setdefault(steps, {})
    if key not in known:
        rewritten = _Rewriting(graph, convolutions, identities, relus).result()
        known[key] = None
        if rewritten is not None:
            rewritten = overflow.guarded(rewritten, network)
            known[key] = generated(network, rewritten), rewritten
    written = known[key]
    if written is None:
        return None
    result = Fused(written[0], plain, written[1])
    result.weigh(network)
    return result


def _called(graph: fx.Graph, network: nn.Module) -> list[tuple[str, nn.Module]]:
    paths = dict.fromkeys(str(node.target) for node in graph.nodes if node.op == "call_module")
    return [(path, network.get_submodule(path)) for path in paths]


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether this is the very class, with nothing attached that would want to see it called."""
    if type(module) is not kind or module._forward_hooks or module._forward_pre_hooks:
        return False
    return not isinstance(module, nn.Conv2d) or (module.padding_mode == "zeros" and not isinstance(module.padding, str))


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
        return node.op in ("call_method", "call_function") and node.target in overflow.RELU

    def _summand(self, total: fx.Node, convolution: fx.Node) -> fx.Node | None:
        """What is added to the convolution's result, if `total` adds two tensors and changes no third one."""
        if total.op not in ("call_method", "call_function") or total.target not in overflow.SUM:
            return None
        if len(total.args) != 2 or total.kwargs or not all(isinstance(each, fx.Node) for each in total.args):
            return None
        first, second = total.args
        assert isinstance(first, fx.Node)
        assert isinstance(second, fx.Node)
        if total.target in overflow.SUM_IN_PLACE and not (self._is_fresh(first) and _only_reader(first) is total):
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
