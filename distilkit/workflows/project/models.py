"""`distilkit models`: which architectures there are, what they cost, and where they can be cut."""

from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from distilkit.analysis.cost import multiply_adds_by_module, parameter_count
from distilkit.errors import UserError, did_you_mean
from distilkit.groups.split.cut import whole
from distilkit.groups.split.default_point import CutPoint, default_point, measured_points
from distilkit.models import external, registry
from distilkit.observer import Observer

MOST_WITH_FIGURES = 100
_CONTAINER = 0.8  # a module with more of the work than this is no stage but holds the stages


def list_models(
    library: str | None, pattern: str, *, classes: int, size: int | None, channels: int, observer: Observer
) -> dict[str, Any]:
    """Every architecture of ours, or of a library, whose name matches `pattern` (with `*` and `?`).

    `size`: of the images, in pixels on a side; None for the size that each was made for. `flops` in the papers'
    convention; `split_at`: the default; `problem`: why there is none of these. More than `MOST_WITH_FIGURES` are given
    by their names alone (`figures` is false). Raises `UserError` when nothing matches, or there is no such library.
    """
    names = external.names(library) if library else registry.names()
    own = [name.partition(":")[2] or name for name in names]
    matching = [name for name, short in zip(names, own, strict=True) if fnmatchcase(short, pattern)]
    if not matching:
        raise UserError(
            f"no architecture of {library or 'distilkit'} matches {pattern!r}",
            did_you_mean(pattern.strip("*"), own) or "patterns take * and ?: --filter 'resnet*'",
        )
    figures = len(matching) <= MOST_WITH_FIGURES
    rows = []
    for index, name in enumerate(matching):
        row: dict[str, Any] = {"name": name}
        if figures:
            row |= _figures(name, classes, size or registry.usual_size(name), channels)
            observer.progress("architectures looked at", index + 1, len(matching))
        rows.append(row)
    return {"library": library, "classes": classes, "channels": channels, "figures": figures, "models": rows}


def show_model(name: str, *, classes: int, size: int | None, channels: int) -> dict[str, Any]:
    """The stages of an architecture, with what each costs and where it can be cut.

    `stages`: the modules between which the cuts lie, in the order in which the network has them, with their share of
    the FLOPs; `branch_share`: of the FLOPs that every branch repeats if it is cut there, null where it cannot be.
    `cut_points`: all of them, those inside stages too. `classifier`: the last linear layer, whose input is the
    features. Raises `UserError` when there is no such architecture, or it cannot take these images.
    """
    size = size or registry.usual_size(name)
    network, images = _network(name, classes, size, channels), _shape(channels, size)
    points, split_at, problem = _cuts(name, network, images)
    by_module = multiply_adds_by_module(network, images)
    total = by_module[""]
    shares = {point.path: point.share for point in points}
    stages = [
        {
            "module": path,
            "kind": type(module).__name__,
            "parameters": parameter_count(module),
            "flops": 2 * by_module.get(path, 0),
            "share": by_module.get(path, 0) / total if total else 0.0,
            "branch_share": shares.get(path),
            "default": path == split_at,
        }
        for path, module in _stages(network, by_module, split_at)
    ]
    return {
        "name": name,
        "classes": classes,
        "channels": channels,
        "size": size,
        "parameters": parameter_count(network),
        "flops": 2 * total,
        "split_at": split_at,
        "classifier": _classifier(network),
        "problem": problem,
        "stages": stages,
        "cut_points": [{"module": point.path, "branch_share": point.share} for point in points],
    }


def _figures(name: str, classes: int, size: int, channels: int) -> dict[str, Any]:
    row: dict[str, Any] = {"size": size, "parameters": None, "flops": None, "split_at": None, "problem": None}
    try:
        network, images = _network(name, classes, size, channels), _shape(channels, size)
        row |= {
            "parameters": parameter_count(network),
            "flops": 2 * multiply_adds_by_module(network, images)[""],
        }
        _, row["split_at"], row["problem"] = _cuts(name, network, images)
    except UserError as error:
        row["problem"] = error.problem
    return row


def _cuts(name: str, network: nn.Module, images: Tensor) -> tuple[list[CutPoint], str | None, str | None]:
    """Where it can be cut, its default, and why it cannot be cut at all."""
    try:
        points = measured_points(network, images)
        return points, registry.default_split(name) or default_point(points, images), None
    except UserError as error:
        return [], None, error.problem


def _network(name: str, classes: int, size: int, channels: int) -> nn.Module:
    """Build a network whose weights take no memory, and see that it takes these images."""
    from accelerate import init_empty_weights

    with init_empty_weights(), torch.random.fork_rng(devices=[]):
        network = registry.create(name, classes, channels)
    network.to("meta").eval()
    try:
        with torch.no_grad():
            network(_shape(channels, size))
    except Exception as error:
        # Any kind of exception: each architecture has its own way to say that images are too small for it.
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(
            f"{name} cannot take images of {size}x{size} pixels with {channels} channels: {reason}",
            "choose another --size or --channels",
        ) from error
    return network


def _classifier(network: nn.Module) -> str | None:
    try:
        return whole(network).head_path
    except UserError:
        return None


def _stages(network: nn.Module, by_module: dict[str, int], split_at: str | None) -> list[tuple[str, nn.Module]]:
    """Pick the modules to show: containers of the default cut, and of nearly all the work, by what they hold."""
    shown = []
    pending = list(network.named_children())[::-1]
    while pending:
        path, module = pending.pop()
        inside = [(f"{path}.{name}", child) for name, child in module.named_children()]
        holds_cut = split_at is not None and split_at.startswith(f"{path}.")
        is_container = by_module.get(path, 0) > _CONTAINER * by_module[""] and path != split_at
        if inside and (holds_cut or is_container):
            pending += reversed(inside)
        elif by_module.get(path) or parameter_count(module) or path == split_at:
            shown.append((path, module))
    return shown


def _shape(channels: int, size: int) -> Tensor:
    return torch.zeros(1, channels, size, size, device="meta")
