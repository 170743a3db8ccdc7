"""How flat an optimum is: the error at theta(d, v) = theta + d v (Lan et al. 2018, ONE, section 4.5).

v is a random direction in the space of all trainable parameters and d the distance along it. Batch norm's running
statistics are no parameters: they stay as they are ("frozen", as in the paper) or are measured anew at every d
("recomputed"). With frozen statistics much of the rise that one sees comes from statistics gone stale and not from the
loss's curvature, so a report says which it was.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distilkit.analysis import metrics
from distilkit.errors import UserError
from distilkit.groups.inference import Inference, Precision, over_images
from distilkit.randomness import generator

DirectionKind = Literal["unit", "filter-normalised"]

Batches = Iterable[tuple[Tensor, Tensor]]
"""Gone through again and again: images [B, C, H, W] on the module's device, with their labels [B]."""


@dataclass(frozen=True)
class CurvePoint:
    """The network at one distance: `top1_error` in percent, `cross_entropy` in nats, mean over images.

    Images with a logit that is not finite count as errors, and then `cross_entropy` is infinite.
    """

    magnitude: float
    top1_error: float
    cross_entropy: float


def directions(module: nn.Module, count: int, seed: int, kind: DirectionKind = "unit") -> list[Tensor]:
    """Draw `count` directions over all trainable parameters of `module`, each float32 [P] on the CPU.

    P counts the trainable parameters in the order of `module.parameters()`. Direction i depends on (seed, i) and
    nothing else, so asking for more directions keeps the first ones.

    "unit": a Gaussian vector divided by its length, hence uniform on the unit sphere; a distance along it is a distance
    in parameter space (ONE, section 4.5).

    "filter-normalised": each filter of the Gaussian vector (a slice along the first dimension of a parameter with two
    dimensions or more) is rescaled to the norm of the filter of `module` in the same place; parameters with one
    dimension or none (biases, batch norm) do not move (Li et al. 2018, "Visualizing the loss landscape of neural nets",
    section 4). Distance 0.1 along it then means 10 % of every filter's norm, and networks that differ only by a
    rescaling of their layers have the same curve.

    Raises `ValueError` if nothing is trainable.
    """
    parameters = _trainable(module)
    if not parameters:
        raise ValueError("the network has no trainable parameter to move")
    return [_direction(parameters, seed, i, kind) for i in range(count)]


def _direction(parameters: list[nn.Parameter], seed: int, index: int, kind: DirectionKind) -> Tensor:
    size = sum(parameter.numel() for parameter in parameters)
    gaussian = torch.randn(size, generator=generator(seed, "direction", index))
    if kind == "unit":
        unit: Tensor = gaussian / torch.linalg.vector_norm(gaussian, dtype=torch.float64).float()
        return unit
    parts = [
        _with_norms_of(parameter, part) if parameter.ndim > 1 else torch.zeros_like(part)
        for parameter, part in zip(parameters, _parts(gaussian, parameters), strict=True)
    ]
    return torch.cat([part.flatten() for part in parts])


def _with_norms_of(parameter: nn.Parameter, part: Tensor) -> Tensor:
    filters = part.flatten(1)
    wanted = torch.linalg.vector_norm(parameter.detach().cpu().float().flatten(1), dim=1, keepdim=True)
    scaled: Tensor = filters * (wanted / torch.linalg.vector_norm(filters, dim=1, keepdim=True))
    return scaled


