"""Where to cut a backbone of which nothing is known but what its modules cost."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from distilkit.errors import SettingError
from distilkit.groups.counting import count_multiply_adds
from distilkit.groups.split.trace import Trace, Traced, points_of, trace_backbone

_LEAST_SHARE_OF_A_STAGE = 0.02
_SMALL_IMAGES = 64  # pixels on a side


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
    `SettingError` on "architecture" like `cut`.
    """
    traced = trace_backbone(backbone)
    trace = traced.traces[False]
    outcomes = _outcomes(traced, trace, images)
    all_work = sum(outcome.work for outcome in outcomes.values()) or 1
    work_on_maps = sum(outcome.work for outcome in outcomes.values() if outcome.positions is not None) or 1
    points = []
    for path, division in points_of(traced).items():
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

    Raises `SettingError` on "architecture" where there are no points.
    """
    if not points:
        raise SettingError(
            "architecture",
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


class _Outcome(NamedTuple):
    """What a node computes: `work` in multiply-adds, and the pixels or tokens of its result, None for vectors."""

    work: int
    positions: int | None


def _outcomes(traced: Traced, trace: Trace, images: Tensor) -> dict[fx.Node, _Outcome]:
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


def _computed(node: fx.Node, traced: Traced, backbone: nn.Module, values: Mapping[fx.Node, Any], images: Tensor) -> Any:
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