def _parts(direction: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    pieces = torch.split(direction, [parameter.numel() for parameter in parameters])
    return [piece.view(parameter.shape) for piece, parameter in zip(pieces, parameters, strict=True)]


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


@contextmanager
def perturbed(module: nn.Module, direction: Tensor, distance: float) -> Iterator[None]:
    """Inside the block the trainable parameters are theta + `distance` x `direction`; afterwards theta, bit for bit.

    theta is put back from a copy, whatever happens inside the block: subtracting would leave rounding errors behind.
    At distance 0 nothing is touched, not even the sign of a zero. Raises `ValueError` if `direction` is not [P].
    """
    parameters = _trainable(module)
    size = sum(parameter.numel() for parameter in parameters)
    if direction.shape != (size,):
        raise ValueError(f"a direction of shape {list(direction.shape)} for {size} trainable parameters")
    if distance == 0:
        yield
        return
    saved = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter, part in zip(parameters, _parts(direction, parameters), strict=True):
                parameter.add_(part.to(parameter), alpha=distance)
        yield
    finally:
        with torch.no_grad():
            for parameter, original in zip(parameters, saved, strict=True):
                parameter.copy_(original)


def magnitudes(max_distance: float, steps: int, must_include: Iterable[float] = ()) -> list[float]:
    """Distances at which to measure: 0, then `steps` equal steps to `max_distance`, and those of `must_include`.

    Sorted and distinct. A grid value that differs from one of `must_include` by rounding alone gives way to it, so
    that the caller finds the distance that was asked for. Raises `UserError` for distances that cannot be measured.
    """
    wanted = sorted(set(must_include))
    if not (math.isfinite(max_distance) and max_distance > 0):
        raise UserError(f"the largest distance must be a positive number, not {max_distance:g}")
    if steps < 1:
        raise UserError(f"the number of steps must be 1 or more, not {steps}")
    if invalid := [distance for distance in wanted if not (math.isfinite(distance) and distance >= 0)]:
        raise UserError(f"a distance must be zero or a positive number, not {invalid[0]:g}")
    grid = [max_distance * step / steps for step in range(steps + 1)]
    slack = 1e-9 * max_distance
    return sorted(wanted + [d for d in grid if all(abs(d - other) > slack for other in wanted)])


@contextmanager
def statistics_restored(module: nn.Module) -> Iterator[None]:
    """Whatever happens to batch norm's running statistics inside the block is undone on leaving, bit for bit."""
    buffers = [buffer for norm in _tracking_norms(module) for buffer in norm.buffers(recurse=False)]
    saved = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, original in zip(buffers, saved, strict=True):
                buffer.copy_(original)


def recompute_statistics(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace batch norm's running statistics by those of `batches` of images [B, C, H, W].

    Mean of the batches' means and unbiased variances, each weighed by its number of images (for batches of one size
    this is `momentum=None`). Only batch norm is in training mode, so dropout draws nothing; modes and momenta are put
    back afterwards. Without batch norm nothing is done. Raises `ValueError` if there are no images.
    """
    norms = _tracking_norms(module)
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    with _modes_restored(module), torch.no_grad():
        module.eval()
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
        seen = 0
        try:
            for images in batches:
                seen += len(images)
                for norm in norms:
                    # The first batch has momentum 1 and so replaces what is there.
                    norm.momentum = len(images) / seen
                module(images)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    if not seen:
        raise ValueError("there are no images to recompute batch norm's statistics from")


def _tracking_norms(module: nn.Module) -> list[_BatchNorm]:
    return [m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


@contextmanager
def _modes_restored(module: nn.Module) -> Iterator[None]:
    modes = [(m, m.training) for m in module.modules()]
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training


def curve(
    module: nn.Module,
    splits: Mapping[str, Batches],
    direction: Tensor,
    magnitudes: Sequence[float],
    *,
    recompute_on: Batches | None = None,
    precision: Precision = "fp32",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, tuple[CurvePoint, ...]]:
    """Measure `module` (images -> logits [B, C]) on every split at every distance along `direction`.

    `recompute_on`: images from which batch norm's statistics are recomputed at every distance, 0 included, so that the
    curve compares like with like; None leaves them frozen. `precision`: see
    `inference.Inference`. `progress(done, total)` is called after each distance.
    Returns for each split one point per magnitude, in their order. Runs in eval mode, without gradient; parameters,
    statistics and modes are afterwards what they were.
    """
    points: dict[str, list[CurvePoint]] = {split: [] for split in splits}
    with _modes_restored(module):
        module.eval()
        answers = Inference(module, precision)
        for done, magnitude in enumerate(magnitudes, start=1):
            with perturbed(module, direction, magnitude), statistics_restored(module):
                if recompute_on is not None:
                    recompute_statistics(module, (images for images, _ in recompute_on))
                answers.refresh()
                for split, batches in splits.items():
                    points[split].append(CurvePoint(magnitude, *_measure(answers, batches)))
            if progress is not None:
                progress(done, len(magnitudes))
    return {split: tuple(measured) for split, measured in points.items()}


@torch.inference_mode()
def _measure(answers: Callable[[Tensor], Tensor], batches: Batches) -> tuple[float, float]:
    """Top-1 error in percent and mean cross-entropy in nats."""
    images_seen = 0
    # Added up on the device: reading them after each batch would make the device wait.
    wrong: Tensor | None = None
    nats: Tensor | None = None
    for logits, labels in over_images(answers, batches):
        images_seen += len(labels)
        finite = logits.isfinite().all(-1, keepdim=True)
        batch_nats = F.cross_entropy(logits, labels, reduction="none").where(finite.squeeze(-1), math.inf)
        batch_nats = batch_nats.sum(dtype=torch.float64)
        batch_wrong = metrics.errors(logits.where(finite, math.nan), labels).top1
        wrong = batch_wrong if wrong is None else wrong + batch_wrong
        nats = batch_nats if nats is None else nats + batch_nats
    if wrong is None or nats is None or not images_seen:
        raise ValueError("there are no images to measure the error on")
    return 100 * int(wrong) / images_seen, float(nats) / images_seen
